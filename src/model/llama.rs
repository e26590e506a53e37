//! The Llama network (Touvron et al., arXiv 2302.13971; Mistral and Qwen2 differ in a window and in biases).
//!
//! One forward pass over a flat batch of rows: prompts in chunks and single new tokens of any sequences, through any
//! adapters, side by side.

use std::{collections::HashMap, ops::Range, sync::Mutex};

use candle_core::{Device, Result, Tensor};

use super::{Kv, SequenceRows, Spec};
use crate::{
    kernels::{
        attention::{Attention, Half, Write},
        dora::Change,
        elementwise::{Angles, GainRows, Normalised, RmsNorm},
        linear::{Input, Linear, Precision, Projection},
        lora::StackRows,
        panels::{Encoding, Panels},
        pool::Pool,
        simd::Tier,
    },
    lora::{Adapter, Base, Inputs, LoraBatch, Norm, Site, Sites},
};

/// One step's work: rows of any sequences, sorted so that each adapter's are one run.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// The token of each row.
    pub tokens: &'a [u32],
    /// The sequences that the rows belong to: together all rows, in order.
    pub sequences: &'a [SequenceRows<'a>],
    /// Which rows go through which adapter.
    pub lora: &'a LoraBatch,
    /// The rows whose logits are wanted, ascending.
    pub sample: &'a [u32],
    /// The rows whose hidden states are wanted, ascending.
    pub pool: &'a [u32],
}

impl Step<'_> {
    /// The rows of which something is wanted, ascending.
    pub(super) fn wanted(&self) -> Result<Vec<u32>> {
        let rows = self.tokens.len();
        if self.sequences.iter().map(|s| s.rows.len()).sum::<usize>() != rows {
            candle_core::bail!("a step's sequences are not its {rows} rows");
        }
        for wanted in [self.sample, self.pool] {
            let ascending = wanted.is_sorted_by(|one, next| one < next);
            if !ascending || wanted.last().is_some_and(|last| *last as usize >= rows) {
                candle_core::bail!("a step of {rows} rows does not give {wanted:?}");
            }
        }
        let mut wanted = [self.sample, self.pool].concat();
        wanted.sort_unstable();
        wanted.dedup();
        Ok(wanted)
    }
}

/// What a step gives beside keys and values.
#[derive(Clone, Debug)]
pub struct Outputs {
    /// `[sample, vocab]`
    pub logits: Tensor,
    /// `[pool, hidden]`, behind the final norm: what the head takes.
    pub states: Tensor,
}

/// A frozen base in memory.
#[derive(Debug)]
pub struct Llama {
    spec: Spec,
    sites: Sites,
    tier: Tier,
    pool: Pool,
    precision: Precision,
    weights: Weights,
}

/// What a base computes with.
pub(super) struct Compute {
    pub(super) tier: Tier,
    pub(super) pool: Pool,
    pub(super) precision: Precision,
}

#[derive(Debug)]
pub(super) struct Weights {
    /// `[vocab, hidden]`
    pub(super) embedding: Projection,
    /// `None` where it is the embedding.
    pub(super) head: Option<Projection>,
    pub(super) norm: Vec<f32>,
    pub(super) layers: Vec<Layer>,
    /// Radians per position, `[dim / 2]`.
    pub(super) frequencies: Vec<f32>,
    /// What queries and keys are multiplied by.
    pub(super) attention: f32,
}

#[derive(Debug)]
pub(super) struct Layer {
    pub(super) attention_norm: Vec<f32>,
    pub(super) qkv: Vec<Projection>,
    pub(super) o: Vec<Projection>,
    pub(super) feed_forward_norm: Vec<f32>,
    pub(super) gate_up: Vec<Projection>,
    pub(super) down: Vec<Projection>,
}

impl Weights {
    fn panels(&self) -> impl Iterator<Item = &Panels> {
        let layers = self.layers.iter().flat_map(|layer| {
            [&layer.qkv, &layer.o, &layer.gate_up, &layer.down].into_iter().flatten()
        });
        let all = layers.chain([&self.embedding]).chain(&self.head);
        all.map(|projection| &*projection.weights)
    }
}

impl Layer {
    pub(super) fn projections(&self, inputs: Inputs) -> &[Projection] {
        match inputs {
            Inputs::Qkv => &self.qkv,
            Inputs::O => &self.o,
            Inputs::GateUp => &self.gate_up,
            Inputs::Down => &self.down,
        }
    }
}

/// What a layer knows of its rows.
#[derive(Clone, Copy)]
struct Rows<'a> {
    sequences: &'a [SequenceRows<'a>],
    angles: Angles<'a>,
    lora: &'a LoraBatch,
}

/// Maps of one layer that share an input.
#[derive(Clone, Copy)]
struct Maps<'a> {
    projections: &'a [Projection],
    layer: usize,
    inputs: Inputs,
}

impl Llama {
    pub(super) fn new(spec: Spec, compute: Compute, weights: Weights) -> Self {
        let Compute { tier, pool, precision } = compute;
        let sites = spec.sites();
        let rounds = weights.panels().any(Panels::are_codes);
        let precision = if rounds { precision } else { Precision::Exact };
        Self { spec, sites, tier, pool, precision, weights }
    }

    /// The network's shape.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The instructions its kernels run with.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// How its products are computed: exactly in any case where nothing is quantized.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Threads of its kernels.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// What it computes with.
    #[cfg(any(test, feature = "cuda"))]
    pub(super) fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Bytes of its weights in memory.
    pub fn bytes(&self) -> usize {
        self.weights.panels().map(Panels::bytes).sum()
    }

    /// How most of its weights are encoded.
    pub fn encoding(&self) -> Encoding {
        let mut bytes = HashMap::new();
        for panels in self.weights.panels() {
            *bytes.entry(panels.encoding()).or_insert(0) += panels.bytes();
        }
        let most = bytes.into_iter().max_by_key(|(_, bytes)| *bytes);
        most.map_or(Encoding::F32, |(encoding, _)| encoding)
    }

    /// Logits and hidden states of the wanted rows, after putting every row's keys and values into `kv`.
    pub fn forward(&self, step: &Step<'_>, kv: &mut Kv) -> Result<Outputs> {
        let device = Device::Cpu;
        let (hidden, rows) = (self.spec.hidden, step.tokens.len());
        let wanted = step.wanted()?;
        let (cos, sin) = self.angles(step.sequences);
        let angles = Angles { cos: &cos, sin: &sin };
        let all = Rows { sequences: step.sequences, angles, lora: step.lora };
        let mut x = Tensor::from_vec(self.embed(step)?, (rows, hidden), &device)?;
        for layer in 0..self.spec.layers {
            let qkv = self.linear(&x, all.lora, Norm::Attention(layer), Inputs::Qkv)?;
            self.remember(&qkv, all, layer, kv)?;
            let last = layer + 1 == self.spec.layers;
            if last && (wanted.is_empty() || wanted.len() < rows) {
                x = self.last_layer(step, &wanted, (&x, &qkv), (layer, kv))?;
            } else {
                x = self.layer(&x, &qkv, all, (layer, kv))?;
            }
        }
        self.outputs(step, &wanted, &x)
    }

    /// The last layer of the `wanted` rows: of the others, keys and values alone are of use.
    fn last_layer(
        &self,
        step: &Step<'_>,
        wanted: &[u32],
        (x, qkv): (&Tensor, &Tensor),
        (layer, kv): (usize, &Kv),
    ) -> Result<Tensor> {
        let (x, qkv) = (select(x, wanted)?, select(qkv, wanted)?);
        if wanted.is_empty() {
            return Ok(x);
        }
        let (sequences, lora) = (wanted_rows(step, wanted), step.lora.of_rows(wanted));
        let (cos, sin) = self.angles(&sequences);
        let angles = Angles { cos: &cos, sin: &sin };
        let rows = Rows { sequences: &sequences, angles, lora: &lora };
        self.layer(&x, &qkv, rows, (layer, kv))
    }

    /// What is wanted of `x`, the `wanted` rows behind the last layer.
    fn outputs(&self, step: &Step<'_>, wanted: &[u32], x: &Tensor) -> Result<Outputs> {
        let of = |rows: &[u32]| {
            if rows.len() == wanted.len() {
                return Ok(x.clone());
            }
            let own = (0..).zip(wanted).filter(|(_, row)| rows.binary_search(row).is_ok());
            select(x, &own.map(|(place, _)| place).collect::<Vec<u32>>())
        };
        let logits = self.logits(&of(step.sample)?, &step.lora.of_rows(step.sample))?;
        let lora = step.lora.of_rows(step.pool);
        let gains = lora.gains(Norm::Final);
        let norm = Normalised { tier: self.tier, norm: self.norm(Norm::Final, &gains) };
        let states = of(step.pool)?.apply_op1_no_bwd(&norm)?;
        Ok(Outputs { logits, states })
    }

    /// What a layer makes of `x`, whose queries, keys and values are known: keys and values are in the cache.
    fn layer(
        &self,
        x: &Tensor,
        qkv: &Tensor,
        rows: Rows<'_>,
        (layer, kv): (usize, &Kv),
    ) -> Result<Tensor> {
        let a = self.attend(qkv, rows, layer, kv)?;
        let x = self.linear_onto(x, &a, rows.lora, self.maps(layer, Inputs::O))?;
        let f = self.linear(&x, rows.lora, Norm::FeedForward(layer), Inputs::GateUp)?;
        self.linear_onto(&x, &f, rows.lora, self.maps(layer, Inputs::Down))
    }

    /// Puts the keys and values of `[queries, keys, values]` into the cache.
    fn remember(&self, qkv: &Tensor, rows: Rows<'_>, layer: usize, kv: &Kv) -> Result<()> {
        let Rows { sequences, angles, .. } = rows;
        let (keys, values) = &kv.layers[layer];
        let write =
            |half| Write { half, pool: &self.pool, heads: self.spec.heads, angles, sequences };
        keys.inplace_op2(qkv, &write(Half::Keys))?;
        values.inplace_op2(qkv, &write(Half::Values))
    }

    fn attend(&self, qkv: &Tensor, rows: Rows<'_>, layer: usize, kv: &Kv) -> Result<Tensor> {
        let Rows { sequences, angles, .. } = rows;
        let heads = self.spec.heads;
        let (keys, values) = &kv.layers[layer];
        let attention = Attention { tier: self.tier, pool: &self.pool, heads, angles, sequences };
        qkv.apply_op3_no_bwd(keys, values, &attention)
    }

    fn maps(&self, layer: usize, inputs: Inputs) -> Maps<'_> {
        Maps { projections: self.weights.layers[layer].projections(inputs), layer, inputs }
    }

    /// The maps of a layer that take a normalisation of `x`.
    fn linear(&self, x: &Tensor, lora: &LoraBatch, norm: Norm, inputs: Inputs) -> Result<Tensor> {
        let (Norm::Attention(layer) | Norm::FeedForward(layer)) = norm else {
            candle_core::bail!("{norm:?} is of no layer");
        };
        let stacks = lora.stacks(|adapter| adapter.stack(layer, inputs));
        let gains = lora.gains(norm);
        let projections = self.maps(layer, inputs).projections;
        x.apply_op1_no_bwd(&self.op(Input::Norm(self.norm(norm, &gains)), projections, &stacks))
    }

    /// Maps of `x`, added to the residual stream.
    fn linear_onto(
        &self,
        residual: &Tensor,
        x: &Tensor,
        lora: &LoraBatch,
        maps: Maps<'_>,
    ) -> Result<Tensor> {
        let input = if maps.inputs == Inputs::Down { Input::Gated } else { Input::Rows };
        let stacks = lora.stacks(|adapter| adapter.stack(maps.layer, maps.inputs));
        x.apply_op2_no_bwd(residual, &self.op(input, maps.projections, &stacks))
    }

    fn op<'a>(
        &'a self,
        input: Input<'a>,
        projections: &'a [Projection],
        stacks: &'a [StackRows<'a>],
    ) -> Linear<'a> {
        let Self { tier, pool, precision, .. } = self;
        Linear { tier: *tier, pool, precision: *precision, input, projections, stacks }
    }

    fn norm<'a>(&'a self, norm: Norm, gains: &'a [GainRows<'a>]) -> RmsNorm<'a> {
        let gain = match norm {
            Norm::Attention(layer) => &self.weights.layers[layer].attention_norm,
            Norm::FeedForward(layer) => &self.weights.layers[layer].feed_forward_norm,
            Norm::Final => &self.weights.norm,
        };
        RmsNorm { gain, gains, eps: self.spec.eps }
    }

    /// Rows `[rows, hidden]` of the embedding, each with its adapter's.
    pub(super) fn embed(&self, step: &Step<'_>) -> Result<Vec<f32>> {
        let (hidden, vocab) = (self.spec.hidden, self.spec.vocab);
        if let Some(token) = step.tokens.iter().find(|token| **token as usize >= vocab) {
            candle_core::bail!("token {token} of a vocabulary of {vocab}");
        }
        let mut x = vec![0.0; step.tokens.len() * hidden];
        // A row of the embedding is a column of a panel, whose numbers lie far from each other: threads wait for them side by side.
        let rows: Vec<_> = x.chunks_exact_mut(hidden).map(Mutex::new).collect();
        self.pool.run(rows.len(), |row| {
            let token = step.tokens[row] as usize;
            let mut x = rows[row].lock().expect("each is locked once");
            let adapter = step.lora.adapter(row);
            if !adapter.is_some_and(|adapter| adapter.replaced_embedding(token, &mut x)) {
                self.weights.embedding.weights.row(token, &mut x);
            }
            if let Some(adapter) = adapter {
                adapter.embed(token, &mut x);
            }
        });
        drop(rows);
        Ok(x)
    }

    /// Cosine and sine `[rows, dim / 2]` of each row's position, which make queries and keys longer where the scaling says so.
    fn angles(&self, sequences: &[SequenceRows<'_>]) -> (Vec<f32>, Vec<f32>) {
        self.angles_of(sequences.iter().flat_map(|s| s.position..s.position + s.rows.len()))
    }

    /// The same of any positions.
    pub(super) fn angles_of(
        &self,
        positions: impl IntoIterator<Item = usize>,
    ) -> (Vec<f32>, Vec<f32>) {
        let angles = positions.into_iter().flat_map(|position| {
            // The product in f32, as transformers has it; its cosine to the last bit.
            self.weights.frequencies.iter().map(move |freq| f64::from(position as f32 * freq))
        });
        #[expect(clippy::cast_possible_truncation, reason = "rounded once, to f32")]
        let of = |angle: f64| (angle.cos() as f32, angle.sin() as f32);
        let longer = self.weights.attention;
        angles.map(of).map(|(cos, sin)| (cos * longer, sin * longer)).unzip()
    }

    pub(super) fn head(&self) -> &Projection {
        self.weights.head.as_ref().unwrap_or(&self.weights.embedding)
    }

    /// `[rows, hidden] -> [rows, vocab]`, normalised first; rows whose adapter brings a head of its own go through that.
    fn logits(&self, x: &Tensor, lora: &LoraBatch) -> Result<Tensor> {
        let rows = x.dim(0)?;
        if rows == 0 {
            return Tensor::zeros((0, self.spec.vocab), x.dtype(), x.device());
        }
        let mut parts = Vec::new();
        let mut part = |rows: Range<usize>, head: &Projection| -> Result<()> {
            if rows.is_empty() {
                return Ok(());
            }
            let x = x.narrow(0, rows.start, rows.len())?;
            let lora = lora.part(rows);
            let stacks = lora.stacks(Adapter::head);
            let gains = lora.gains(Norm::Final);
            let norm = Input::Norm(self.norm(Norm::Final, &gains));
            let op = self.op(norm, std::slice::from_ref(head), &stacks);
            parts.push(x.apply_op1_no_bwd(&op)?);
            Ok(())
        };
        let mut done = 0;
        for (own, adapter) in lora.groups() {
            if let Some(head) = adapter.replaced_head() {
                part(done..own.start, self.head())?;
                part(own.clone(), head)?;
                done = own.end;
            }
        }
        part(done..rows, self.head())?;
        match parts.as_slice() {
            [all] => Ok(all.clone()),
            _ => Tensor::cat(&parts, 0),
        }
    }

    /// The map of a site without its bias; the embedding's is its transpose, as the head has it.
    fn map(&self, site: Site) -> Projection {
        let projection = match site {
            Site::Embed => &self.weights.embedding,
            Site::Head => self.head(),
            Site::Layer(layer, proj) => {
                let (inputs, at) = Inputs::of(proj);
                &self.weights.layers[layer].projections(inputs)[at]
            }
        };
        Projection { bias: None, ..projection.clone() }
    }
}

/// These rows of a matrix.
fn select(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    if rows.is_empty() {
        return Tensor::zeros((0, x.dim(1)?), x.dtype(), x.device());
    }
    x.index_select(&Tensor::from_slice(rows, rows.len(), x.device())?, 0)
}

/// The `wanted` rows of a step, as rows of their own.
fn wanted_rows<'a>(step: &Step<'a>, wanted: &[u32]) -> Vec<SequenceRows<'a>> {
    let mut found: Vec<SequenceRows<'a>> = Vec::new();
    let mut own = step.sequences.iter();
    let mut sequence = own.next();
    for (place, row) in wanted.iter().enumerate() {
        let row = *row as usize;
        while sequence.is_some_and(|sequence| sequence.rows.end <= row) {
            sequence = own.next();
        }
        let Some(SequenceRows { rows, position, pages }) = sequence else { break };
        let position = position + (row - rows.start);
        match found.last_mut() {
            Some(last)
                if std::ptr::eq(last.pages, *pages)
                    && last.position + last.rows.len() == position =>
            {
                last.rows.end += 1;
            }
            _ => found.push(SequenceRows { rows: place..place + 1, position, pages }),
        }
    }
    found
}

impl Base for Llama {
    fn sites(&self) -> &Sites {
        &self.sites
    }

    /// On the caller's own thread: whoever builds an adapter does not take the step's.
    fn lengths_squared(&self, site: Site, change: &Change<'_>) -> Vec<f64> {
        let weights = self.map(site).weights;
        if site != Site::Embed {
            return change.lengths_squared(self.tier, &weights);
        }
        // It lies there as its transpose: (B A)^T = A^T B^T.
        let (inputs, outputs) = self.sites.dims(site);
        let transposed = |values: &[f32], columns: usize| -> Vec<f32> {
            let column = |at| values.iter().skip(at).step_by(columns).copied();
            (0..columns).flat_map(column).collect()
        };
        let (a, b) = (transposed(change.b, change.rank), transposed(change.a, inputs));
        debug_assert_eq!(a.len(), change.rank * outputs, "B^T [rank, outputs]");
        let change = Change { a: &a, b: &b, ..*change };
        change.lengths_squared_of_inputs(self.tier, &weights)
    }

    fn stored_row(&self, site: Site, row: usize, values: &mut [f32]) {
        self.map(site).weights.row(row, values);
    }
}

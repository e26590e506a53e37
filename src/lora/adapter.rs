//! An adapter as the kernels want it.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Delta as FileDelta, Digest, Dtype, Manifest, Matrices, Memory, Norm, Proj, Refusal, Site,
    Sites, View, matrices::number_type,
};
use crate::kernels::{
    dora::Change,
    linear::Projection,
    lora::{Delta, LowRank, Stack, padded_inputs, padded_outputs, place_in_b},
    memory::Slab,
    numbers::{GROUP, NumberType, Numbers},
    panels::{COLUMNS, Encoding, Panels},
};

/// What an adapter may ask of the frozen base while it is built.
pub trait Base: Send + Sync + std::fmt::Debug {
    /// Its sites and their shapes.
    fn sites(&self) -> &Sites;
    /// `||W_i + scale (B A)_i||^2` for each output `i` of a site; inputs and outputs are those of [`Sites::dims`].
    fn lengths_squared(&self, site: Site, change: &Change<'_>) -> Vec<f64>;
    /// Row `row` of the site's weight as a file has it: for the embedding `[vocab, hidden]`.
    fn stored_row(&self, site: Site, row: usize, values: &mut [f32]);
}

/// The sites of a layer that share an input, and so a stacked A.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inputs {
    /// q, k and v.
    Qkv,
    /// o.
    O,
    /// gate and up.
    GateUp,
    /// down.
    Down,
}

impl Inputs {
    /// In the order of the forward pass.
    pub const ALL: [Self; 4] = [Self::Qkv, Self::O, Self::GateUp, Self::Down];

    /// The projections, in the order of their outputs.
    pub fn projections(self) -> &'static [Proj] {
        match self {
            Self::Qkv => &[Proj::Q, Proj::K, Proj::V],
            Self::O => &[Proj::O],
            Self::GateUp => &[Proj::Gate, Proj::Up],
            Self::Down => &[Proj::Down],
        }
    }

    /// The group of a projection and its place there.
    pub fn of(proj: Proj) -> (Self, usize) {
        match proj {
            Proj::Q => (Self::Qkv, 0),
            Proj::K => (Self::Qkv, 1),
            Proj::V => (Self::Qkv, 2),
            Proj::O => (Self::O, 0),
            Proj::Gate => (Self::GateUp, 0),
            Proj::Up => (Self::GateUp, 1),
            Proj::Down => (Self::Down, 0),
        }
    }
}

/// Why an adapter that was read completely could not be built.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum BuildError {
    /// It does not go with this base.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The system has no memory for it now.
    #[error("the system has no {bytes} bytes of memory left for it")]
    NoMemory {
        /// Bytes asked for.
        bytes: usize,
    },
}

/// A loaded adapter: immutable, and as large as its own ranks and targets make it.
#[derive(Debug)]
pub struct Adapter {
    digest: Digest,
    bytes: usize,
    /// For each layer, by [`Inputs`].
    layers: Vec<[Option<Stack>; 4]>,
    head: Option<Stack>,
    own_head: Option<Projection>,
    embed: Option<Embed>,
    /// `[vocab, hidden]`
    own_embedding: Option<Numbers>,
    gains: BTreeMap<Norm, Vec<f32>>,
    /// What it is a mix of, and how much of each; it has nothing of its own then.
    mixed: Vec<(Arc<Self>, f32)>,
}

/// Adapters that cannot be added up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} cannot be mixed: a mix is a sum of low-rank changes")]
pub struct NotMixable {
    /// What one of them has.
    pub what: &'static str,
}

/// A delta of the embedding: a lookup, then a product.
#[derive(Debug)]
struct Embed {
    rank: usize,
    scale: f32,
    /// `A^T [vocab, rank]`
    a: Numbers,
    /// `B^T [rank, hidden]`
    b: Numbers,
    /// See [`Delta::gain`].
    gain: Option<Vec<f32>>,
}

impl Adapter {
    /// Repacks what `manifest` describes, rounds what is to be rounded, and folds into it what depends on the base.
    pub fn build(
        digest: Digest,
        manifest: &Manifest<'_>,
        base: &dyn Base,
        matrices: Matrices,
    ) -> Result<Self, BuildError> {
        Self::compare_copies(manifest, base)?;
        let sites = base.sites();
        let Planned { numbers, .. } = Planned::of(manifest, sites, matrices);
        let slab = Slab::new(numbers).map_err(|_| BuildError::NoMemory { bytes: numbers })?;
        let builder = Builder { manifest, base, sites, matrices, slab };
        let layer = |layer| -> Result<[Option<Stack>; 4], Refusal> {
            let [qkv, o, gate_up, down] = Inputs::ALL.map(|inputs| {
                let sites = inputs.projections().iter().map(|proj| Site::Layer(layer, *proj));
                builder.stack(&sites.collect::<Vec<_>>())
            });
            Ok([qkv?, o?, gate_up?, down?])
        };
        let mut adapter = Self {
            digest,
            bytes: 0,
            layers: (0..sites.layers).map(layer).collect::<Result<_, _>>()?,
            head: builder.stack(&[Site::Head])?,
            own_head: builder.own_head(),
            embed: builder.embed()?,
            own_embedding: builder.own_embedding(),
            gains: manifest.norms.iter().map(|(norm, view)| (*norm, floats(view))).collect(),
            mixed: Vec::new(),
        };
        adapter.bytes = adapter.measure();
        Ok(adapter)
    }

    /// The sum of these adapters' changes, so much of each (Hu et al., arXiv 2106.09685, section 4: changes of one base add up).
    ///
    /// Nothing is copied. The parts are computed one after the other in this order.
    pub fn mix(parts: Vec<(Arc<Self>, f32)>) -> Result<Self, NotMixable> {
        for (part, _) in &parts {
            if let Some(what) = part.beyond_low_rank() {
                return Err(NotMixable { what });
            }
        }
        let digest = Digest::of_mix(parts.iter().map(|(part, weight)| (part.digest, *weight)));
        Ok(Self {
            digest,
            bytes: 0,
            layers: Vec::new(),
            head: None,
            own_head: None,
            embed: None,
            own_embedding: None,
            gains: BTreeMap::new(),
            mixed: parts,
        })
    }

    /// What it does beside adding low-rank products, for people to read.
    fn beyond_low_rank(&self) -> Option<&'static str> {
        let stacks = self.layers.iter().flatten().flatten().chain(&self.head);
        let mut deltas = stacks.flat_map(|stack| &stack.sites);
        let embed = self.embed.as_ref();
        if deltas.any(|delta| delta.gain.is_some())
            || embed.is_some_and(|embed| embed.gain.is_some())
        {
            return Some("an adapter with DoRA");
        }
        let stacks = self.layers.iter().flatten().flatten().chain(&self.head);
        if stacks.flat_map(|stack| &stack.sites).any(|delta| delta.bias.is_some()) {
            return Some("an adapter that replaces a bias");
        }
        if self.own_head.is_some() || self.own_embedding.is_some() {
            return Some("an adapter that replaces the embedding or the head");
        }
        if !self.gains.is_empty() {
            return Some("an adapter that replaces a norm");
        }
        (!self.mixed.is_empty()).then_some("a mix")
    }

    /// What its rows go through, and how much of each: itself, or what it is a mix of.
    pub fn parts(&self) -> impl Iterator<Item = (&Self, f32)> {
        let own = self.mixed.is_empty().then_some((self, 1.0));
        own.into_iter().chain(self.mixed.iter().map(|(part, weight)| (&**part, *weight)))
    }

    /// The same as they are shared: a device has each of them once, whatever mixes they are in.
    #[cfg(any(test, feature = "cuda"))]
    pub(crate) fn shared_parts(this: &Arc<Self>) -> impl Iterator<Item = (&Arc<Self>, f32)> {
        let own = this.mixed.is_empty().then_some((this, 1.0));
        own.into_iter().chain(this.mixed.iter().map(|(part, weight)| (part, *weight)))
    }

    /// Fails unless the base weights that came with the adapter are the base's own.
    ///
    /// PEFT may save a targeted embedding along with its delta. The delta is meant for that one, so it has to be ours.
    pub fn compare_copies(manifest: &Manifest<'_>, base: &dyn Base) -> Result<(), Refusal> {
        let Sites { hidden, vocab, .. } = *base.sites();
        let (mut row, mut copy) = (vec![0.0; hidden], vec![0.0; hidden]);
        for (site, view) in &manifest.copies {
            for token in 0..vocab {
                base.stored_row(*site, token, &mut row);
                view.read(token * hidden..(token + 1) * hidden, &mut copy);
                if row != copy {
                    return Err(Refusal::CopyDiffers { site: *site });
                }
            }
        }
        Ok(())
    }

    /// What [`Self::build`] will take for `manifest`, known before anything is allocated.
    pub fn planned_memory(manifest: &Manifest<'_>, sites: &Sites) -> Memory {
        let bytes = |matrices| {
            let Planned { numbers, vectors, panels } = Planned::of(manifest, sites, matrices);
            numbers + vectors + panels
        };
        Memory { native: bytes(Matrices::Native), int8: bytes(Matrices::Int8) }
    }

    fn measure(&self) -> usize {
        let vector = |v: &Option<Vec<f32>>| v.as_ref().map_or(0, |v| v.len() * size_of::<f32>());
        let delta = |delta: &Delta| {
            let low = delta.low_rank.as_ref().map_or(0, |low| low.b.bytes() + vector(&low.bias));
            low + vector(&delta.gain) + vector(&delta.bias)
        };
        let stacks = self.layers.iter().flatten().flatten().chain(&self.head);
        let stacks: usize =
            stacks.map(|s| s.a.bytes() + s.sites.iter().map(delta).sum::<usize>()).sum();
        let embed = self.embed.as_ref();
        stacks
            + embed.map_or(0, |e| e.a.bytes() + e.b.bytes() + vector(&e.gain))
            + self.own_embedding.as_ref().map_or(0, Numbers::bytes)
            + self.own_head.as_ref().map_or(0, |head| head.weights.bytes())
            + self.gains.values().map(|gain| gain.len() * size_of::<f32>()).sum::<usize>()
    }

    /// What it is.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Bytes it takes in memory.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What it adds where a layer's sites share an input.
    pub fn stack(&self, layer: usize, inputs: Inputs) -> Option<&Stack> {
        self.layers[layer][inputs as usize].as_ref()
    }

    /// What it adds to the head.
    pub fn head(&self) -> Option<&Stack> {
        self.head.as_ref()
    }

    /// The head it was trained with, in the place of the base's.
    pub fn replaced_head(&self) -> Option<&Projection> {
        self.own_head.as_ref()
    }

    /// The gain it was trained with, in the place of the base's.
    pub fn gain(&self, norm: Norm) -> Option<&[f32]> {
        self.gains.get(&norm).map(Vec::as_slice)
    }

    /// Writes the token's row of the embedding it was trained with into `x [hidden]`; false where that is the base's.
    pub fn replaced_embedding(&self, token: usize, x: &mut [f32]) -> bool {
        let Some(own) = &self.own_embedding else { return false };
        let at = token * x.len();
        x.iter_mut().enumerate().for_each(|(i, x)| *x = own.get(at + i));
        true
    }

    /// Adds its delta of the token's embedding to `x [hidden]`.
    pub fn embed(&self, token: usize, x: &mut [f32]) {
        for (part, weight) in self.parts() {
            if let Some(embed) = &part.embed {
                embed.add(token, weight, x);
            }
        }
    }
}

impl Embed {
    fn add(&self, token: usize, weight: f32, x: &mut [f32]) {
        let (hidden, scale) = (x.len(), self.scale * weight);
        for (i, x) in x.iter_mut().enumerate() {
            let terms = (0..self.rank)
                .map(|r| self.a.get(token * self.rank + r) * self.b.get(r * hidden + i));
            *x += scale * terms.sum::<f32>();
            *x *= self.gain.as_ref().map_or(1.0, |gain| gain[i]);
        }
    }
}

/// Bytes of an adapter by what they are.
#[derive(Default)]
struct Planned {
    /// Matrices in the adapter's slab.
    numbers: usize,
    /// Gains and biases.
    vectors: usize,
    /// A head of its own.
    panels: usize,
}

impl Planned {
    fn of(manifest: &Manifest<'_>, sites: &Sites, matrices: Matrices) -> Self {
        let mut planned = Self::default();
        for (site, delta) in &manifest.deltas {
            let (_, outputs) = sites.dims(*site);
            let own = usize::from(delta.magnitude.is_some()) + usize::from(delta.bias.is_some());
            planned.vectors += own * outputs * size_of::<f32>();
            if *site == Site::Embed {
                let kind = matrices.number_type(&[&delta.a, &delta.b]);
                planned.numbers += Numbers::bytes_of(kind, sites.vocab * delta.rank)
                    + Numbers::bytes_of(kind, sites.hidden * delta.rank);
            } else {
                let b = padded_outputs(outputs) * delta.rank;
                planned.numbers += Numbers::bytes_of(matrices.number_type(&[&delta.b]), b);
            }
        }
        for group in groups(sites) {
            let deltas = || group.iter().filter_map(|site| manifest.deltas.get(site));
            let rank: usize = deltas().map(|delta| delta.rank).sum();
            let a = rank * padded_inputs(sites.dims(group[0]).0);
            let views: Vec<_> = deltas().map(|delta| &delta.a).collect();
            planned.numbers += Numbers::bytes_of(matrices.number_type(&views), a);
        }
        let biases: usize = manifest.biases.keys().map(|site| sites.dims(*site).1).sum();
        planned.vectors += (biases + manifest.norms.len() * sites.hidden) * size_of::<f32>();
        for (site, view) in &manifest.replaced {
            if *site == Site::Head {
                planned.panels = Panels::bytes_of(encoding(view), (sites.vocab, sites.hidden));
            } else {
                planned.numbers += Numbers::bytes_of(number_type(view.dtype()), view.len());
            }
        }
        planned
    }
}

/// The sites that share an input, of all layers, and the head.
fn groups(sites: &Sites) -> impl Iterator<Item = Vec<Site>> {
    let of = |(layer, inputs): (usize, Inputs)| {
        inputs.projections().iter().map(|proj| Site::Layer(layer, *proj)).collect()
    };
    let layers = (0..sites.layers).flat_map(|layer| Inputs::ALL.map(|inputs| (layer, inputs)));
    layers.map(of).chain([vec![Site::Head]])
}

struct Builder<'a> {
    manifest: &'a Manifest<'a>,
    base: &'a dyn Base,
    sites: &'a Sites,
    matrices: Matrices,
    slab: Slab,
}

impl Builder<'_> {
    fn zeros(&self, kind: NumberType, len: usize) -> Numbers {
        Numbers::zeros(&self.slab, kind, len).expect("it does not grow, and was planned for all")
    }

    fn stack(&self, group: &[Site]) -> Result<Option<Stack>, Refusal> {
        let touched = |site: &Site| {
            self.manifest.deltas.contains_key(site) || self.manifest.biases.contains_key(site)
        };
        if !group.iter().any(touched) {
            return Ok(None);
        }
        let (inputs, _) = self.sites.dims(group[0]);
        let deltas = || group.iter().filter_map(|site| self.manifest.deltas.get(site));
        let rank = deltas().map(|delta| delta.rank).sum();
        let kind = self.matrices.number_type(&deltas().map(|delta| &delta.a).collect::<Vec<_>>());
        let mut a = self.zeros(kind, rank * padded_inputs(inputs));
        let mut row = vec![0.0; padded_inputs(inputs)];
        let rows = deltas().flat_map(|delta| (0..delta.rank).map(|r| (&delta.a, r)));
        for (at, (view, r)) in rows.enumerate() {
            view.read(r * inputs..(r + 1) * inputs, &mut row[..inputs]);
            a.write(at * row.len(), &row);
        }
        let mut sites = Vec::with_capacity(group.len());
        let mut first = 0;
        for site in group {
            sites.push(self.delta(*site, (&a, first))?);
            first += self.manifest.deltas.get(site).map_or(0, |delta| delta.rank);
        }
        Ok(Some(Stack { a, rank, inputs, sites }))
    }

    /// What is done at a site, whose A begins at row `first` of the stack's `a`.
    fn delta(&self, site: Site, (a, first): (&Numbers, usize)) -> Result<Delta, Refusal> {
        let bias = self.manifest.biases.get(&site).map(floats);
        let Some(delta) = self.manifest.deltas.get(&site) else {
            return Ok(Delta { bias, ..Delta::default() });
        };
        let (inputs, outputs) = self.sites.dims(site);
        let (rank, scale) = (delta.rank, delta.scale);
        let kind = self.matrices.number_type(&[&delta.b]);
        let mut b = self.zeros(kind, rank * padded_outputs(outputs));
        let mut rows = vec![0.0; COLUMNS * rank];
        for from in (0..outputs).step_by(COLUMNS) {
            let rows = &mut rows[..COLUMNS.min(outputs - from) * rank];
            delta.b.read(from * rank..from * rank + rows.len(), rows);
            let mut panel = vec![0.0; rank * COLUMNS];
            for (at, value) in rows.iter().enumerate() {
                panel[place_in_b(rank, at % rank, at / rank)] = *value;
            }
            b.write(from * rank, &panel);
        }
        let served_a = |r: usize, input: usize| a.get((first + r) * padded_inputs(inputs) + input);
        let served_b = |output: usize, r: usize| b.get(place_in_b(rank, r, output));
        let gain = self.gain(site, delta, (&served_a, &served_b))?;
        let own = delta.bias.as_ref().map(|b| floats(b).into_iter().map(|b| b * scale).collect());
        let low_rank = Some(LowRank { first, rank, scale, b, bias: own });
        Ok(Delta { low_rank, gain, bias })
    }

    /// `m_i / ||W_i + s B_i A||` for each output, of A and B as they are served: where they are rounded, the length of what
    /// came out is divided by, so that a row has the length that it was trained to have.
    fn gain(
        &self,
        site: Site,
        delta: &FileDelta<'_>,
        (a, b): (Served<'_>, Served<'_>),
    ) -> Result<Option<Vec<f32>>, Refusal> {
        let Some(magnitude) = &delta.magnitude else { return Ok(None) };
        let ((inputs, outputs), rank) = (self.sites.dims(site), delta.rank);
        let a: Vec<_> = (0..rank * inputs).map(|at| a(at / inputs, at % inputs)).collect();
        let b: Vec<_> = (0..outputs * rank).map(|at| b(at / rank, at % rank)).collect();
        let change = Change { rank, scale: delta.scale, a: &a, b: &b };
        let lengths = self.base.lengths_squared(site, &change);
        let gain = |(output, (magnitude, squared)): (usize, (f32, f64))| {
            #[expect(clippy::cast_possible_truncation, reason = "computed in f64, kept as f32")]
            let gain = (f64::from(magnitude) / squared.sqrt()) as f32;
            if gain.is_finite() { Ok(gain) } else { Err(Refusal::Degenerate { site, output }) }
        };
        magnitude.values().zip(lengths).enumerate().map(gain).collect::<Result<_, _>>().map(Some)
    }

    fn embed(&self) -> Result<Option<Embed>, Refusal> {
        let Some(delta) = self.manifest.deltas.get(&Site::Embed) else { return Ok(None) };
        let (rank, vocab, hidden) = (delta.rank, self.sites.vocab, self.sites.hidden);
        let kind = self.matrices.number_type(&[&delta.a, &delta.b]);
        let mut a = self.zeros(kind, vocab * rank);
        write_transposed(&mut a, &delta.a, vocab);
        let mut b = self.zeros(kind, rank * hidden);
        write_transposed(&mut b, &delta.b, rank);
        let served_a = |r: usize, token: usize| a.get(token * rank + r);
        let served_b = |output: usize, r: usize| b.get(r * hidden + output);
        let gain = self.gain(Site::Embed, delta, (&served_a, &served_b))?;
        Ok(Some(Embed { rank, scale: delta.scale, a, b, gain }))
    }

    fn own_embedding(&self) -> Option<Numbers> {
        let view = self.manifest.replaced.get(&Site::Embed)?;
        let mut all = self.zeros(number_type(view.dtype()), view.len());
        let mut part = [0.0; 64 * GROUP];
        for first in (0..view.len()).step_by(part.len()) {
            let end = view.len().min(first + part.len());
            view.read(first..end, &mut part[..end - first]);
            all.write(first, &part[..end - first]);
        }
        Some(all)
    }

    fn own_head(&self) -> Option<Projection> {
        let view = self.manifest.replaced.get(&Site::Head)?;
        let shape = (self.sites.vocab, self.sites.hidden);
        let weights = Panels::pack(encoding(view), shape, view.bytes(), |row| row);
        let weights = weights.expect("the manifest's shapes are the sites'").into();
        Some(Projection { weights, bias: None })
    }
}

fn floats(view: &View<'_>) -> Vec<f32> {
    view.values().collect()
}

/// A number of A or B by its row and column.
type Served<'a> = &'a dyn Fn(usize, usize) -> f32;

/// Writes the transpose of `view [rows, columns]`.
fn write_transposed(numbers: &mut Numbers, view: &View<'_>, columns: usize) {
    let rows = view.len() / columns;
    let mut some = [0.0; GROUP];
    for first in (0..columns).step_by(GROUP) {
        let some = &mut some[..GROUP.min(columns - first)];
        let mut transposed = vec![0.0; some.len() * rows];
        for row in 0..rows {
            let from = row * columns + first;
            view.read(from..from + some.len(), some);
            for (column, value) in some.iter().enumerate() {
                transposed[column * rows + row] = *value;
            }
        }
        numbers.write(first * rows, &transposed);
    }
}

fn encoding(view: &View<'_>) -> Encoding {
    match view.dtype() {
        Dtype::F32 => Encoding::F32,
        Dtype::F16 => Encoding::F16,
        Dtype::Bf16 => Encoding::BF16,
    }
}

/// A base whose weights are all zero, for tests of what does not look at them.
#[cfg(test)]
#[derive(Debug)]
pub(crate) struct ZeroBase(pub(crate) Sites);

#[cfg(test)]
impl Base for ZeroBase {
    fn sites(&self) -> &Sites {
        &self.0
    }

    fn lengths_squared(&self, site: Site, change: &Change<'_>) -> Vec<f64> {
        let (inputs, _) = self.0.dims(site);
        let of = |b: &[f32]| {
            let value = |input| {
                let terms = b.iter().enumerate().map(|(r, b)| b * change.a[r * inputs + input]);
                f64::from(change.scale * terms.sum::<f32>())
            };
            (0..inputs).map(|input| value(input).powi(2)).sum()
        };
        change.b.chunks_exact(change.rank).map(of).collect()
    }

    fn stored_row(&self, _: Site, _: usize, values: &mut [f32]) {
        values.fill(0.0);
    }
}

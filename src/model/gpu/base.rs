//! The frozen base in memory of a device.
//!
//! Quantized weights lie there as they lie on the host, panel for panel, so that a 4-bit base stays 4-bit. Those that are numbers
//! are multiplied by cuBLAS and lie as it takes them, rounded to the type of the network; or in panels as well, where a row must
//! have the same bits in any company, which cuBLAS does not promise.

use std::{sync::Arc, thread};

use candle_core::{Result, bail};
use half::{bf16, f16};

use super::{
    super::llama::{Layer, Llama},
    Products,
};
use crate::{
    kernels::{
        cuda::{Cache, Gpu, Half, LinearMaps, MAX_SITES, Region, Slice, Turns, bring, bytes_of},
        linear::Projection,
        panels::{Encoding, Panels},
    },
    lora::Inputs,
};

/// Bytes of weights that are brought at a time.
const PART: usize = 32 << 20;

/// A base on a device, with memory for the keys and values of all layers.
#[derive(Debug)]
pub(super) struct Base<G: Gpu> {
    pub(super) half: Half,
    pub(super) layers: Vec<OnDevice>,
    pub(super) head: Group,
    /// `[hidden]`
    pub(super) norm: Slice<f32>,
    pub(super) turns: Turns,
    /// Of each layer.
    pub(super) caches: Vec<Cache>,
    /// Keep the memory.
    #[expect(dead_code, reason = "they are there to be dropped")]
    memory: [Region<G>; 2],
}

/// A layer.
#[derive(Debug)]
pub(super) struct OnDevice {
    pub(super) attention_norm: Slice<f32>,
    pub(super) feed_forward_norm: Slice<f32>,
    /// By [`Inputs`].
    pub(super) groups: [Group; 4],
}

/// Maps that share an input.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) weights: Weights,
    pub(super) inputs: usize,
    /// Of all outputs together.
    pub(super) width: usize,
    pub(super) sites: Vec<Outputs>,
    /// `[width]`, where one of them has a bias.
    pub(super) bias: Option<Slice<f32>>,
}

/// The outputs of one map.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outputs {
    pub(super) count: usize,
    /// Where they begin in a row.
    pub(super) place: usize,
    /// `[count]`
    pub(super) bias: Option<Slice<f32>>,
}

#[derive(Debug)]
pub(super) enum Weights {
    /// One launch for each encoding.
    Panels(Vec<(Encoding, LinearMaps)>),
    /// `[width, inputs]`
    Plain(Slice<u16>),
}

/// The type in which a base is computed: its own where it is one of the two, and the finer one for codes.
pub(super) fn half_of(llama: &Llama) -> Half {
    match llama.encoding() {
        Encoding::F32 | Encoding::BF16 => Half::BF16,
        _ => Half::F16,
    }
}

fn is_dense(panels: &Panels) -> bool {
    matches!(panels.encoding(), Encoding::F32 | Encoding::F16 | Encoding::BF16)
}

fn are_plain(projections: &[Projection], products: Products) -> bool {
    products == Products::Fastest && projections.iter().all(|map| is_dense(&map.weights))
}

fn projections(layer: &Layer) -> [&[Projection]; 4] {
    Inputs::ALL.map(|inputs| layer.projections(inputs))
}

/// Bytes of device memory that the base takes.
pub(super) fn bytes(llama: &Llama, products: Products) -> usize {
    let spec = llama.spec();
    let group = |maps: &[Projection]| {
        let width: usize = maps.iter().map(|map| map.weights.outputs()).sum();
        let weights = if are_plain(maps, products) {
            bytes_of::<u16>(width * maps[0].weights.inputs())
        } else {
            maps.iter().map(|map| bytes_of::<u8>(map.weights.bytes())).sum()
        };
        let biased = maps.iter().any(|map| map.bias.is_some());
        weights + if biased { bytes_of::<f32>(width) } else { 0 }
    };
    let layer = |layer: &Layer| {
        2 * bytes_of::<f32>(spec.hidden) + projections(layer).into_iter().map(group).sum::<usize>()
    };
    let weights = llama.weights();
    let turns = 2 * bytes_of::<f32>(spec.context * spec.heads.dim / 2);
    let head = group(std::slice::from_ref(llama.head()));
    weights.layers.iter().map(layer).sum::<usize>() + head + bytes_of::<f32>(spec.hidden) + turns
}

/// Bytes of a page of keys and values over all layers.
pub(super) fn page_bytes(llama: &Llama) -> usize {
    let spec = llama.spec();
    2 * spec.layers * numbers_of_page(llama) * size_of::<u16>()
}

/// Keys, or values, of a page in one layer.
fn numbers_of_page(llama: &Llama) -> usize {
    let heads = llama.spec().heads;
    heads.keys * super::PAGE * heads.dim
}

/// Bytes of so many pages.
pub(super) fn kv_bytes(llama: &Llama, pages: usize) -> usize {
    2 * llama.spec().layers * bytes_of::<u16>(pages * numbers_of_page(llama))
}

impl<G: Gpu> Base<G> {
    /// Brings a base to the device, and takes memory for so many pages.
    pub(super) fn new(
        gpu: &Arc<G>,
        llama: &Llama,
        products: Products,
        pages: usize,
    ) -> Result<Self> {
        let spec = llama.spec();
        check(llama, products)?;
        let mut memory = Region::new(gpu, bytes(llama, products))?;
        let half = half_of(llama);
        let mut bringer = Bringer { gpu: &**gpu, memory: &mut memory, half, products };
        let layers = llama.weights().layers.iter().map(|layer| bringer.layer(layer));
        let layers = layers.collect::<Result<_>>()?;
        let head = bringer.group(std::slice::from_ref(llama.head()))?;
        let norm = bringer.floats(&llama.weights().norm)?;
        let (cosines, sines) = llama.angles_of(0..spec.context);
        let turns = Turns { cosines: bringer.floats(&cosines)?, sines: bringer.floats(&sines)? };
        let mut kv = Region::new(gpu, kv_bytes(llama, pages))?;
        let numbers = pages * numbers_of_page(llama);
        let cache = |_| Cache { keys: kv.take(numbers), values: kv.take(numbers) };
        let caches = (0..spec.layers).map(cache).collect();
        Ok(Self { half, layers, head, norm, turns, caches, memory: [memory, kv] })
    }
}

/// What the kernels do not take.
fn check(llama: &Llama, products: Products) -> Result<()> {
    let spec = llama.spec();
    let heads = spec.heads;
    let layers = llama.weights().layers.iter();
    let groups = layers.flat_map(projections).chain([std::slice::from_ref(llama.head())]);
    for maps in groups {
        let inputs = maps[0].weights.inputs();
        // Eight at a time by whoever adds a delta, whole groups by tensor cores.
        let multiple = if are_plain(maps, products) { 8 } else { 32 };
        if !inputs.is_multiple_of(multiple) {
            bail!(
                "it has maps of {inputs} inputs, and a GPU's kernels take multiples of {multiple} here: serve it with --device cpu"
            );
        }
    }
    if !spec.hidden.is_multiple_of(32) {
        // An adapter may bring a head.
        let hidden = spec.hidden;
        bail!(
            "its hidden size is {hidden}, and a GPU's kernels take multiples of 32: serve it with --device cpu"
        );
    }
    if !heads.dim.is_multiple_of(8) || heads.dim > 256 {
        let dim = heads.dim;
        bail!(
            "its heads have {dim} dimensions, and a GPU's kernels take multiples of 8 up to 256: serve it with --device cpu"
        );
    }
    Ok(())
}

struct Bringer<'a, G: Gpu> {
    gpu: &'a G,
    memory: &'a mut Region<G>,
    half: Half,
    products: Products,
}

impl<G: Gpu> Bringer<'_, G> {
    fn layer(&mut self, layer: &Layer) -> Result<OnDevice> {
        let [qkv, o, gate_up, down] = projections(layer);
        Ok(OnDevice {
            attention_norm: self.floats(&layer.attention_norm)?,
            feed_forward_norm: self.floats(&layer.feed_forward_norm)?,
            groups: [self.group(qkv)?, self.group(o)?, self.group(gate_up)?, self.group(down)?],
        })
    }

    fn floats(&mut self, values: &[f32]) -> Result<Slice<f32>> {
        let place = self.memory.take(values.len());
        bring(self.gpu, values, place)?;
        Ok(place)
    }

    fn group(&mut self, maps: &[Projection]) -> Result<Group> {
        let (inputs, mut place) = (maps[0].weights.inputs(), 0);
        let width = maps.iter().map(|map| map.weights.outputs()).sum();
        let bias = self.bias(maps, width)?;
        let mut sites = Vec::new();
        for map in maps {
            let count = map.weights.outputs();
            let own = map.bias.as_ref().and(bias).map(|all| all.part(place..place + count));
            sites.push(Outputs { count, place, bias: own });
            place += count;
        }
        let weights = if are_plain(maps, self.products) {
            Weights::Plain(self.plain(maps, width * inputs)?)
        } else {
            Weights::Panels(self.panels(maps, &sites)?)
        };
        Ok(Group { weights, inputs, width, sites, bias })
    }

    /// Zeros where a map has none.
    fn bias(&mut self, maps: &[Projection], width: usize) -> Result<Option<Slice<f32>>> {
        if maps.iter().all(|map| map.bias.is_none()) {
            return Ok(None);
        }
        let mut all = Vec::with_capacity(width);
        for map in maps {
            match &map.bias {
                Some(bias) => all.extend_from_slice(bias),
                None => all.resize(all.len() + map.weights.outputs(), 0.0),
            }
        }
        self.floats(&all).map(Some)
    }

    fn panels(
        &mut self,
        maps: &[Projection],
        sites: &[Outputs],
    ) -> Result<Vec<(Encoding, LinearMaps)>> {
        let mut launches: Vec<(Encoding, LinearMaps, usize)> = Vec::new();
        for (map, site) in maps.iter().zip(sites) {
            let panels = &map.weights;
            let place = self.memory.take::<u8>(panels.bytes());
            bring(self.gpu, panels.stored(), place)?;
            let same = |launch: &(Encoding, _, usize)| launch.0 == panels.encoding();
            let at = launches.iter().position(same).unwrap_or_else(|| {
                launches.push((panels.encoding(), LinearMaps::default(), 0));
                launches.len() - 1
            });
            let (_, launch, count) = &mut launches[at];
            *launch = with_map(*launch, *count, (panels, place.address()), site.place);
            *count += 1;
        }
        Ok(launches.into_iter().map(|(encoding, maps, _)| (encoding, maps)).collect())
    }

    fn plain(&mut self, maps: &[Projection], len: usize) -> Result<Slice<u16>> {
        let all = self.memory.take::<u16>(len);
        let mut done = 0;
        for map in maps {
            let (inputs, outputs) = (map.weights.inputs(), map.weights.outputs());
            let rows = (PART / 2 / inputs).max(1);
            for first in (0..outputs).step_by(rows) {
                let part = rounded(self.half, &map.weights, first..outputs.min(first + rows));
                bring(self.gpu, &part, all.part(done..done + part.len()))?;
                done += part.len();
            }
        }
        Ok(all)
    }
}

/// `maps` with one more, at place `at` of them.
pub(super) fn with_map(
    mut maps: LinearMaps,
    at: usize,
    (panels, address): (&Panels, u64),
    first: usize,
) -> LinearMaps {
    assert!(at < MAX_SITES, "no more share an input");
    let int = |number: usize| i32::try_from(number).expect("a network's sizes are below 2^24");
    maps.panels[at] = address;
    maps.outputs[at] = int(panels.outputs());
    maps.places[at] = int(first);
    maps.panel_bytes = int(panels.bytes() / panels.count().max(1));
    maps
}

/// Some rows of W, rounded to the network's type by all cores.
fn rounded(half: Half, panels: &Panels, rows: std::ops::Range<usize>) -> Vec<u16> {
    let inputs = panels.inputs();
    let mut all = vec![0; rows.len() * inputs];
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let share = rows.len().div_ceil(threads).max(1);
    thread::scope(|scope| {
        for (at, part) in all.chunks_mut(share * inputs).enumerate() {
            let first = rows.start + at * share;
            scope.spawn(move || {
                let mut row = vec![0.0; inputs];
                for (output, out) in part.chunks_exact_mut(inputs).enumerate() {
                    panels.row(first + output, &mut row);
                    for (out, value) in out.iter_mut().zip(&row) {
                        *out = match half {
                            Half::F16 => f16::from_f32(*value).to_bits(),
                            Half::BF16 => bf16::from_f32(*value).to_bits(),
                        };
                    }
                }
            });
        }
    });
    all
}

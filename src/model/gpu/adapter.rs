//! An adapter as it lies on a device: the very bytes that it has on the host, and the entries of the tables in which kernels look
//! it up.

use super::base::{Base, Group, Outputs, with_map};
use crate::{
    kernels::{
        cuda::{Gpu, LinearMaps, LoraNumbers, LoraSite, LoraStack, Plain, Slice},
        lora::{Delta, Stack},
        numbers::{NumberType, Numbers},
        panels::Encoding,
    },
    lora::{Adapter, Inputs, Norm},
};

/// What numbers begin at a multiple of: what kernels load at once.
const ALIGNMENT: usize = 64;

/// An adapter laid out from some address on.
#[derive(Debug)]
pub(super) struct Laid<'a> {
    /// What is to be brought, in the order of addresses, and where it begins.
    pub(super) pieces: Vec<(&'a [u8], usize)>,
    /// All of them, with what lies between.
    pub(super) bytes: usize,
    /// Its entries of the table, by group.
    pub(super) stacks: Vec<LoraStack>,
    /// The addresses of its own gains, by norm.
    pub(super) gains: Vec<u64>,
    /// The head that it brings.
    pub(super) head: Option<(Encoding, LinearMaps)>,
}

/// Groups of sites of a network: those of each layer, and the head.
pub(super) fn groups(layers: usize) -> usize {
    layers * Inputs::ALL.len() + 1
}

/// The place of a layer's group in the table.
pub(super) fn group(layer: usize, inputs: Inputs) -> usize {
    layer * Inputs::ALL.len() + inputs as usize
}

/// Norms of a network.
pub(super) fn norms(layers: usize) -> usize {
    2 * layers + 1
}

/// The place of a norm in the table.
pub(super) fn norm(norm: Norm, layers: usize) -> usize {
    match norm {
        Norm::Attention(layer) => 2 * layer,
        Norm::FeedForward(layer) => 2 * layer + 1,
        Norm::Final => 2 * layers,
    }
}

/// The outputs that adapters change.
#[derive(Debug)]
pub(super) struct Shape {
    /// Of each layer, by [`Inputs`].
    layers: Vec<[Vec<Outputs>; 4]>,
    head: Vec<Outputs>,
}

impl Shape {
    /// Those of a base.
    pub(super) fn of<G: Gpu>(base: &Base<G>) -> Self {
        let sites = |group: &Group| group.sites.clone();
        let layers = base.layers.iter();
        Self {
            layers: layers.map(|layer| layer.groups.each_ref().map(sites)).collect(),
            head: sites(&base.head),
        }
    }
}

/// Lays an adapter that is no mix out from address `start` on, which is a multiple of 64.
pub(super) fn lay<'a>(adapter: &'a Adapter, shape: &Shape, start: u64) -> Laid<'a> {
    let mut layout = Layout { start, pieces: Vec::new(), bytes: 0 };
    let layers = shape.layers.len();
    let mut stacks = Vec::with_capacity(groups(layers));
    for (at, groups) in shape.layers.iter().enumerate() {
        for inputs in Inputs::ALL {
            stacks.push(layout.stack(adapter.stack(at, inputs), &groups[inputs as usize]));
        }
    }
    stacks.push(layout.stack(adapter.head(), &shape.head));
    let all = (0..layers).flat_map(|layer| [Norm::Attention(layer), Norm::FeedForward(layer)]);
    let gain = |norm| adapter.gain(norm).map_or(0, |gain| layout.floats(gain));
    let gains = all.chain([Norm::Final]).map(gain).collect();
    let head = adapter.replaced_head().map(|head| {
        let panels = &head.weights;
        let address = layout.address(panels.stored());
        (panels.encoding(), with_map(LinearMaps::default(), 0, (panels, address), 0))
    });
    let Layout { pieces, bytes, .. } = layout;
    Laid { pieces, bytes, stacks, gains, head }
}

struct Layout<'a> {
    start: u64,
    pieces: Vec<(&'a [u8], usize)>,
    bytes: usize,
}

impl<'a> Layout<'a> {
    /// Where bytes come to lie.
    fn place(&mut self, bytes: &'a [u8]) -> usize {
        let at = self.bytes;
        self.pieces.push((bytes, at));
        self.bytes = (at + bytes.len()).next_multiple_of(ALIGNMENT);
        at
    }

    fn address(&mut self, bytes: &'a [u8]) -> u64 {
        if bytes.is_empty() { 0 } else { self.start + self.place(bytes) as u64 }
    }

    fn floats(&mut self, values: &'a [f32]) -> u64 {
        self.address(f32::bytes(values))
    }

    fn numbers(&mut self, numbers: &'a Numbers) -> LoraNumbers {
        let (numbers, scales) = numbers.as_they_lie();
        LoraNumbers { numbers: self.address(numbers), scales: self.address(scales) }
    }

    /// A stack; where there is none, its sites are the base's, whose biases are added all the same.
    fn stack(&mut self, stack: Option<&'a Stack>, sites: &[Outputs]) -> LoraStack {
        let mut on_device = LoraStack::default();
        if let Some(stack) = stack.filter(|stack| stack.rank > 0) {
            on_device.a = self.numbers(&stack.a);
            on_device.rank = int(stack.rank);
            on_device.kind = kind(stack.a.kind());
        }
        for (at, outputs) in sites.iter().enumerate() {
            let site = &mut on_device.sites[at];
            site.outputs = int(outputs.count);
            site.place = int(outputs.place);
            site.bias = outputs.bias.map_or(0, Slice::address);
            if let Some(stack) = stack {
                self.site(&stack.sites[at], site);
            }
        }
        on_device
    }

    fn site(&mut self, delta: &'a Delta, site: &mut LoraSite) {
        let Delta { low_rank, gain, bias } = delta;
        if let Some(low_rank) = low_rank {
            site.b = self.numbers(&low_rank.b);
            site.b_bias = low_rank.bias.as_ref().map_or(0, |bias| self.floats(bias));
            site.first = int(low_rank.first);
            site.rank = int(low_rank.rank);
            site.scale = low_rank.scale;
            site.kind = kind(low_rank.b.kind());
        }
        if let Some(gain) = gain {
            site.gain = self.floats(gain);
        }
        if let Some(bias) = bias {
            site.bias = self.floats(bias);
        }
    }
}

/// As `lora.cu` numbers them.
fn kind(kind: NumberType) -> i32 {
    match kind {
        NumberType::F32 => 0,
        NumberType::F16 => 1,
        NumberType::BF16 => 2,
        NumberType::Int8 => 3,
    }
}

fn int(number: usize) -> i32 {
    i32::try_from(number).expect("a network's sizes are below 2^24")
}

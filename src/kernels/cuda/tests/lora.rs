//! What many adapters do to the results of a product.

use std::ops::Range;

use proptest::prelude::*;

use super::{
    super::launch::{LoraNumbers, LoraSite, LoraStack},
    *,
};
use crate::kernels::{
    lora::{padded_inputs, padded_outputs, place_in_b},
    memory::Slab,
    numbers::{GROUP, NumberType, Numbers as Stored},
};

const _: () = assert!(size_of::<LoraSite>() == 64 && size_of::<LoraStack>() == 216);

const NO_NUMBERS: LoraNumbers = LoraNumbers { numbers: 0, scales: 0 };
/// A site that an adapter leaves alone: nobody asks where its outputs are.
const NO_SITE: LoraSite = LoraSite {
    b: NO_NUMBERS,
    b_bias: 0,
    gain: 0,
    bias: 0,
    first: 0,
    rank: 0,
    outputs: i32::MAX,
    place: i32::MAX / 2,
    scale: f32::NAN,
    kind: 0,
};
const NO_STACK: LoraStack = LoraStack { a: NO_NUMBERS, rank: 0, kind: 0, sites: [NO_SITE; 3] };

/// Groups of sites in the table, and which of them is tested.
const GROUPS: usize = 3;
const OWN: usize = 1;

/// What an adapter does at a site.
struct Site {
    rank: usize,
    scale: f32,
    b: Stored,
    b_bias: Option<Vec<f32>>,
    gain: Option<Vec<f32>>,
    bias: Option<Vec<f32>>,
}

/// What an adapter does at sites that share an input.
struct Adapter {
    a: Stored,
    sites: Vec<Site>,
}

struct World {
    inputs: usize,
    /// Of each site, side by side in a row.
    outputs: Vec<usize>,
    slots: Vec<Adapter>,
    /// Fills the rest of the table: where a wrong entry is taken, it shows.
    other: Adapter,
}

fn small(number: usize) -> i32 {
    number.try_into().expect("small")
}

/// Numbers of any type, also where they are filled up.
fn stored(random: &mut Numbers, len: usize, size: f32) -> Stored {
    let kinds = [NumberType::F32, NumberType::F16, NumberType::BF16, NumberType::Int8];
    let kind = kinds[random.below(kinds.len())];
    let slab = Slab::new(Stored::bytes_of(kind, len)).expect("memory");
    let mut all = Stored::zeros(&slab, kind, len).expect("it was asked for");
    all.write(0, &random.vec::<f32>(len, size));
    all
}

fn kind(numbers: &Stored) -> i32 {
    match numbers.kind() {
        NumberType::F32 => 0,
        NumberType::F16 => 1,
        NumberType::BF16 => 2,
        NumberType::Int8 => 3,
    }
}

impl Site {
    fn new(random: &mut Numbers, rank: usize, outputs: usize, size: f32) -> Self {
        let some = |random: &mut Numbers, size| {
            (random.below(3) == 0).then(|| random.vec::<f32>(outputs, size))
        };
        Self {
            rank,
            scale: 0.5 + random.unit() / 4.0,
            b: stored(random, rank * padded_outputs(outputs), 1.0),
            // A delta's own bias is part of it.
            b_bias: some(random, size).filter(|_| rank > 0),
            gain: some(random, 2.0),
            bias: some(random, size),
        }
    }

    fn is_nothing(&self) -> bool {
        let Self { rank, b_bias, gain, bias, .. } = self;
        *rank == 0 && b_bias.is_none() && gain.is_none() && bias.is_none()
    }
}

impl Adapter {
    fn new(
        random: &mut Numbers,
        (inputs, outputs): (usize, &[usize]),
        ranks: &[usize],
        size: f32,
    ) -> Self {
        let a = ranks.iter().sum::<usize>() * padded_inputs(inputs);
        let a = stored(random, a, 1.0);
        let sites = ranks.iter().zip(outputs);
        let sites = sites.map(|(rank, outputs)| Site::new(random, *rank, *outputs, size)).collect();
        Self { a, sites }
    }

    fn rank(&self) -> usize {
        self.sites.iter().map(|site| site.rank).sum()
    }
}

/// What a table points to.
#[derive(Default)]
struct Memory {
    bytes: Vec<Buffer<u8>>,
    floats: Vec<Buffer<f32>>,
}

impl Memory {
    fn bytes(&mut self, bytes: &[u8]) -> u64 {
        if bytes.is_empty() {
            return 0;
        }
        // No number in any type that has such.
        self.bytes.push(Buffer::new(bytes, 0xff));
        self.bytes.last_mut().expect("it was just pushed").address().expose_provenance() as u64
    }

    fn numbers(&mut self, numbers: &Stored) -> LoraNumbers {
        let (numbers, scales) = numbers.as_they_lie();
        LoraNumbers { numbers: self.bytes(numbers), scales: self.bytes(scales) }
    }

    fn floats(&mut self, floats: Option<&Vec<f32>>) -> u64 {
        floats.map_or(0, |floats| {
            self.floats.push(Buffer::new(floats, f32::NAN));
            self.floats.last_mut().expect("it was just pushed").address().expose_provenance() as u64
        })
    }

    fn stack(&mut self, adapter: &Adapter, outputs: &[usize]) -> LoraStack {
        let (mut first, mut place) = (0, 0);
        let mut sites = [NO_SITE; 3];
        for ((site, entry), outputs) in adapter.sites.iter().zip(&mut sites).zip(outputs) {
            if !site.is_nothing() {
                *entry = LoraSite {
                    b: self.numbers(&site.b),
                    b_bias: self.floats(site.b_bias.as_ref()),
                    gain: self.floats(site.gain.as_ref()),
                    bias: self.floats(site.bias.as_ref()),
                    first: small(first),
                    rank: small(site.rank),
                    outputs: small(*outputs),
                    place: small(place),
                    scale: site.scale,
                    kind: kind(&site.b),
                };
            }
            first += site.rank;
            place += outputs;
        }
        let a = self.numbers(&adapter.a);
        LoraStack { a, rank: small(first), kind: kind(&adapter.a), sites }
    }
}

/// Rows of a step.
struct Step<T> {
    /// `[rows, inputs]`
    x: Vec<T>,
    /// `[rows, width]`
    y: Vec<f32>,
    parts: usize,
    /// `[rows, parts]`
    slots: Vec<i32>,
    /// `[rows, parts]`
    weights: Vec<f32>,
}

impl<T: Element> Step<T> {
    fn new(random: &mut Numbers, world: &World, runs: &[(Vec<i32>, usize)], size: f32) -> Self {
        let parts = runs[0].0.len();
        let slots: Vec<i32> = runs.iter().flat_map(|(slots, rows)| slots.repeat(*rows)).collect();
        let rows = slots.len() / parts;
        let mixed = if parts == 1 { 0.0 } else { 0.75 };
        Self {
            x: random.vec(rows * world.inputs, size),
            y: random.vec(rows * world.width(), size),
            parts,
            weights: slots.iter().map(|_| 1.0 + mixed * random.unit()).collect(),
            slots,
        }
    }

    fn rows(&self) -> usize {
        self.slots.len() / self.parts
    }

    /// Some of the rows, in no other company.
    fn some(&self, rows: Range<usize>) -> Self {
        fn some<N: Copy>(all: &[N], step: usize, rows: &Range<usize>) -> Vec<N> {
            let each = all.len() / step;
            all[rows.start * each..rows.end * each].to_vec()
        }
        let (all, parts) = (self.rows(), self.parts);
        Self {
            x: some(&self.x, all, &rows),
            y: some(&self.y, all, &rows),
            parts,
            slots: some(&self.slots, all, &rows),
            weights: some(&self.weights, all, &rows),
        }
    }
}

impl World {
    fn new(
        random: &mut Numbers,
        (inputs, outputs): (usize, &[usize]),
        ranks: &[Vec<usize>],
        size: f32,
    ) -> Self {
        let mut adapter = |ranks: &[usize]| Adapter::new(random, (inputs, outputs), ranks, size);
        let slots = ranks.iter().map(|ranks| adapter(ranks)).collect();
        let other = adapter(&[3, 5, 2][..outputs.len()]);
        Self { inputs, outputs: outputs.to_vec(), slots, other }
    }

    fn width(&self) -> usize {
        self.outputs.iter().sum()
    }

    /// Ranks that there is room for.
    fn room(&self) -> usize {
        let ranks = self.slots.iter().chain([&self.other]).map(Adapter::rank);
        ranks.max().unwrap_or(0) + 1
    }

    /// The table of a device, which begins an adapter before slot 0.
    fn table(&self) -> (Buffer<LoraStack>, Memory) {
        let mut memory = Memory::default();
        let other = memory.stack(&self.other, &self.outputs);
        let mut stacks = vec![other; (1 + self.slots.len()) * GROUPS];
        for (slot, adapter) in self.slots.iter().enumerate() {
            stacks[(1 + slot) * GROUPS + OWN] = memory.stack(adapter, &self.outputs);
        }
        (Buffer::new(&stacks, NO_STACK), memory)
    }

    /// What both kernels make of a step, by grids of `blocks` blocks for each row: `shrunk`, then y.
    fn run<T: Element>(&self, step: &Step<T>, blocks: usize, order: Order) -> [Vec<f32>; 2] {
        let (mut table, _memory) = self.table();
        let (rows, parts, room) = (step.rows(), step.parts, self.room());
        let (mut x, mut y) = (Buffer::new(&step.x, T::GUARD), Buffer::new(&step.y, f32::NAN));
        let mut slots = Buffer::new(&step.slots, step.slots[step.slots.len() - 1]);
        let mut weights = Buffer::new(&step.weights, f32::NAN);
        let (mut there, room_of_rows) = (count(rows), rows + 1);
        let mut shrunk = Buffer::new(&vec![f32::NAN; rows * parts * room], f32::NAN);
        let arguments = [
            x.memory(),
            table.memory_from(GROUPS + OWN),
            GROUPS.into(),
            slots.memory(),
            parts.into(),
            there.memory(),
            self.inputs.into(),
            room.into(),
            shrunk.memory(),
        ];
        let shape = ([room_of_rows, blocks, parts], constant("SHRINK_THREADS"));
        launch(&format!("lora_shrink_{}", T::NAME), shape, order, &arguments).unwrap();
        let arguments = [
            shrunk.memory(),
            table.memory_from(GROUPS + OWN),
            GROUPS.into(),
            slots.memory(),
            weights.memory(),
            parts.into(),
            there.memory(),
            room.into(),
            self.width().into(),
            y.memory(),
        ];
        let shape = ([room_of_rows, blocks, self.outputs.len()], constant("EXPAND_THREADS"));
        launch("lora_expand", shape, order, &arguments).unwrap();
        [shrunk.numbers().to_vec(), y.numbers().to_vec()]
    }

    /// The adapters that a row goes through, by its parts.
    fn adapters(&self, slots: &[i32]) -> Vec<Option<&Adapter>> {
        slots.iter().map(|slot| usize::try_from(*slot).ok().map(|slot| &self.slots[slot])).collect()
    }

    /// What one row must be, each output with the size of what was summed for it.
    fn reference<T: Element>(&self, row: &Step<T>) -> Vec<(f64, f64)> {
        let mut want: Vec<(f64, f64)> = row.y.iter().map(|y| (y.wide(), y.wide().abs())).collect();
        let adapters = self.adapters(&row.slots);
        for (adapter, weight) in adapters.iter().zip(&row.weights) {
            let Some(adapter) = adapter else { continue };
            let mut want = &mut want[..];
            let mut shrunk = (0..adapter.rank()).map(|r| {
                let at = r * padded_inputs(self.inputs);
                let terms = row.x.iter().enumerate();
                let terms = terms.map(|(i, x)| x.wide() * adapter.a.get(at + i).wide());
                terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()))
            });
            for (site, outputs) in adapter.sites.iter().zip(&self.outputs) {
                let shrunk: Vec<(f64, f64)> = shrunk.by_ref().take(site.rank).collect();
                let own;
                (own, want) = want.split_at_mut(*outputs);
                site.change(&shrunk, weight.wide(), own);
            }
        }
        let mut want_of_site = &mut want[..];
        let first = adapters.into_iter().flatten().next();
        for (site, outputs) in first.iter().flat_map(|first| &first.sites).zip(&self.outputs) {
            let own;
            (own, want_of_site) = want_of_site.split_at_mut(*outputs);
            each(own, site.bias.as_ref(), |want, bias| (want.0 + bias, want.1 + bias.abs()));
        }
        want
    }
}

/// Applies a term of each output.
fn each(
    want: &mut [(f64, f64)],
    terms: Option<&Vec<f32>>,
    apply: impl Fn((f64, f64), f64) -> (f64, f64),
) {
    for (want, term) in want.iter_mut().zip(terms.into_iter().flatten()) {
        *want = apply(*want, term.wide());
    }
}

impl Site {
    fn change(&self, shrunk: &[(f64, f64)], weight: f64, want: &mut [(f64, f64)]) {
        for (output, want) in want.iter_mut().enumerate() {
            for (r, shrunk) in shrunk.iter().enumerate() {
                let b = self.b.get(place_in_b(self.rank, r, output)).wide();
                let b = f64::from(self.scale) * weight * b;
                *want = (want.0 + b * shrunk.0, want.1 + b.abs() * shrunk.1);
            }
        }
        each(want, self.b_bias.as_ref(), |want, bias| {
            (want.0 + weight * bias, want.1 + (weight * bias).abs())
        });
        each(want, self.gain.as_ref(), |want, gain| (want.0 * gain, want.1 * gain.abs()));
    }
}

fn check<T: Element>(world: &World, random: &mut Numbers, step: &Step<T>) {
    let (rows, parts, width) = (step.rows(), step.parts, world.width());
    let [shrunk, got] = world.run(step, 1, Order::Forwards);
    for (blocks, order) in [(1, Order::Backwards), (3, Order::Forwards)] {
        let [other_shrunk, other] = world.run(step, blocks, order);
        assert_eq!(bits(&shrunk), bits(&other_shrunk), "{blocks} blocks, {order:?}");
        assert_eq!(bits(&got), bits(&other), "{blocks} blocks, {order:?}");
    }
    // As many numbers are written as the adapter has ranks.
    let adapters = world.adapters(&step.slots);
    for (shrunk, adapter) in shrunk.chunks(world.room()).zip(adapters) {
        let rank = adapter.map_or(0, Adapter::rank);
        let written = shrunk.iter().map(|shrunk| !shrunk.is_nan());
        assert!(written.eq((0..world.room()).map(|r| r < rank)), "{shrunk:?} of rank {rank}");
    }
    for (row, got) in got.chunks(width).enumerate() {
        let row = step.some(row..row + 1);
        if row.slots.iter().all(|slot| *slot < 0) {
            assert_eq!(bits(got), bits(&row.y), "a row without an adapter is left alone");
        }
        for (got, (want, summed)) in got.iter().zip(world.reference(&row)) {
            assert_close(*got, want, 1e-5 * summed);
        }
    }
    // Alone, and at another place of other tiles.
    let [from, one, other] = std::array::from_fn(|_| random.below(rows));
    for rows in [from..rows, one..one + 1, other..other + 1] {
        let [some_shrunk, some] = world.run(&step.some(rows.clone()), 2, Order::Forwards);
        assert_eq!(bits(&some), bits(&got[rows.start * width..rows.end * width]), "{rows:?}");
        let each = parts * world.room();
        let of_rows = &shrunk[rows.start * each..rows.end * each];
        assert_eq!(bits(&some_shrunk), bits(of_rows), "{rows:?}");
    }
}

fn rank() -> impl Strategy<Value = usize> {
    prop_oneof![
        3 => Just(0),
        12 => 1_usize..20,
        1 => prop::sample::select(vec![64, 127, 255, 256]),
    ]
}

/// Rows next to each other that go through the same adapters.
fn runs(parts: usize, count: usize) -> impl Strategy<Value = Vec<(Vec<i32>, usize)>> {
    let slot = prop_oneof![1 => Just(-1), 2 => 0..small(count)];
    let rows = prop_oneof![1_usize..4, 1_usize..20];
    prop::collection::vec((prop::collection::vec(slot, parts), rows), 1..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    #[test]
    fn each_row_is_changed_by_the_adapters_of_its_slots_and_no_other(
        seed: u64,
        inputs in (1_usize..70).prop_map(|eights| 8 * eights),
        outputs in prop::collection::vec(1_usize..300, 1..=3),
        (ranks, runs) in (1_usize..4, prop_oneof![2 => Just(1), 1 => 2_usize..=8]).prop_flat_map(
            |(slots, parts)| (prop::collection::vec([rank(), rank(), rank()], slots), runs(parts, slots)),
        ),
        size in prop::sample::select(vec![1e-6_f32, 1.0, 8.0]),
    ) {
        let ranks: Vec<Vec<usize>> = ranks.iter().map(|ranks| ranks[..outputs.len()].to_vec()).collect();
        let mut random = Numbers(seed);
        let world = World::new(&mut random, (inputs, &outputs), &ranks, size);
        if seed % 2 == 0 {
            let step = Step::<f16>::new(&mut random, &world, &runs, size);
            check(&world, &mut random, &step);
        } else {
            let step = Step::<bf16>::new(&mut random, &world, &runs, size);
            check(&world, &mut random, &step);
        }
    }
}

#[test]
fn codes_lie_as_the_kernels_take_them() {
    assert_eq!(constant("LORA_GROUP"), GROUP);
    assert_eq!(padded_outputs(1), constant("LORA_PANEL"));
    assert_eq!(constant("MAX_SITES"), 3);
}

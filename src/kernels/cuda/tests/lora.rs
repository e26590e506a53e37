//! Low-rank deltas of many adapters.

use proptest::prelude::*;

use super::*;

/// A `LoraStack` of the kernels as the little-endian words that a device reads: the address of A, the rank, and of each site
/// the address of B and the pairs of first and rank, scale and outputs, place and nothing.
type Stack = [u64; 14];

fn pair(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

/// What one adapter does at sites that share an input.
struct Adapter<T> {
    /// `[ranks of all sites, inputs]`
    a: Vec<T>,
    /// Rank, scale and `B^T [rank, outputs]` of each site.
    sites: Vec<(usize, f32, Vec<T>)>,
}

struct World<T> {
    inputs: usize,
    /// Of each site, side by side in a row.
    outputs: Vec<usize>,
    slots: Vec<Adapter<T>>,
}

fn small(number: usize) -> u32 {
    number.try_into().expect("small")
}

impl<T: Element> World<T> {
    fn new(random: &mut Numbers, inputs: usize, outputs: &[usize], ranks: &[Vec<usize>]) -> Self {
        let adapter = |ranks: &Vec<usize>| Adapter {
            a: random.vec(ranks.iter().sum::<usize>() * inputs, 1.0),
            sites: ranks
                .iter()
                .zip(outputs)
                .map(|(rank, outputs)| {
                    (*rank, 0.5 + random.unit() / 4.0, random.vec(rank * outputs, 1.0))
                })
                .collect(),
        };
        Self { inputs, outputs: outputs.to_vec(), slots: ranks.iter().map(adapter).collect() }
    }

    fn width(&self) -> usize {
        self.outputs.iter().sum()
    }

    /// The table of a device, which points into the buffers beside it.
    fn table(&self) -> (Buffer<Stack>, Vec<Buffer<T>>) {
        let mut matrices = Vec::new();
        let mut keep = |numbers: &[T]| -> u64 {
            if numbers.is_empty() {
                return 0;
            }
            matrices.push(Buffer::new(numbers, T::GUARD));
            let kept = matrices.last_mut().expect("it was just pushed");
            kept.address().expose_provenance().try_into().expect("64 bits")
        };
        let mut stacks = Vec::new();
        for adapter in &self.slots {
            let mut stack: Stack = [0; 14];
            let (mut first, mut place) = (0, 0);
            for (i, ((rank, scale, b), outputs)) in
                adapter.sites.iter().zip(&self.outputs).enumerate()
            {
                stack[2 + 4 * i..][..4].copy_from_slice(&[
                    keep(b),
                    pair(small(first), small(*rank)),
                    pair(scale.to_bits(), small(*outputs)),
                    pair(small(place), 0),
                ]);
                first += rank;
                place += outputs;
            }
            stack[..2].copy_from_slice(&[keep(&adapter.a), pair(small(first), 0)]);
            stacks.push(stack);
        }
        (Buffer::new(&stacks, [u64::MAX; 14]), matrices)
    }

    /// `y [rows, width]` with the deltas of the rows' slots added, by grids of `blocks` blocks for each row.
    fn run(&self, (x, y): (&[T], &[T]), slots: &[i32], blocks: usize, order: Order) -> Vec<T> {
        let (mut table, _matrices) = self.table();
        let rows = slots.len();
        let room = self.slots.iter().map(|slot| slot.a.len() / self.inputs).max().unwrap_or(0) + 1;
        let (mut x, mut y) = (Buffer::new(x, T::GUARD), Buffer::new(y, T::GUARD));
        let (mut slots, mut there) = (Buffer::new(slots, 1000), count(rows));
        let mut shrunk = Buffer::new(&vec![f32::NAN; rows * room], f32::NAN);
        let arguments = [
            x.memory(),
            table.memory(),
            slots.memory(),
            there.memory(),
            self.inputs.into(),
            room.into(),
            shrunk.memory(),
        ];
        let shape = ([rows + 1, blocks, 1], constant("SHRINK_THREADS"));
        launch(&format!("lora_shrink_{}", T::NAME), shape, order, &arguments).unwrap();
        let arguments = [
            shrunk.memory(),
            table.memory(),
            slots.memory(),
            there.memory(),
            room.into(),
            self.width().into(),
            y.memory(),
        ];
        let shape = ([rows + 1, blocks, self.outputs.len()], constant("EXPAND_THREADS"));
        launch(&format!("lora_expand_{}", T::NAME), shape, order, &arguments).unwrap();
        shrunk.numbers();
        y.numbers().to_vec()
    }

    /// What one row must be, each output with the size of what was summed for it.
    fn reference(&self, x: &[T], y: &[T], slot: i32) -> Vec<(f64, f64)> {
        let mut want: Vec<(f64, f64)> = y.iter().map(|y| (y.wide(), 0.0)).collect();
        let Ok(slot) = usize::try_from(slot) else { return want };
        let adapter = &self.slots[slot];
        let mut ranks = adapter.a.chunks(self.inputs).map(|a| {
            let terms = a.iter().zip(x).map(|(a, x)| a.wide() * x.wide());
            terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()))
        });
        let mut place = 0;
        for ((rank, scale, b), outputs) in adapter.sites.iter().zip(&self.outputs) {
            for (shrunk, of_rank) in ranks.by_ref().take(*rank).zip(b.chunks(*outputs)) {
                for (want, b) in want[place..].iter_mut().zip(of_rank) {
                    let scaled = f64::from(*scale) * b.wide();
                    want.0 += scaled * shrunk.0;
                    want.1 += scaled.abs() * shrunk.1;
                }
            }
            place += outputs;
        }
        want
    }
}

fn check<T: Element>(world: &World<T>, random: &mut Numbers, slots: &[i32], size: f32) {
    let (inputs, width) = (world.inputs, world.width());
    let x: Vec<T> = random.vec(slots.len() * inputs, size);
    let y: Vec<T> = random.vec(slots.len() * width, size);
    let got = in_both_orders(|order| world.run((&x, &y), slots, 1, order));
    assert_eq!(bits(&got), bits(&world.run((&x, &y), slots, 3, Order::Forwards)), "another grid");
    for (row, slot) in slots.iter().enumerate() {
        let (x, y) = (&x[row * inputs..][..inputs], &y[row * width..][..width]);
        let got = &got[row * width..][..width];
        for (got, (want, summed)) in got.iter().zip(world.reference(x, y, *slot)) {
            assert_close(*got, want, 1e-5 * summed);
        }
        if *slot < 0 {
            assert_eq!(bits(got), bits(y), "a row without an adapter is left alone");
        }
        let alone = world.run((x, y), &[*slot], 2, Order::Forwards);
        assert_eq!(bits(got), bits(&alone), "row {row} alone");
    }
}

fn rank() -> impl Strategy<Value = usize> {
    prop_oneof![Just(0), 1_usize..20, prop::sample::select(vec![1, 64, 127, 255, 256])]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn each_row_gets_the_delta_of_its_slot_and_no_other(
        seed: u64,
        inputs in (1_usize..70).prop_map(|eights| 8 * eights),
        outputs in prop::collection::vec(1_usize..600, 1..=3),
        ranks in prop::collection::vec([rank(), rank(), rank()], 1..4),
        rows in 1_usize..6,
        size in prop::sample::select(vec![1e-6_f32, 1.0, 8.0]),
    ) {
        let ranks: Vec<Vec<usize>> = ranks.iter().map(|ranks| ranks[..outputs.len()].to_vec()).collect();
        let mut random = Numbers(seed);
        let slot = |_| i32::try_from(random.below(ranks.len() + 1)).expect("few") - 1;
        let slots: Vec<i32> = (0..rows).map(slot).collect();
        if seed % 2 == 0 {
            check(&World::<f16>::new(&mut random, inputs, &outputs, &ranks), &mut random, &slots, size);
        } else {
            check(&World::<bf16>::new(&mut random, inputs, &outputs, &ranks), &mut random, &slots, size);
        }
    }
}

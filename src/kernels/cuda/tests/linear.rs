//! Products with the base's weights.

use proptest::prelude::*;

use super::{super::launch::LinearMaps, *};
use crate::kernels::panels::{COLUMNS, Encoding, Panels};

const ENCODINGS: [(Encoding, &str); 11] = [
    (Encoding::F32, "f32"),
    (Encoding::F16, "f16"),
    (Encoding::BF16, "bf16"),
    (Encoding::Q4_0, "q4_0"),
    (Encoding::Q4_1, "q4_1"),
    (Encoding::Q5_0, "q5_0"),
    (Encoding::Q5_1, "q5_1"),
    (Encoding::Q8_0, "q8_0"),
    (Encoding::Q4_K, "q4_k"),
    (Encoding::Q5_K, "q5_k"),
    (Encoding::Q6_K, "q6_k"),
];

/// Rows of one block.
const TILES: [usize; 2] = [16, 64];
/// Numbers of a row of y before each map, and after the last, that are of no map.
const GAP: usize = 5;
/// What no product is.
const UNTOUCHED: f32 = -12345.0;

/// What a file's codes, and the scales that are bytes, are.
#[derive(Clone, Copy, Debug)]
enum Codes {
    Any,
    /// The least and the greatest, mixed.
    Ends,
}

/// `values` values of a file; dense ones, and scales that are halves, are up to `size`.
fn stored(
    random: &mut Numbers,
    encoding: Encoding,
    values: usize,
    (codes, size): (Codes, f32),
) -> Vec<u8> {
    let (length, bytes) = encoding.block();
    let halves: &[usize] = match encoding {
        Encoding::F32 | Encoding::F16 | Encoding::BF16 => &[],
        Encoding::Q4_0 | Encoding::Q5_0 | Encoding::Q8_0 => &[0],
        Encoding::Q4_1 | Encoding::Q5_1 | Encoding::Q4_K | Encoding::Q5_K => &[0, 2],
        Encoding::Q6_K => &[208],
    };
    let mut all = Vec::new();
    for _ in 0..values / length {
        let byte = |_| match codes {
            Codes::Any => u8::try_from(random.below(256)).expect("a byte"),
            Codes::Ends => [0, 0xff, 0x0f, 0xf0, 0x80, 0x7f][random.below(6)],
        };
        let mut block: Vec<u8> = (0..bytes).map(byte).collect();
        let value = random.unit() * size;
        match encoding {
            Encoding::F32 => block.copy_from_slice(&value.to_le_bytes()),
            Encoding::F16 => block.copy_from_slice(&f16::of(value).to_le_bytes()),
            Encoding::BF16 => block.copy_from_slice(&bf16::of(value).to_le_bytes()),
            _ => {
                for at in halves {
                    let scale = f16::of(random.unit() * size);
                    block[*at..at + 2].copy_from_slice(&scale.to_le_bytes());
                }
            }
        }
        all.extend(block);
    }
    all
}

/// Maps that share an input.
struct Maps {
    name: &'static str,
    inputs: usize,
    all: Vec<Panels>,
}

impl Maps {
    fn new(
        random: &mut Numbers,
        (encoding, name): (Encoding, &'static str),
        (outputs, inputs): (&[usize], usize),
        like: (Codes, f32),
    ) -> Self {
        let inputs = inputs.next_multiple_of(encoding.block().0);
        let mut map = |outputs: &usize| {
            let rows = stored(random, encoding, outputs * inputs, like);
            Panels::pack(encoding, (*outputs, inputs), &rows, |row| row).unwrap()
        };
        Self { name, inputs, all: outputs.iter().map(&mut map).collect() }
    }

    /// Where each map begins in a row of y, and then how long a row is.
    fn places(&self) -> (Vec<usize>, usize) {
        let mut end = 0;
        let place = |map: &Panels| {
            let place = end + GAP;
            end = place + map.outputs();
            place
        };
        let places = self.all.iter().map(place).collect();
        (places, end + GAP)
    }

    /// `y [rows, width]` by tiles of `tile` rows, beyond which nothing was written.
    fn run<T: Element>(&self, x: &[T], tile: usize, order: Order) -> Vec<f32> {
        let rows = x.len() / self.inputs;
        let (places, width) = self.places();
        let small = |number: usize| i32::try_from(number).expect("small");
        // There is room up to the next 16 rows, and what is in it spoils every sum.
        let mut x = x.to_vec();
        x.resize(rows.next_multiple_of(16) * self.inputs, T::GUARD);
        let mut panels: Vec<_> =
            self.all.iter().map(|map| Buffer::new(map.stored(), 0xff_u8)).collect();
        let panel_bytes = small(self.all[0].stored().len() / self.all[0].count());
        let mut maps = LinearMaps { panel_bytes, ..LinearMaps::default() };
        for (i, (map, panels)) in self.all.iter().zip(&mut panels).enumerate() {
            maps.panels[i] = panels.address().expose_provenance() as u64;
            (maps.outputs[i], maps.places[i]) = (small(map.outputs()), small(places[i]));
        }
        let mut x = Buffer::new(&x, T::GUARD);
        let room = rows.next_multiple_of(tile) * width;
        let (mut y, mut there) = (Buffer::new(&vec![UNTOUCHED; room], 0.0), count(rows));
        let arguments = [
            x.memory(),
            Argument::Maps(maps),
            y.memory(),
            there.memory(),
            self.inputs.into(),
            width.into(),
        ];
        let widest = self.all.iter().map(Panels::count).max().expect("there is a map");
        // A captured graph has blocks for more rows than there are.
        let grid = [widest, rows.div_ceil(tile) + 1, self.all.len()];
        let kernel = format!("linear_{}_{}_{tile}", self.name, T::NAME);
        launch(&kernel, (grid, constant("LINEAR_THREADS")), order, &arguments).unwrap();
        let (y, beyond) = y.numbers().split_at(rows * width);
        assert!(beyond.iter().all(|number| *number == UNTOUCHED), "rows that there are not");
        y.to_vec()
    }

    /// Of each output its place in a row of y, and its weights as they are multiplied.
    fn weights<T: Element>(&self) -> Vec<(usize, Vec<f64>)> {
        let mut all = Vec::new();
        for (map, place) in self.all.iter().zip(self.places().0) {
            for output in 0..map.outputs() {
                let mut row = vec![0.0; self.inputs];
                map.row(output, &mut row);
                all.push((place + output, row.into_iter().map(|w| T::of(w).wide()).collect()));
            }
        }
        all
    }
}

fn same_bits(left: &[f32], right: &[f32]) -> bool {
    let bits = |numbers: &[f32]| numbers.iter().map(|number| number.to_bits()).collect::<Vec<_>>();
    bits(left) == bits(right)
}

/// Products against their formula, and of each row against those it has elsewhere.
fn check<T: Element>(maps: &Maps, random: &mut Numbers, rows: usize, size: f32) {
    let (inputs, (_, width)) = (maps.inputs, maps.places());
    let x: Vec<T> = random.vec(rows * inputs, size);
    let y = maps.run(&x, 16, Order::Forwards);
    for (tile, order) in [(16, Order::Backwards), (64, Order::Forwards), (64, Order::Backwards)] {
        assert!(same_bits(&y, &maps.run(&x, tile, order)), "tiles of {tile} rows, {order:?}");
    }
    // All rows in other places.
    let by = random.below(rows);
    let turned = [&x[by * inputs..], &x[..by * inputs]].concat();
    let [_, of_turned] = TILES.map(|tile| maps.run(&turned, tile, Order::Forwards));
    assert!(
        same_bits(&[&y[by * width..], &y[..by * width]].concat(), &of_turned),
        "turned by {by}"
    );
    for row in [0, by, rows - 1] {
        for tile in TILES {
            let alone = maps.run(&x[row * inputs..][..inputs], tile, Order::Forwards);
            assert!(same_bits(&y[row * width..][..width], &alone), "row {row} alone");
        }
    }
    let weights = maps.weights::<T>();
    for (x, y) in x.chunks(inputs).zip(y.chunks(width)) {
        let x: Vec<f64> = x.iter().map(|x| x.wide()).collect();
        let mut left = y.to_vec();
        for (place, weights) in &weights {
            let terms = x.iter().zip(weights).map(|(x, w)| x * w);
            let (want, summed) =
                terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
            let off = (f64::from(y[*place]) - want).abs();
            // So many sums in single precision.
            let allowed = summed * inputs as f64 * 6e-8 + 1e-40;
            assert!(off <= allowed, "{} is not {want}: off by {off} at {place}", y[*place]);
            left[*place] = UNTOUCHED;
        }
        assert!(left.iter().all(|number| *number == UNTOUCHED), "what is of no map is left alone");
    }
}

#[test]
fn panels_are_those_of_the_processor() {
    assert_eq!(constant("COLUMNS"), COLUMNS);
    assert_eq!(size_of::<LinearMaps>(), 56);
}

/// Rows that are 1 at one input and 0 at all others give the weights themselves.
fn widened_weights_are_exact<T: Element>(random: &mut Numbers, like: (Codes, f32)) {
    for encoding in ENCODINGS {
        let maps = Maps::new(random, encoding, (&[33], 64), like);
        let (_, width) = maps.places();
        let one = |i| T::of(if i % (maps.inputs + 1) == 0 { 1.0 } else { 0.0 });
        let x: Vec<T> = (0..maps.inputs * maps.inputs).map(one).collect();
        let y = maps.run(&x, 64, Order::Forwards);
        for (place, weights) in maps.weights::<T>() {
            for (k, weight) in weights.into_iter().enumerate() {
                let got = f64::from(y[k * width + place]);
                // A sum is no negative zero.
                let same = got.total_cmp(&(weight + 0.0)).is_eq();
                assert!(same, "{encoding:?}, input {k} of place {place}: {got} is not {weight}");
            }
        }
    }
}

#[test]
fn weights_are_widened_to_the_last_bit() {
    let mut random = Numbers(7);
    for like in [(Codes::Any, 0.02), (Codes::Ends, 1.0), (Codes::Any, 1e-6)] {
        widened_weights_are_exact::<f16>(&mut random, like);
        widened_weights_are_exact::<bf16>(&mut random, like);
    }
}

/// Warps read groups ahead, and come back to where they read them to.
#[test]
fn long_inputs_are_summed_to_their_end() {
    let mut random = Numbers(8);
    for (i, encoding) in ENCODINGS.into_iter().enumerate() {
        let maps = Maps::new(&mut random, encoding, (&[33], 32 * 41), (Codes::Any, 0.02));
        if i % 2 == 0 {
            check::<f16>(&maps, &mut random, 2, 1.0);
        } else {
            check::<bf16>(&maps, &mut random, 2, 1.0);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn products_are_right_in_any_company(
        seed: u64,
        encoding in prop::sample::select(ENCODINGS.to_vec()),
        outputs in prop::collection::vec(1_usize..70, 1..=3),
        inputs in (1_usize..20).prop_map(|groups| 32 * groups),
        rows in prop::sample::select(vec![1, 2, 15, 16, 17, 31, 33, 63, 64, 65]),
        codes in prop::sample::select(vec![Codes::Any, Codes::Ends]),
        (scale, size) in prop::sample::select(vec![(0.02_f32, 1.0_f32), (1e-6, 1.0), (1.0, 1e-3), (1.0, 30.0)]),
    ) {
        let mut random = Numbers(seed);
        let maps = Maps::new(&mut random, encoding, (&outputs, inputs), (codes, scale));
        if seed % 2 == 0 {
            check::<f16>(&maps, &mut random, rows, size);
        } else {
            check::<bf16>(&maps, &mut random, rows, size);
        }
    }
}

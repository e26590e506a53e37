//! Each kernel against its formula, and against itself in other company.

use std::fmt::Debug;

use half::{bf16, f16};

use super::{
    SOURCE,
    host::{Argument, Buffer, Order, launch, library},
    launch,
};
use crate::kernels::attention::PAGE;

mod attention;
mod linear;
mod lora;
mod rows;

/// A type of numbers in memory.
trait Element: Copy + Debug + PartialEq + 'static {
    /// How kernels of this type end.
    const NAME: &'static str;
    /// Spoils every sum it gets into.
    const GUARD: Self;
    /// Half the distance of one and the next number.
    const ROUNDING: f64;
    /// What a number may be off by, however small it is: those below the normal ones are multiples of the least.
    const LEAST: f64;
    fn of(x: f32) -> Self;
    fn single(self) -> f32;
    fn bits(self) -> u32;
    fn wide(self) -> f64 {
        self.single().into()
    }
}

impl Element for f32 {
    const NAME: &'static str = "f32";
    const GUARD: Self = Self::NAN;
    const ROUNDING: f64 = 1.0 / 16_777_216.0;
    // Devices have numbers below this one, but exp(-x) is infinite where its inverse would be one of them.
    const LEAST: f64 = 1e-34;
    fn of(x: f32) -> Self {
        x
    }
    fn single(self) -> f32 {
        self
    }
    fn bits(self) -> u32 {
        self.to_bits()
    }
}

impl Element for f16 {
    const NAME: &'static str = "f16";
    const GUARD: Self = Self::NAN;
    const ROUNDING: f64 = 1.0 / 2048.0;
    const LEAST: f64 = 6e-8;
    fn of(x: f32) -> Self {
        Self::from_f32(x)
    }
    fn single(self) -> f32 {
        self.to_f32()
    }
    fn bits(self) -> u32 {
        self.to_bits().into()
    }
}

impl Element for bf16 {
    const NAME: &'static str = "bf16";
    const GUARD: Self = Self::NAN;
    const ROUNDING: f64 = 1.0 / 256.0;
    const LEAST: f64 = f32::LEAST;
    fn of(x: f32) -> Self {
        Self::from_f32(x)
    }
    fn single(self) -> f32 {
        self.to_f32()
    }
    fn bits(self) -> u32 {
        self.to_bits().into()
    }
}

/// Numbers of a seed.
struct Numbers(u64);

impl Numbers {
    /// Below `end`.
    fn below(&mut self, end: usize) -> usize {
        let Self(state) = self;
        *state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(*state >> 33).expect("31 bits") % end
    }

    /// From -1 to 1.
    fn unit(&mut self) -> f32 {
        self.below(1 << 20) as f32 / (1 << 19) as f32 - 1.0
    }

    /// `count` numbers, from `-size` to `size`.
    fn vec<T: Element>(&mut self, count: usize, size: f32) -> Vec<T> {
        (0..count).map(|_| T::of(self.unit() * size)).collect()
    }

    /// The numbers below `end` in any order.
    fn shuffled(&mut self, end: usize) -> Vec<i32> {
        let mut all: Vec<i32> = (0..i32::try_from(end).expect("small")).collect();
        (1..end).rev().for_each(|i| all.swap(i, self.below(i + 1)));
        all
    }
}

fn bits<T: Element>(numbers: &[T]) -> Vec<u32> {
    numbers.iter().map(|number| number.bits()).collect()
}

/// What `run` gives, whichever threads run first.
fn in_both_orders<T: Element>(run: impl Fn(Order) -> Vec<T>) -> Vec<T> {
    let forwards = run(Order::Forwards);
    assert_eq!(bits(&forwards), bits(&run(Order::Backwards)), "a barrier is missing");
    forwards
}

/// Fails unless `got` is `want` but for its own rounding and `error`.
#[track_caller]
fn assert_close<T: Element>(got: T, want: f64, error: f64) {
    let allowed = want.abs() * T::ROUNDING * 1.01 + error + T::LEAST;
    let off = (got.wide() - want).abs();
    assert!(off <= allowed, "{got:?} is not {want}: off by {off} where {allowed} is allowed");
}

/// One int in device memory.
fn count(rows: usize) -> Buffer<i32> {
    Buffer::new(&[rows.try_into().expect("small")], i32::MIN)
}

/// The value of a constant of the kernels.
fn constant(name: &str) -> usize {
    let line = SOURCE.split_once(&format!("constexpr int {name} = ")).expect("it is there").1;
    line.split(';').next().and_then(|value| value.parse().ok()).expect("a number")
}

#[test]
fn pages_are_the_schedulers() {
    assert_eq!(constant("PAGE"), PAGE);
    assert_eq!(constant("SPLIT") % PAGE, 0);
}

#[test]
fn launches_are_as_the_kernels_have_them() {
    for (name, value) in [
        ("NORM_THREADS", launch::NORM_THREADS),
        ("ROPE_THREADS", launch::ROPE_THREADS),
        ("ATTENTION_THREADS", launch::ATTENTION_THREADS),
        ("GATE_THREADS", launch::GATE_THREADS),
        ("GREEDY_THREADS", launch::GREEDY_THREADS),
        ("SHRINK_THREADS", launch::LORA_THREADS),
        ("EXPAND_THREADS", launch::LORA_THREADS),
        ("BIAS_THREADS", launch::BIAS_THREADS),
        ("LINEAR_THREADS", launch::LINEAR_THREADS),
        ("GREEDY_PART", launch::GREEDY_PART),
        ("SPLIT", launch::SPLIT),
        ("MAX_RANK", launch::MAX_RANK),
        ("MAX_SITES", launch::MAX_SITES),
    ] {
        assert_eq!(constant(name), value, "{name}");
    }
    assert_eq!(2 * launch::LORA_THREADS, launch::EXPAND_OUTPUTS);
    assert_eq!(2 * launch::ATTENTION_THREADS, launch::MAX_DIM);
}

#[test]
fn the_hosts_conversions_are_right_for_every_number() {
    // SAFETY: the signatures are those of launch.cpp.
    let (widen, to_f16, to_bf16) = unsafe {
        let narrow = |name: &[u8]| library().get::<extern "C" fn(f32) -> u16>(name).unwrap();
        let widen = library().get::<extern "C" fn(u16) -> f32>(b"chorus_widen_f16").unwrap();
        (widen, narrow(b"chorus_narrow_f16"), narrow(b"chorus_narrow_bf16"))
    };
    let check = |x: f32| {
        if x.is_nan() {
            return assert!(
                f16::from_bits(to_f16(x)).is_nan() && bf16::from_bits(to_bf16(x)).is_nan()
            );
        }
        assert_eq!(to_f16(x), f16::from_f32(x).to_bits(), "{x:e}");
        assert_eq!(to_bf16(x), bf16::from_f32(x).to_bits(), "{x:e}");
    };
    for bits in 0..=u16::MAX {
        let x = f16::from_bits(bits);
        let same = widen(bits).to_bits() == x.to_f32().to_bits();
        assert!(same || x.is_nan() && widen(bits).is_nan(), "{x:?}");
        check(x.to_f32());
        // The number itself, its neighbours, and what lies halfway between two.
        for low in [0, 1, 0x0fff, 0x1000, 0x1001, 0x7fff, 0x8000, 0x8001, 0xffff] {
            check(f32::from_bits(u32::from(bits) << 16 | low));
        }
    }
}

/// What a device would hang at, or leave undefined, is told.
#[test]
fn faults_of_kernels_are_told() {
    let mut numbers = Buffer::new(&[0_i32; 128], -1);
    let mut fault = |kernel| launch(kernel, ([1; 3], 64), Order::Forwards, &[numbers.memory()]);
    for (kernel, told) in [
        ("fault_barrier", "does not reach the barrier"),
        ("fault_exchange", "wait at different lines"),
        ("fault_index", "index 16 is beyond an array"),
        ("fault_alignment", "is no place for what is read"),
        ("fault_warp", "wait at different lines"),
        ("fault_matrix_place", "is not at a multiple of 32 bytes"),
        ("fault_matrix_lines", "not multiples of 16 bytes apart"),
        ("rms_norm_f16", "sizes of the parameters"),
        ("nothing", "no such kernel"),
    ] {
        let error = fault(kernel).expect_err(kernel);
        assert!(error.contains(told), "{kernel}: {error}");
    }
    for (kernel, block) in [("fault_race", 64), ("fault_matrix_race", 32)] {
        let race = |order| {
            let mut numbers = Buffer::new(&[0_i32; 128], -1);
            launch(kernel, ([2, 1, 1], block), order, &[numbers.memory()]).unwrap();
            numbers.numbers().to_vec()
        };
        assert_ne!(race(Order::Forwards), race(Order::Backwards), "{kernel}");
    }
}

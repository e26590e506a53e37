//! What is drawn, against a full sort of the vocabulary and against known rows.

use proptest::prelude::{Just, Strategy, any, prop, prop_assert_eq, prop_oneof, proptest};

use super::{
    choice::{portion, scale},
    weights::{ONE, weight},
    *,
};

fn drawn(sampling: Sampling, logits: &[f32]) -> Result<u32, NotANumber> {
    Sampler::new(sampling, &[]).draw(logits, &Limits::default())
}

fn greedy() -> Sampling {
    Sampling { temperature: 0.0, ..Sampling::default() }
}

/// Everything is sorted, then truncated as the words say.
fn plain(sampling: &Sampling, logits: &[f32]) -> u32 {
    let mut order: Vec<_> = (0..logits.len()).collect();
    order.sort_by(|a, b| logits[*b].partial_cmp(&logits[*a]).unwrap().then(a.cmp(b)));
    let best = logits[order[0]];
    let weight = |id: &usize| weight((logits[*id] - best) / sampling.temperature);
    let sum = |ids: &[usize]| ids.iter().map(weight).sum::<u64>();
    if sampling.top_k > 0 {
        order.truncate(sampling.top_k);
    }
    if sampling.top_p < 1.0 {
        let enough = portion(sampling.top_p, sum(&order));
        let count = (1..=order.len()).find(|count| sum(&order[..*count]) >= enough);
        order.truncate(count.unwrap());
    }
    order.retain(|id| weight(id) >= portion(sampling.min_p, ONE));
    order.sort_unstable();
    let at = scale(Rng::new(sampling.seed).unit(), sum(&order));
    let drawn = (1..=order.len()).find(|count| sum(&order[..*count]) > at).unwrap();
    u32::try_from(order[drawn - 1]).unwrap()
}

/// Few values, so that there are ties; or many.
fn rows() -> impl Strategy<Value = Vec<f32>> {
    let value = prop_oneof![(-4..4_i8).prop_map(f32::from), -30.0..30.0_f32];
    prop::collection::vec(value, 1..400)
}

fn samplings() -> impl Strategy<Value = Sampling> {
    let temperature = prop_oneof![Just(1.0), 0.01..3.0_f32, Just(f32::MIN_POSITIVE)];
    let top_p = prop_oneof![Just(1.0), 0.001..1.0_f32, Just(1.0 - f32::EPSILON)];
    let min_p = prop_oneof![Just(0.0), 0.0..=1.0_f32];
    (temperature, 0..450_usize, top_p, min_p, any::<u64>()).prop_map(
        |(temperature, top_k, top_p, min_p, seed)| Sampling {
            temperature,
            top_k,
            top_p,
            min_p,
            seed,
            ..Sampling::default()
        },
    )
}

proptest! {
    #[test]
    fn partial_selection_draws_what_full_sorting_draws(logits in rows(), sampling in samplings()) {
        let expected = plain(&sampling, &logits);
        prop_assert_eq!(drawn(sampling, &logits), Ok(expected));
    }

    #[test]
    fn the_likeliest_are_those_of_a_full_sort(logits in rows(), top in 0..30_usize) {
        let mut order: Vec<_> = (0_u32..).zip(logits.iter().copied()).collect();
        order.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
        order.truncate(top);
        let scored = score(&logits, 0, top).unwrap();
        let ids: Vec<_> = scored.top.iter().map(|(id, _)| *id).collect();
        prop_assert_eq!(ids, order.iter().map(|(id, _)| *id).collect::<Vec<_>>());
    }
}

#[test]
fn greedy_takes_the_lowest_of_equals() {
    assert_eq!(drawn(greedy(), &[1.0, 3.0, 3.0, -1.0]), Ok(1));
    assert_eq!(drawn(greedy(), &[-0.0, 0.0]), Ok(0));
    let one = Sampling { top_k: 1, seed: 9, ..Sampling::default() };
    assert_eq!(drawn(one, &[1.0, 3.0, 3.0, -1.0]), Ok(1));
}

#[test]
fn draws_follow_the_distribution() {
    let logits = [0.0, 1.0, 2.0, f32::NEG_INFINITY];
    let mut sampler = Sampler::new(Sampling { seed: 1, ..Sampling::default() }, &[]);
    let mut counts = [0_i32; 4];
    for _ in 0..20_000 {
        counts[sampler.draw(&logits, &Limits::default()).unwrap() as usize] += 1;
    }
    // e^0, e^1, e^2 over their sum, five standard deviations at most 350.
    for (count, expected) in counts.iter().zip([1_801, 4_895, 13_305, 0]) {
        assert!((count - expected).abs() < 350, "{counts:?}");
    }
    assert_eq!(counts[3], 0);
}

#[test]
fn equal_seeds_draw_equal_tokens() {
    let sampling = Sampling { seed: 42, temperature: 2.0, ..Sampling::default() };
    let logits: Vec<f32> = (0..100_u8).map(|id| f32::from(id % 7)).collect();
    let [mut one, mut two] = [0; 2].map(|_| Sampler::new(sampling.clone(), &[]));
    let tokens: Vec<_> = (0..50).map(|_| one.draw(&logits, &Limits::default()).unwrap()).collect();
    assert!(
        (0..50).map(|_| two.draw(&logits, &Limits::default()).unwrap()).eq(tokens.iter().copied())
    );
    let mut other = Sampler::new(Sampling { seed: 43, ..sampling }, &[]);
    assert!(!(0..50).map(|_| other.draw(&logits, &Limits::default()).unwrap()).eq(tokens));
}

#[test]
fn overflow_is_told_and_never_drawn() {
    for bad in [f32::NAN, f32::INFINITY] {
        assert_eq!(drawn(greedy(), &[0.0, bad, 1.0]), Err(NotANumber));
        assert_eq!(drawn(Sampling::default(), &[0.0, bad, 1.0]), Err(NotANumber));
        assert_eq!(score(&[0.0, bad], 0, 1), Err(NotANumber));
    }
    assert_eq!(drawn(greedy(), &[f32::NEG_INFINITY; 3]), Err(NotANumber));
    assert_eq!(drawn(greedy(), &[]), Err(NotANumber));
    let masked = [f32::NEG_INFINITY, 0.5, f32::NEG_INFINITY];
    assert_eq!(drawn(Sampling::default(), &masked), Ok(1));
    assert_eq!(drawn(Sampling::default(), &[f32::MIN, f32::MAX]), Ok(1));
}

#[test]
fn repetition_counts_prompt_and_answer_the_others_only_the_answer() {
    let with = |change: fn(&mut Sampling)| {
        let mut sampling = greedy();
        change(&mut sampling);
        let mut sampler = Sampler::new(sampling, &[0]);
        [0; 3].map(|_| sampler.draw(&[2.0, 1.5, -0.5], &Limits::default()).unwrap())
    };
    assert_eq!(with(|_| {}), [0, 0, 0]);
    assert_eq!(with(|sampling| sampling.repetition_penalty = 2.0), [1, 0, 0]);
    assert_eq!(with(|sampling| sampling.presence_penalty = 1.0), [0, 1, 0]);
    assert_eq!(with(|sampling| sampling.frequency_penalty = 2.0), [0, 1, 0]);
    // 2 - 4, 1.5 - 4, then -0.5 is best.
    assert_eq!(with(|sampling| sampling.frequency_penalty = 4.0), [0, 1, 2]);
}

#[test]
fn a_negative_logit_is_multiplied_by_the_repetition_penalty() {
    let sampling = Sampling { repetition_penalty: 2.0, ..greedy() };
    assert_eq!(Sampler::new(sampling, &[0]).draw(&[-1.0, -1.5], &Limits::default()), Ok(1));
}

#[test]
fn logprobs_are_a_log_softmax() {
    let scored = score(&[0.0, 0.0, f32::NEG_INFINITY], 1, 5).unwrap();
    let half = 0.5_f32.ln();
    assert_eq!((scored.token, scored.logprob), (1, half));
    assert_eq!(scored.top, [(0, half), (1, half), (2, f32::NEG_INFINITY)]);
    assert!(score(&[1000.0, -1000.0], 0, 0).unwrap().logprob.abs() < f32::EPSILON);
    assert_eq!(score(&[0.0], 7, 0), Err(NotANumber), "outside the vocabulary");
}

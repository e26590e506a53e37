//! The engine over a network on a device, to which adapters must be brought first.

use super::{all as all_events, *};
use crate::{
    lora::Lease,
    model::gpu::tests::{TestDevice, adapters, models},
};

/// An answer of the engine: its tokens, and the log-probability of each.
type Said = Vec<(u32, f32)>;

async fn said(stream: TokenStream) -> Said {
    let events = all_events(stream).await;
    assert_eq!(events.last(), Some(&Event::Finished(Finish::Length)), "{events:?}");
    let token = |event: &Event| match event {
        Event::Token { id, logprob: Some(logprob) } => Some((*id, logprob.logprob)),
        _ => None,
    };
    events.iter().filter_map(token).collect()
}

fn job(prompt: &[u32], adapter: Option<&Arc<crate::lora::Adapter>>, lane: u32) -> Job {
    let mut wish = Wish::of(prompt, 6);
    (wish.logprobs, wish.lane) = (Some(0), lane);
    let adapter = adapter.map(|adapter| Lease::new(Arc::clone(adapter), || {}));
    Job { adapter, ..wish.job() }
}

/// More adapters than the device has room for, and all at once: each is brought when it is its turn, while others go on, and each
/// answer is what it is alone, bit for bit.
#[tokio::test]
async fn adapters_come_and_go_and_no_answer_is_anothers() {
    let base = models().join("tied");
    let settings = Settings { pages: 64, context: 64, slots: 3, ..settings() };
    // Two or three of them.
    let device = TestDevice::new(&base, 48 << 10, &settings);
    let all: Vec<_> = adapters(&base, device.llama()).into_iter().take(9).collect();
    let (llama, gpu) = (Arc::clone(device.llama()), Arc::clone(device.gpu()));
    let network = device.network();
    let before = gpu.brought();
    let engine = Engine::over(network, settings).unwrap();
    let prompts = |seed: u32| (0..9).map(|at| (seed * 31 + at * 7) % 190).collect::<Vec<u32>>();
    let mut alone = Vec::new();
    for (index, adapter) in all.iter().map(Some).chain([None]).enumerate() {
        let prompt = prompts(u32::try_from(index % 3).unwrap());
        let adapter = adapter.map(|(_, adapter)| adapter);
        alone.push(said(engine.submit(job(&prompt, adapter, 0)).unwrap()).await);
    }
    for round in 0..3 {
        let mut streams = Vec::new();
        for (index, adapter) in all.iter().map(Some).chain([None]).enumerate() {
            let prompt = prompts(u32::try_from(index % 3).unwrap());
            let adapter = adapter.map(|(_, adapter)| adapter);
            let lane = u32::try_from((index + round) % 4).unwrap();
            streams.push(engine.submit(job(&prompt, adapter, lane)).unwrap());
        }
        for (index, stream) in streams.into_iter().enumerate() {
            let name = all.get(index).map_or("base", |(name, _)| name);
            assert_eq!(said(stream).await, alone[index], "{name}, round {round}");
        }
    }
    let different: std::collections::BTreeSet<_> =
        alone.iter().map(|said| format!("{said:?}")).collect();
    assert!(different.len() > all.len() / 2, "adapters change nothing");
    assert_nothing_held(&engine.stats());
    let there = engine.stats().on_device;
    assert!((1..all.len()).contains(&there.len()), "{there:?}");
    assert!(
        all.iter().filter(|(_, adapter)| there.contains(&adapter.digest())).count() == there.len()
    );
    // Each takes a copy of its numbers and two of its entries in the tables.
    let brought = (gpu.brought() - before) / 3;
    assert!(brought > 2 * all.len(), "{brought} were brought: nobody had to go");
    drop((engine, llama));
    assert_eq!(gpu.held(), 0, "all memory of the device is given back");
}

/// An adapter, or a mix, that the device can never hold fails those who ask for it, and nobody else; and so does one that could not
/// be brought, until it can.
#[tokio::test]
async fn what_cannot_be_brought_fails_only_its_own() {
    let base = models().join("tied");
    let settings = Settings { pages: 64, context: 64, slots: 3, ..settings() };
    let device = TestDevice::new(&base, 36 << 10, &settings);
    let all = adapters(&base, device.llama());
    let named = |name: &str| Arc::clone(&all.iter().find(|(own, _)| own == name).unwrap().1);
    // Of 14, 16, 48 and 32 KiB.
    let (fits, other, large) = (named("rslora"), named("all-linear"), named("save-head"));
    let wide = named("plain");
    let mix = |parts: [(&Arc<_>, f32); 2]| {
        Arc::new(
            crate::lora::Adapter::mix(parts.map(|(one, much)| (Arc::clone(one), much)).into())
                .unwrap(),
        )
    };
    let (small_mix, large_mix) =
        (mix([(&fits, 0.5), (&other, 0.5)]), mix([(&fits, 0.5), (&wide, 0.5)]));
    let gpu = Arc::clone(device.gpu());
    let engine = Engine::over(device.network(), settings).unwrap();
    let ask = |adapter, lane| engine.submit(job(&[1, 2], adapter, lane)).unwrap();
    for never in [&large, &large_mix] {
        let (failing, well) = (ask(Some(never), 0), [ask(None, 1), ask(Some(&fits), 2)]);
        assert_eq!(all_events(failing).await, [Event::Failed(Failure::Step)]);
        for stream in well {
            assert_eq!(said(stream).await.len(), 6);
        }
    }
    let alone = said(ask(Some(&small_mix), 0)).await;
    assert_ne!(alone, said(ask(Some(&fits), 0)).await);
    assert_eq!(said(ask(Some(&small_mix), 0)).await, alone);
    // Its place is another's by now, and bringing it back fails once.
    assert_eq!(said(ask(Some(&wide), 0)).await.len(), 6);
    gpu.fail(1);
    let (failing, well) = (ask(Some(&other), 0), ask(None, 1));
    assert_eq!(all_events(failing).await, [Event::Failed(Failure::Step)]);
    assert_eq!(said(well).await.len(), 6);
    assert_eq!(said(ask(Some(&other), 0)).await.len(), 6);
    assert_nothing_held(&engine.stats());
}

//! Whole runs, on a server with known times.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::Map;
use tokio::sync::watch;

use super::{
    arrivals::{Rate, Spacing},
    draw::Order,
    fake::{Counts, Fake, Manners},
    lengths::Lengths,
    load::Live,
    measure::{Ended, Run, Spread},
    plan::{Load, Plan, Tenant, Warmup},
    prompts::Prompts,
    report::{Report, csv},
    slo::Slo,
    target::{Adapter, Api, Key, Select, Target},
    trace::Trace,
};

/// A small plan for a server.
pub(super) fn plan(url: &str, adapters: &[&str]) -> Plan {
    let adapters = adapters.iter().enumerate().map(|(place, name)| Adapter::at(place, name));
    Plan {
        label: "a test".to_owned(),
        target: Target {
            url: url.to_owned(),
            api: Api::Completions,
            select: Select::Model,
            header_name: "X-Adapter".to_owned(),
            model: "small".to_owned(),
            headers: Vec::new(),
            body: Map::new(),
            temperature: 0.0,
            ignore_eos: true,
        },
        tenants: vec![Tenant {
            name: "default".to_owned(),
            key: None,
            share: 1.0,
            adapters: adapters.collect(),
            order: Order::Uniform,
        }],
        load: Load::Closed { concurrency: 2 },
        requests: Some(8),
        duration: None,
        warmup: Warmup::Requests(0),
        prompts: Prompts::Words(Lengths::fixed(5)),
        prefix_words: 0,
        output: Lengths::fixed(4),
        seed: 1,
        timeout: Duration::from_secs(20),
        retries: 0,
        most_at_once: 64,
        slo: Slo::default(),
    }
}

/// Does a plan to its end.
async fn run(plan: Plan) -> (Arc<Plan>, Run) {
    let (_stop, stopped) = watch::channel(false);
    let plan = Arc::new(plan);
    let run = super::run(Arc::clone(&plan), Arc::new(Live::default()), stopped).await;
    (plan, run.unwrap())
}

async fn report(plan: Plan) -> Report {
    let (plan, run) = run(plan).await;
    Report::of(&plan, &run)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_are_no_shorter_than_they_were() {
    let fake = Fake::start(Manners::default()).await;
    let report = report(plan(&fake.url, &["a", "b", "base"])).await;
    assert_eq!((report.requests.sent, report.requests.done), (8, 8), "{report}");
    assert_eq!((report.throughput.output_tokens, report.throughput.prompt_tokens), (32, 56));
    let latency = report.latency;
    // Values are rounded to three digits, and a timer of the other side counts in milliseconds.
    let least = |spread: Option<Spread>, millis: f64| spread.unwrap().p50 > millis * 0.99 - 1.0;
    assert!(least(latency.ttft, 20.0) && least(latency.e2e, 35.0), "{report}");
    // How parts lie between the first and the last is the network's and this machine's as well.
    let counts = [latency.itl, latency.tpot].map(|spread| spread.map(|spread| spread.count));
    assert_eq!(counts, [Some(24), Some(8)]);
    assert_eq!(report.ended, Ended::Complete);
    assert_eq!(report.warnings.iter().filter(|text| text.contains("shorter")).count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn latencies_of_an_open_loop_begin_when_requests_were_due() {
    let fake =
        Fake::start(Manners { first: Duration::from_millis(60), ..Manners::default() }).await;
    let mut plan = plan(&fake.url, &["a"]);
    plan.load = Load::Open { rate: Rate::steady(1000.0), spacing: Spacing::Fixed };
    // One at a time: the last is sent when seven others have been answered.
    plan.most_at_once = 1;
    let (_, run) = run(plan).await;
    let last = run.samples.iter().max_by_key(|sample| sample.due).unwrap();
    assert!(last.lateness() >= Duration::from_millis(7 * 60), "{last:?}");
    assert!(last.ttft().unwrap() >= Duration::from_millis(8 * 60), "{last:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_are_counted_and_tried_again_only_where_that_is_asked_for() {
    let manners = Manners { refused: (3, 0), ..Manners::default() };
    let fake = Fake::start(manners.clone()).await;
    let once = report(plan(&fake.url, &["a"])).await;
    assert_eq!((once.requests.done, once.requests.refused), (5, 3), "{once}");
    assert_eq!((once.errors[0].kind.as_str(), once.errors[0].count), ("refused 429", 3));
    let fake = Fake::start(manners).await;
    let mut again = plan(&fake.url, &["a"]);
    again.retries = 3;
    let again = report(again).await;
    assert_eq!((again.requests.done, again.requests.retries), (8, 3), "{again}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_was_refused_rests_as_long_as_it_is_told() {
    let fake = Fake::start(Manners { refused: (1, 1), ..Manners::default() }).await;
    let mut plan = plan(&fake.url, &["a"]);
    plan.load = Load::Closed { concurrency: 1 };
    plan.requests = Some(2);
    let (_, run) = run(plan).await;
    let rest = run.samples[1].sent.saturating_sub(run.samples[0].end);
    assert!(rest >= Duration::from_secs(1), "{rest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_rests_beyond_the_end_of_a_run() {
    let begun = Instant::now();
    let fake = Fake::start(Manners { refused: (u64::MAX, 60), ..Manners::default() }).await;
    let mut bounded = plan(&fake.url, &["a"]);
    bounded.requests = None;
    bounded.duration = Some(Duration::from_millis(300));
    let bounded = report(bounded).await;
    assert_eq!((bounded.requests.sent, bounded.requests.refused), (2, 2), "{bounded}");
    // One place rests while the other sends all that is left.
    let fake = Fake::start(Manners { refused: (1, 60), ..Manners::default() }).await;
    let counted = report(plan(&fake.url, &["a"])).await;
    assert_eq!((counted.requests.done, counted.requests.refused), (7, 1), "{counted}");
    assert!(begun.elapsed() < Duration::from_secs(30));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_closed_before_an_answer_costs_one_more_attempt() {
    // Where the first request is answered, the second one goes over a connection that was kept.
    for (closes, done, sends) in [(1..2, 3, 4), (1..3, 2, 4), (0..u64::MAX, 0, 6)] {
        let fake = Fake::start(Manners { closes, ..Manners::default() }).await;
        let mut plan = plan(&fake.url, &["a"]);
        plan.load = Load::Closed { concurrency: 1 };
        plan.requests = Some(3);
        let report = report(plan).await;
        let requests = report.requests;
        assert_eq!((requests.done, requests.failed), (done, 3 - done), "{report}");
        assert_eq!(requests.retries, sends - 3, "{report}");
        let asked = fake.asked.lock().await.len() as u64;
        assert_eq!(asked, sends, "{report}");
        assert!(report.errors.iter().all(|errors| errors.kind == "no answer"), "{report}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_are_told_apart() {
    let cut = Fake::start(Manners { cut_after: Some(2), ..Manners::default() }).await;
    let cut = report(plan(&cut.url, &["a"])).await;
    assert_eq!((cut.requests.done, cut.errors[0].kind.as_str()), (0, "cut off"), "{cut}");
    let fake = Fake::start(Manners::default()).await;
    let unknown = report(plan(&fake.url, &["unknown"])).await;
    assert_eq!(unknown.errors[0].kind, "status 404");
    assert_eq!(unknown.errors[0].first, "model_not_found: no such model");
    let slow = Fake::start(Manners { first: Duration::from_mins(1), ..Manners::default() }).await;
    let mut slow = plan(&slow.url, &["a"]);
    slow.timeout = Duration::from_millis(50);
    assert_eq!(report(slow).await.errors[0].kind, "timeout");
    let uncounted = Fake::start(Manners { counts: Counts::No, ..Manners::default() }).await;
    let uncounted = report(plan(&uncounted.url, &["a"])).await;
    assert_eq!(uncounted.throughput.output_tokens, 32);
    assert!(uncounted.warnings.iter().any(|text| text.contains("did not count")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_request_that_fails_says_why() {
    let fake = Fake::start(Manners::default()).await;
    let mut plan = plan(&fake.url, &["unknown"]);
    plan.warmup = Warmup::Requests(1);
    let (_stop, stopped) = watch::channel(false);
    let refused = super::run(Arc::new(plan), Arc::new(Live::default()), stopped).await;
    let why = refused.unwrap_err().to_string();
    assert!(why.contains("unknown") && why.contains("status 404: model_not_found"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_gone_ends_the_run() {
    let fake = Fake::start(Manners { lives: 4, ..Manners::default() }).await;
    let mut plan = plan(&fake.url, &["a"]);
    plan.requests = None;
    plan.duration = Some(Duration::from_mins(10));
    let report = report(plan).await;
    assert_eq!(report.ended, Ended::ServerGone, "{report}");
    assert!(report.requests.sent > report.requests.done);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_is_stopped_tells_what_it_has() {
    let fake = Fake::start(Manners { between: Duration::from_mins(1), ..Manners::default() }).await;
    let mut plan = plan(&fake.url, &["a"]);
    plan.load = Load::Closed { concurrency: 3 };
    let (stop, stopped) = watch::channel(false);
    let live = Arc::new(Live::default());
    let plan = Arc::new(plan);
    let run = tokio::spawn(super::run(Arc::clone(&plan), Arc::clone(&live), stopped));
    while live.snapshot().parts < 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop.send_replace(true);
    let run = run.await.unwrap().unwrap();
    let report = Report::of(&plan, &run);
    assert_eq!((report.ended, report.requests.unfinished), (Ended::Interrupted, 3), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_ask_with_their_keys_and_adapters_are_cold_once() {
    let fake = Fake::start(Manners::default()).await;
    let mut plan = plan(&fake.url, &["a"]);
    plan.target.select = Select::Header;
    plan.tenants[0].key = Some(Key::new("first".to_owned()));
    plan.tenants.push(Tenant {
        name: "second".to_owned(),
        key: Some(Key::new("other".to_owned())),
        share: 3.0,
        ..plan.tenants[0].clone()
    });
    plan.load = Load::Closed { concurrency: 4 };
    plan.requests = Some(40);
    let report = report(plan).await;
    let keys: BTreeSet<_> = {
        let asked = fake.asked.lock().await;
        assert!(asked.iter().all(|asked| asked.headers["x-adapter"] == "a"));
        assert!(
            asked
                .iter()
                .all(|asked| asked.path == "/v1/completions" && asked.body["stream"] == true)
        );
        asked.iter().map(|asked| asked.headers["authorization"].clone()).collect()
    };
    assert_eq!(keys.into_iter().collect::<Vec<_>>(), ["Bearer first", "Bearer other"]);
    let sent = |place: usize| report.tenants[place].requests.sent;
    assert!(sent(0) > 0 && sent(1) > sent(0) && sent(0) + sent(1) == 40, "{report}");
    assert!(report.fairness.is_some_and(|fairness| fairness.tokens < 1.0));
    // Each tenant's first one, and those that were sent before it was answered.
    assert!((2..=4).contains(&report.requests.cold), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_all_are_warmed_none_is_cold() {
    let fake = Fake::start(Manners::default()).await;
    let mut plan = plan(&fake.url, &["a", "b", "c", "base"]);
    plan.warmup = Warmup::Each;
    let report = report(plan).await;
    assert_eq!((report.requests.done, report.requests.cold), (8, 0));
    let asked = fake.asked.lock().await;
    assert_eq!(asked.iter().filter(|asked| asked.body["max_tokens"] == 1).count(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_is_replayed_from_its_table() {
    let fake = Fake::start(Manners::default()).await;
    let mut plan = plan(&fake.url, &["a", "b, \"c\""]);
    plan.load = Load::Open { rate: Rate::steady(200.0), spacing: Spacing::Poisson };
    plan.output = "1..6".parse().unwrap();
    let (plan, run) = run(plan).await;
    let trace = Trace::parse(&csv::requests(&plan, &run)).unwrap();
    let mut samples: Vec<_> = run.samples.iter().collect();
    samples.sort_by_key(|sample| sample.due);
    assert_eq!(trace.count(), samples.len());
    for (entry, sample) in trace.entries().iter().zip(&samples) {
        let due = sample.due.saturating_sub(samples[0].due).as_secs_f64();
        assert!((entry.t - due).abs() < 1e-5, "{entry:?} {sample:?}");
        assert_eq!(entry.adapter.as_deref(), sample.adapter.as_deref());
        assert_eq!(entry.output_tokens, Some(sample.asked_tokens));
        assert_eq!(entry.prompt_tokens, sample.asked_words);
        assert_eq!(entry.tenant.as_deref(), Some("default"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_comes_back_from_its_json() {
    let fake = Fake::start(Manners::default()).await;
    let mut plan = plan(&fake.url, &["<a>"]);
    plan.label = "<script>alert(1)</script>".to_owned();
    plan.slo = "ttft=1ms".parse().unwrap();
    let report = report(plan).await;
    assert_eq!(report.throughput.good_share.to_bits(), 0_f64.to_bits());
    let again = Report::from_json(&report.to_json()).unwrap();
    assert_eq!(again, report);
    assert!(Report::from_json("{}").unwrap_err().contains("no report of chorus bench"));
    let page = super::report::page(std::slice::from_ref(&report));
    assert!(page.contains("<td>seed</td><td>1</td>"), "{page}");
    assert!(page.contains("<svg") && !page.contains("<script") && !page.contains("http-equiv"));
    let both = super::report::page(&[report.clone(), again.clone()]);
    assert!(both.contains("B/A") && !both.contains("<script"));
    let mut other = again.clone();
    other.settings.insert("seed".to_owned(), "<2>".to_owned());
    let both = super::report::page(&[report.clone(), other]);
    assert!(both.contains("<td>retries</td><td>0</td><td>0</td>"), "{both}");
    let differing = "<td><b>seed</b></td><td><b>1</b></td><td><b>&lt;2&gt;</b></td>";
    assert!(both.contains(differing), "{both}");
    let table = super::report::compared(&[report, again]);
    let line = table.lines().find(|line| line.starts_with("output tokens/s")).unwrap();
    assert!(line.ends_with("    1.00"), "{table}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_finds_where_it_breaks() {
    let fake = Fake::start(Manners::default()).await;
    let mut plan = plan(&fake.url, &["a"]);
    plan.load = Load::Closed { concurrency: 1 };
    plan.requests = Some(2);
    // Nothing can be that quick, so that it breaks at once, whatever the machine is doing.
    plan.slo = "ttft=1ms".parse().unwrap();
    let (_stop, stopped) = watch::channel(false);
    let live = Arc::new(Live::default());
    let report = super::sweep(&plan, 0.9, live, stopped.clone(), |_| {}).await.unwrap();
    let loads: Vec<f64> = report.sweep.iter().map(|step| step.load).collect();
    assert_eq!(loads, [1.0]);
    assert!(!report.sweep[0].holds);
    plan.slo = Slo::default();
    let refused = super::sweep(&plan, 0.9, Arc::new(Live::default()), stopped, |_| {}).await;
    assert!(refused.unwrap_err().to_string().contains("--slo"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_say_what_they_have() {
    let fake = Fake::start(Manners::default()).await;
    let models = super::models(&fake.url, Select::Model, None).await.unwrap();
    assert_eq!(
        (models.bases.join(","), models.adapters.join(",")),
        ("small".to_owned(), "sql".to_owned())
    );
    let nobody = super::models("http://127.0.0.1:1", Select::Model, None).await;
    assert!(nobody.unwrap_err().to_string().contains("does not answer"));
}

#[test]
fn plans_that_contradict_themselves_are_refused() {
    let good = plan("http://127.0.0.1:1", &["a"]);
    assert!(good.check().is_ok());
    let tenant = good.tenants[0].clone();
    let with = |change: &dyn Fn(&mut Plan)| {
        let mut plan = good.clone();
        change(&mut plan);
        plan.check().unwrap_err().to_string()
    };
    assert!(with(&|plan| plan.tenants.clear()).contains("nobody asks"));
    assert!(with(&|plan| plan.tenants.push(tenant.clone())).contains("twice"));
    assert!(with(&|plan| plan.tenants[0].share = 0.0).contains("share"));
    assert!(with(&|plan| plan.tenants[0].adapters.clear()).contains("no adapters"));
    assert!(with(&|plan| plan.load = Load::Closed { concurrency: 0 }).contains("too few"));
    assert!(with(&|plan| plan.requests = None).contains("needs an end"));
    let ramp = Load::Open { rate: Rate { from: 1.0, to: 2.0 }, spacing: Spacing::Poisson };
    assert!(with(&|plan| plan.load = ramp.clone()).contains("--duration"));
}

#[test]
fn places_of_a_closed_loop_are_as_the_shares() {
    let mut plan = plan("http://127.0.0.1:1", &["a"]);
    for (name, share) in [("b", 1.0), ("c", 6.0)] {
        let name = name.to_owned();
        plan.tenants.push(Tenant { name, share, ..plan.tenants[0].clone() });
    }
    assert_eq!(plan.desks(3), [1, 1, 1]);
    assert_eq!(plan.desks(16), [2, 2, 12]);
}

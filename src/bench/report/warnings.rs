//! What a reader of a report must know.

use super::{Counts, Report};
use crate::bench::{
    measure::{Ended, Run, Sample},
    plan::Plan,
};

/// A client whose threads are at work for more than this part of the time measures itself.
const BUSY: f64 = 0.8;

/// Wake-ups that take longer than this, or than a tenth of what is measured, change it.
const SLOW_WAKE_MS: f64 = 2.0;

pub(super) fn warnings(plan: &Plan, run: &Run, report: &Report) -> Vec<String> {
    let mut warnings = Vec::new();
    let Counts { sent, done, late, .. } = report.requests;
    match report.ended {
        Ended::Complete => {}
        Ended::Interrupted => warnings.push("the run was ended before it was complete".to_owned()),
        Ended::ServerGone => warnings.push(format!(
            "the server was gone after {:.0} s: no connection could be made any more",
            report.wall_s
        )),
    }
    let client = &report.client;
    if late > 0 {
        let p99 = client.late_ms.map_or(0.0, |late| late.p99);
        warnings.push(format!(
            "{late} of {sent} requests were sent more than 10 ms after they were due (p99 {p99:.1} ms); their latencies have that in them"
        ));
    }
    let measured = [report.latency.ttft, report.latency.tpot].into_iter().flatten();
    let least = measured.map(|spread| spread.p50).fold(f64::INFINITY, f64::min);
    if let Some(wake) = client.wake_ms.filter(|wake| wake.p99 > SLOW_WAKE_MS.max(least / 10.0)) {
        warnings.push(format!(
            "the client itself was slow: what had arrived waited for it for {:.1} ms (p99), and latencies have that in them; give it a processor of its own",
            wake.p99
        ));
    }
    if client.busy > BUSY {
        warnings.push(format!(
            "the client's threads were at work for {:.0} % of the time: it may be what was measured; raise --threads or ask from several machines",
            client.busy * 100.0
        ));
    }
    let answered: Vec<&Sample> = run.samples.iter().filter(|sample| sample.is_done()).collect();
    let short = answered
        .iter()
        .filter(|sample| sample.output_tokens < u64::from(sample.asked_tokens))
        .count();
    if plan.target.ignore_eos && short > 0 {
        warnings.push(format!(
            "{short} of {done} answers are shorter than was asked for: the server may not know ignore_eos, or a context was full"
        ));
    }
    let uncounted = answered.iter().filter(|sample| !sample.counted).count();
    if uncounted > 0 {
        warnings.push(format!(
            "the server did not count the tokens of {uncounted} of {done} answers: parts of their streams are counted instead"
        ));
    }
    let (tokens, parts) =
        (report.throughput.output_tokens, report.latency.itl.map_or(0, |itl| itl.count) + done);
    if tokens as f64 > parts as f64 * 1.1 {
        warnings.push(format!(
            "parts of streams have {:.1} tokens on average: times between parts are not times between tokens, which the line \"per token\" has",
            tokens as f64 / parts as f64
        ));
    }
    warnings
}

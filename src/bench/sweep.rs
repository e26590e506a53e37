//! At which load a server no longer keeps to what is asked of it.

use std::sync::Arc;

use tokio::sync::watch;

use super::{
    arrivals::Rate,
    error::BenchError,
    load::{Live, run},
    measure::Ended,
    plan::{Load, Plan, Warmup},
    report::{Report, Step},
};

/// The load is doubled, or halved, no more often than this.
const MOST_DOUBLINGS: u32 = 16;
/// The search ends when the two loads between which it breaks are this near, as a ratio.
const NEAR: f64 = 1.1;
/// A part of fewer answers than these says little.
const FEW: u64 = 20;

/// Runs a plan at one load after another: doubled until fewer than `share` of the requests meet the SLO (or halved until they do),
/// then between the last two, until these are near each other. Gives the report of the highest load that held, or of the
/// lowest where none did, with all steps; `told` hears of each one.
pub async fn sweep(
    plan: &Plan,
    share: f64,
    live: Arc<Live>,
    stop: watch::Receiver<bool>,
    told: impl Fn(&Step),
) -> Result<Report, BenchError> {
    if !plan.slo.is_some() {
        return Err(BenchError::Plan("--sweep needs to know what must hold: --slo".to_owned()));
    }
    let mut search = Search { held: None, broke: None, least: least(plan) };
    let mut load = first(&plan.load)?;
    let mut steps: Vec<Step> = Vec::new();
    let mut best: Option<(f64, bool, Report)> = None;
    while steps.len() < 2 * MOST_DOUBLINGS as usize {
        let mut this = at(plan, load);
        if !steps.is_empty() {
            this.warmup = Warmup::Requests(0);
        }
        let this = Arc::new(this);
        let done = run(Arc::clone(&this), Arc::clone(&live), stop.clone()).await?;
        let ended = done.ended;
        let report = Report::of(&this, &done);
        let step = Step::of(load, share, &report);
        told(&step);
        let holds = step.holds;
        steps.push(step);
        let better = best.as_ref().is_none_or(|(of, held, _)| match (holds, *held) {
            (true, true) => load > *of,
            (true, false) => true,
            (false, true) => false,
            (false, false) => load < *of,
        });
        if better {
            best = Some((load, holds, report));
        }
        if ended != Ended::Complete {
            break;
        }
        if holds {
            search.held(load);
        } else {
            search.broke(load);
        }
        match search.next() {
            Some(next) => load = next,
            None => break,
        }
    }
    steps.sort_by(|a, b| a.load.total_cmp(&b.load));
    let (_, _, mut report) =
        best.ok_or_else(|| BenchError::Plan("nothing was measured".to_owned()))?;
    let fewest = steps.iter().map(|step| step.latency.e2e.map_or(0, |e2e| e2e.count)).min();
    if fewest.is_some_and(|fewest| fewest < FEW) {
        report.warnings.push(format!(
            "some steps had fewer than {FEW} answers, of which each one decides: give steps more --duration or --requests"
        ));
    }
    report.sweep = steps;
    Ok(report)
}

/// Where the search is.
#[derive(Debug)]
struct Search {
    /// The highest load that held.
    held: Option<f64>,
    /// The lowest that did not.
    broke: Option<f64>,
    /// Where loads are whole numbers: the lowest.
    least: Option<f64>,
}

impl Search {
    fn held(&mut self, load: f64) {
        self.held = Some(self.held.map_or(load, |held| held.max(load)));
    }

    fn broke(&mut self, load: f64) {
        self.broke = Some(self.broke.map_or(load, |broke| broke.min(load)));
    }

    /// The next load, if the place is not found yet.
    fn next(&self) -> Option<f64> {
        let next = match (self.held, self.broke) {
            (Some(held), None) => held * 2.0,
            (None, Some(broke)) => broke / 2.0,
            (Some(held), Some(broke)) if held < broke && broke / held > NEAR => {
                f64::midpoint(held, broke)
            }
            _ => return None,
        };
        let Some(least) = self.least else { return (next > 1e-3).then_some(next) };
        let next = next.floor();
        let known =
            [self.held, self.broke].iter().flatten().any(|known| (known - next).abs() < 0.5);
        (next >= least && !known).then_some(next)
    }
}

/// Each tenant of a closed loop has a place of its own.
fn least(plan: &Plan) -> Option<f64> {
    matches!(plan.load, Load::Closed { .. }).then_some(plan.tenants.len() as f64)
}

fn first(load: &Load) -> Result<f64, BenchError> {
    match load {
        Load::Closed { concurrency } => Ok(*concurrency as f64),
        Load::Open { rate, .. } if !rate.is_ramp() => Ok(rate.from),
        Load::Open { .. } => {
            Err(BenchError::Plan("--sweep begins with one --rate, not with two".to_owned()))
        }
        Load::Replay { speed, .. } => Ok(*speed),
    }
}

/// The plan at another load. Of a closed loop, the more are at once, the more requests there are.
fn at(plan: &Plan, load: f64) -> Plan {
    let mut plan = plan.clone();
    match &mut plan.load {
        Load::Closed { concurrency } => {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "whole and from 1"
            )]
            let wanted = load as usize;
            let each =
                plan.requests.map(|requests| requests.div_ceil((*concurrency).max(1) as u64));
            *concurrency = wanted;
            plan.requests = each.map(|each| each.saturating_mul(wanted as u64));
        }
        Load::Open { rate, .. } => *rate = Rate::steady(load),
        Load::Replay { speed, .. } => *speed = load,
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::{super::tests::plan, *};

    /// All loads that are tried where loads up to `most` hold.
    fn tried(first: f64, most: f64, least: Option<f64>) -> Vec<f64> {
        let mut search = Search { held: None, broke: None, least };
        let mut loads = vec![first];
        loop {
            let load = loads[loads.len() - 1];
            if load <= most {
                search.held(load);
            } else {
                search.broke(load);
            }
            let Some(next) = search.next() else { return loads };
            loads.push(next);
            assert!(loads.len() < 40, "{loads:?}");
        }
    }

    #[test]
    fn the_load_is_doubled_then_bisected() {
        assert_eq!(tried(2.0, 11.0, Some(1.0)), [2.0, 4.0, 8.0, 16.0, 12.0, 10.0, 11.0]);
        assert_eq!(tried(8.0, 3.0, Some(1.0)), [8.0, 4.0, 2.0, 3.0]);
        assert_eq!(tried(1.0, 0.0, Some(1.0)), [1.0]);
        let rates = tried(1.0, 5.0, None);
        assert_eq!(rates[..5], [1.0, 2.0, 4.0, 8.0, 6.0]);
        assert!((rates[rates.len() - 1] / 5.0 - 1.0).abs() < 0.11, "{rates:?}");
        assert!(tried(1.0, 0.0, None).len() < 20);
    }

    #[test]
    fn a_closed_loop_has_more_requests_where_more_are_at_once() {
        let mut plan = plan("http://127.0.0.1:1", &["a"]);
        plan.load = Load::Closed { concurrency: 4 };
        plan.requests = Some(16);
        let twice = at(&plan, 8.0);
        assert!(matches!(twice.load, Load::Closed { concurrency: 8 }));
        assert_eq!(twice.requests, Some(32));
    }
}

//! Reports beside each other.

use std::fmt;

use super::{Report, Spread};

/// What is compared, by name.
pub(super) struct Row {
    pub(super) what: &'static str,
    pub(super) values: Vec<Option<f64>>,
    /// Whether more is better.
    pub(super) better: Better,
}

/// Which of two numbers is the better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Better {
    More,
    Less,
}

impl Row {
    /// A value's part of the first one's.
    pub(super) fn ratio(&self, place: usize) -> Option<f64> {
        let (first, value) = ((*self.values.first()?)?, (*self.values.get(place)?)?);
        (first > 0.0).then(|| value / first)
    }
}

/// All that can be compared.
pub(super) fn rows(reports: &[Report]) -> Vec<Row> {
    let of = |what, better, value: &dyn Fn(&Report) -> Option<f64>| Row {
        what,
        values: reports.iter().map(value).collect(),
        better,
    };
    let spread = |what, of_report: fn(&Report) -> Option<Spread>, at: fn(&Spread) -> f64| {
        of(what, Better::Less, &|report| of_report(report).map(|spread| at(&spread)))
    };
    let ttft: fn(&Report) -> Option<Spread> = |report| report.latency.ttft;
    let itl: fn(&Report) -> Option<Spread> = |report| report.latency.itl;
    let tpot: fn(&Report) -> Option<Spread> = |report| report.latency.tpot;
    let e2e: fn(&Report) -> Option<Spread> = |report| report.latency.e2e;
    let cold: fn(&Report) -> Option<Spread> = |report| report.cold.and_then(|cold| cold.ttft);
    vec![
        of("output tokens/s", Better::More, &|report| Some(report.throughput.output_tokens_s)),
        of("requests/s", Better::More, &|report| Some(report.throughput.requests_s)),
        of("good requests/s", Better::More, &|report| Some(report.throughput.good_requests_s)),
        of("good share", Better::More, &|report| Some(report.throughput.good_share)),
        spread("first token p50, ms", ttft, |spread| spread.p50),
        spread("first token p95, ms", ttft, |spread| spread.p95),
        spread("first token p99, ms", ttft, |spread| spread.p99),
        spread("cold first token p50, ms", cold, |spread| spread.p50),
        spread("between parts p50, ms", itl, |spread| spread.p50),
        spread("between parts p95, ms", itl, |spread| spread.p95),
        spread("between parts p99, ms", itl, |spread| spread.p99),
        spread("per token p50, ms", tpot, |spread| spread.p50),
        spread("whole answer p50, ms", e2e, |spread| spread.p50),
        spread("whole answer p99, ms", e2e, |spread| spread.p99),
        of("refused", Better::Less, &|report| Some(report.requests.refused as f64)),
        of("failed", Better::Less, &|report| Some(report.requests.failed as f64)),
        of("fairness of tokens", Better::More, &|report| report.fairness.map(|fair| fair.tokens)),
    ]
}

/// What a report is called: its label, or its load.
pub(super) fn title(report: &Report) -> &str {
    if report.label.is_empty() { &report.load } else { &report.label }
}

/// A table of values, and of their ratios to those of the first report.
pub fn compared(reports: &[Report]) -> String {
    Comparison(reports).to_string()
}

struct Comparison<'a>(&'a [Report]);

impl fmt::Display for Comparison<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(reports) = self;
        for (place, report) in reports.iter().enumerate() {
            writeln!(f, "{}  {} ({}; {})", letter(place), title(report), report.load, report.at)?;
        }
        write!(f, "\n{:<26}", "")?;
        for place in 0..reports.len() {
            write!(f, "{:>12}", letter(place))?;
            if place > 0 {
                write!(f, "{:>8}", format!("{}/A", letter(place)))?;
            }
        }
        writeln!(f)?;
        for row in rows(reports).iter().filter(|row| row.values.iter().any(Option::is_some)) {
            write!(f, "{:<26}", row.what)?;
            for (place, value) in row.values.iter().enumerate() {
                write!(f, "{:>12}", value.map_or("-".to_owned(), number))?;
                if place > 0 {
                    let ratio = row.ratio(place).map(|ratio| format!("{ratio:.2}"));
                    write!(f, "{:>8}", ratio.as_deref().unwrap_or("-"))?;
                }
            }
            writeln!(f)?;
        }
        for difference in differences(reports) {
            writeln!(f, "note: {difference}")?;
        }
        Ok(())
    }
}

/// What was not the same, so that ratios may say something else than what is asked.
pub(super) fn differences(reports: &[Report]) -> Vec<String> {
    let Some((first, others)) = reports.split_first() else { return Vec::new() };
    let mut different = Vec::new();
    let same = |name: &str| {
        others.iter().all(|other| other.settings.get(name) == first.settings.get(name))
    };
    for name in
        first.settings.keys().filter(|name| !["url", "model", "select"].contains(&name.as_str()))
    {
        if !same(name) {
            let values: Vec<_> = reports
                .iter()
                .map(|report| report.settings.get(name).map_or("-", String::as_str))
                .collect();
            different.push(format!("{name} differs: {}", values.join(", ")));
        }
    }
    if others.iter().any(|other| other.load != first.load) {
        different.push("the loads are not the same".to_owned());
    }
    different
}

/// A to Z; what comes after is a number.
pub(super) fn letter(place: usize) -> String {
    match u8::try_from(place) {
        Ok(place @ 0..26) => char::from(b'A' + place).to_string(),
        _ => (place + 1).to_string(),
    }
}

/// With about four digits.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        size if size < 1e9 && size.fract() == 0.0 => format!("{value:.0}"),
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 100.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

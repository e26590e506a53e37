//! A report for a terminal.

use std::fmt::{self, Display, Formatter};

use super::{Counts, Latency, Report, Spread, Step, TenantReport};

/// Tenants beyond these are in the other forms alone.
const MOST_TENANTS: usize = 32;

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Counts { sent, done, refused, failed, unfinished, retries, cold, .. } = self.requests;
        let throughput = &self.throughput;
        let url = self.settings.get("url").map_or("", String::as_str);
        if !self.label.is_empty() {
            writeln!(f, "{}", self.label)?;
        }
        writeln!(f, "{url}, {}, {:.1} s", self.load, self.wall_s)?;
        write!(f, "requests   {done} of {sent} done, {:.2} a second", throughput.requests_s)?;
        for (count, what) in [
            (refused, "refused"),
            (failed, "failed"),
            (unfinished, "cut off by the end"),
            (retries, "further attempts"),
        ] {
            if count > 0 {
                write!(f, "; {count} {what}")?;
            }
        }
        writeln!(
            f,
            "\ntokens     {} out, {:.1} a second; {} in",
            throughput.output_tokens, throughput.output_tokens_s, throughput.prompt_tokens
        )?;
        writeln!(f, "adapters   {} asked for; {cold} requests were cold", self.adapters_used)?;
        if let Some(slo) = &self.slo {
            writeln!(
                f,
                "goodput    {:.2} a second; {:.1} % of all keep to {slo}",
                throughput.good_requests_s,
                throughput.good_share * 100.0
            )?;
        }
        writeln!(f, "\n{:<28}{:>8}{}", "milliseconds", "count", Heads)?;
        latencies(f, "", &self.latency)?;
        if let (Some(warm), Some(cold)) = (&self.warm, &self.cold) {
            row(f, "first token, warm", warm.ttft)?;
            row(f, "first token, cold", cold.ttft)?;
        }
        if self.tenants.len() > 1 {
            self.write_tenants(f)?;
        }
        if !self.errors.is_empty() {
            writeln!(f)?;
        }
        for error in &self.errors {
            let separator = if error.first.is_empty() { "" } else { ": " };
            writeln!(f, "{:>6}  {}{separator}{}", error.count, error.kind, error.first)?;
        }
        if !self.sweep.is_empty() {
            writeln!(f, "\n{STEP_HEADS}")?;
        }
        for step in &self.sweep {
            writeln!(f, "{step}")?;
        }
        self.write_client(f)?;
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        Ok(())
    }
}

const STEP_HEADS: &str =
    "      load    good %  good/s   tok/s  ttft p50  ttft p95  itl p95     e2e p95";

impl Display for Step {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let at = |spread: Option<Spread>, of: fn(&Spread) -> f64| {
            spread.map_or(f64::NAN, |spread| of(&spread))
        };
        let Latency { ttft, itl, e2e, .. } = self.latency;
        write!(
            f,
            "{:>10.3}{:>10.1}{:>8.2}{:>8.1}{:>10.1}{:>10.1}{:>9.1}{:>12.1}  {}",
            self.load,
            self.good_share * 100.0,
            self.good_requests_s,
            self.output_tokens_s,
            at(ttft, |ttft| ttft.p50),
            at(ttft, |ttft| ttft.p95),
            at(itl, |itl| itl.p95),
            at(e2e, |e2e| e2e.p95),
            if self.holds { "holds" } else { "breaks" }
        )
    }
}

impl Report {
    fn write_tenants(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\n{:<24}{:>7}{:>7}{:>7}{:>9}{:>8}{:>10}{:>10}{:>10}",
            "tenant",
            "sent",
            "done",
            "refus.",
            "tok/s",
            "good %",
            "ttft p50",
            "ttft p95",
            "itl p95"
        )?;
        for tenant in self.tenants.iter().take(MOST_TENANTS) {
            let TenantReport { name, requests, throughput, latency, .. } = tenant;
            let at = |spread: Option<Spread>, of: fn(&Spread) -> f64| {
                spread.map_or_else(|| "-".to_owned(), |spread| format!("{:.1}", of(&spread)))
            };
            let name: String = name.chars().take(23).collect();
            writeln!(
                f,
                "{name:<24}{:>7}{:>7}{:>7}{:>9.1}{:>8.1}{:>10}{:>10}{:>10}",
                requests.sent,
                requests.done,
                requests.refused,
                throughput.output_tokens_s,
                throughput.good_share * 100.0,
                at(latency.ttft, |ttft| ttft.p50),
                at(latency.ttft, |ttft| ttft.p95),
                at(latency.itl, |itl| itl.p95),
            )?;
        }
        if self.tenants.len() > MOST_TENANTS {
            writeln!(f, "and {} more", self.tenants.len() - MOST_TENANTS)?;
        }
        if let Some(fairness) = self.fairness {
            writeln!(
                f,
                "fairness   {:.3} of tokens, {:.3} of the part of what was asked for (Jain's index, 1 is equal)",
                fairness.tokens, fairness.served
            )?;
        }
        Ok(())
    }

    fn write_client(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let client = &self.client;
        let p99 = |spread: Option<Spread>| spread.map_or(0.0, |spread| spread.p99);
        write!(
            f,
            "\nclient     sends were {:.2} ms late, arrivals seen {:.2} ms late (p99); {} threads, {:.1} % at work",
            p99(client.late_ms),
            p99(client.wake_ms),
            client.threads,
            client.busy * 100.0
        )?;
        match client.cpu_s {
            Some(seconds) => writeln!(f, ", {seconds:.2} s of processor time"),
            None => writeln!(f),
        }
    }
}

struct Heads;

impl Display for Heads {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for head in ["mean", "p50", "p90", "p95", "p99", "max"] {
            write!(f, "{head:>10}")?;
        }
        Ok(())
    }
}

fn latencies(f: &mut Formatter<'_>, of: &str, latency: &Latency) -> fmt::Result {
    row(f, &format!("first token{of}"), latency.ttft)?;
    row(f, &format!("between parts{of}"), latency.itl)?;
    row(f, &format!("per token, by request{of}"), latency.tpot)?;
    row(f, &format!("whole answer{of}"), latency.e2e)
}

fn row(f: &mut Formatter<'_>, what: &str, spread: Option<Spread>) -> fmt::Result {
    let Some(Spread { count, mean, p50, p90, p95, p99, max }) = spread else { return Ok(()) };
    write!(f, "{what:<28}{count:>8}")?;
    for value in [mean, p50, p90, p95, p99, max] {
        write!(f, "{value:>10.1}")?;
    }
    writeln!(f)
}

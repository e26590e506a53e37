//! Each request as a line of CSV (RFC 4180), which can be replayed as a trace.

use std::time::Duration;

use super::super::{
    measure::{Run, Sample},
    plan::Plan,
};

const HEADER: &str = "t,tenant,adapter,cold,outcome,attempts,asked_words,asked_tokens,prompt_tokens,output_tokens,late_ms,ttft_ms,tpot_ms,e2e_ms\n";

/// All requests of a run in the order in which they were due. `t` is in seconds since the start; the base has no adapter.
pub fn requests(plan: &Plan, run: &Run) -> String {
    let mut samples: Vec<_> = run.samples.iter().collect();
    samples.sort_by_key(|sample| sample.due);
    let lines = samples.into_iter().map(|sample| line(plan, sample) + "\n");
    std::iter::once(HEADER.to_owned()).chain(lines).collect()
}

fn line(plan: &Plan, sample: &Sample) -> String {
    let millis = |time: Duration| format!("{:.3}", time.as_secs_f64() * 1e3);
    let perhaps = |time: Option<Duration>| time.map(millis).unwrap_or_default();
    let done = |time: Option<Duration>| perhaps(time.filter(|_| sample.is_done()));
    let tenant = plan.tenants.get(sample.tenant).map_or("", |tenant| &tenant.name);
    [
        format!("{:.6}", sample.due.as_secs_f64()),
        quoted(tenant),
        quoted(sample.adapter.as_deref().unwrap_or_default()),
        u8::from(sample.cold).to_string(),
        quoted(&sample.outcome.word()),
        sample.attempts.to_string(),
        sample.asked_words.map(|words| words.to_string()).unwrap_or_default(),
        sample.asked_tokens.to_string(),
        sample.prompt_tokens.to_string(),
        sample.output_tokens.to_string(),
        millis(sample.lateness()),
        perhaps(sample.ttft()),
        done(sample.between_tokens()),
        done(Some(sample.e2e())),
    ]
    .join(",")
}

fn quoted(field: &str) -> String {
    let field = field.replace(char::is_control, " ");
    if field.contains([',', '"']) { format!("\"{}\"", field.replace('"', "\"\"")) } else { field }
}

/// The fields of a line.
pub(in super::super) fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut is_quoted = false;
    let mut characters = line.trim_end_matches(['\r', '\n']).chars().peekable();
    while let Some(character) = characters.next() {
        let last = fields.len() - 1;
        match character {
            '"' if is_quoted && characters.peek() == Some(&'"') => {
                characters.next();
                fields[last].push('"');
            }
            '"' => is_quoted = !is_quoted,
            ',' if !is_quoted => fields.push(String::new()),
            other => fields[last].push(other),
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back_as_they_went() {
        for field in ["", "plain", "a,b", "say \"hi\"", "\"", ",,", " spaces "] {
            let line = format!("{},{},x\r\n", quoted(field), quoted("a,\"b"));
            assert_eq!(fields(&line), [field, "a,\"b", "x"], "{line}");
        }
    }
}

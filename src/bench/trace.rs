//! Requests that were once made, to be made again.

use std::{fs, path::Path};

use serde::Deserialize;

use super::{error::BenchError, report::csv};

/// A trace in the order of its times.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    entries: Vec<Entry>,
}

/// One request of a trace.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    /// Seconds since any start.
    pub(super) t: f64,
    #[serde(default)]
    pub(super) tenant: Option<String>,
    /// None, or `base`, is the base.
    #[serde(default)]
    pub(super) adapter: Option<String>,
    #[serde(default)]
    pub(super) prompt_tokens: Option<u32>,
    #[serde(default)]
    pub(super) output_tokens: Option<u32>,
}

impl Trace {
    /// Reads JSON lines, or CSV with a header, of `t` (seconds) and any of `tenant`, `adapter`, `prompt_tokens` and
    /// `output_tokens`. The CSV that a run writes is such a file.
    pub fn read(path: &Path) -> Result<Self, BenchError> {
        let text = fs::read_to_string(path)
            .map_err(|source| BenchError::Unreadable { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|what| BenchError::File { path: path.to_owned(), what })
    }

    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut entries =
            if text.trim_start().starts_with('{') { json_lines(text)? } else { table(text)? };
        if let Some(at) = entries.iter().position(|entry| !(entry.t.is_finite())) {
            return Err(format!("the time of entry {} is no number", at + 1));
        }
        entries.sort_by(|a, b| a.t.total_cmp(&b.t));
        let Some(first) = entries.first().map(|entry| entry.t) else {
            return Err("it has no requests".to_owned());
        };
        for entry in &mut entries {
            entry.t -= first;
        }
        Ok(Self { entries })
    }

    /// Its requests, the first at 0.
    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// How many requests it has.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// The tenants that it names, in the order in which they come.
    pub fn tenants(&self) -> Vec<String> {
        let mut tenants = Vec::new();
        for tenant in self.entries.iter().filter_map(|entry| entry.tenant.as_ref()) {
            if !tenants.contains(tenant) {
                tenants.push(tenant.clone());
            }
        }
        tenants
    }
}

fn json_lines(text: &str) -> Result<Vec<Entry>, String> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(number, line)| {
            serde_json::from_str(line).map_err(|why| format!("line {}: {why}", number + 1))
        })
        .collect()
}

fn table(text: &str) -> Result<Vec<Entry>, String> {
    let mut lines = text.lines().enumerate();
    let header = lines.next().map(|(_, line)| csv::fields(line)).unwrap_or_default();
    let column = |name: &str| header.iter().position(|field| field.trim() == name);
    let t = column("t").ok_or("it is neither JSON lines nor a table with a column t")?;
    // What was asked for is replayed, not what was answered.
    let output = column("asked_tokens").or_else(|| column("output_tokens"));
    let prompt = column("asked_words").or_else(|| column("prompt_tokens"));
    let (tenant, adapter) = (column("tenant"), column("adapter"));
    let rows = lines.filter(|(_, line)| !line.trim().is_empty());
    rows.map(|(number, line)| {
        let fields = csv::fields(line);
        let field = |at: Option<usize>| {
            fields.get(at?).map(|field| field.trim()).filter(|field| !field.is_empty())
        };
        let tokens = |at| field(at).map(str::parse::<u32>).transpose();
        let entry = || {
            Some(Entry {
                t: field(Some(t))?.parse().ok()?,
                tenant: field(tenant).map(str::to_owned),
                adapter: field(adapter).map(str::to_owned),
                prompt_tokens: tokens(prompt).ok()?,
                output_tokens: tokens(output).ok()?,
            })
        };
        entry().ok_or_else(|| format!("line {}: a number is none", number + 1))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_tables_say_the_same() {
        let lines = "{\"t\": 12.5, \"adapter\": \"b\", \"output_tokens\": 8}\n{\"t\": 10, \"tenant\": \"acme\", \"prompt_tokens\": 3}\n";
        let table = "t,tenant,adapter,prompt_tokens,output_tokens\n12.5,,b,,8\n10,acme,,3,\n";
        let trace = Trace::parse(lines).unwrap();
        assert_eq!(trace, Trace::parse(table).unwrap());
        assert_eq!(trace.entries()[0].t.to_bits(), 0_f64.to_bits());
        assert_eq!(trace.entries()[1].t.to_bits(), 2.5_f64.to_bits());
        assert_eq!(trace.entries()[1].adapter.as_deref(), Some("b"));
        assert_eq!(trace.tenants(), ["acme"]);
    }

    #[test]
    fn files_that_are_none_say_where() {
        for (text, why) in [
            ("", "neither JSON lines nor a table"),
            ("t\n", "no requests"),
            ("t,adapter\n1,a\nx,b\n", "line 3"),
            ("{\"t\": 1}\n{\"t\": 1, \"speed\": 2}", "line 2: unknown field `speed`"),
            ("{\"adapter\": \"x\"}", "line 1: missing field `t`"),
            ("t\nnan\n", "no number"),
        ] {
            let error = Trace::parse(text).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}

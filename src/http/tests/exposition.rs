//! Reads a page of metrics as strictly as the oldest of its readers, Prometheus' own text format: what gateways read it with knows
//! no other types, and refuses the whole page for one that it does not know.

use std::collections::{BTreeMap, BTreeSet};

/// A page that was understood.
pub(super) struct Page {
    /// The type of each family.
    pub(super) families: BTreeMap<String, String>,
    /// Name and labels of each series, and its value.
    pub(super) series: Vec<(String, BTreeMap<String, String>, f64)>,
}

impl Page {
    /// The series of this name.
    pub(super) fn of(&self, name: &str) -> Vec<(&BTreeMap<String, String>, f64)> {
        let own = self.series.iter().filter(|(own, ..)| own == name);
        own.map(|(_, labels, value)| (labels, *value)).collect()
    }

    /// The only series of this name, which has no labels.
    pub(super) fn value(&self, name: &str) -> f64 {
        let series = self.of(name);
        assert!(series.len() == 1 && series[0].0.is_empty(), "{name}: {series:?}");
        series[0].1
    }
}

/// Panics where the page is none.
pub(super) fn read(text: &str) -> Page {
    let text = text.strip_suffix("# EOF\n").expect("the page has an end");
    let mut page = Page { families: BTreeMap::new(), series: Vec::new() };
    let (mut helped, mut seen) = (BTreeSet::new(), BTreeSet::new());
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, text) = help.split_once(' ').unwrap();
            assert!(is_name(name) && !text.is_empty() && helped.insert(name.to_owned()), "{line}");
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(helped.contains(name), "{line}");
            assert_eq!(page.families.insert(name.to_owned(), kind.to_owned()), None, "{line}");
        } else {
            assert!(seen.insert(line.rsplit_once(' ').unwrap().0.to_owned()), "twice: {line}");
            let series = series(line);
            assert!(family(&page, &series.0), "of no family: {line}");
            page.series.push(series);
        }
    }
    page
}

/// Whether the family of a series has been told.
fn family(page: &Page, name: &str) -> bool {
    let suffixes = [("", "gauge"), ("_total", "counter")].into_iter();
    let of_histograms = ["_bucket", "_sum", "_count"].map(|suffix| (suffix, "histogram"));
    suffixes.chain(of_histograms).any(|(suffix, kind)| {
        let family = name.strip_suffix(suffix).and_then(|name| page.families.get(name));
        family.is_some_and(|told| told == kind)
    })
}

/// Letters, digits, underscores and colons.
fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_:".contains(&byte);
    name.bytes().all(plain) && name.starts_with(|first: char| !first.is_ascii_digit())
}

fn series(line: &str) -> (String, BTreeMap<String, String>, f64) {
    let (head, value) = line.rsplit_once(' ').unwrap();
    let (name, labels) = head.split_once('{').unwrap_or((head, "}"));
    assert!(is_name(name), "{line}");
    let mut rest = labels.strip_suffix('}').unwrap_or_else(|| panic!("{line}"));
    let mut read = BTreeMap::new();
    while !rest.is_empty() {
        let (label, after) = rest.split_once("=\"").unwrap();
        assert!(is_name(label) && !label.contains(':'), "{line}");
        let (mut text, mut chars) = (String::new(), after.char_indices());
        let end = loop {
            match chars.next().unwrap() {
                (at, '"') => break at,
                (_, '\\') => text.push(match chars.next().unwrap().1 {
                    'n' => '\n',
                    plain => plain,
                }),
                (_, plain) => text.push(plain),
            }
        };
        assert_eq!(read.insert(label.to_owned(), text), None, "{line}");
        rest = &after[end + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
    let value = if value == "+Inf" { f64::INFINITY } else { value.parse().unwrap() };
    (name.to_owned(), read, value)
}

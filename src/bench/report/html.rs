//! One HTML file that needs nothing else: of one report, or of several beside each other.

use std::collections::BTreeSet;

use super::{
    Counts, Latency, Report, Spread, Timeline,
    compare::{Better, differences, letter, number, rows, title},
    svg::{Axis, Bars, Plot, Scale, Series, Style, Unit, all, escaped, shown},
};

/// Colours that tell reports apart; more begin again.
const COLOURS: usize = 6;
/// Tenants beyond these are in the table alone.
const MOST_BARS: usize = 40;
const CSS: &str = include_str!("page.css");

const MILLIS: Axis = Axis { name: "", unit: Unit::Millis, scale: Scale::Fitting };
const PARTS: Axis = Axis { name: "part of all", unit: Unit::Part, scale: Scale::Linear };
const TIME: Axis = Axis { name: "since the start", unit: Unit::Seconds, scale: Scale::Linear };

/// A page of one report, or a comparison of several with the first.
pub fn page(reports: &[Report]) -> String {
    match reports {
        [report] => one(report),
        several => comparison(several),
    }
}

fn document(title: &str, body: &str) -> String {
    let colours = all(0..COLOURS, |c| {
        format!(
            ".l{c} {{ stroke: var(--c{c}); }} .f{c}, .a{c} {{ fill: var(--c{c}); }} .legend .b{c} {{ border-color: var(--c{c}); }}\n"
        )
    });
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{title}</title>\n<style>\n{CSS}{colours}</style>\n</head>\n<body>\n{body}</body>\n</html>\n",
        title = escaped(title)
    )
}

fn one(report: &Report) -> String {
    let url = report.settings.get("url").map_or("", String::as_str);
    let about = format!("{url} · {} · {:.1} s · {}", report.load, report.wall_s, report.at);
    let parts = [
        format!(
            "<h1>{}</h1>\n<p class=\"about\">{}</p>\n",
            escaped(title(report)),
            escaped(&about)
        ),
        tiles(report),
        warnings(&report.warnings),
        section("At which load it breaks", &sweeps(std::slice::from_ref(report))),
        section("Latency", &latency_plots(report)),
        section("Over time", &timeline(&report.timeline)),
        section("Tenants", &tenant_plots(report)),
        tenants(report),
        latencies(report),
        errors(report),
        settings(std::slice::from_ref(report)),
        footer(report),
    ];
    document(&format!("{} – chorus bench", title(report)), &parts.concat())
}

fn section(name: &str, figures: &str) -> String {
    if figures.is_empty() {
        return String::new();
    }
    format!("<h2>{name}</h2>\n<div class=\"plots\">\n{figures}</div>\n")
}

fn tiles(report: &Report) -> String {
    let Counts { sent, done, refused, failed, .. } = report.requests;
    let throughput = &report.throughput;
    let millis = |spread: Option<Spread>, at: fn(&Spread) -> f64| {
        spread.map_or_else(|| "–".to_owned(), |spread| shown(at(&spread), Unit::Millis))
    };
    let Latency { ttft, tpot, .. } = report.latency;
    let mut tiles = vec![
        (shown(throughput.output_tokens_s, Unit::Number), "output tokens a second".to_owned()),
        (shown(throughput.requests_s, Unit::Number), "requests a second".to_owned()),
        (millis(ttft, |ttft| ttft.p50), "first token, median".to_owned()),
        (millis(ttft, |ttft| ttft.p99), "first token, p99".to_owned()),
        (millis(tpot, |tpot| tpot.p50), "per token, median".to_owned()),
        (format!("{done} of {sent}"), "requests answered".to_owned()),
    ];
    if refused + failed > 0 {
        tiles.push((format!("{refused} + {failed}"), "refused + failed".to_owned()));
    }
    if let Some(slo) = &report.slo {
        tiles.push((shown(throughput.good_share, Unit::Part), format!("within {slo}")));
    }
    if let Some(fairness) = report.fairness {
        tiles.push((format!("{:.3}", fairness.tokens), "fairness of tokens (Jain)".to_owned()));
    }
    let tiles = all(&tiles, |(value, what)| {
        format!(
            "<div class=\"tile\"><b>{}</b><span>{}</span></div>\n",
            escaped(value),
            escaped(what)
        )
    });
    format!("<div class=\"tiles\">\n{tiles}</div>\n")
}

fn warnings(warnings: &[String]) -> String {
    all(warnings, |text| format!("<p class=\"warning\">{}</p>\n", escaped(text)))
}

fn series(name: &str, style: Style, colour: usize, points: Vec<(f64, f64)>) -> Series {
    Series { name: name.to_owned(), style, colour: colour % COLOURS, points }
}

fn latency_plots(report: &Report) -> String {
    let curves = &report.curves;
    let mut first = vec![series("all", Style::Line, 0, curves.ttft.clone())];
    if !curves.ttft_cold.is_empty() {
        first.push(series("warm adapters", Style::Dashed, 2, curves.ttft_warm.clone()));
        first.push(series("cold adapters", Style::Dashed, 1, curves.ttft_cold.clone()));
    }
    let plot = |title, series| Plot { title, x: MILLIS, y: PARTS, series }.figure();
    [
        plot("Time to the first token", first),
        plot(
            "Time between parts of an answer",
            vec![series("", Style::Line, 0, curves.itl.clone())],
        ),
        plot("Time per token, by request", vec![series("", Style::Line, 0, curves.tpot.clone())]),
        plot("Time to the end of the answer", vec![series("", Style::Line, 0, curves.e2e.clone())]),
    ]
    .concat()
}

fn timeline(timeline: &Timeline) -> String {
    let Timeline { step_s, parts_s, due_s, done_s, lost_s, running, ttft_p50, ttft_p95 } = timeline;
    if parts_s.len() < 3 {
        return String::new();
    }
    let at = |values: &mut dyn Iterator<Item = f64>| -> Vec<(f64, f64)> {
        values.enumerate().map(|(point, value)| ((point as f64 + 0.5) * step_s, value)).collect()
    };
    let known =
        |values: &[Option<f64>]| at(&mut values.iter().map(|value| value.unwrap_or(f64::NAN)));
    let rate = |name| Axis { name, unit: Unit::Number, scale: Scale::Linear };
    let plot = |title, y, series| Plot { title, x: TIME, y, series }.figure();
    let tokens = series("", Style::Area, 0, at(&mut parts_s.iter().copied()));
    let due = series("due", Style::Line, 0, at(&mut due_s.iter().copied()));
    let done = series("answered", Style::Line, 2, at(&mut done_s.iter().copied()));
    let mut ends = vec![due, done];
    if lost_s.iter().any(|lost| *lost > 0.0) {
        ends.push(series("not answered", Style::Line, 1, at(&mut lost_s.iter().copied())));
    }
    let under_way = at(&mut running.iter().map(|running| *running as f64));
    let under_way = series("", Style::Area, 5, under_way);
    let millis = Axis { name: "", ..MILLIS };
    [
        plot(
            "Parts of answers, a second",
            rate("tokens, where each has an event of its own"),
            vec![tokens],
        ),
        plot("Requests, a second", rate(""), ends),
        plot("Requests under way", rate(""), vec![under_way]),
        plot(
            "Time to the first token, by when requests were due",
            millis,
            vec![
                series("median", Style::Line, 0, known(ttft_p50)),
                series("p95", Style::Dashed, 1, known(ttft_p95)),
            ],
        ),
    ]
    .concat()
}

/// Over the load: of one report two percentiles, of several one each.
fn sweeps(reports: &[Report]) -> String {
    let number = |name| Axis { name, unit: Unit::Number, scale: Scale::Linear };
    let of = |report: &Report, value: fn(&super::Step) -> f64| -> Vec<(f64, f64)> {
        report.sweep.iter().map(|step| (step.load, value(step))).collect()
    };
    let ttft: fn(&super::Step) -> f64 = |step| step.latency.ttft.map_or(f64::NAN, |ttft| ttft.p95);
    let each = |value: fn(&super::Step) -> f64| -> Vec<Series> {
        let each = reports.iter().enumerate();
        each.map(|(place, report)| {
            let name = if reports.len() > 1 { title(report) } else { "" };
            series(name, Style::Dots, place, of(report, value))
        })
        .collect()
    };
    let load = number("load");
    let first = match reports {
        [report] => vec![
            series("p95", Style::Dots, 1, of(report, ttft)),
            series(
                "median",
                Style::Dots,
                0,
                of(report, |step| step.latency.ttft.map_or(f64::NAN, |ttft| ttft.p50)),
            ),
        ],
        _ => each(ttft),
    };
    let first_title = if reports.len() > 1 { "p95" } else { "" };
    let millis = Axis { name: first_title, ..MILLIS };
    let part = Axis { name: "part of requests that keep to the SLO", ..PARTS };
    [
        Plot { title: "Time to the first token over the load", x: load, y: millis, series: first }
            .figure(),
        Plot {
            title: "Requests within the SLO over the load",
            x: load,
            y: part,
            series: each(|step| step.good_share),
        }
        .figure(),
        Plot {
            title: "Requests a second within the SLO, over the load",
            x: load,
            y: number(""),
            series: each(|step| step.good_requests_s),
        }
        .figure(),
        Plot {
            title: "Output tokens a second over the load",
            x: load,
            y: number(""),
            series: each(|step| step.output_tokens_s),
        }
        .figure(),
    ]
    .concat()
}

fn tenant_plots(report: &Report) -> String {
    if report.tenants.len() < 2 {
        return String::new();
    }
    let tenants = || report.tenants.iter().take(MOST_BARS);
    let bars = |title: &str, unit, value: &dyn Fn(&super::TenantReport) -> f64, colour| Bars {
        title: title.to_owned(),
        unit,
        values: tenants().map(|tenant| (tenant.name.clone(), value(tenant), colour)).collect(),
    };
    let ttft = |tenant: &super::TenantReport| tenant.latency.ttft.map_or(0.0, |ttft| ttft.p95);
    [
        bars(
            "Output tokens a second",
            Unit::Number,
            &|tenant| tenant.throughput.output_tokens_s,
            0,
        )
        .figure(),
        bars("Time to the first token, p95", Unit::Millis, &ttft, 1).figure(),
    ]
    .concat()
}

fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let cells = |tag: &str, cells: &mut dyn Iterator<Item = &str>| -> String {
        all(cells, |cell| format!("<{tag}>{cell}</{tag}>"))
    };
    let heads = cells("th", &mut heads.iter().copied());
    let rows =
        all(rows, |row| format!("<tr>{}</tr>\n", cells("td", &mut row.iter().map(String::as_str))));
    format!("<table><thead><tr>{heads}</tr></thead><tbody>\n{rows}</tbody></table>\n")
}

fn card(name: &str, class: &str, table: &str) -> String {
    format!("<h2>{name}</h2>\n<div class=\"card {class}\">\n{table}</div>\n")
}

fn latencies(report: &Report) -> String {
    let mut rows = Vec::new();
    let groups = [
        ("", Some(report.latency)),
        (", warm", report.warm.filter(|_| report.cold.is_some())),
        (", cold", report.cold.filter(|_| report.warm.is_some())),
    ];
    for (group, latency) in groups {
        let Some(Latency { ttft, itl, tpot, e2e }) = latency else { continue };
        let named = [
            ("first token", ttft),
            ("between parts", itl),
            ("per token", tpot),
            ("whole answer", e2e),
        ];
        for (what, spread) in named {
            let Some(Spread { count, mean, p50, p90, p95, p99, max }) = spread else { continue };
            let mut row = vec![format!("{what}{group}"), count.to_string()];
            row.extend([mean, p50, p90, p95, p99, max].map(number));
            rows.push(row);
        }
    }
    let heads = ["", "count", "mean", "p50", "p90", "p95", "p99", "max"];
    card("All latencies, in milliseconds", "", &table(&heads, &rows))
}

fn tenants(report: &Report) -> String {
    if report.tenants.len() < 2 {
        return String::new();
    }
    let at = |spread: Option<Spread>, at: fn(&Spread) -> f64| {
        spread.map_or_else(|| "–".to_owned(), |spread| number(at(&spread)))
    };
    let rows: Vec<_> = report
        .tenants
        .iter()
        .map(|tenant| {
            let Counts { sent, done, refused, failed, .. } = tenant.requests;
            let Latency { ttft, itl, e2e, .. } = tenant.latency;
            vec![
                escaped(&tenant.name),
                number(tenant.share),
                sent.to_string(),
                done.to_string(),
                refused.to_string(),
                failed.to_string(),
                number(tenant.throughput.output_tokens_s),
                shown(tenant.throughput.good_share, Unit::Part),
                at(ttft, |ttft| ttft.p50),
                at(ttft, |ttft| ttft.p99),
                at(itl, |itl| itl.p95),
                at(e2e, |e2e| e2e.p95),
            ]
        })
        .collect();
    let heads = [
        "tenant",
        "share",
        "sent",
        "done",
        "refused",
        "failed",
        "tokens/s",
        "good",
        "first p50",
        "first p99",
        "between p95",
        "whole p95",
    ];
    card("Each tenant", "", &table(&heads, &rows))
}

fn errors(report: &Report) -> String {
    if report.errors.is_empty() {
        return String::new();
    }
    let rows: Vec<_> = report
        .errors
        .iter()
        .map(|failures| {
            vec![escaped(&failures.kind), failures.count.to_string(), escaped(&failures.first)]
        })
        .collect();
    card("Not answered", "text", &table(&["kind", "count", "the first one said"], &rows))
}

fn settings(reports: &[Report]) -> String {
    let loads: Vec<_> = reports.iter().map(|report| Some(report.load.as_str())).collect();
    let slos: Vec<_> = reports.iter().map(|report| report.slo.as_deref()).collect();
    let mut rows = vec![setting("load", &loads), setting("slo", &slos)];
    let names: BTreeSet<&String> =
        reports.iter().flat_map(|report| report.settings.keys()).collect();
    for name in names {
        let values: Vec<_> =
            reports.iter().map(|report| report.settings.get(name).map(String::as_str)).collect();
        rows.push(setting(name, &values));
    }
    let mut heads = vec![String::new()];
    heads.extend((0..reports.len()).map(|place| match reports.len() {
        1 => String::new(),
        _ => letter(place),
    }));
    let heads: Vec<&str> = heads.iter().map(String::as_str).collect();
    card("What was asked", "text", &table(&heads, &rows))
}

/// One line of the settings, in bold where they are not the same.
fn setting(name: &str, values: &[Option<&str>]) -> Vec<String> {
    let differ = values.windows(2).any(|pair| pair[0] != pair[1]);
    let cells = std::iter::once(name).chain(values.iter().map(|value| value.unwrap_or("–")));
    let text = |cell: &str| match escaped(cell) {
        cell if differ => format!("<b>{cell}</b>"),
        cell => cell,
    };
    cells.map(text).collect()
}

fn footer(report: &Report) -> String {
    let client = &report.client;
    let p99 = |spread: Option<Spread>| {
        spread.map_or_else(|| "–".to_owned(), |spread| shown(spread.p99, Unit::Millis))
    };
    let cpu = client.cpu_s.map(|seconds| format!(", {seconds:.2} s of processor time"));
    format!(
        "<footer>chorus {} bench. The client: sends were {} late and arrivals seen {} late (p99); {} threads at work for {:.1} % of the time{}. \
         Times count from when a request was due. Fairness is Jain&#39;s index: 1 where all tenants get the same.</footer>\n",
        escaped(&report.version),
        p99(client.late_ms),
        p99(client.wake_ms),
        client.threads,
        client.busy * 100.0,
        cpu.unwrap_or_default(),
    )
}

fn comparison(reports: &[Report]) -> String {
    let named = |place: usize| format!("{} · {}", letter(place), title(&reports[place]));
    let about = all(reports.iter().enumerate(), |(place, report)| {
        let url = report.settings.get("url").map_or("", String::as_str);
        format!(
            "<p class=\"about\"><b>{}</b>: {} · {} · {}</p>\n",
            escaped(&named(place)),
            escaped(url),
            escaped(&report.load),
            escaped(&report.at)
        )
    });
    let each = |points: fn(&Report) -> &Vec<(f64, f64)>| -> Vec<Series> {
        (0..reports.len())
            .map(|place| series(&named(place), Style::Line, place, points(&reports[place]).clone()))
            .collect()
    };
    let bars = |title: &str, unit, value: fn(&Report) -> f64| {
        let bars =
            (0..reports.len()).map(|place| (named(place), value(&reports[place]), place % COLOURS));
        Bars { title: title.to_owned(), unit, values: bars.collect() }.figure()
    };
    let plot = |title, series| Plot { title, x: MILLIS, y: PARTS, series }.figure();
    let amounts = [
        bars("Output tokens a second", Unit::Number, |report| report.throughput.output_tokens_s),
        bars("First token, median", Unit::Millis, |report| {
            report.latency.ttft.map_or(0.0, |ttft| ttft.p50)
        }),
        bars("First token, p99", Unit::Millis, |report| {
            report.latency.ttft.map_or(0.0, |ttft| ttft.p99)
        }),
        bars("Per token, median", Unit::Millis, |report| {
            report.latency.tpot.map_or(0.0, |tpot| tpot.p50)
        }),
    ];
    let curves = [
        plot("Time to the first token", each(|report| &report.curves.ttft)),
        plot("Time between parts of an answer", each(|report| &report.curves.itl)),
        plot("Time per token, by request", each(|report| &report.curves.tpot)),
        plot("Time to the end of the answer", each(|report| &report.curves.e2e)),
    ];
    let different = differences(reports).join("; ");
    let different = Vec::from_iter(Some(different).filter(|text| !text.is_empty()));
    let body = [
        "<h1>Comparison</h1>\n".to_owned(),
        about,
        warnings(&different),
        section("Amounts", &amounts.concat()),
        section("Distributions", &curves.concat()),
        section("Over the load", &sweeps(reports)),
        card("Ratios", "", &ratios(reports)),
        settings(reports),
    ];
    document("Comparison – chorus bench", &body.concat())
}

fn ratios(reports: &[Report]) -> String {
    let mut heads = vec![String::new()];
    for place in 0..reports.len() {
        heads.push(letter(place));
        if place > 0 {
            heads.push(format!("{}/A", letter(place)));
        }
    }
    let lines: Vec<Vec<String>> = rows(reports)
        .iter()
        .filter(|row| row.values.iter().any(Option::is_some))
        .map(|row| {
            let mut line = vec![row.what.to_owned()];
            for (place, value) in row.values.iter().enumerate() {
                line.push(value.map_or_else(|| "–".to_owned(), number));
                if place > 0 {
                    line.push(ratio(row.ratio(place), row.better));
                }
            }
            line
        })
        .collect();
    let heads: Vec<&str> = heads.iter().map(String::as_str).collect();
    table(&heads, &lines)
}

/// Coloured where it is more than a twentieth off.
fn ratio(ratio: Option<f64>, better: Better) -> String {
    let Some(ratio) = ratio else { return "–".to_owned() };
    let class = match better {
        _ if (ratio - 1.0).abs() < 0.05 => "",
        Better::More if ratio > 1.0 => "better",
        Better::Less if ratio < 1.0 => "better",
        Better::More | Better::Less => "worse",
    };
    format!("<span class=\"{class}\">{ratio:.2}</span>")
}

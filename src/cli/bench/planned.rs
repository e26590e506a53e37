//! Options, turned into a plan.

use std::{fs, num::NonZeroUsize, path::Path, sync::Arc, time::Duration};

use super::options::{Options, Secret, TenantOption, Typed, tenants};
use crate::bench::{
    Adapter, BenchError, Dataset, Key, Lengths, Load, Plan, Prompts, Select, Target, Tenant, Trace,
    Warmup, models, names,
};

const URL: &str = "http://127.0.0.1:8080";
const HEADER: &str = "X-Adapter";
const LENGTH: u32 = 64;
const CONCURRENCY: usize = 8;
/// Requests of a closed loop that has no other end, for each that is under way at once.
const ROUNDS: u64 = 4;
const DURATION: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_mins(5);
const MAX_IN_FLIGHT: usize = 1024;
const WARMUP: u32 = 2;
const SEED: u64 = 1;
/// In the place of a list of adapters: those that the server lists.
const LISTED: &str = "@models";

/// Reads the files that options name, asks the server what it has, and puts all of it together.
pub(super) async fn plan(options: Options) -> Result<Plan, BenchError> {
    let load = load(&options)?;
    let who = who(&options, &load)?;
    let mut target = target(&options)?;
    let key = |own: Option<&Secret>| own.or(options.key.as_ref()).map(|secret| secret.0.clone());
    let first = key(who.first().and_then(|tenant| tenant.key.as_ref()));
    let listed = match models(&target.url, target.select, first.as_ref()).await {
        // Nothing would be answered there. Anything else matters only where the list is needed.
        Err(error @ BenchError::Unreachable { .. }) => return Err(error),
        listed => listed,
    };
    target.model = match (&options.model, listed) {
        (Some(model), _) => model.clone(),
        (None, Ok(models)) => models
            .bases
            .into_iter()
            .next()
            .ok_or_else(|| BenchError::NoBase { url: target.url.clone() })?,
        (None, Err(error)) => return Err(error),
    };
    let mut tenants = Vec::new();
    for tenant in who {
        let key = key(tenant.key.as_ref());
        let list = tenant.adapters.as_deref().or(options.adapters.as_deref()).unwrap_or("base");
        let adapters = adapters(list, &target, key.as_ref()).await?;
        let order = tenant.order.or(options.order.clone());
        tenants.push(Tenant {
            name: tenant.name,
            key,
            share: tenant.share.unwrap_or(1.0),
            adapters,
            order: order.map(|Typed(order)| order).unwrap_or_default(),
        });
    }
    put_together(options, load, target, tenants)
}

fn put_together(
    options: Options,
    load: Load,
    target: Target,
    tenants: Vec<Tenant>,
) -> Result<Plan, BenchError> {
    let prompts = match &options.dataset {
        Some(path) => Prompts::Dataset(Arc::new(Dataset::read(path)?)),
        None => Prompts::Words(lengths(options.prompt_words)),
    };
    let duration = options.duration.map(|span| span.0);
    let (requests, duration) = match (&load, options.requests, duration) {
        (Load::Closed { concurrency }, None, None) => {
            (Some(ROUNDS.saturating_mul(*concurrency as u64)), None)
        }
        (Load::Open { .. }, None, None) => (None, Some(DURATION)),
        (_, requests, duration) => (requests, duration),
    };
    let plan = Plan {
        label: options.label.unwrap_or_default(),
        target,
        tenants,
        load,
        requests,
        duration,
        warmup: options.warmup.map_or(Warmup::Requests(WARMUP), |Typed(warmup)| warmup),
        prompts,
        prefix_words: options.prefix_words.unwrap_or(0),
        output: lengths(options.output_tokens),
        seed: options.seed.unwrap_or(SEED),
        timeout: options.timeout.map_or(TIMEOUT, |span| span.0),
        retries: options.retries.unwrap_or(0),
        most_at_once: options.max_in_flight.map_or(MAX_IN_FLIGHT, NonZeroUsize::get),
        slo: options.slo.map(|Typed(slo)| slo).unwrap_or_default(),
    };
    plan.check()?;
    Ok(plan)
}

fn lengths(given: Option<Typed<Lengths>>) -> Lengths {
    given.map_or_else(|| Lengths::fixed(LENGTH), |Typed(lengths)| lengths)
}

fn load(options: &Options) -> Result<Load, BenchError> {
    if let Some(path) = &options.trace {
        let trace = Arc::new(Trace::read(path)?);
        let speed = options.trace_speed.unwrap_or(1.0);
        if !(speed > 0.0 && speed.is_finite()) {
            return Err(BenchError::Plan("--trace-speed must be above 0".to_owned()));
        }
        return Ok(Load::Replay { trace, speed });
    }
    if let Some(Typed(rate)) = options.rate {
        let spacing = options.arrivals.as_ref().map(|Typed(spacing)| *spacing).unwrap_or_default();
        return Ok(Load::Open { rate, spacing });
    }
    let concurrency = options.concurrency.map_or(CONCURRENCY, NonZeroUsize::get);
    Ok(Load::Closed { concurrency })
}

fn target(options: &Options) -> Result<Target, BenchError> {
    let mut headers = Vec::new();
    for header in &options.header {
        let (name, value) = header.split_once(':').ok_or_else(|| {
            BenchError::Plan(format!("`{header}` is no header: one is written as NAME: VALUE"))
        })?;
        headers.push((name.trim().to_owned(), value.trim().to_owned()));
    }
    let temperature = options.temperature.unwrap_or(0.0);
    if !(temperature >= 0.0 && temperature.is_finite()) {
        return Err(BenchError::Plan("--temperature is a number from 0 on".to_owned()));
    }
    let url = options.url.as_deref().unwrap_or(URL);
    Ok(Target {
        url: Target::root(url).to_owned(),
        api: options.api.as_ref().map(|Typed(api)| *api).unwrap_or_default(),
        select: options.select.as_ref().map(|Typed(select)| *select).unwrap_or_default(),
        header_name: options.header_name.clone().unwrap_or_else(|| HEADER.to_owned()),
        model: String::new(),
        headers,
        body: options.body.as_ref().map(|fields| fields.0.clone()).unwrap_or_default(),
        temperature,
        ignore_eos: options.ignore_eos.is_none_or(|switch| switch.0),
    })
}

/// The tenants that options name, or a trace; or one that has no name of its own.
fn who(options: &Options, load: &Load) -> Result<Vec<TenantOption>, BenchError> {
    let mut known = options.tenant.clone();
    if let Some(path) = &options.tenants_file {
        let mut more = Vec::new();
        for (number, line) in lines(path)?.iter().enumerate() {
            let wrong = |what: String| BenchError::File {
                path: path.clone(),
                what: format!("tenant {}: {what}", number + 1),
            };
            more.push(line.parse().map_err(wrong)?);
        }
        known = tenants(known, more);
    }
    let plain =
        |name: String| TenantOption { name, key: None, share: None, adapters: None, order: None };
    if let (Load::Replay { trace, .. }, true) = (load, known.is_empty()) {
        known.extend(trace.tenants().into_iter().map(plain));
    }
    if known.is_empty() {
        known.push(plain("default".to_owned()));
    }
    Ok(known)
}

async fn adapters(
    list: &str,
    target: &Target,
    key: Option<&Key>,
) -> Result<Vec<Option<Arc<Adapter>>>, BenchError> {
    let names = match list.strip_prefix('@') {
        Some(_) if list == LISTED => {
            let names = models(&target.url, target.select, key).await?.adapters;
            if names.is_empty() {
                return Err(BenchError::NoAdapters { url: target.url.clone() });
            }
            names
        }
        Some(file) => lines(Path::new(file))?,
        None => names(list).map_err(|why| BenchError::Plan(format!("adapters: {why}")))?,
    };
    Ok(numbered(&names, target.select))
}

/// Where adapters are chosen by number, `base` takes none.
fn numbered(names: &[String], select: Select) -> Vec<Option<Arc<Adapter>>> {
    let mut next = 0;
    let of = |name: &String| {
        let adapter = Adapter::at(next, name);
        next += usize::from(adapter.is_some() || select != Select::Lora);
        adapter
    };
    names.iter().map(of).collect()
}

/// The lines of a file that have something in them.
fn lines(path: &Path) -> Result<Vec<String>, BenchError> {
    let text = fs::read_to_string(path)
        .map_err(|source| BenchError::Unreadable { path: path.to_owned(), source })?;
    let lines =
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let lines: Vec<_> = lines.map(str::to_owned).collect();
    if lines.is_empty() {
        return Err(BenchError::File { path: path.to_owned(), what: "it is empty".to_owned() });
    }
    Ok(lines)
}

//! What was asked, in words.

use std::collections::BTreeMap;

use crate::bench::{plan::Plan, prompts::Prompts};

pub(super) fn settings(plan: &Plan) -> BTreeMap<String, String> {
    let target = &plan.target;
    let prompts = match &plan.prompts {
        Prompts::Words(words) => format!("{words} words"),
        Prompts::Dataset(dataset) => format!("a file of {}", dataset.count()),
    };
    let adapters: usize = plan.tenants.iter().map(|tenant| tenant.adapters.len()).sum();
    let order = plan.tenants.first().map(|tenant| tenant.order.to_string()).unwrap_or_default();
    let perhaps = |value: Option<String>| value.unwrap_or_else(|| "no bound".to_owned());
    [
        ("url", target.url.clone()),
        ("api", format!("{:?}", target.api).to_lowercase()),
        ("select", format!("{:?}", target.select).to_lowercase()),
        ("model", target.model.clone()),
        ("adapters", adapters.to_string()),
        ("order", order),
        ("tenants", plan.tenants.len().to_string()),
        ("prompts", prompts),
        ("prefix-words", plan.prefix_words.to_string()),
        ("output-tokens", plan.output.to_string()),
        ("temperature", target.temperature.to_string()),
        ("ignore-eos", target.ignore_eos.to_string()),
        ("requests", perhaps(plan.requests.map(|requests| requests.to_string()))),
        ("duration", perhaps(plan.duration.map(|time| format!("{} s", time.as_secs_f64())))),
        ("warmup", plan.warmup.to_string()),
        ("seed", plan.seed.to_string()),
        ("timeout", format!("{} s", plan.timeout.as_secs_f64())),
        ("retries", plan.retries.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

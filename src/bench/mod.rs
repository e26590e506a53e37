//! Load on any OpenAI-compatible server, and what comes of it.
//!
//! A [`Plan`] says all that is done: what is asked ([`Target`], [`Tenant`], [`Lengths`], [`Prompts`]), and when ([`Load`]). [`run`]
//! does it and gives a [`Run`], one [`Sample`] for each request; [`Report`] is what that comes to, and the forms in which it is
//! shown know nothing but it.
//!
//! Everything that is drawn is a function of the seed: when requests are due, of which tenant, for which adapter, their words and
//! how long their answers are to be. No measured time has any part in it. Each tenant has its own sequences, so that in a closed
//! loop, where the server's speed decides who asks next, what each tenant asks is still the same.
//!
//! # What is counted
//!
//! - In an open loop all times begin when a request was *due*, not when it was sent: whatever delays a request, the client too,
//!   is in its latency, so that a server that stalls cannot hide it by keeping requests from being sent ("coordinated omission").
//! - The first token is the first event of the stream that has text; gaps are between such events. Events that arrive in the same
//!   read have the same time. Tokens are those of the server's `usage`, and events where it says none.
//! - A request is cold if no request of the run for the same adapter had its first token when this one was sent.
//! - What the client itself costs is measured while it runs: how late requests were sent, and how long bytes that had arrived
//!   may have waited for it (`pulse`).

mod arrivals;
mod client;
mod draw;
mod error;
mod lengths;
mod load;
mod measure;
mod models;
mod plan;
mod prompts;
mod pulse;
pub mod report;
mod slo;
mod stream;
mod sweep;
mod target;
mod trace;
mod weights;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

pub use self::{
    arrivals::{Rate, Spacing},
    draw::Order,
    error::BenchError,
    lengths::Lengths,
    load::{Live, Snapshot, run},
    measure::{Client, Ended, Outcome, Run, Sample},
    models::{Models, models},
    plan::{Load, Plan, Tenant, Warmup},
    prompts::{Dataset, Prompts},
    report::Report,
    slo::Slo,
    sweep::sweep,
    target::{Adapter, Api, Key, Select, Target, names},
    trace::Trace,
};

//! The HTTP surface: the only place that knows axum, public JSON, status codes and server-sent events.
//!
//! One request, in this order: guard (Host, Origin) -> body -> deadline -> fields -> voice (header or `model`) -> prompt tokens
//! -> does it fit -> lease -> jobs -> pieces of text -> one answer or a stream. Each step can refuse, none is undone by hand: dropping the
//! response drops the streams of its jobs, their share of the lease, and so the request.
//!
//! - `wire` is what JSON looks like; nothing of it is known elsewhere. `error` alone gives status codes, `dialect` puts refusals into
//!   the words of the route.
//! - `wish` lets requests in and finds what they come to, by `select` who answers, by `sampling` how, by `form` and `tools` in what form. `generate` runs it, `answer` turns
//!   tokens into text, `logprobs` writes scores.
//! - `chat`, `completions`, `responses`, `messages` and `lorax` are five forms of that: each only reads its fields and writes its
//!   answers, which `delivery` sends whole, or by `sse` as they grow. Those of `responses` have parts of several kinds: `responding`.
//! - `embeddings` reads and generates nothing; `lend` is what all of these have an adapter by.
//! - `desks` is where parsing and encoding of what is large is done: off the reactor, few at a time, huge ones one at a time. `places`
//!   are for what takes time or memory: so many in all, and so many of each tenant.
//! - `console` is a page for people that asks these routes from their browser; its files are part of the binary.
//! - `report` has a line written in the log for each request when it is over, and `spans` tells the same to whoever collects traces.
//! - `metrics` counts and shows what others count, in `gateway` also under the names by which gateways ask.
//! - `serve` has the connections: HTTP/1.1, bounded in number and in the time a client may take, to send and, in `progress`, to read;
//!   those who only watch may have a listener of their own, behind the same guard; `tls` is what clients speak where they do not speak it plainly; in `linger` clients that are still sending get to read why they were refused.
//!
//! Every refusal has a JSON body but those of hyper itself, which closes the connection: a request line or header that is no HTTP
//! (400), a head that is too large (431).
//!
//! The end: nothing new is begun and bodies half sent are refused; what runs may end; after the drain time it is given up, each
//! answer with its error; what then remains is cut off.

mod accounts;
mod adapters;
mod admin;
mod answer;
mod app;
mod audit;
mod auth;
mod body;
mod brought;
mod chat;
mod completions;
mod console;
mod deadline;
mod delivery;
mod desks;
mod dialect;
mod embeddings;
mod envelope;
mod error;
mod form;
mod gateway;
mod generate;
mod generator;
mod guard;
mod lend;
mod linger;
mod logprobs;
mod lorax;
mod messages;
mod metrics;
mod models;
mod openapi;
mod ops;
mod places;
mod progress;
mod prompt;
mod rates;
mod report;
mod request_id;
mod responding;
mod responses;
mod sampling;
mod select;
mod serve;
mod spans;
mod sse;
mod tally;
mod tls;
mod tokenize;
mod tools;
mod trial;
mod upload;
mod vllm;
mod wire;
mod wish;

#[cfg(test)]
mod double;
#[cfg(test)]
mod tests;

#[cfg(feature = "cuda")]
pub(crate) use self::select::MOST_PARTS;
pub use self::{
    app::{AdapterHeader, App, BadHeader, BaseModel, LoraInfo, Settings, Stored},
    serve::{Listeners, serve, starting},
    tls::{Tls, TlsError, TlsFiles},
};

//! chorus: one frozen base model, many voices.
//!
//! One base model lies in memory. Each customer has `LoRA` adapters of a few megabytes. A request names one in a header or in
//! the `model` field; requests for different adapters run in one batch. This page is the architecture, and the document
//! of record for it.
//!
//! # What is absent
//!
//! The shape is in what a module does *not* know; `tests/it/architecture.rs` holds it.
//!
//! - [`engine`] knows no tenant, no name, no file and no string. Fairness reaches it as an opaque [`engine::Lane`], of which it
//!   counts the tokens.
//! - The scheduler knows no tensor, no clock and no runtime: a plan is a value, time is passed in.
//! - [`adapter`] knows no model: it is given [`lora::Sites`] and a [`lora::Base`].
//! - [`http`] alone knows axum, public JSON and status codes. [`config`] alone reads the environment.
//! - [`store`] knows no adapter and no tenant, only keys and bytes. Uploads never come near a path: names are in records.
//! - [`text`], [`kernels`], [`catalog`], [`store`], [`mod@bench`] and `words` (what serde says of JSON, in words of JSON) name nothing of ours; [`tenant`] only the store,
//!   and [`ledger`] both, and of adapters what they are called.
//! - No path turns a request that named an adapter into an answer of the base, or of another adapter.
//!
//! # Who names whom
//!
//! ```text
//! http    -> tenant, text, adapter, engine, ledger, store (its errors), words
//! engine  -> model, lora
//! adapter -> lora, tenant, store
//! tenant  -> store
//! ledger  -> store, tenant
//! model   -> lora, kernels
//! lora    -> kernels, words
//! cli     -> all: it wires them
//! ```
//!
//! # One request
//!
//! ```text
//! POST -> Caller (from the key) -> Permit (its quota) -> choose (header, model) -> resolve (tenant, name) -> Revision: the digest is pinned here
//!      -> lease: the adapter is in memory until the lease is dropped
//!      -> encode -> Engine::submit(Job) -> TokenStream
//! engine thread: drain the inbox -> plan -> forward(rows, kv, lora) -> sample per row -> commit -> events
//! http: TokenStream -> Detok -> Stops -> the ledger has a line of it -> the last of JSON or SSE -> the log has one
//! ```
//!
//! Dropping the response drops the stream, and with it the sequence, its pages and its lease: that is the clean-up.
//!
//! A job that would wait too long is refused when it is submitted, and not when its time is over: the engine tells how many jobs
//! have begun a second while others were left waiting, and how many are before this one, its lane's own and, by turns, those of
//! others. Nothing is known of an engine that was not pressed in the last seconds, and nobody refused.
//!
//! What the log has of a request is told as spans, too, where its operator collects these, and made of the same numbers when it is over.
//!
//! Prefill and decode are one notion: tokens not yet computed. A step is a flat batch of rows, sorted so that each
//! adapter's rows are one run; no sequence is padded to another's length and no adapter to another's rank.
//!
//! An answer that must have a form (JSON by a schema, a call, a grammar) has a guide, which knows what tokens mean and says after
//! each which may be next. The engine knows it as [`engine::Guide`], the words of forms are in [`text`], and `http` puts one into the
//! other. Guides work on threads of their own while a step is computed; an answer whose guide is late stands back, with its
//! logits, and goes on with the same token that it would have drawn then.
//!
//! Where steps have few rows, an answer has more than one in them: behind its last token those that will probably follow, as they
//! did before in the prompt or in what the adapter said to the same scope. They are drawn one after the other by the answer's own
//! sampler for as long as it draws what was guessed; a row's bits depend on no row behind it, so nothing but time depends on guesses.
//!
//! Several adapters that answer together are one [`lora::Adapter`] that has nothing of its own but its parts and how much of each: the
//! kernels add one after the other to the same rows, in that order. Its digest, and so its prefixes, are its own.
//!
//! # Bits
//!
//! A request's tokens and log-probabilities are bit for bit the same alone, in any company, with any chunking, on any
//! number of threads and after preemption. Every kernel sums an output element in an order that its shapes and its adapter
//! decide: see [`kernels`]. The consequences:
//!
//! - candle's own matmul and reductions are not on the path. candle holds the tensors, reads GGUF, and dispatches our custom ops.
//! - a 4-bit base stays 4-bit in memory. By default its codes are multiplied as integers with inputs that are rounded to 16
//!   bits, each row by its own greatest magnitude: integer sums are exact in any order, and a row's rounding looks at that row
//!   alone. With [`kernels::linear::Precision::Int8`] they are rounded to 8 bits, each group of 32 by its own. With
//!   [`kernels::linear::Precision::Exact`] codes are widened in registers, and all arithmetic is what the
//!   dequantized copy would have in `f32`. Weights that are not quantized, adapters and attention are computed in `f32` in any
//!   case; keys and values are kept as `f16`, as `f32` where all is exact, or as 8-bit codes where that is asked for.
//! - an adapter's matrices stay in the type they were trained in, or are rounded once, when they are loaded, to 8-bit codes
//!   ([`lora::Matrices`]). Either way they are widened in registers, so that codes are the `f32` adapter that they stand for.
//! - an embedding is the sum of a prompt's hidden states, in `f64` and in the order of positions, scaled to length 1: a step gives its
//!   rows' states, and they are added as they come.
//!
//! Because of that, a page of keys and values that is full serves every request that would compute the same: it is named by a
//! SHA-256 over scope (a tenant's own), adapter and all tokens up to its end, and kept until its memory is needed, which is taken
//! first from the scope that has most idle pages. All memory for keys and values comes into use with time.
//!
//! # One adapter
//!
//! ```text
//! upload -> spooled and hashed as it arrives -> checked against the base -> one forward, which must change the numbers
//!        -> its own template renders, and its smoke test is answered, where it brings them
//!        -> its files durable in the store -> one record more, and with that the name points to it -> 201
//! folder -> both files read with care, hashed, checked against the base -> listed, or refused with a reason
//! either -> asked for: one load for all who wait, into a budget of bytes reserved before -> leased -> evicted when idle, what
//!           was used once before what is used again and again
//! ```
//!
//! What the store has is the fold of its records ([`store::Log`]), over the folder's adapters, which are version 1 of their
//! names. A record is created only under a number that nobody has used, so all servers on one store agree on one order, and
//! what a change expects (`If-Match`) is decided on the very state that its record follows. Each put of a file has a key of
//! its own, so a deletion can erase at once: a record may share a file only if the order says that it is alive. A version
//! is bound to the bases it was checked against, and refused on others.
//!
//! The records are the audit log as well: who, what, when. A copy of a store ([`adapter::copy`]) is a prefix of its records with
//! all files that these come to. Files are erased after the record that says so, so whoever misses one finds the reason by
//! reading on; and records of adapters are read before those of tenants and written after them, so that no adapter is ever of
//! a tenant that the copy does not know, and whose number another would get.
//!
//! An operator may name an adapter by its path ([`adapter::LoraRoot`]), below one folder: it is taken in as an upload is. That
//! is the one place where a request's text comes near a path.
//!
//! [`adapter::Adapters`] is a thin shell around a pure state machine (who waits, who is leased, who must go), so that the
//! policy is tested without a clock. It knows tenants as opaque owners: each is charged in full for what it uses, which others
//! with the same bytes do not change, so that no quota tells one of another. An adapter has one form in memory, which is the
//! kernels' own, and its size there is known from its headers; its device slot is a count of the sequences that run through it.
//!
//! # On a GPU
//!
//! `--features cuda` builds a program that serves on a GPU, too. The engine asks of a network what [`engine`] calls `Forward`, and knows of no
//! device beyond that an adapter may have to be brought there first, which is why somebody is left in line while others go on, and
//! that greedy tokens may be found there. `model::gpu` is that network: kernels in CUDA C++ ([`kernels`]), all memory planned and taken at the
//! start, answers' steps captured as graphs, adapters brought beside the steps in the very bytes that they have on the host.
//! Everything but the driver is generic over a trait, `kernels::cuda::Gpu`, whose second implementation is the host: the tests run whole
//! networks through the same launches and the same kernels, without a GPU.
//!
//! # Measuring it
//!
//! [`mod@bench`] is a client and knows nothing of the rest, so that what it says of other servers is as true as what it says of this one.
//! Drawing, sending, noting and showing are apart: what is asked is a function of a seed, what is noted is a list of times, and every
//! form of a report is made from one value.
//!
//! # Where the code departs from the first design
//!
//! - The lease is a value of its own ([`lora::Lease`]) and not a bare `Arc`: whoever lent it must hear of its return, or a waiting
//!   line could not move.
//! - The operator's key is made with the first tenant, which is when the server begins to ask for keys.
//! - Files in the store are named by sha256 and a nonce, not by sha256 alone: with one key for equal bytes an upload and a
//!   deletion that meet could leave a record without its file.
//! - A pin is a lease that the server itself holds; the cache's policy knows nothing of it.
//! - On a GPU a step is not a chain of candle tensors with custom ops, but launches on buffers that are planned at the start: an op of
//!   candle allocates what it gives, and a captured step must not. candle gives the device, its stream and its cuBLAS.
//! - A quantized base is not multiplied there by candle's `QMatMul`, which chooses its kernel by the number of rows, so that a row's
//!   bits would depend on its company, and takes memory in each call; but by a kernel of ours on tensor cores, which reads the panels
//!   that the processor has, and which the host can run.

pub mod adapter;
pub mod bench;
pub mod catalog;
pub mod cli;
pub mod config;
pub mod engine;
pub mod http;
pub mod kernels;
pub mod ledger;
pub mod lora;
pub mod model;
pub mod store;
pub mod telemetry;
pub mod tenant;
pub mod text;
mod words;

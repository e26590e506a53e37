//! What every request shares, and which path leads where.

use std::{
    collections::BTreeSet,
    env,
    future::Future,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::Request,
    http::{HeaderMap, HeaderName},
    middleware::{from_fn, from_fn_with_state},
};
use opentelemetry_sdk::trace::SdkTracer;
use tokio::sync::watch;
use utoipa::OpenApi as _;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    accounts, adapters, admin, audit, auth,
    body::{LARGE_BODIES, LARGE_BODIES_EACH},
    brought::Renderers,
    chat, completions, console,
    deadline::Deadline,
    desks::{Asker, Desks},
    dialect, embeddings,
    error::ApiError,
    generator::Generator,
    guard::{self, Guard},
    lorax, messages,
    metrics::{self, Metrics},
    models, openapi, ops,
    places::Places,
    prompt::Encoder,
    report, request_id, responses,
    select::{self, Names, Part, Voice},
    tokenize,
    upload::Uploads,
    vllm,
};
use crate::{
    adapter::{Adapters, Digest, Extras, LoraRoot, Lot, Wanted},
    engine::Engine,
    ledger::Ledger,
    tenant::{Caller, Permit, TenantId, TenantName, Tenants},
    text::{Chat, Ending, Text},
};

/// The base as clients know it.
#[derive(Clone, Debug)]
pub struct BaseModel {
    /// Its id in `/v1/models`.
    pub id: String,
    /// sha256 of its content in hexadecimal.
    pub digest: String,
    /// Unix time in seconds.
    pub created: u64,
}

/// The bounds and names that an operator chooses.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which request header names the adapter.
    pub adapter_header: AdapterHeader,
    /// Most bytes of a request's body.
    pub body_limit: usize,
    /// Most time a request may take; clients may ask for less with `X-Request-Timeout`.
    pub request_timeout: Duration,
    /// Most tokens of an answer where the request does not say; text completions have their own bound.
    pub chat_tokens: usize,
    /// How long streams may go on after the shutdown signal.
    pub drain: Duration,
    /// Most connections at once; further ones wait to be accepted.
    pub max_connections: usize,
    /// Whether the metrics may be read over the network without the operator's key.
    pub metrics_open: bool,
    /// Whether, and as what, the metrics list the adapters that are in memory.
    pub lora_info: LoraInfo,
    /// Where the operator may load adapters from, as with vLLM; nowhere where it is `None`.
    pub lora_root: Option<LoraRoot>,
    /// Host names besides loopback ones that `Host` and `Origin` may have (without port).
    pub allowed_hosts: Vec<String>,
    /// What tells each request as spans, where the operator collects these.
    pub tracer: Option<SdkTracer>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            adapter_header: AdapterHeader::default(),
            body_limit: 4 << 20,
            request_timeout: Duration::from_mins(10),
            chat_tokens: 1024,
            drain: Duration::from_secs(30),
            max_connections: 4096,
            metrics_open: false,
            lora_info: LoraInfo::default(),
            lora_root: None,
            allowed_hosts: Vec::new(),
            tracer: None,
        }
    }
}

/// What the metrics call the adapters that are in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LoraInfo {
    /// By their names where there are no keys; where there are, they are not listed.
    #[default]
    Auto,
    /// By their names, those of all tenants, to whoever may see names.
    Names,
    /// By the beginning of their digests.
    Digests,
    /// They are not listed.
    Off,
}

/// The name of the header that chooses the adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterHeader(HeaderName);

/// The text cannot be the name of a header.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} cannot be the name of an HTTP header")]
pub struct BadHeader(String);

impl AdapterHeader {
    /// Case does not matter.
    pub fn parse(name: &str) -> Result<Self, BadHeader> {
        name.parse().map(Self).map_err(|_| BadHeader(name.to_owned()))
    }
}

impl Default for AdapterHeader {
    fn default() -> Self {
        Self(HeaderName::from_static("x-adapter"))
    }
}

/// What lives in the store, and outlives the server.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The adapters.
    pub adapters: Adapters,
    /// Who may use them.
    pub tenants: Tenants,
    /// Who has.
    pub ledger: Ledger,
}

/// Everything that answers requests. Clones share it.
#[derive(Clone, Debug)]
pub struct App {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    base: BaseModel,
    text: Text,
    adapters: Adapters,
    tenants: Tenants,
    ledger: Ledger,
    generator: Arc<dyn Generator>,
    settings: Settings,
    metrics: Metrics,
    /// Moved on by the shutdown.
    stage: watch::Sender<Stage>,
    desks: Desks,
    large_bodies: Places,
    uploads: Uploads,
    renderers: Renderers,
}

/// How far the server is on its way to its end; it only goes forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// Requests are taken.
    Serving,
    /// Nothing new is begun; what has begun is finished.
    Draining,
    /// What has begun is given up.
    Stopping,
}

impl App {
    /// The adapters that are in the memory of a GPU that computes.
    pub(super) fn on_device(&self) -> Arc<BTreeSet<Digest>> {
        self.generator().stats().on_device
    }

    /// `text` belongs to the base that `engine` runs; `adapters` were checked against it.
    pub fn new(
        base: BaseModel,
        text: Text,
        stored: Stored,
        engine: Engine,
        settings: Settings,
    ) -> Self {
        Self::over(base, text, stored, Arc::new(engine), settings)
    }

    pub(super) fn over(
        base: BaseModel,
        text: Text,
        Stored { adapters, tenants, ledger }: Stored,
        generator: Arc<dyn Generator>,
        settings: Settings,
    ) -> Self {
        let metrics = Metrics::new(
            Arc::clone(&generator),
            adapters.clone(),
            (ledger.clone(), tenants.clone()),
            settings.lora_info,
        );
        let shared = Shared {
            base,
            text,
            adapters,
            tenants,
            ledger,
            generator,
            settings,
            metrics,
            stage: watch::Sender::new(Stage::Serving),
            desks: Desks::new(),
            large_bodies: Places::new(LARGE_BODIES, LARGE_BODIES_EACH),
            uploads: Uploads::new(),
            renderers: Renderers::new(program()),
        };
        Self { shared: Arc::new(shared) }
    }

    pub(super) fn base(&self) -> &BaseModel {
        &self.shared.base
    }

    pub(super) fn encoder(&self) -> Encoder {
        Encoder { text: self.text().clone(), context: self.generator().context() }
    }

    pub(super) fn text(&self) -> &Text {
        &self.shared.text
    }

    pub(super) fn adapters(&self) -> &Adapters {
        &self.shared.adapters
    }

    pub(super) fn tenants(&self) -> &Tenants {
        &self.shared.tenants
    }

    pub(super) fn ledger(&self) -> &Ledger {
        &self.shared.ledger
    }

    pub(super) fn generator(&self) -> &dyn Generator {
        &*self.shared.generator
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    pub(super) fn large_bodies(&self) -> &Places {
        &self.shared.large_bodies
    }

    pub(super) fn uploads(&self) -> &Uploads {
        &self.shared.uploads
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// From now on nothing new is begun.
    pub(super) fn drain(&self) {
        self.advance(Stage::Draining);
    }

    /// From now on what has begun is given up: with a 503, or in a stream with an event.
    pub(super) fn stop(&self) {
        self.advance(Stage::Stopping);
        self.generator().stop_now();
    }

    fn advance(&self, stage: Stage) {
        self.shared.stage.send_modify(|now| *now = stage.max(*now));
    }

    /// Refuses once the server is shutting down, and as long as what the store says is beyond it.
    pub(super) fn accepting(&self) -> Result<(), ApiError> {
        if *self.shared.stage.borrow() > Stage::Serving {
            return Err(ApiError::stopping());
        }
        if self.adapters().is_outdated() || self.tenants().is_outdated() {
            return Err(ApiError::outdated());
        }
        Ok(())
    }

    /// What the future gives, unless nothing new is to be begun before.
    pub(super) async fn while_accepting<T>(
        &self,
        future: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        self.before(Stage::Draining, future).await
    }

    /// What the future gives, unless its time is over or the server is to end before.
    pub(super) async fn bound<T>(
        &self,
        deadline: Deadline,
        future: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        self.before(Stage::Stopping, deadline.bound(future)).await
    }

    async fn before<T>(
        &self,
        stage: Stage,
        future: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        let mut stages = self.shared.stage.subscribe();
        tokio::select! {
            biased;
            result = future => result,
            _ = stages.wait_for(|now| *now >= stage) => Err(ApiError::stopping()),
        }
    }

    /// What names mean to the caller. Where one of them is not known, the store is asked and all are read again.
    pub(super) async fn with_names<T>(
        &self,
        tenant: TenantId,
        lot: Option<&Lot>,
        read: impl Fn(&Names<'_>) -> T,
    ) -> Result<T, ApiError> {
        let default = self.tenants().default_adapter(tenant);
        let (base, default) = (self.base().id.as_str(), default.as_deref());
        let missing = Mutex::new(None);
        let look = |wanted: &Wanted| {
            let found = self.adapters().resolve(tenant, wanted, lot);
            if found.is_none() {
                *missing.lock().expect("nothing here panics") = Some(wanted.name().clone());
            }
            found
        };
        let first = read(&Names { base, default, lookup: &look });
        let missing = missing.lock().expect("nothing here panics").take();
        let Some(name) = missing else { return Ok(first) };
        if !self
            .adapters()
            .seek(tenant, &name)
            .await
            .map_err(|error| ApiError::unreachable(&error.0))?
        {
            return Ok(first);
        }
        let look = |wanted: &Wanted| self.adapters().resolve(tenant, wanted, lot);
        Ok(read(&Names { base, default, lookup: &look }))
    }

    /// Lets one more request of the caller's tenant run, within its quota.
    pub(super) fn admit(&self, caller: &Caller) -> Result<Arc<Permit>, ApiError> {
        let admitted = self.tenants().admit(caller.tenant, Instant::now());
        admitted.map(Arc::new).map_err(|over| ApiError::over_quota(&over))
    }

    /// The tenant of this name, which another server may have made a moment ago.
    pub(super) async fn tenant(&self, name: &TenantName) -> Result<Option<TenantId>, ApiError> {
        if self.tenants().card(name).is_none() {
            self.tenants().refresh().await.map_err(|error| ApiError::unreachable(&error))?;
        }
        Ok(self.tenants().card(name).map(|card| card.id))
    }

    /// Whether the name means something else than an adapter.
    pub(super) fn reserves(&self, name: &str) -> bool {
        Names { base: &self.base().id, default: None, lookup: &|_| None }.reserves(name)
    }

    /// What the adapter header names.
    pub(super) fn in_header<'a>(
        &self,
        headers: &'a HeaderMap,
    ) -> Result<Option<&'a str>, ApiError> {
        select::header(headers, &self.settings().adapter_header.0)
    }

    /// Who answers, and under which name it was asked for. Requests of one `user` get one version of it, and so do those
    /// that a client gives one id.
    pub(super) async fn choose(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
        named: (Option<String>, Option<&str>),
    ) -> Result<(Voice, String), ApiError> {
        self.choose_of(caller, headers, named, None).await
    }

    /// The same where the body may name several adapters, so much of each.
    pub(super) async fn choose_of(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
        (model, user): (Option<String>, Option<&str>),
        adapters: Option<&[Part]>,
    ) -> Result<(Voice, String), ApiError> {
        // Some clients send an empty text for nobody.
        let lot = match user.filter(|user| !user.is_empty()) {
            Some(user) => Lot::new(format!("user {user}")),
            None => Lot::new(format!("request {}", request_id::of(headers))),
        };
        let header = self.in_header(headers)?;
        let name = self.settings().adapter_header.0.as_str();
        let choose = |names: &Names<'_>| match select::choose_mix(
            (header, name),
            model.as_deref(),
            adapters,
            names,
        )? {
            Some(mix) => Ok(mix),
            None => select::choose(header, model.as_deref(), names),
        };
        let voice = self.with_names(caller.tenant, Some(&lot), choose).await??;
        let named = model.filter(|model| !model.is_empty()).or(header.map(str::to_owned));
        Ok((voice, named.unwrap_or_default()))
    }

    /// Who would answer. A request that names nobody is about the base.
    pub(super) async fn voice(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
        model: Option<String>,
    ) -> Result<Voice, ApiError> {
        if self.in_header(headers)?.is_none() && model.is_none() {
            return Ok(Voice::Base);
        }
        self.choose(caller, headers, (model, None)).await.map(|(voice, _)| voice)
    }

    /// What the adapter that answers brings besides weights.
    pub(super) fn extras(&self, voice: &Voice) -> Arc<Extras> {
        match voice {
            Voice::Adapter(revision) => self.adapters().extras(revision),
            // Of a mix, which one's would it be?
            Voice::Base | Voice::Mix(_) => Arc::default(),
        }
    }

    /// The prompt for a chat by the template that the adapter brings; `None` where it brings none.
    pub(super) async fn render_brought(
        &self,
        tenant: TenantId,
        extras: &Extras,
        (chat, ending): (&Chat, Ending),
    ) -> Result<Option<String>, ApiError> {
        let Some(source) = &extras.chat_template else { return Ok(None) };
        let rendering = self.text().rendering(source, chat, ending);
        Ok(Some(self.renderers().render(Some(tenant), &rendering).await??))
    }

    pub(super) fn renderers(&self) -> &Renderers {
        &self.shared.renderers
    }

    /// Does work that takes time linear in `bytes`, at a desk.
    pub(super) async fn work<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce(&Asker) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        self.shared.desks.work(bytes, work).await
    }

    /// Compiles a form of a tenant's, at the desk for that.
    pub(super) async fn compile<T: Send + 'static>(
        &self,
        tenant: TenantId,
        work: impl FnOnce(&Asker) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        self.shared.desks.compile(tenant, work).await
    }

    /// All routes, behind the guard.
    pub(super) fn router(self, guard: Guard) -> Router {
        let (router, _) = routes().split_for_parts();
        self.behind(guard, router.merge(console::files()))
    }

    /// The routes of those who only watch, behind theirs.
    pub(super) fn watched(self, guard: Guard) -> Router {
        let (router, _) = watched_routes().split_for_parts();
        self.behind(guard, router)
    }

    fn behind(self, guard: Guard, router: Router<Self>) -> Router {
        router
            .fallback(no_route)
            .method_not_allowed_fallback(wrong_method)
            .layer(from_fn_with_state(self.clone(), auth::layer))
            .layer(from_fn_with_state(guard, guard::layer))
            .layer(from_fn(dialect::layer))
            .layer(from_fn_with_state(self.clone(), metrics::layer))
            .layer(from_fn_with_state(self.clone(), report::layer))
            .layer(from_fn(request_id::layer))
            .with_state(self)
    }
}

/// All routes but those of the console's files, each with what `/openapi.json` says of it.
pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(openapi::Document::openapi())
        .routes(routes!(chat::create))
        .routes(routes!(completions::create))
        .routes(routes!(responses::create))
        .routes(routes!(responses::find, responses::remove))
        .routes(routes!(messages::create))
        .routes(routes!(messages::count))
        .routes(routes!(console::page, lorax::either))
        .routes(routes!(lorax::generate))
        .routes(routes!(lorax::generate_stream))
        .routes(routes!(embeddings::create))
        .routes(routes!(models::list))
        .routes(routes!(models::show))
        .routes(routes!(adapters::list))
        .routes(routes!(adapters::put, adapters::show, adapters::remove))
        .routes(routes!(adapters::activate))
        .routes(routes!(adapters::validate))
        .routes(routes!(adapters::pin))
        .routes(routes!(adapters::unpin))
        .routes(routes!(adapters::prefetch))
        .routes(routes!(adapters::file))
        .routes(routes!(vllm::load))
        .routes(routes!(vllm::unload))
        .routes(routes!(audit::list))
        .routes(routes!(admin::replace_operator))
        .routes(routes!(admin::list, admin::create))
        .routes(routes!(admin::show))
        .routes(routes!(admin::add_key))
        .routes(routes!(admin::revoke_key))
        .routes(routes!(admin::set_default))
        .routes(routes!(admin::set_quota))
        .routes(routes!(accounts::of_all))
        .routes(routes!(accounts::own))
        .routes(routes!(tokenize::tokenize))
        .routes(routes!(tokenize::detokenize))
        .routes(routes!(ops::health))
        .routes(routes!(ops::ping))
        .routes(routes!(ops::ready))
        .routes(routes!(ops::version))
        .routes(routes!(ops::metrics))
        .routes(routes!(openapi::show))
}

/// What those need who watch the process.
fn watched_routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(ops::health))
        .routes(routes!(ops::ready))
        .routes(routes!(ops::metrics))
}

/// This program, also where its file has been replaced meanwhile.
fn program() -> Option<PathBuf> {
    let running = PathBuf::from("/proc/self/exe");
    if running.exists() { Some(running) } else { env::current_exe().ok() }
}

async fn no_route(request: Request) -> ApiError {
    ApiError::no_route(request.method().as_str(), request.uri().path())
}

async fn wrong_method(request: Request) -> ApiError {
    ApiError::wrong_method(request.method().as_str(), request.uri().path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_name_is_parsed() {
        assert_eq!(AdapterHeader::parse("X-Adapter").unwrap(), AdapterHeader::default());
        for name in ["", "X Adapter", "X-Adapter:", "\u{e4}"] {
            assert!(AdapterHeader::parse(name).is_err(), "{name}");
        }
    }
}

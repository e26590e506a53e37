//! Chat templates that adapters have brought, each chat rendered by a process that may be lost.

use std::{
    collections::HashMap,
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, Command},
    sync::Semaphore,
    time::timeout,
};

use super::error::ApiError;
use crate::{
    tenant::TenantId,
    text::{self, Rendering},
};

/// Processes at once; they stand back behind the engine.
const PROCESSES: usize = 2;
/// Longest that one may take, most of which is waiting where the machine is busy: its processor time is bounded by itself.
const TIME: Duration = Duration::from_secs(10);
/// How long a request waits for its turn.
const PATIENCE: Duration = Duration::from_secs(10);
/// A prompt as JSON takes up to six bytes for each of its own.
const MOST_OUTPUT: u64 = 6 * Rendering::MOST_BYTES as u64 + 64;

/// Starts them.
#[derive(Debug)]
pub(super) struct Renderers {
    /// This program; without it there is nothing that could render.
    program: Option<PathBuf>,
    all: Semaphore,
    /// One at a time for each tenant, so that none keeps others from theirs; `None` is for trials.
    each: Mutex<HashMap<Option<TenantId>, Arc<Semaphore>>>,
}

impl Renderers {
    pub(super) fn new(program: Option<PathBuf>) -> Self {
        Self { program, all: Semaphore::new(PROCESSES), each: Mutex::default() }
    }

    /// The prompt, or why there is none.
    pub(super) async fn render(
        &self,
        tenant: Option<TenantId>,
        rendering: &Rendering,
    ) -> Result<Result<String, text::Error>, ApiError> {
        let own = Arc::clone(
            self.each
                .lock()
                .expect("nothing here panics")
                .entry(tenant)
                .or_insert_with(|| Arc::new(Semaphore::new(1))),
        );
        let places = async { (own.acquire().await, self.all.acquire().await) };
        let busy = |_| ApiError::overloaded("too many chats are waiting to be rendered");
        let _places = timeout(PATIENCE, places).await.map_err(busy)?;
        let broken = |error: std::io::Error| {
            tracing::error!(%error, "a chat could not be rendered");
            ApiError::internal()
        };
        let mut child = self.start().map_err(broken)?;
        // Where it ends before its answer does, or has none, it has reached one of its bounds.
        let answer = timeout(TIME, talk(&mut child, rendering)).await.ok().flatten();
        let answer = answer.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Ok(answer.unwrap_or(Err(text::Error::TooMuchWork)))
    }

    fn start(&self) -> std::io::Result<Child> {
        let program = self.program.as_ref().ok_or(std::io::ErrorKind::Unsupported)?;
        Command::new(program)
            .arg("render")
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
    }
}

/// What it answers, if it comes to its end.
async fn talk(child: &mut Child, rendering: &Rendering) -> Option<Vec<u8>> {
    let asked = serde_json::to_vec(rendering).ok()?;
    let (mut input, output) = (child.stdin.take()?, child.stdout.take()?);
    input.write_all(&asked).await.ok()?;
    drop(input);
    let mut answer = Vec::new();
    output.take(MOST_OUTPUT).read_to_end(&mut answer).await.ok()?;
    child.wait().await.ok()?.success().then_some(answer)
}

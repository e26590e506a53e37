//! `chorus bench`: load on a server, and a report of what came of it.

mod options;
mod planned;
mod watch;

use std::{
    fs,
    io::{self, Write as _},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::{runtime::Builder, sync::watch as channel};

pub(crate) use self::options::BenchArgs;
use self::{options::Options, watch::watched};
use super::{error::CliError, signals::Signals};
use crate::bench::{self, BenchError, Live, Plan, Report, report};

const THREADS: usize = 2;
const SLO_SHARE: f64 = 0.95;

/// Asks, and tells what came of it.
pub(crate) fn run(args: BenchArgs) -> Result<(), CliError> {
    let BenchArgs { scenario, compare, options } = args;
    if !compare.is_empty() {
        return compared(&compare, options.html.as_deref());
    }
    let mut options = match &scenario {
        Some(path) => options.or(Options::read(path)?),
        None => options,
    };
    if let (None, Some(path)) = (&options.label, &scenario) {
        options.label = path.file_stem().map(|name| name.to_string_lossy().into_owned());
    }
    let threads = options.threads.map_or(THREADS, NonZeroUsize::get);
    let runtime = Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    let runtime = runtime.map_err(CliError::System)?;
    let outputs = Outputs::of(&options);
    let (report, csv) = runtime.block_on(measured(options))?;
    // Whatever a server still sends is not waited for.
    runtime.shutdown_background();
    outputs.write(&report, csv.as_deref())?;
    if report.requests.done == 0 {
        let why = report.errors.first().map_or_else(
            || "the run was ended first".to_owned(),
            |failures| format!("{}: {}", failures.kind, failures.first),
        );
        return Err(CliError::NothingAnswered { sent: report.requests.sent, why });
    }
    Ok(())
}

/// Where the report goes.
struct Outputs {
    json: Option<PathBuf>,
    csv: Option<PathBuf>,
    html: Option<PathBuf>,
}

impl Outputs {
    fn of(options: &Options) -> Self {
        Self { json: options.json.clone(), csv: options.csv.clone(), html: options.html.clone() }
    }

    fn write(&self, report: &Report, requests: Option<&str>) -> Result<(), CliError> {
        let to_stdout = self.json.as_deref() == Some(Path::new("-"));
        let shown = if to_stdout { report.to_json() + "\n" } else { report.to_string() };
        io::stdout().write_all(shown.as_bytes()).map_err(CliError::Output)?;
        if let (Some(path), false) = (&self.json, to_stdout) {
            written(path, &report.to_json())?;
        }
        if let (Some(path), Some(requests)) = (&self.csv, requests) {
            written(path, requests)?;
        }
        if let Some(path) = &self.html {
            written(path, &report::page(std::slice::from_ref(report)))?;
        }
        Ok(())
    }
}

fn written(path: &Path, text: &str) -> Result<(), CliError> {
    fs::write(path, text).map_err(|source| CliError::Unwritable { path: path.to_owned(), source })
}

/// The report, and a table of all requests where one is wanted.
async fn measured(options: Options) -> Result<(Report, Option<String>), CliError> {
    let wants_csv = options.csv.is_some();
    let sweeps = options.sweep.is_some_and(|sweep| sweep.0);
    let share = options.slo_share.unwrap_or(SLO_SHARE);
    let plan = planned::plan(options).await?;
    let (stop, stopped) = channel::channel(false);
    let signals = Signals::listen().map_err(CliError::System)?;
    let signals = tokio::spawn(async move {
        signals.first().await;
        stop.send_replace(true);
        // The sender must outlive whoever listens.
        std::future::pending::<()>().await;
    });
    let live = Arc::new(Live::default());
    // On the runtime's own threads, as all that it starts is.
    let run =
        tokio::spawn(done(plan, Arc::clone(&live), stopped, Wanted { wants_csv, sweeps, share }));
    let report = watched(&live, run).await;
    signals.abort();
    report.map_err(|ended| CliError::System(io::Error::other(ended)))?.map_err(CliError::Bench)
}

struct Wanted {
    wants_csv: bool,
    sweeps: bool,
    share: f64,
}

async fn done(
    plan: Plan,
    live: Arc<Live>,
    stop: channel::Receiver<bool>,
    wanted: Wanted,
) -> Result<(Report, Option<String>), BenchError> {
    if wanted.sweeps {
        let told = |step: &report::Step| drop(writeln!(io::stderr(), "{step}"));
        return Ok((bench::sweep(&plan, wanted.share, live, stop, told).await?, None));
    }
    let plan = Arc::new(plan);
    let run = bench::run(Arc::clone(&plan), live, stop).await?;
    let csv = wanted.wants_csv.then(|| report::csv::requests(&plan, &run));
    Ok((Report::of(&plan, &run), csv))
}

/// Prints reports beside each other.
fn compared(paths: &[PathBuf], html: Option<&Path>) -> Result<(), CliError> {
    let mut reports = Vec::new();
    for path in paths {
        let text = fs::read_to_string(path)
            .map_err(|source| BenchError::Unreadable { path: path.clone(), source })?;
        let report = Report::from_json(&text)
            .map_err(|what| BenchError::File { path: path.clone(), what })?;
        reports.push(report);
    }
    let table = report::compared(&reports);
    io::stdout().write_all(table.as_bytes()).map_err(CliError::Output)?;
    match html {
        Some(path) => written(path, &report::page(&reports)),
        None => Ok(()),
    }
}

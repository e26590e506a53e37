//! The command line.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::{CommandFactory as _, Parser, Subcommand, error::ErrorKind};
use clap_complete::Shell;

use super::{
    accounts,
    adapter::{self, AdapterCommand},
    audit::{self, AuditArgs},
    bench::{self, BenchArgs},
    error::CliError,
    pull, render, serve,
    store::{self, StoreCommand},
    tenant::{self, TenantCommand},
    usage,
};
use crate::config::{ModelsArgs, ServeArgs};

/// For a command line that means nothing and for a start that failed.
const FAILED: u8 = 2;
/// For a check that was made, and found something.
const FOUND_FAULTS: u8 = 1;

/// One frozen base model, many voices: LoRA adapters behind an OpenAI-compatible endpoint
#[derive(Debug, Parser)]
#[command(name = "chorus", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a base model and its adapters
    ///
    /// Every option can also be a variable (`CHORUS_MAX_RUNNING` for --max-running) or a line of a
    /// TOML file (max-running = 64). A flag wins over a variable, a variable over the file.
    Serve(Box<ServeArgs>),
    /// Fetch a base model of the catalog; without NAME, list them
    Pull {
        /// A name of the catalog
        name: Option<String>,
        #[command(flatten)]
        models: ModelsArgs,
    },
    /// Upload adapters to a server, and look after them
    Adapter {
        #[command(subcommand)]
        command: AdapterCommand,
    },
    /// Make tenants and their keys
    Tenant {
        #[command(subcommand)]
        command: TenantCommand,
    },
    /// Show what tenants have used
    Usage(Box<accounts::UsageArgs>),
    /// Show who changed what, and when: adapters, tenants and keys
    Audit(Box<AuditArgs>),
    /// Check and copy a store: backups, without a server
    Store {
        #[command(subcommand)]
        command: StoreCommand,
    },
    /// Put load on any OpenAI-compatible server, and report how it did
    ///
    /// Requests stream their answers. In a closed loop (--concurrency) each is followed by the next; in an open loop (--rate,
    /// --trace) they come when they are due, and their times count from then.
    Bench(Box<BenchArgs>),
    /// Render one chat from standard input: what a server starts for templates that adapters bring
    #[command(hide = true)]
    Render,
    /// Print a completion script
    Completions {
        /// The shell it is for
        shell: Shell,
    },
}

impl Command {
    fn run(self) -> Result<(), CliError> {
        match self {
            Self::Serve(args) => serve::run(*args),
            Self::Pull { name: Some(name), models } => pull::run(&name, models),
            Self::Pull { name: None, models } => pull::list(models),
            Self::Adapter { command } => adapter::run(command),
            Self::Tenant { command } => tenant::run(command),
            Self::Usage(args) => accounts::run(*args),
            Self::Audit(args) => audit::run(*args),
            Self::Store { command } => store::run(command),
            Self::Bench(args) => bench::run(*args),
            Self::Render => render::run(),
            Self::Completions { shell } => completions(shell),
        }
    }
}

/// The whole program, from its arguments to its exit status.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help and version are answers too; nothing can be done where they cannot be printed.
        Err(answer) if is_help(&answer) => {
            drop(answer.print());
            return ExitCode::from(u8::try_from(answer.exit_code()).unwrap_or(FAILED));
        }
        Err(refused) => return failed(FAILED, &usage::refusal(&refused, &Cli::command())),
    };
    match cli.command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ CliError::StoreLacks { .. }) => failed(FOUND_FAULTS, &error.one_line()),
        Err(error) => failed(FAILED, &error.one_line()),
    }
}

fn is_help(answer: &clap::Error) -> bool {
    matches!(
        answer.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    )
}

/// Says why, in one line.
fn failed(status: u8, why: &str) -> ExitCode {
    drop(writeln!(io::stderr(), "error: {why}"));
    ExitCode::from(status)
}

fn completions(shell: Shell) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "chorus", &mut script);
    io::stdout().write_all(&script).map_err(CliError::Output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_exclude_each_other_are_not_one_that_is_given_twice() {
        let refusal = |words: &[&str]| {
            let refused = Cli::command().try_get_matches_from([&["chorus"], words].concat());
            usage::refusal(&refused.unwrap_err(), &Cli::command())
        };
        let both = refusal(&["usage", "--csv", "--json"]);
        assert_eq!(both, "--csv and --json exclude each other; leave one out");
        let both = refusal(&["adapter", "push", "x", ".", "--new", "--if-active", "2"]);
        assert!(
            both.contains("--if-active")
                && both.contains("--new")
                && both.contains("exclude each other"),
            "{both}"
        );
        let twice = refusal(&["usage", "--by", "day", "--by", "hour"]);
        assert_eq!(twice, "--by is given twice; leave one out");
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}

//! What is wrong with a command line, in one line: clap's own answer has several.

use std::error::Error as _;

use clap::{
    Command,
    error::{ContextKind, ContextValue, ErrorKind},
};

/// What was wrong and what to do about it.
pub(super) fn refusal(error: &clap::Error, program: &Command) -> String {
    let named = |option: &str| named(option, program);
    let said = |kind| error.get(kind).map(shown);
    let option = said(ContextKind::InvalidArg).unwrap_or_default();
    let value = said(ContextKind::InvalidValue).unwrap_or_default();
    match error.kind() {
        ErrorKind::ValueValidation | ErrorKind::InvalidValue => {
            let known = said(ContextKind::ValidValue).filter(|known| !known.is_empty());
            let why = match (error.source(), known) {
                (Some(why), _) => why.to_string(),
                (None, Some(known)) => format!("choose one of {known}"),
                (None, None) => "a value is expected".to_owned(),
            };
            if value.is_empty() {
                return format!("{}: {why}", named(&option));
            }
            format!("`{}` for {}: {why}", value.escape_debug(), named(&option))
        }
        ErrorKind::UnknownArgument => {
            let meant = match said(ContextKind::SuggestedArg) {
                Some(similar) => format!("did you mean `{similar}`?"),
                None => "`chorus --help` and `chorus serve --help` list what there is".to_owned(),
            };
            format!("`{}` means nothing here; {meant}", option.escape_debug())
        }
        ErrorKind::InvalidSubcommand => {
            let command = said(ContextKind::InvalidSubcommand).unwrap_or_default();
            format!("there is no command `{}`; `chorus --help` lists them", command.escape_debug())
        }
        ErrorKind::MissingRequiredArgument => {
            format!("{option} is missing; `chorus --help` says how commands are written")
        }
        ErrorKind::ArgumentConflict => match said(ContextKind::PriorArg) {
            Some(other) if other != option => {
                format!(
                    "{} and {} exclude each other; leave one out",
                    named(&option),
                    named(&other)
                )
            }
            _ => format!("{} is given twice; leave one out", named(&option)),
        },
        _ => {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            let first = first.strip_prefix("error: ").unwrap_or(first);
            format!("{first}; `chorus --help` says how commands are written")
        }
    }
}

/// `--threads <N>` as people know it: the flag, and the variable that may have brought the value.
fn named(option: &str, program: &Command) -> String {
    let flag = option.split_whitespace().next().unwrap_or_default();
    let flag = flag.split('[').next().unwrap_or_default().trim_end_matches('=');
    match flag.strip_prefix("--") {
        Some(name) if has_variable(program, name) => {
            format!("{flag} (CHORUS_{})", name.to_uppercase().replace('-', "_"))
        }
        Some(_) => flag.to_owned(),
        None => option.to_owned(),
    }
}

/// Whether some command's option of this name can be a variable too.
fn has_variable(command: &Command, name: &str) -> bool {
    let mut options = command.get_arguments();
    options.any(|option| option.get_long() == Some(name) && option.get_env().is_some())
        || command.get_subcommands().any(|command| has_variable(command, name))
}

fn shown(value: &ContextValue) -> String {
    match value {
        ContextValue::Strings(several) => several.join(", "),
        one => one.to_string(),
    }
}

//! `chorus store`: whether a store is whole, and copies of it, without a server.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{error::CliError, progress};
use crate::{
    adapter::{self, Copied, Depth, Fault, Inventory},
    config::{self, ByteSize, StoreArgs},
    store::{Location, Store},
    tenant::{TenantId, Tenants},
};

/// Files that nothing refers to, of which so many are listed.
const UNUSED_SHOWN: usize = 10;

/// What is to be done.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Look whether a store has all that its records refer to; nothing is changed. Ends with 1 where something is missing
    Check(CheckArgs),
    /// Copy a store, also while servers write to it, to a new place or on to an earlier copy: a backup, or its way back
    Copy(CopyArgs),
}

/// What is looked at.
#[derive(Args, Clone, Debug)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// Read every file, and hold its bytes against its sha256
    #[arg(long)]
    hashes: bool,
    /// Print what was found as JSON
    #[arg(long)]
    json: bool,
}

/// From where to where.
#[derive(Args, Clone, Debug)]
pub(crate) struct CopyArgs {
    /// The store that is copied: a directory or a URL, as for --store
    from: String,
    /// Where the copy is: nothing, an empty place, or an earlier copy of the same store
    to: String,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
}

/// Does it.
pub(crate) fn run(command: StoreCommand) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(CliError::System)?;
    let (text, faults) = match command {
        StoreCommand::Check(args) => runtime.block_on(check(args))?,
        StoreCommand::Copy(args) => runtime.block_on(copy(args))?,
    };
    write!(io::stdout(), "{text}").map_err(CliError::Output)?;
    if faults == 0 { Ok(()) } else { Err(CliError::StoreLacks { faults }) }
}

/// What is printed, and how much is wrong.
async fn check(args: CheckArgs) -> Result<(String, usize), CliError> {
    let location = Location::try_from(args.store)?;
    let store = Store::open_existing(&location).await?;
    let depth = if args.hashes { Depth::Bytes } else { Depth::Lengths };
    let inventory = adapter::inspect(&store, depth).await?;
    // After the adapters' records: whoever has an adapter is among them.
    let tenants = Tenants::open(&store, None, std::time::Duration::MAX).await;
    let tenants = tenants.map_err(CliError::Records)?;
    let unknown: Vec<TenantId> =
        inventory.tenants.iter().copied().filter(|id| tenants.name(*id).is_none()).collect();
    let faults = inventory.faults.len() + unknown.len() + usize::from(inventory.broken.is_some());
    let report = Report { inventory, unknown, tenants };
    let text = if args.json {
        format!("{}\n", report.json(&location))
    } else {
        report.text(&location, depth)
    };
    Ok((text, faults))
}

/// What was found.
struct Report {
    inventory: Inventory,
    /// Tenants that have adapters and no record.
    unknown: Vec<TenantId>,
    tenants: Tenants,
}

impl Report {
    fn name(&self, tenant: TenantId) -> String {
        let name = self.tenants.name(tenant).map(String::from);
        name.unwrap_or_else(|| format!("tenant {}", tenant.number()))
    }

    fn json(&self, location: &Location) -> Value {
        let Inventory { records, versions, files, bytes, broken, faults, unused, .. } =
            &self.inventory;
        let faults: Vec<_> =
            faults.iter().map(|fault| fault_json(fault, &self.name(fault.tenant))).collect();
        let unused: Vec<Value> = unused
            .iter()
            .map(|(key, bytes)| json!({"key": key.to_string(), "bytes": bytes}))
            .collect();
        let unknown: Vec<_> = self.unknown.iter().map(|id| id.number()).collect();
        // What the rest of a broken log refers to is not known.
        let unused = if broken.is_some() { Value::Null } else { unused.into() };
        json!({
            "object": "store.check", "store": location.to_string(), "records": records,
            "versions": versions, "files": files, "bytes": bytes, "broken_log": broken,
            "faults": faults, "unknown_tenants": unknown, "unused": unused,
        })
    }

    fn text(&self, location: &Location, depth: Depth) -> String {
        let Inventory { records, versions, files, bytes, broken, faults, unused, .. } =
            &self.inventory;
        let looked = match depth {
            Depth::Lengths => "their lengths are right",
            Depth::Bytes => "their bytes are those that were put there",
        };
        let mut lines = vec![format!(
            "{location}: {records} changes, {versions} versions in {files} files of {}",
            ByteSize(*bytes)
        )];
        lines.extend(broken.iter().map(|why| format!("the log is broken: {why}")));
        lines.extend(faults.iter().map(|fault| fault_line(fault, &self.name(fault.tenant))));
        lines.extend(self.unknown.iter().map(|id| {
            let id = id.number();
            format!("tenant {id} has adapters and is not in logs/tenants, which is older")
        }));
        if !unused.is_empty() {
            let (count, bytes) = (unused.len(), unused.iter().map(|(_, bytes)| bytes).sum());
            let bytes = ByteSize(bytes);
            lines.push(match broken {
                None => format!(
                    "{count} files of {bytes} belong to no version: uploads on their way, or to be erased"
                ),
                Some(_) => format!(
                    "{count} files of {bytes} are not named by what can be read of the log, and may be by the rest: nothing is known of them, and nothing should be erased"
                ),
            });
            let shown = unused.iter().take(UNUSED_SHOWN);
            lines.extend(shown.map(|(key, _)| format!("  blobs/{key}")));
        }
        if faults.is_empty() && broken.is_none() && self.unknown.is_empty() {
            lines.push(format!("nothing is missing; {looked}"));
        }
        lines.join("\n") + "\n"
    }
}

fn fault_line(fault: &Fault, tenant: &str) -> String {
    let Fault { name, version, part, key, flaw, .. } = fault;
    format!("{tenant}/{name}@v{version}: {} {flaw} (blobs/{key})", part.file())
}

fn fault_json(fault: &Fault, tenant: &str) -> Value {
    let Fault { name, version, part, key, flaw, .. } = fault;
    json!({
        "tenant": tenant, "name": name.as_str(), "version": version, "file": part.file(),
        "key": key.to_string(), "what": flaw.to_string(),
    })
}

/// Whether a store is another, or lies in its folder, whatever links lead there.
fn is_within(inner: &Location, outer: &Location) -> bool {
    match (inner, outer) {
        (Location::Folder(inner), Location::Folder(outer)) => {
            resolved(inner).starts_with(resolved(outer))
        }
        _ => inner == outer,
    }
}

/// The path without links, as far as it leads to something.
fn resolved(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    path.canonicalize().unwrap_or_else(|_| match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => resolved(parent).join(name),
        _ => path,
    })
}

async fn copy(args: CopyArgs) -> Result<(String, usize), CliError> {
    let (from, to) = (config::location(&args.from)?, config::location(&args.to)?);
    if is_within(&from, &to) || is_within(&to, &from) {
        return Err(CliError::CopyOntoItself);
    }
    let source = Store::open_existing(&from).await?;
    let target = Store::open(&to).await?;
    let shown = progress::on_stderr();
    let begun = std::cell::Cell::new(false);
    let on = |at: usize, of: usize| {
        if !begun.replace(true) {
            shown.note(&format!("copying {from} to {to}: {of} files to look at"));
        }
        if at > 0 && (at.is_multiple_of(1000) || at == of) {
            shown.note(&format!("  {at} of {of}"));
        }
    };
    let copied = adapter::copy(&source, &target, &on).await?;
    drop(shown);
    let Copied { records, files, bytes, others, erased, faults } = &copied;
    let tenants = Tenants::open(&source, None, std::time::Duration::MAX).await;
    let tenants = tenants.map_err(CliError::Records)?;
    let name =
        |fault: &Fault| tenants.name(fault.tenant).map_or_else(|| "?".to_owned(), String::from);
    let text = if args.json {
        let faults: Vec<_> = faults.iter().map(|fault| fault_json(fault, &name(fault))).collect();
        let copied = json!({
            "object": "store.copy", "from": from.to_string(), "to": to.to_string(),
            "records": records, "files": files, "bytes": bytes, "others": others,
            "erased": erased, "faults": faults,
        });
        format!("{copied}\n")
    } else {
        let lost = faults.iter().map(|fault| fault_line(fault, &name(fault)) + "\n");
        let line = format!(
            "copied {records} changes, {files} files of {} and {others} other objects to {to}; {erased} files that nothing refers to were erased there\n",
            ByteSize(*bytes)
        );
        lost.chain([line]).collect()
    };
    Ok((text, faults.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever had followed the advice would have erased what later records refer to.
    #[tokio::test]
    async fn of_a_log_with_a_gap_nothing_is_said_to_be_unused() {
        let root = tempfile::TempDir::new().unwrap();
        let location = Location::Folder(root.path().to_owned());
        let store = Store::open(&location).await.unwrap();
        store.put_blob([7; 32], 3, &b"abc"[..]).await.unwrap();
        let report = async || {
            let inventory = adapter::inspect(&store, Depth::Lengths).await.unwrap();
            let tenants = Tenants::open(&store, None, std::time::Duration::MAX).await.unwrap();
            let report = Report { inventory, unknown: Vec::new(), tenants };
            (report.text(&location, Depth::Lengths), report.json(&location))
        };
        let (text, json) = report().await;
        assert!(text.contains("1 files of 3 bytes belong to no version"), "{text}");
        assert_eq!(json["unused"].as_array().unwrap().len(), 1);
        std::fs::create_dir_all(root.path().join("logs/adapters")).unwrap();
        std::fs::write(root.path().join("logs/adapters/00000000000000000006.json"), "{}").unwrap();
        let (text, json) = report().await;
        assert!(text.contains("the log is broken: record 1"), "{text}");
        assert!(text.contains("nothing should be erased"), "{text}");
        assert!(!text.contains("belong to no version") && json["unused"].is_null(), "{text}");
    }

    #[test]
    fn a_place_in_the_store_is_found_behind_links() {
        let root = tempfile::TempDir::new().unwrap();
        let folder = |path: &str| Location::Folder(root.path().join(path));
        std::fs::create_dir_all(root.path().join("store/blobs")).unwrap();
        std::os::unix::fs::symlink(root.path().join("store"), root.path().join("link")).unwrap();
        for inside in ["store", "store/blobs/x", "link", "link/new/x", "store/../link/blobs"] {
            assert!(is_within(&folder(inside), &folder("store")), "{inside}");
        }
        for outside in ["", "store2", "other/store", "link/../other"] {
            assert!(!is_within(&folder(outside), &folder("store")), "{outside}");
        }
        assert!(is_within(&folder("store"), &folder("")));
    }
}

//! `chorus pull`

use std::io::{self, Write as _};

use super::{error::CliError, progress, runtime};
use crate::{
    catalog,
    config::{ByteSize, Models, ModelsArgs},
};

/// Fetches the base `name`, unless it is there, and prints its path.
pub(crate) fn run(name: &str, models: ModelsArgs) -> Result<(), CliError> {
    let models = Models::try_from(models)?;
    let entry = catalog::find(name)
        .ok_or_else(|| CliError::NotInCatalog { name: name.to_owned(), known: known() })?;
    let runtime = runtime()?;
    let progress = progress::on_stderr();
    let pull = catalog::pull(entry, &models.folder, models.hub, progress.as_ref());
    let path = runtime.block_on(pull)?;
    drop(progress);
    writeln!(io::stdout(), "{}", path.display()).map_err(CliError::Output)
}

/// Prints the catalog.
pub(crate) fn list(models: ModelsArgs) -> Result<(), CliError> {
    let models = Models::try_from(models)?;
    let mut out = io::stdout().lock();
    for entry in catalog::entries() {
        let here = if catalog::is_present(entry, &models.folder) { "here" } else { "not fetched" };
        let size = ByteSize(entry.bytes);
        writeln!(out, "{}  {size}, {}, {here}\n    {}", entry.name, entry.license, entry.about)
            .map_err(CliError::Output)?;
    }
    Ok(())
}

/// The catalog's names, for a message.
pub(crate) fn known() -> String {
    catalog::entries().iter().map(|entry| entry.name.as_str()).collect::<Vec<_>>().join(", ")
}

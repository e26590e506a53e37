//! From what was typed after `--model` to a file that is there.

use std::{
    fs::{self, Metadata},
    io,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use super::{error::CliError, progress, pull::known};
use crate::{
    catalog::{self, Checksum, Digests},
    config::{Base, ModelId},
};

/// A base on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Located {
    /// Its id in the API.
    pub(crate) id: String,
    /// A file, or a directory in Hugging Face layout.
    pub(crate) path: PathBuf,
    /// What it takes on disk.
    pub(crate) bytes: u64,
    /// When it was last changed, in unix seconds.
    pub(crate) changed: u64,
    /// Identifies its content.
    pub(crate) checksum: Checksum,
}

/// Finds the base, fetching it where the catalog has it and this machine does not.
pub(crate) async fn locate(base: &Base) -> Result<Located, CliError> {
    let (path, id) = match catalog::find(&base.model) {
        Some(entry) => {
            let (models, progress) = (&base.models, progress::on_stderr());
            let path = catalog::pull(entry, &models.folder, models.hub, progress.as_ref()).await?;
            (path, entry.name.clone())
        }
        None => given(&base.model)?,
    };
    let id = base.served_name.as_ref().map_or(id, ModelId::to_string);
    let digests = Digests::new(&base.models.folder);
    // Off this thread, because a large base takes its time and a signal may come meanwhile.
    let identified = tokio::task::spawn_blocking(move || identify(path, id, &digests)).await;
    identified.map_err(|lost| CliError::System(io::Error::other(lost)))?
}

/// Reads the file once, unless its sha256 is known.
fn identify(path: PathBuf, id: String, digests: &Digests) -> Result<Located, CliError> {
    let read = || {
        let changed = fs::metadata(&path)?.modified()?;
        let changed = changed.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Ok((size(&path)?, changed, digests.of(&path)?))
    };
    match read() {
        Ok((bytes, changed, checksum)) => Ok(Located { id, path, bytes, changed, checksum }),
        Err(source) => Err(CliError::Unreadable { path, source }),
    }
}

/// A base by its path, with the name of the file or directory as its id.
fn given(model: &str) -> Result<(PathBuf, String), CliError> {
    let path = PathBuf::from(model);
    match fs::metadata(&path) {
        Ok(found) if found.is_dir() => regular_files(&path)?,
        Ok(found) => regular(&path, &found)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(CliError::NoBase { model: model.to_owned(), known: known() });
        }
        Err(source) => return Err(CliError::Unreadable { path, source }),
    }
    let name = match path.extension() {
        Some(extension) if extension == "gguf" => path.file_stem(),
        _ => path.file_name(),
    };
    let id = id_from(&name.unwrap_or_default().to_string_lossy());
    Ok((path, id))
}

/// Nothing in the directory can make a reader wait, as a FIFO does, or never end, as a device may.
fn regular_files(directory: &Path) -> Result<(), CliError> {
    let unreadable = |source| CliError::Unreadable { path: directory.to_owned(), source };
    for entry in fs::read_dir(directory).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        // A link that leads nowhere is missed by whoever needs it.
        match fs::metadata(&path) {
            Ok(found) if !found.is_dir() => regular(&path, &found)?,
            _ => {}
        }
    }
    Ok(())
}

fn regular(path: &Path, found: &Metadata) -> Result<(), CliError> {
    if found.is_file() { Ok(()) } else { Err(CliError::NotAFile { path: path.to_owned() }) }
}

/// The nearest thing to `name` that may be a model's id.
fn id_from(name: &str) -> String {
    let plain =
        |letter: char| if letter.is_ascii_graphic() && letter != ':' { letter } else { '-' };
    let id: String = name.chars().map(plain).take(128).collect();
    id.parse::<ModelId>().map_or_else(|_| "model".to_owned(), |id| id.to_string())
}

/// Bytes of a file, or of the files in a directory.
fn size(path: &Path) -> io::Result<u64> {
    if !path.is_dir() {
        return Ok(fs::metadata(path)?.len());
    }
    fs::read_dir(path)?.map(|entry| Ok(fs::metadata(entry?.path())?.len())).sum()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::{catalog::HubAccess, config::Models};

    #[tokio::test]
    async fn a_path_is_served_under_its_own_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("my model.gguf");
        fs::write(&path, "abc").unwrap();
        let models = Models { folder: dir.path().into(), hub: HubAccess::Offline };
        let model = path.to_str().unwrap().to_owned();
        let mut base = Base { model, models, served_name: None };
        let located = locate(&base).await.unwrap();
        assert_eq!((located.id.as_str(), located.bytes), ("my-model", 3));
        base.served_name = Some("ours".parse().unwrap());
        assert_eq!(locate(&base).await.unwrap().id, "ours");
    }

    #[tokio::test]
    async fn a_name_nobody_knows_is_refused_with_those_that_are_known() {
        let models = Models { folder: "models".into(), hub: HubAccess::Offline };
        let base = Base { model: "smolm".to_owned(), models, served_name: None };
        let error = locate(&base).await.unwrap_err().one_line();
        assert!(error.contains("`smolm`") && error.contains(catalog::DEFAULT), "{error}");
    }

    /// Opening the first waits for a writer, reading the second never ends.
    #[test]
    fn a_base_that_is_no_regular_file_is_refused_before_it_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("model.safetensors");
        assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        for model in [&fifo, Path::new("/dev/zero"), dir.path()] {
            let error = given(model.to_str().unwrap()).unwrap_err().one_line();
            assert!(error.contains("neither a regular file nor a directory"), "{error}");
        }
    }

    #[test]
    fn every_file_name_gives_an_id() {
        assert_eq!(id_from("Llama-3.2 1B:q4"), "Llama-3.2-1B-q4");
        assert_eq!(id_from(""), "model");
        assert_eq!(id_from("default"), "model");
    }
}

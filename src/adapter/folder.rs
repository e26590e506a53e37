//! A read-only folder of PEFT adapters: each sub-folder is one, under the sub-folder's name.

use std::{
    collections::HashMap,
    fs::DirEntry,
    io,
    num::NonZeroUsize,
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use super::{
    AdapterName, BadFile, BadName, LoadError,
    files::{Files, resolve},
};
use crate::lora::{self, Adapter, Base, Digest, Extras, Limits, Memory, peft};

/// What the adapters of a folder must be like.
#[derive(Debug)]
pub struct Rules<'a> {
    /// The base they are for.
    pub base: &'a dyn Base,
    /// How large they may be.
    pub limits: &'a Limits,
    /// Names that mean something else: `base`, `default`, the base's id.
    pub reserved: &'a [&'a str],
    /// Threads that read at once; each holds one adapter's files.
    pub workers: NonZeroUsize,
}

/// The adapters that a folder had when it was scanned.
///
/// What was found then is what is served: a file that changes later is noticed when it is next loaded and refused,
/// never served under the digest of what it was.
#[derive(Debug)]
pub struct Folder {
    /// Canonical; nothing is read outside.
    root: PathBuf,
    limits: Limits,
    adapters: Vec<Found>,
    refused: Vec<Refused>,
    /// Sub-folders by what they hold; more than one where they are copies of each other.
    places: HashMap<Digest, Vec<PathBuf>>,
}

/// A usable adapter.
#[derive(Clone, Debug)]
pub struct Found {
    /// The sub-folder's name.
    pub name: AdapterName,
    /// When the weights were last changed, in unix seconds.
    pub created: u64,
    /// What it is.
    pub facts: Facts,
}

/// What is known about an adapter's content without loading it.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// The content.
    pub digest: Digest,
    /// Bytes of its two files.
    pub bytes: u64,
    /// Bytes of memory it takes when it is loaded.
    pub memory: Memory,
    /// Its largest rank.
    pub rank: usize,
    /// What it changes in the base.
    pub targets: Vec<String>,
    /// What it brings besides weights.
    pub extras: Arc<Extras>,
}

/// A sub-folder that is not served.
#[derive(Debug)]
pub struct Refused {
    /// The sub-folder's name; printed escaped where it is printed, it comes from outside.
    pub folder: String,
    /// Why.
    pub why: Unusable,
}

/// Why a sub-folder is not served.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// Its name is no adapter's name.
    #[error(transparent)]
    Name(#[from] BadName),
    /// Its name means something else.
    #[error("the name is reserved for the base model; rename the folder")]
    Reserved,
    /// It is a link to a place outside.
    #[error("the folder is a link that leads out of the adapters' folder")]
    Outside,
    /// It is a link to nowhere, or may not be looked at.
    #[error("the folder cannot be read: {0}")]
    Unreadable(io::Error),
    /// One of its two files cannot be read.
    #[error(transparent)]
    File(#[from] BadFile),
    /// The files are no adapter for this base.
    #[error(transparent)]
    Adapter(#[from] lora::Refusal),
}

/// The folder itself cannot be listed. For the operator's eyes: it names a path of the server.
#[derive(Debug, thiserror::Error)]
#[error("the adapters' folder {} cannot be read: {error}", path.display())]
pub struct ScanError {
    /// The folder.
    pub path: PathBuf,
    /// Why not.
    pub error: io::Error,
}

impl ScanError {
    /// There is no such folder, which is all right where nobody asked for one.
    pub fn is_absent(&self) -> bool {
        self.error.kind() == io::ErrorKind::NotFound
    }
}

impl Folder {
    /// No folder, no adapters.
    pub fn empty() -> Self {
        Self {
            root: PathBuf::new(),
            limits: Limits::default(),
            adapters: Vec::new(),
            refused: Vec::new(),
            places: HashMap::new(),
        }
    }

    /// Reads, hashes and checks every sub-folder once. One that cannot be used is listed with its reason and stops no
    /// other.
    ///
    /// Plain files and whatever begins with a dot are passed over.
    pub fn scan(root: &Path, rules: &Rules<'_>) -> Result<Self, ScanError> {
        let failed = |error| ScanError { path: root.to_owned(), error };
        let canonical = root.canonicalize().map_err(failed)?;
        let folders = sub_folders(&canonical).map_err(failed)?;
        let mut folder = Self { root: canonical, limits: *rules.limits, ..Self::empty() };
        for (candidate, result) in folder.check_all(folders, rules) {
            match result {
                Ok(found) => {
                    let places = folder.places.entry(found.facts.digest).or_default();
                    places.push(folder.root.join(found.name.as_str()));
                    folder.adapters.push(found);
                }
                Err(why) => folder.refused.push(Refused { folder: candidate, why }),
            }
        }
        Ok(folder)
    }

    /// The usable ones, by name.
    pub fn adapters(&self) -> &[Found] {
        &self.adapters
    }

    /// The others, by name.
    pub fn refused(&self) -> &[Refused] {
        &self.refused
    }

    /// Checks all sub-folders, several at once, and returns them in the order given.
    fn check_all(
        &self,
        folders: Vec<String>,
        rules: &Rules<'_>,
    ) -> Vec<(String, Result<Found, Unusable>)> {
        let next = AtomicUsize::new(0);
        let work = || {
            // One set of buffers for each thread, however many adapters there are.
            let mut files = Files::default();
            let mut done = Vec::new();
            while let at = next.fetch_add(1, Ordering::Relaxed)
                && let Some(folder) = folders.get(at)
            {
                done.push((at, self.check(folder, &mut files, rules)));
            }
            done
        };
        let mut results: Vec<_> = thread::scope(|scope| {
            let workers = rules.workers.get().min(folders.len());
            let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            let join = |worker: thread::ScopedJoinHandle<'_, Vec<_>>| {
                worker.join().unwrap_or_else(|panic| resume_unwind(panic))
            };
            workers.into_iter().flat_map(join).collect()
        });
        results.sort_unstable_by_key(|(at, _)| *at);
        folders.into_iter().zip(results.into_iter().map(|(_, result)| result)).collect()
    }

    fn check(&self, folder: &str, files: &mut Files, rules: &Rules<'_>) -> Result<Found, Unusable> {
        let name = AdapterName::parse(folder)?;
        if rules.reserved.contains(&folder) {
            return Err(Unusable::Reserved);
        }
        let place = resolve(&self.root, &self.root.join(folder))
            .map_err(Unusable::Unreadable)?
            .ok_or(Unusable::Outside)?;
        let created = files.read(&self.root, &place, self.limits.max_bytes)?;
        let sites = rules.base.sites();
        let manifest = peft::read(&files.config, &files.weights, sites, &self.limits)?;
        Adapter::compare_copies(&manifest, rules.base)?;
        let facts = Facts {
            digest: files.digest(),
            bytes: files.bytes(),
            memory: Adapter::planned_memory(&manifest, sites),
            rank: manifest.rank,
            targets: manifest.targets,
            extras: Arc::new(manifest.extras),
        };
        Ok(Found { name, created, facts })
    }

    /// Reads the files of this digest again, into memory of their own, and makes sure that they still have it.
    pub(super) fn read(&self, digest: Digest) -> Result<Files, LoadError> {
        let mut last = LoadError::Gone;
        for place in self.places.get(&digest).into_iter().flatten() {
            match self.read_at(place, digest) {
                Ok(files) => return Ok(files),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn read_at(&self, place: &Path, digest: Digest) -> Result<Files, LoadError> {
        let mut files = Files::default();
        files.read(&self.root, place, self.limits.max_bytes)?;
        if files.digest() == digest { Ok(files) } else { Err(LoadError::Changed) }
    }
}

/// Names of the sub-folders and of links that might be ones, sorted.
fn sub_folders(root: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in root.read_dir()? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && is_candidate(&entry) {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// A folder, a link to one, or a link to nowhere: whoever made that link expects something to be served.
fn is_candidate(entry: &DirEntry) -> bool {
    // What cannot be looked at is listed as that.
    let Ok(kind) = entry.file_type() else { return true };
    let leads_to_file = || entry.path().metadata().is_ok_and(|end| !end.is_dir());
    kind.is_dir() || kind.is_symlink() && !leads_to_file()
}

#[cfg(test)]
mod tests {
    use std::{
        ffi::OsStr,
        fs,
        os::unix::{ffi::OsStrExt, fs::symlink},
        process::Command,
    };

    use peft::{CONFIG_FILE as CONFIG, WEIGHTS_FILE as WEIGHTS};
    use tempfile::TempDir;

    use super::{
        super::{fixture, shelf},
        *,
    };
    use crate::lora::Matrices;

    fn names(folder: &Folder) -> Vec<&str> {
        folder.adapters().iter().map(|found| found.name.as_str()).collect()
    }

    fn load(folder: &Folder, digest: Digest) -> Result<Adapter, LoadError> {
        let found = folder.adapters().iter().find(|found| found.facts.digest == digest);
        let native = Matrices::Native;
        let memory = found.map_or(0, |found| found.facts.memory.of(native));
        let rules = (&fixture::base() as &dyn Base, &folder.limits, native);
        shelf::build(digest, &folder.read(digest)?, memory, rules)
    }

    #[test]
    fn each_sub_folder_is_an_adapter_under_its_name() {
        let root = TempDir::new().unwrap();
        fixture::write(&root.path().join("sql"), 2, 0.5);
        fixture::write(&root.path().join("pirate"), 4, 0.5);
        fixture::write(&root.path().join(".hidden"), 2, 0.5);
        fixture::write(&root.path().join("sql/nested"), 2, 0.5);
        fs::write(root.path().join("README.md"), "# adapters").unwrap();
        let folder = fixture::scan(root.path()).unwrap();
        assert_eq!(names(&folder), ["pirate", "sql"]);
        assert!(folder.refused().is_empty(), "{:?}", folder.refused());
        let sql = &folder.adapters()[1];
        let (config, weights) = fixture::adapter(2, 0.5);
        assert_eq!(sql.facts.digest, Digest::of(config.as_bytes(), &weights));
        assert_eq!(sql.facts.bytes, (config.len() + weights.len()) as u64);
        assert_eq!(sql.facts.rank, 2);
        assert_eq!(sql.facts.targets, ["q_proj"]);
        assert!(sql.created > 1_600_000_000, "{}", sql.created);
        let digest = Digest::of(config.as_bytes(), &weights);
        assert_eq!(load(&folder, digest).unwrap().digest(), digest);
    }

    /// What is refused by this module, and not by the reading of what the files hold.
    fn spoil(root: &Path, outside: &Path) -> Vec<(&'static str, &'static str)> {
        let folder = |name: &str| {
            fixture::write(&root.join(name), 2, 0.5);
            root.join(name)
        };
        let rename = |name: &str, to: &str| {
            let folder = folder(name);
            fs::rename(folder.join(WEIGHTS), folder.join(to)).unwrap();
        };
        let replace = |name: &str, file: &str| {
            let path = folder(name).join(file);
            fs::remove_file(&path).unwrap();
            path
        };
        replace("no-config", CONFIG);
        replace("no-weights", WEIGHTS);
        rename("pickle", "adapter_model.bin");
        rename("checkpoint", "model.pt");
        rename("mlx", "adapters.safetensors");
        fs::create_dir(replace("config-folder", CONFIG)).unwrap();
        let fifo = replace("fifo", WEIGHTS);
        assert!(Command::new("mkfifo").arg(fifo).status().unwrap().success());
        fs::write(folder("big-config").join(CONFIG), vec![b' '; (1 << 20) + 1]).unwrap();
        fs::write(folder("big-weights").join(WEIGHTS), vec![0; (1 << 20) + 1]).unwrap();
        fs::write(folder("bad-json").join(CONFIG), "{").unwrap();
        folder("-rf");
        folder("base");
        fs::create_dir(root.join(OsStr::from_bytes(b"not-utf8-\xff"))).unwrap();
        fixture::write(&outside.join("secret"), 2, 0.5);
        symlink(outside.join("secret"), root.join("link-out")).unwrap();
        symlink(outside.join("nothing"), root.join("link-nowhere")).unwrap();
        symlink(outside.join("secret").join(WEIGHTS), replace("file-link-out", WEIGHTS)).unwrap();
        symlink("/dev/zero", replace("device", WEIGHTS)).unwrap();
        vec![
            ("-rf", "begins with a letter"),
            ("bad-json", "adapter_config.json"),
            ("base", "reserved"),
            ("big-config", "adapter_config.json has 1048577 bytes and at most 1048576"),
            ("big-weights", "adapter_model.safetensors has 1048577 bytes and at most 1048576"),
            ("checkpoint", "safetensors only"),
            ("config-folder", "adapter_config.json is not a regular file"),
            ("device", "leads out"),
            ("fifo", "adapter_model.safetensors is not a regular file"),
            ("file-link-out", "adapter_model.safetensors is a link that leads out"),
            ("link-nowhere", "cannot be read"),
            ("link-out", "the folder is a link that leads out"),
            ("mlx", "MLX"),
            ("no-config", "adapter_config.json is missing"),
            ("no-weights", "adapter_model.safetensors is missing"),
            ("not-utf8-\u{fffd}", "at byte 9"),
            ("pickle", "safetensors only"),
        ]
    }

    #[test]
    fn what_cannot_be_used_is_listed_with_its_reason_and_stops_no_other() {
        let (root, outside) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let expected = spoil(root.path(), outside.path());
        fixture::write(&root.path().join("sql"), 2, 0.5);
        let folder = fixture::scan(root.path()).unwrap();
        assert_eq!(names(&folder), ["sql"]);
        let refused: Vec<_> = folder.refused().iter().map(|one| one.folder.as_str()).collect();
        assert_eq!(refused, expected.iter().map(|(name, _)| *name).collect::<Vec<_>>());
        for (refused, (name, reason)) in folder.refused().iter().zip(expected) {
            let said = refused.why.to_string();
            assert!(said.contains(reason), "{name}: {said}");
            assert!(!said.contains(root.path().to_str().unwrap()), "{name} names a path: {said}");
            assert!(
                !said.contains(outside.path().to_str().unwrap()),
                "{name} names a path: {said}"
            );
        }
    }

    #[test]
    fn links_that_stay_inside_are_followed() {
        let root = TempDir::new().unwrap();
        fixture::write(&root.path().join("sql"), 2, 0.5);
        fixture::write(&root.path().join("pirate"), 4, 0.5);
        symlink("sql", root.path().join("alias")).unwrap();
        let shared = root.path().join("pirate").join(CONFIG);
        fs::remove_file(&shared).unwrap();
        symlink("../sql/adapter_config.json", &shared).unwrap();
        let folder = fixture::scan(root.path()).unwrap();
        assert_eq!(names(&folder), ["alias", "sql"]);
        let [alias, sql] = [0, 1].map(|at| folder.adapters()[at].facts.digest);
        assert_eq!(alias, sql);
        // Its config was read through the link: the rank there is not that of its weights.
        assert!(
            folder.refused()[0].why.to_string().contains("rank"),
            "{}",
            folder.refused()[0].why
        );
    }

    #[test]
    fn a_root_that_is_a_link_is_a_root() {
        let (root, elsewhere) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        fixture::write(&root.path().join("sql"), 2, 0.5);
        symlink(root.path(), elsewhere.path().join("adapters")).unwrap();
        assert_eq!(names(&fixture::scan(&elsewhere.path().join("adapters")).unwrap()), ["sql"]);
    }

    #[test]
    fn an_absent_folder_is_told_from_an_unreadable_one() {
        let root = TempDir::new().unwrap();
        let absent = fixture::scan(&root.path().join("adapters")).unwrap_err();
        assert!(absent.is_absent());
        assert!(absent.to_string().contains("adapters"), "{absent}");
        fs::write(root.path().join("file"), "").unwrap();
        assert!(!fixture::scan(&root.path().join("file")).unwrap_err().is_absent());
        assert!(Folder::empty().adapters().is_empty());
    }

    #[test]
    fn files_that_changed_are_not_served_under_the_old_digest() {
        type Change = fn(&Path);
        let changes: [(Change, &str); 4] = [
            (|sql| fixture::write(sql, 2, 0.25), "changed"),
            (
                |sql| {
                    let config = fs::read_to_string(sql.join(CONFIG)).unwrap();
                    fs::write(sql.join(CONFIG), config + "\n").unwrap();
                },
                "changed",
            ),
            (|sql| fs::remove_file(sql.join(WEIGHTS)).unwrap(), "is missing"),
            (|sql| fs::remove_dir_all(sql).unwrap(), "is missing"),
        ];
        for (change, reason) in changes {
            let root = TempDir::new().unwrap();
            let sql = root.path().join("sql");
            fixture::write(&sql, 2, 0.5);
            let folder = fixture::scan(root.path()).unwrap();
            let digest = folder.adapters()[0].facts.digest;
            change(&sql);
            let refused = load(&folder, digest).unwrap_err().to_string();
            assert!(refused.contains(reason), "{refused}");
        }
    }

    #[test]
    fn a_copy_stands_in_for_files_that_changed() {
        let root = TempDir::new().unwrap();
        fixture::write(&root.path().join("a"), 2, 0.5);
        fixture::write(&root.path().join("b"), 2, 0.5);
        let folder = fixture::scan(root.path()).unwrap();
        let digest = folder.adapters()[1].facts.digest;
        fixture::write(&root.path().join("a"), 2, 0.25);
        assert_eq!(load(&folder, digest).unwrap().digest(), digest);
    }

    #[test]
    fn a_digest_that_was_not_found_is_gone() {
        let folder = Folder::empty();
        let gone = load(&folder, Digest::of(b"", b"")).unwrap_err();
        assert!(matches!(gone, LoadError::Gone), "{gone}");
    }

    #[test]
    fn the_number_of_workers_changes_nothing() {
        let root = TempDir::new().unwrap();
        for index in 0_u8..60 {
            fixture::write(&root.path().join(format!("a{index}")), 2, f32::from(index));
        }
        fs::create_dir(root.path().join("broken")).unwrap();
        let scan = |workers| {
            let base = fixture::base();
            let rules = Rules {
                base: &base,
                limits: &Limits::default(),
                reserved: &[],
                workers: NonZeroUsize::new(workers).unwrap(),
            };
            let folder = Folder::scan(root.path(), &rules).unwrap();
            assert_eq!(folder.refused().len(), 1);
            folder.adapters().iter().map(|f| (f.name.clone(), f.facts.clone())).collect::<Vec<_>>()
        };
        let alone = scan(1);
        assert_eq!(alone.len(), 60);
        assert!(alone.is_sorted_by_key(|(name, _)| name.clone()));
        assert_eq!(alone, scan(7));
        assert_eq!(alone, scan(200));
    }
}

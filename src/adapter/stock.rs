//! Whether a store has what its records refer to, and copies of it that have.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt,
};

use super::{
    AdapterName, LOG, Part,
    record::{Blob, Record},
    registry::{Files, Registry, State},
    upkeep::GRACE,
};
use crate::{
    store::{BlobKey, Log, NotCopied, Store, StoreError},
    tenant::{self, TenantId},
};

/// Records that are read at once.
const PAGE: usize = 512;
/// Where, beside blobs, a store keeps what is not ours.
const OTHERS: [&str; 2] = ["logs", "sheets"];

/// How closely files are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Whether they are there, as long as they should be.
    Lengths,
    /// Their bytes, too.
    Bytes,
}

/// What a store has of adapters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Changes in the log.
    pub records: u64,
    /// Versions in the store.
    pub versions: usize,
    /// Files that they refer to, some of them several.
    pub files: usize,
    /// Bytes of these.
    pub bytes: u64,
    /// Who has any of them.
    pub tenants: BTreeSet<TenantId>,
    /// What is wrong with the log: nothing that comes after it was looked at.
    pub broken: Option<String>,
    /// Files that are not as they should be, once for each version that refers to them.
    pub faults: Vec<Fault>,
    /// Files that nothing refers to, and their lengths: uploads on their way, or what a sweep is going to erase.
    pub unused: Vec<(BlobKey, u64)>,
}

/// A version that lacks one of its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Whose adapter.
    pub tenant: TenantId,
    /// Its name.
    pub name: AdapterName,
    /// The version.
    pub version: u32,
    /// Which of its files.
    pub part: Part,
    /// Where it should be.
    pub key: BlobKey,
    /// What is wrong.
    pub flaw: Flaw,
}

/// What is wrong with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// It is not there.
    Missing,
    /// It has another length.
    Length {
        /// Bytes that it should have.
        wanted: u64,
        /// Bytes that it has.
        found: u64,
    },
    /// Its sha256 is another.
    Bytes,
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("is missing"),
            Self::Length { wanted, found } => write!(f, "has {found} of {wanted} bytes"),
            Self::Bytes => f.write_str("has other bytes than were put there"),
        }
    }
}

/// What a copy took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Records that were not there yet.
    pub records: u64,
    /// Files that were not there yet.
    pub files: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// Other documents that were not there yet.
    pub others: u64,
    /// Files in the copy that nothing refers to any more, and that were erased.
    pub erased: u64,
    /// What the store itself has lost.
    pub faults: Vec<Fault>,
}

/// The fold of the records, and who occurs in them.
#[derive(Default)]
struct Fold {
    registry: Registry,
    names: BTreeSet<(TenantId, AdapterName)>,
    last: u64,
}

/// A file of a version.
struct Reference {
    tenant: TenantId,
    name: AdapterName,
    version: u32,
    part: Part,
    blob: Blob,
}

impl Fold {
    /// Takes in all records that came since. Returns whether there were any.
    async fn take_in(&mut self, store: &Store) -> Result<bool, StoreError> {
        let before = self.last;
        loop {
            let page = Log::<Record>::page(store, LOG, self.last, PAGE).await?;
            let Some(last) = page.last() else { return Ok(self.last > before) };
            self.last = last.number;
            for entry in &page {
                self.registry.apply(&entry.record);
                self.names.insert((entry.record.tenant, entry.record.name.clone()));
            }
        }
    }

    fn references(&self) -> Vec<Reference> {
        let mut references = Vec::new();
        for (tenant, name) in &self.names {
            for entry in self.registry.versions(*tenant, name) {
                let Some(Files { config, weights }) = entry.files else { continue };
                for (part, blob) in [(Part::Config, config), (Part::Weights, weights)] {
                    let (tenant, name) = (*tenant, name.clone());
                    let version = entry.revision.version;
                    references.push(Reference { tenant, name, version, part, blob });
                }
            }
        }
        references
    }
}

impl Reference {
    fn fault(&self, flaw: Flaw) -> Fault {
        Fault {
            tenant: self.tenant,
            name: self.name.clone(),
            version: self.version,
            part: self.part,
            key: self.blob.key.clone(),
            flaw,
        }
    }
}

/// Looks at all that a store has of adapters, and changes nothing. Servers may write to it meanwhile.
pub async fn inspect(store: &Store, depth: Depth) -> Result<Inventory, StoreError> {
    let mut fold = Fold::default();
    let listed = store.last_record(LOG).await?;
    let broken = match fold.take_in(store).await {
        Err(error @ StoreError::Damaged { .. }) => Some(error.to_string()),
        taken => {
            taken?;
            (fold.last < listed).then(|| {
                format!("record {} of logs/{LOG} is missing, and {listed} is there", fold.last + 1)
            })
        }
    };
    let (sizes, faults) = loop {
        let sizes = store.blob_sizes().await?;
        let faults = lengths(&fold, &sizes);
        // What was removed since the records were read is erased by right.
        if faults.is_empty() || broken.is_some() || !fold.take_in(store).await? {
            break (sizes, faults);
        }
    };
    let references = fold.references();
    let used: BTreeMap<&BlobKey, u64> =
        references.iter().map(|one| (&one.blob.key, one.blob.bytes)).collect();
    let mut inventory = Inventory {
        records: fold.last,
        versions: references.len() / 2,
        files: used.len(),
        bytes: used.values().sum(),
        tenants: references.iter().map(|one| one.tenant).collect(),
        broken,
        faults,
        unused: sizes.into_iter().filter(|(key, _)| !used.contains_key(key)).collect(),
    };
    if depth == Depth::Bytes {
        let lacking: HashSet<_> = inventory.faults.iter().map(|one| one.key.clone()).collect();
        let unsound = unsound(store, used.into_keys().filter(|key| !lacking.contains(key))).await?;
        let found = references.iter().filter(|one| unsound.contains(&one.blob.key));
        inventory.faults.extend(found.map(|one| one.fault(Flaw::Bytes)));
    }
    Ok(inventory)
}

fn lengths(fold: &Fold, sizes: &BTreeMap<BlobKey, u64>) -> Vec<Fault> {
    let fault = |one: Reference| match sizes.get(&one.blob.key) {
        None => Some(one.fault(Flaw::Missing)),
        Some(found) if *found == one.blob.bytes => None,
        Some(found) => Some(one.fault(Flaw::Length { wanted: one.blob.bytes, found: *found })),
    };
    fold.references().into_iter().filter_map(fault).collect()
}

/// Those of these files that have other bytes than were put there.
async fn unsound(
    store: &Store,
    keys: impl Iterator<Item = &BlobKey>,
) -> Result<HashSet<BlobKey>, StoreError> {
    let mut unsound = HashSet::new();
    for key in keys {
        match store.is_sound(key).await {
            // Erased since it was listed.
            Ok(true) | Err(StoreError::NotFound { .. }) => {}
            Ok(false) => {
                unsound.insert(key.clone());
            }
            Err(error) => return Err(error),
        }
    }
    Ok(unsound)
}

/// Copies a store, which servers may write to meanwhile, into one that is empty or an earlier copy of it.
///
/// What comes out is the store as it was at one moment: records up to a number, and all files that these come to. Files
/// are there before the records that refer to them, and tenants before their adapters, so that a copy which is broken off
/// is a copy of an earlier moment, or is refused as one, and goes on where it was.
///
/// `on` hears of files that are done, and how many there are.
pub async fn copy(
    from: &Store,
    to: &Store,
    on: &dyn Fn(usize, usize),
) -> Result<Copied, NotCopied> {
    let listed = from.last_record(LOG).await.map_err(NotCopied::From)?;
    let mut fold = Fold::default();
    fold.take_in(from).await.map_err(NotCopied::From)?;
    if fold.last < listed {
        let key = format!("record {} of logs/{LOG}, although it has {listed}", fold.last + 1);
        return Err(NotCopied::From(StoreError::NotFound { key }));
    }
    from.leads_on(LOG, fold.last, to).await?;
    let mut copied = Copied::default();
    copied.faults = loop {
        let faults = copy_files(from, to, &fold, (&mut copied, on)).await?;
        // A file is erased after the record that says so: if it was, that record is there by now.
        if faults.is_empty() || !fold.take_in(from).await.map_err(NotCopied::From)? {
            break faults;
        }
    };
    // After the adapters' records were read: whoever has an adapter is among them.
    let tenants = from.last_record(tenant::LOG).await.map_err(NotCopied::From)?;
    copied.records += from.copy_log(tenant::LOG, tenants, to).await?;
    copied.records += from.copy_log(LOG, fold.last, to).await?;
    copied.others = from.copy_others(&OTHERS, &[LOG, tenant::LOG], to).await?;
    let used = fold.registry.with(State::keys);
    for key in to.blobs(GRACE).await.map_err(NotCopied::To)? {
        if !used.contains(&key) {
            to.erase_blob(&key).await.map_err(NotCopied::To)?;
            copied.erased += 1;
        }
    }
    Ok(copied)
}

/// Copies all files that the copy lacks. Returns what the store does not have either, or has damaged.
async fn copy_files(
    from: &Store,
    to: &Store,
    fold: &Fold,
    (copied, on): (&mut Copied, &dyn Fn(usize, usize)),
) -> Result<Vec<Fault>, NotCopied> {
    let references = fold.references();
    let there = to.blob_sizes().await.map_err(NotCopied::To)?;
    let mut flaws: BTreeMap<&BlobKey, Option<Flaw>> = BTreeMap::new();
    for (at, one) in references.iter().enumerate() {
        on(at, references.len());
        let Blob { key, bytes } = &one.blob;
        if flaws.contains_key(key) || there.get(key) == Some(bytes) {
            continue;
        }
        let flaw = match from.copy_blob(key, to).await {
            Ok(found) => {
                copied.files += 1;
                copied.bytes += found;
                None
            }
            Err(NotCopied::From(StoreError::NotFound { .. })) => Some(Flaw::Missing),
            Err(NotCopied::From(StoreError::Damaged { .. })) => Some(Flaw::Bytes),
            Err(error) => return Err(error),
        };
        flaws.insert(key, flaw);
    }
    on(references.len(), references.len());
    let faults = references.iter().filter_map(|one| {
        let flaw = flaws.get(&one.blob.key).copied().flatten()?;
        Some(one.fault(flaw))
    });
    Ok(faults.collect())
}

#[cfg(test)]
mod tests;

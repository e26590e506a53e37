//! Where a store is.

use std::path::PathBuf;

/// A directory, or a bucket with a prefix.
#[derive(Clone, PartialEq, Eq)]
pub enum Location {
    /// A local directory.
    Folder(PathBuf),
    /// `s3://BUCKET[/PREFIX]`, and whatever speaks S3's protocol.
    S3(Remote),
    /// `gs://BUCKET[/PREFIX]`
    Google(Remote),
    /// `az://CONTAINER[/PREFIX]`
    Azure(Remote),
}

/// A bucket, and how to reach it.
#[derive(Clone, PartialEq, Eq)]
pub struct Remote {
    pub(super) url: String,
    /// Without slashes at its ends.
    pub(super) prefix: String,
    /// Variables of the environment with credentials, regions and endpoints, by their lower-case names.
    pub(super) settings: Vec<(String, String)>,
}

/// The text names no place for a store.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadLocation {
    /// A URL of something else.
    #[error(
        "{0:?} is no store: a directory, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX is expected"
    )]
    Scheme(String),
    /// A URL without a bucket.
    #[error("{0:?} names no bucket")]
    Bucket(String),
    /// Nothing at all.
    #[error("a store needs a place: a directory or a URL")]
    Empty,
}

impl Location {
    /// Reads a URL or a path. `variables` are those of the environment: a cloud's are taken from there.
    pub fn parse(
        text: &str,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, BadLocation> {
        if text.trim().is_empty() {
            return Err(BadLocation::Empty);
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Ok(Self::Folder(text.into()));
        };
        let (make, family): (fn(Remote) -> Self, &str) = match scheme {
            "s3" => (Self::S3, "aws_"),
            "gs" => (Self::Google, "google_"),
            "az" => (Self::Azure, "azure_"),
            _ => return Err(BadLocation::Scheme(text.to_owned())),
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() {
            return Err(BadLocation::Bucket(text.to_owned()));
        }
        let settings = variables
            .into_iter()
            .map(|(key, value)| (key.to_lowercase(), value))
            .filter(|(key, value)| key.starts_with(family) && !value.is_empty());
        Ok(make(Remote {
            url: format!("{scheme}://{bucket}"),
            prefix: prefix.trim_matches('/').to_owned(),
            settings: settings.collect(),
        }))
    }
}

/// As it was written, without what the variables have.
impl std::fmt::Display for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Folder(path) => path.display().fmt(f),
            Self::S3(remote) | Self::Google(remote) | Self::Azure(remote) => {
                let slash = if remote.prefix.is_empty() { "" } else { "/" };
                write!(f, "{}{slash}{}", remote.url, remote.prefix)
            }
        }
    }
}

/// Credentials are not printed.
impl std::fmt::Debug for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Location({self})")
    }
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Remote({}/{})", self.url, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Location, BadLocation> {
        let variables =
            [("AWS_SECRET_ACCESS_KEY", "secret"), ("HOME", "/root"), ("AWS_REGION", "")];
        Location::parse(text, variables.map(|(key, value)| (key.to_owned(), value.to_owned())))
    }

    #[test]
    fn each_kind_is_read_and_printed_back() {
        for text in
            ["./chorus-data", "/var/lib/chorus", "s3://b", "s3://b/a/c", "gs://b/x", "az://c"]
        {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
        assert_eq!(parse("s3://b/a/").unwrap().to_string(), "s3://b/a");
    }

    #[test]
    fn what_is_no_place_is_refused() {
        assert_eq!(parse(""), Err(BadLocation::Empty));
        assert_eq!(parse("s3://"), Err(BadLocation::Bucket("s3://".to_owned())));
        assert_eq!(parse("s3:///a"), Err(BadLocation::Bucket("s3:///a".to_owned())));
        for text in ["ftp://host/a", "http://host", "S3://b"] {
            assert_eq!(parse(text), Err(BadLocation::Scheme(text.to_owned())));
        }
    }

    #[test]
    fn only_the_clouds_own_variables_are_taken_and_never_printed() {
        let Ok(location @ Location::S3(_)) = parse("s3://b") else { panic!("another kind") };
        assert!(!format!("{location:?}").contains("secret"));
        let Location::S3(remote) = location else { unreachable!() };
        let secret = ("aws_secret_access_key".to_owned(), "secret".to_owned());
        assert_eq!(remote.settings, [secret]);
        assert!(!format!("{remote:?}").contains("secret"));
    }
}

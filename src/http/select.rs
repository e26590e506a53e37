//! Which adapter answers: the header before `model`, and never another one than was named.

use std::{fmt, ops::RangeInclusive};

use axum::http::{HeaderMap, HeaderName};
use sha2::{Digest as _, Sha256};

use super::error::ApiError;
use crate::adapter::{Revision, Wanted};

/// Means the base in the header and in `model`.
const BASE: &str = "base";
/// Means the tenant's default adapter, or the base where none is set; only in `model`.
const DEFAULT: &str = "default";

/// Who answers a request. An adapter is pinned to the content that its name pointed to when the request arrived.
///
/// Prints as the `X-Chorus-Adapter` header has it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Voice {
    /// The base alone.
    Base,
    /// The base through an adapter.
    Adapter(Revision),
    /// The base through several, so much of each.
    Mix(Vec<(Revision, f32)>),
}

impl Voice {
    /// Changes when the base or the adapter does, as OpenAI's `system_fingerprint`.
    pub(super) fn fingerprint(&self, base_digest: &str) -> String {
        let mut hasher = Sha256::new();
        hasher.update(base_digest);
        match self {
            Self::Base => {}
            Self::Adapter(revision) => hasher.update(revision.digest.as_bytes()),
            Self::Mix(parts) => {
                for (revision, weight) in parts {
                    hasher.update(revision.digest.as_bytes());
                    hasher.update(weight.to_bits().to_le_bytes());
                }
            }
        }
        let digest: [u8; 32] = hasher.finalize().into();
        digest[..6].iter().fold("fp_".to_owned(), |text, byte| format!("{text}{byte:02x}"))
    }
}

impl fmt::Display for Voice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Base => f.write_str(BASE),
            Self::Adapter(revision) => revision.fmt(f),
            Self::Mix(parts) => {
                parts.iter().enumerate().try_for_each(|(at, (revision, weight))| {
                    let comma = if at == 0 { "" } else { ", " };
                    write!(f, "{comma}{revision};weight={weight}")
                })
            }
        }
    }
}

/// What names mean to one caller.
pub(super) struct Names<'a> {
    /// The base's id.
    pub(super) base: &'a str,
    /// The adapter that `default` means as `model`; the base where it is `None`.
    pub(super) default: Option<&'a str>,
    /// The caller's adapters.
    pub(super) lookup: &'a dyn Fn(&Wanted) -> Option<Revision>,
}

impl Names<'_> {
    /// What the header's value means.
    fn in_header(&self, value: &str) -> Option<Voice> {
        if value == BASE { Some(Voice::Base) } else { self.adapter(value) }
    }

    /// What a mix means, or the name in it that means nothing.
    fn mix<'a>(&self, parts: &'a [Part]) -> Result<Voice, &'a str> {
        let part = |Part { name, weight }: &'a Part| match self.adapter(name) {
            Some(Voice::Adapter(revision)) => Ok((revision, *weight)),
            _ => Err(&**name),
        };
        let mut parts: Vec<_> = parts.iter().map(part).collect::<Result<_, _>>()?;
        match &mut *parts {
            [(_, weight)] if weight.to_bits() == 1.0_f32.to_bits() => {
                Ok(Voice::Adapter(parts.remove(0).0))
            }
            _ => Ok(Voice::Mix(parts)),
        }
    }

    /// What `model` means.
    pub(super) fn in_model(&self, value: &str) -> Option<Voice> {
        match self.default {
            Some(adapter) if value == DEFAULT => return self.adapter(adapter),
            _ if value == self.base || value == BASE || value == DEFAULT => {
                return Some(Voice::Base);
            }
            _ => {}
        }
        let own = value.strip_prefix(self.base).and_then(|rest| rest.strip_prefix(':'));
        self.adapter(own.unwrap_or(value))
    }

    /// Whether the name means something else than an adapter.
    pub(super) fn reserves(&self, name: &str) -> bool {
        name == BASE || name == DEFAULT || name == self.base
    }

    fn adapter(&self, text: &str) -> Option<Voice> {
        let wanted = Wanted::parse(text).ok()?;
        if self.reserves(wanted.name().as_str()) {
            return None;
        }
        (self.lookup)(&wanted).map(Voice::Adapter)
    }
}

/// A name in a mix, and how much of it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) weight: f32,
}

/// The most adapters of a mix.
pub(crate) const MOST_PARTS: usize = 8;
/// How much of an adapter there may be.
const WEIGHTS: RangeInclusive<f32> = -16.0..=16.0;

/// A mix, in the field or header of this name, that makes sense.
pub(super) fn checked(parts: Vec<Part>, field: &str) -> Result<Vec<Part>, ApiError> {
    let refuse = |problem: String| Err(ApiError::invalid(field, format!("'{field}' {problem}")));
    if parts.is_empty() || parts.len() > MOST_PARTS {
        return refuse(format!("names from 1 to {MOST_PARTS} adapters, not {}", parts.len()));
    }
    for (at, Part { name, weight }) in parts.iter().enumerate() {
        if !WEIGHTS.contains(weight) {
            let (least, most) = (WEIGHTS.start(), WEIGHTS.end());
            return refuse(format!("has a scale of {weight}; they go from {least} to {most}"));
        }
        if parts[..at].iter().any(|other| other.name == *name) {
            return refuse(format!("names {name:?} twice"));
        }
    }
    Ok(parts)
}

/// The mix that a header's value names: `NAME:SCALE,NAME:SCALE`; `None` where it is the name of one adapter.
fn mix_in_header(value: &str, header: &str) -> Result<Option<Vec<Part>>, ApiError> {
    let part = |text: &str| {
        let (name, weight) = text.trim().rsplit_once(':')?;
        // What follows a digest's own colon is no scale.
        let weight = weight.trim().parse().ok().filter(|_| !name.ends_with("@sha256"))?;
        Some(Part { name: name.trim().to_owned(), weight })
    };
    let parts: Vec<_> = value.split(',').map(part).collect();
    if parts.len() == 1 && parts[0].is_none() {
        return Ok(None);
    }
    let parts: Option<Vec<_>> = parts.into_iter().collect();
    let parts = parts.ok_or_else(|| {
        let message = format!("'{header}' must be NAME, or NAME:SCALE,NAME:SCALE");
        ApiError::invalid(header, message)
    })?;
    checked(parts, header).map(Some)
}

/// Decides where a mix is asked for, in the header or by `adapters`; `None` where none is.
pub(super) fn choose_mix(
    (header, name): (Option<&str>, &str),
    model: Option<&str>,
    adapters: Option<&[Part]>,
    names: &Names<'_>,
) -> Result<Option<Voice>, ApiError> {
    let in_header = header.map(|value| mix_in_header(value, name)).transpose()?.flatten();
    let known = |voice: Result<Voice, &str>| voice.map_err(ApiError::model_not_found);
    let Some(parts) = in_header.as_deref().or(adapters) else { return Ok(None) };
    let mix = known(names.mix(parts))?;
    if let Voice::Mix(revisions) = &mix {
        let twice = |at: usize| revisions[..at].iter().any(|(other, _)| *other == revisions[at].0);
        if let Some(at) = (0..revisions.len()).find(|at| twice(*at)) {
            let field = if in_header.is_some() { name } else { "adapters" };
            let message = format!("'{field}' names {} twice", revisions[at].0);
            return Err(ApiError::invalid(field, message));
        }
    }
    // Whatever else names an adapter must name the same.
    if let Some(adapters) = adapters {
        let other = match header {
            Some(_) if in_header.is_some() => Some(known(names.mix(adapters))?),
            Some(value) => Some(known(names.in_header(value).ok_or(value))?),
            None => None,
        };
        if other.is_some_and(|other| other != mix) {
            return Err(ApiError::mix_conflict("the adapter header"));
        }
    }
    let Some(model) = model.filter(|model| !model.is_empty()) else { return Ok(Some(mix)) };
    match known(names.in_model(model).ok_or(model))? {
        Voice::Base => Ok(Some(mix)),
        named if named == mix => Ok(Some(mix)),
        _ => Err(match in_header.and(header) {
            Some(header) => ApiError::adapter_conflict(header, model),
            None => ApiError::mix_conflict("'model'"),
        }),
    }
}

/// Decides between the header and `model`, each as it was sent. A name that means nothing is refused wherever it stands.
pub(super) fn choose(
    header: Option<&str>,
    model: Option<&str>,
    names: &Names<'_>,
) -> Result<Voice, ApiError> {
    let known = |voice: Option<Voice>, name| voice.ok_or_else(|| ApiError::model_not_found(name));
    let model = model.filter(|model| !model.is_empty());
    let Some(header) = header else {
        let model = model.ok_or_else(|| {
            ApiError::invalid("model", "you must provide 'model', or name an adapter by header")
        })?;
        return known(names.in_model(model), model);
    };
    let chosen = known(names.in_header(header), header)?;
    let Some(model) = model else { return Ok(chosen) };
    match known(names.in_model(model), model)? {
        named @ Voice::Adapter(_) if named != chosen => {
            Err(ApiError::adapter_conflict(header, model))
        }
        _ => Ok(chosen),
    }
}

/// The value of the adapter header: absent, or one that can be read.
pub(super) fn header<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> Result<Option<&'a str>, ApiError> {
    let refuse =
        |problem| Err(ApiError::invalid(name.as_str(), format!("the header {name} {problem}")));
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return refuse("is there more than once");
    }
    match value.to_str() {
        Ok(value) if value.trim().is_empty() => refuse("is empty"),
        Ok(value) => Ok(Some(value)),
        Err(_) => refuse("has characters that are not ASCII"),
    }
}

#[cfg(test)]
mod tests {
    use axum::{
        http::{HeaderValue, StatusCode},
        response::IntoResponse,
    };

    use super::*;
    use crate::{adapter::AdapterName, lora::Digest};

    /// `sql` has two versions of which the second is active, `law` has one; `base` and `org/tiny` exist only to be unreachable.
    fn lookup(wanted: &Wanted) -> Option<Revision> {
        let digest =
            |version: u32| Digest::of(wanted.name().as_str().as_bytes(), &version.to_be_bytes());
        let versions = match wanted.name().as_str() {
            "sql" => 2,
            "law" | "base" | "default" | "tiny" => 1,
            _ => return None,
        };
        let version = match wanted {
            Wanted::Active(_) => versions,
            Wanted::Version(_, version) => Some(*version).filter(|v| *v <= versions)?,
            Wanted::Digest(_, wanted) => (1..=versions).find(|v| digest(*v) == *wanted)?,
        };
        Some(Revision { name: wanted.name().clone(), version, digest: digest(version) })
    }

    fn sha(name: &str, version: u32) -> String {
        format!("{name}@sha256:{}", Digest::of(name.as_bytes(), &version.to_be_bytes()))
    }

    /// `base`, `NAME@vN`, or the code of the refusal.
    fn outcome(header: Option<&str>, model: Option<&str>) -> String {
        match choose(header, model, &Names { base: "tiny", default: None, lookup: &lookup }) {
            Ok(voice) => voice.to_string().split(';').next().unwrap().to_owned(),
            Err(error) => {
                let code = error.body().error.code.unwrap_or("invalid").to_owned();
                format!("{} {code}", error.into_response().status().as_u16())
            }
        }
    }

    const NONE: &str = "404 model_not_found";
    const CONFLICT: &str = "400 adapter_conflict";

    /// Header, model, and what comes of the two.
    fn check(table: &[(Option<&str>, Option<&str>, &str)]) {
        for (header, model, expected) in table {
            assert_eq!(outcome(*header, *model), *expected, "header {header:?}, model {model:?}");
        }
    }

    #[test]
    fn model_alone_names_the_base_or_an_adapter() {
        let (sql1, sql3) = (sha("sql", 1), sha("sql", 3));
        let own_sql1 = format!("tiny:{sql1}");
        let of_law = sha("law", 1).replace("law@", "sql@");
        check(&[
            (None, None, "400 invalid"),
            (None, Some(""), "400 invalid"),
            (None, Some("tiny"), "base"),
            (None, Some("base"), "base"),
            (None, Some("default"), "base"),
            (None, Some("sql"), "sql@v2"),
            (None, Some("sql@v1"), "sql@v1"),
            (None, Some("sql@v2"), "sql@v2"),
            (None, Some("sql@v3"), NONE),
            (None, Some("sql@"), NONE),
            (None, Some(&sql1), "sql@v1"),
            (None, Some(&sql3), NONE),
            (None, Some(&of_law), NONE),
            (None, Some("tiny:sql"), "sql@v2"),
            (None, Some("tiny:sql@v1"), "sql@v1"),
            (None, Some(&own_sql1), "sql@v1"),
            (None, Some("tiny:"), NONE),
            (None, Some("tiny:base"), NONE),
            (None, Some("tiny:default"), NONE),
            (None, Some("tiny:tiny"), NONE),
            (None, Some("other:sql"), NONE),
            (None, Some("base:sql"), NONE),
            (None, Some("base@v1"), NONE),
            (None, Some("default@v1"), NONE),
            (None, Some("tiny@v1"), NONE),
            (None, Some("Tiny"), NONE),
            (None, Some("Base"), NONE),
            (None, Some("SQL"), NONE),
            (None, Some(" sql"), NONE),
            (None, Some("../sql"), NONE),
            (None, Some("gpt-4o"), NONE),
        ]);
    }

    #[test]
    fn a_header_alone_names_an_adapter_or_base() {
        let sql1 = sha("sql", 1);
        check(&[
            (Some("base"), None, "base"),
            (Some("base"), Some(""), "base"),
            (Some("sql"), None, "sql@v2"),
            (Some("sql@v1"), None, "sql@v1"),
            (Some(&sql1), None, "sql@v1"),
            (Some("sql@v9"), None, NONE),
            (Some("nobody"), None, NONE),
            (Some("tiny"), None, NONE),
            (Some("default"), None, NONE),
            (Some("tiny:sql"), None, NONE),
            (Some("base@v1"), None, NONE),
        ]);
    }

    #[test]
    fn header_and_model_must_agree() {
        let (sql1, sql2) = (sha("sql", 1), sha("sql", 2));
        check(&[
            // the header wins over a model that names no adapter
            (Some("sql"), Some("tiny"), "sql@v2"),
            (Some("sql"), Some("base"), "sql@v2"),
            (Some("sql"), Some("default"), "sql@v2"),
            (Some("base"), Some("tiny"), "base"),
            (Some("base"), Some("base"), "base"),
            (Some("base"), Some("default"), "base"),
            // both name an adapter
            (Some("sql"), Some("sql"), "sql@v2"),
            (Some("sql"), Some("sql@v2"), "sql@v2"),
            (Some("sql@v2"), Some("sql"), "sql@v2"),
            (Some(&sql2), Some("tiny:sql@v2"), "sql@v2"),
            (Some("sql"), Some("sql@v1"), CONFLICT),
            (Some("sql@v1"), Some("sql"), CONFLICT),
            (Some("sql@v1"), Some("sql@v2"), CONFLICT),
            (Some("sql"), Some(&sql1), CONFLICT),
            (Some("sql"), Some("law"), CONFLICT),
            (Some("law"), Some("tiny:sql"), CONFLICT),
            (Some("base"), Some("sql"), CONFLICT),
            // nothing unknown is ever overlooked
            (Some("sql"), Some("gpt-4o"), NONE),
            (Some("sql"), Some("sql@v9"), NONE),
            (Some("base"), Some("nobody"), NONE),
            (Some("nobody"), Some("tiny"), NONE),
            (Some("nobody"), Some("sql"), NONE),
        ]);
    }

    /// `NAME@vN*WEIGHT`, one after the other, or the code of the refusal; `-` where no mix is asked for.
    fn mixed(
        header: Option<&str>,
        model: Option<&str>,
        adapters: Option<&[(&str, f32)]>,
    ) -> String {
        let part =
            |(name, weight): &(&str, f32)| Part { name: (*name).to_owned(), weight: *weight };
        let adapters = adapters.map(|parts| checked(parts.iter().map(part).collect(), "adapters"));
        let names = Names { base: "tiny", default: None, lookup: &lookup };
        let chosen = adapters
            .transpose()
            .and_then(|parts| choose_mix((header, "x-adapter"), model, parts.as_deref(), &names));
        match chosen {
            Ok(None) => "-".to_owned(),
            Ok(Some(Voice::Mix(parts))) => {
                let part = |(revision, weight): &(Revision, f32)| {
                    format!("{}@v{}*{weight}", revision.name, revision.version)
                };
                parts.iter().map(part).collect::<Vec<_>>().join(" ")
            }
            Ok(Some(voice)) => voice.to_string().split(';').next().unwrap().to_owned(),
            Err(error) => {
                let code = error.body().error.code.unwrap_or("invalid").to_owned();
                format!("{} {code}", error.into_response().status().as_u16())
            }
        }
    }

    #[test]
    fn mixes_are_named_by_header_or_body_and_never_in_part() {
        let (digest, law) = (sha("sql", 1), [("law", 1.0)]);
        let of_digest = format!("{digest}:0.5, law:1");
        let both = [("sql", 0.5), ("law", -1.0)];
        for (header, model, adapters, expected) in [
            (None, None, None, "-"),
            (Some("sql"), None, None, "-"),
            (Some(&*digest), None, None, "-"),
            (Some("sql:0.5,law:-1"), None, None, "sql@v2*0.5 law@v1*-1"),
            (Some("sql@v1:2"), Some("tiny"), None, "sql@v1*2"),
            (Some(&*of_digest), Some("base"), None, "sql@v1*0.5 law@v1*1"),
            (Some("sql:1"), Some("sql"), None, "sql@v2"),
            (None, Some("tiny"), Some(&both[..]), "sql@v2*0.5 law@v1*-1"),
            (None, None, Some(&law[..]), "law@v1"),
            (Some("sql:0.5,law:-1"), None, Some(&both[..]), "sql@v2*0.5 law@v1*-1"),
            (Some("law"), None, Some(&law[..]), "law@v1"),
            // Order is part of a mix: so are its bits.
            (Some("law:-1,sql:0.5"), None, Some(&both[..]), CONFLICT),
            (Some("sql"), None, Some(&both[..]), CONFLICT),
            (Some("base"), None, Some(&both[..]), CONFLICT),
            (Some("sql:0.5,law:-1"), Some("law"), None, CONFLICT),
            (None, Some("sql"), Some(&both[..]), CONFLICT),
            (Some("sql:0.5,nobody:1"), None, None, NONE),
            (Some("sql:0.5,base:1"), None, None, NONE),
            (Some("sql:0.5,law:1"), Some("gpt-4o"), None, NONE),
            (None, None, Some(&[("nobody", 1.0)][..]), NONE),
            (Some("sql:0.5,law"), None, None, "400 invalid"),
            (Some("sql:0.5,"), None, None, "400 invalid"),
            (Some("sql:0.5,sql:1"), None, None, "400 invalid"),
            (Some("sql:99"), None, None, "400 invalid"),
            (Some("sql:nan"), None, None, "400 invalid"),
            (Some("sql:inf,law:1"), None, None, "400 invalid"),
            (None, None, Some(&[][..]), "400 invalid"),
            (None, None, Some(&[("sql", f32::NAN)][..]), "400 invalid"),
        ] {
            assert_eq!(
                mixed(header, model, adapters),
                expected,
                "{header:?} {model:?} {adapters:?}"
            );
        }
    }

    #[test]
    fn a_header_is_one_readable_value() {
        let name = HeaderName::from_static("x-adapter");
        let read = |values: &[&[u8]]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(&name, HeaderValue::from_bytes(value).unwrap());
            }
            header(&headers, &name)
                .map(|value| value.map(str::to_owned))
                .map_err(|error| error.into_response().status())
        };
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[b"sql"]), Ok(Some("sql".into())));
        assert_eq!(read(&[b""]), Err(StatusCode::BAD_REQUEST));
        assert_eq!(read(&[b"  "]), Err(StatusCode::BAD_REQUEST));
        assert_eq!(read(&[b"sql", b"sql"]), Err(StatusCode::BAD_REQUEST));
        assert_eq!(read(&["\u{e4}".as_bytes()]), Err(StatusCode::BAD_REQUEST));
    }

    #[test]
    fn the_fingerprint_covers_base_and_adapter() {
        let revision = |version| {
            let name = AdapterName::parse("sql").unwrap();
            Voice::Adapter(Revision {
                name,
                version,
                digest: Digest::of(b"", &version.to_be_bytes()),
            })
        };
        let (base, one, two) = (Voice::Base, revision(1), revision(2));
        assert_eq!(base.fingerprint("a").len(), 15);
        assert_ne!(base.fingerprint("a"), base.fingerprint("b"));
        assert_ne!(base.fingerprint("a"), one.fingerprint("a"));
        assert_ne!(two.fingerprint("a"), one.fingerprint("a"));
        assert_eq!(one.fingerprint("a"), one.fingerprint("a"));
    }
}

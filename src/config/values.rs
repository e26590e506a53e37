//! The values that knobs take but for [`choices`](super::choices): sizes, times, names and addresses, each parsed once and right after.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroUsize,
    str::FromStr,
    time::Duration,
};

use serde::{Deserialize, Deserializer, de};

use super::choices::{AdapterDtype, Device, Kernels, KvDtype, LogFormat, LoraInfo, Precision};

const ADAPTER_HEADER: &str = "X-Adapter";

/// Yes or no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch(pub bool);

impl FromStr for Switch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "true" => Ok(Self(true)),
            "false" => Ok(Self(false)),
            _ => Err("choose true or false".to_owned()),
        }
    }
}

/// A number of things, from 1 to 16,777,216.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count(pub NonZeroUsize);

/// More of anything that is counted is a typing mistake, and would overflow what is computed from it.
const MOST: usize = 1 << 24;

impl Count {
    /// For defaults.
    ///
    /// # Panics
    /// Outside of these bounds; in a constant, when it is compiled.
    pub(super) const fn new(count: usize) -> Self {
        assert!(count <= MOST, "too many");
        Self(NonZeroUsize::new(count).expect("not 0"))
    }

    /// As a number.
    pub fn get(self) -> usize {
        self.0.get()
    }
}

impl FromStr for Count {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let count: Option<NonZeroUsize> = text.trim().parse().ok();
        count
            .filter(|count| count.get() <= MOST)
            .map(Self)
            .ok_or_else(|| format!("a whole number from 1 to {MOST} is expected"))
    }
}

/// Tokens that are guessed of an answer in a step, from 0 to 15: with the next one they fill sixteen rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guesses(pub usize);

impl FromStr for Guesses {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let guesses = text.trim().parse().ok().filter(|guesses| *guesses <= 15);
        guesses.map(Self).ok_or_else(|| "a whole number from 0 to 15 is expected".to_owned())
    }
}

/// An address and port. `localhost:PORT` is understood; other names are not looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen(pub SocketAddr);

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = || "an IP address and a port are expected, such as 127.0.0.1:8080".to_owned();
        match text.strip_prefix("localhost:") {
            Some(port) => port.parse().map(|port| (Ipv4Addr::LOCALHOST, port).into()).ok(),
            None => text.parse().ok(),
        }
        .map(Self)
        .ok_or_else(wanted)
    }
}

/// Host names without port, written with commas between them; compared in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hosts(pub Vec<String>);

impl FromStr for Hosts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        let name = |name: &str| {
            let name = name.trim().to_ascii_lowercase();
            (!name.is_empty() && name.bytes().all(plain)).then_some(name)
        };
        let names: Option<Vec<String>> = text.split(',').map(name).collect();
        names.map(Self).ok_or_else(|| {
            "host names without port are expected, such as llm.example.org,llm.local".to_owned()
        })
    }
}

/// A model's id in the API.
///
/// * 1 to 128 printable ASCII characters without space
/// * no `:`, which parts a base from an adapter
/// * not `base` or `default`, which clients use for something else
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelId(String);

impl ModelId {
    /// As clients write it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ModelId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let printable = |byte: u8| byte.is_ascii_graphic() && byte != b':';
        if !(1..=128).contains(&text.len()) || !text.bytes().all(printable) {
            return Err(
                "1 to 128 printable ASCII characters without space or `:` are expected".to_owned()
            );
        }
        if ["base", "default"].contains(&text) {
            return Err("`base` and `default` mean something else to clients".to_owned());
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Headers that mean something already: to HTTP, to proxies, or to this server.
const TAKEN: [&str; 26] = [
    "accept",
    "accept-encoding",
    "authorization",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "cookie",
    "date",
    "expect",
    "forwarded",
    "host",
    "keep-alive",
    "origin",
    "proxy-authorization",
    "range",
    "referer",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "via",
    "x-forwarded-for",
    "x-request-id",
    "x-request-timeout",
];

/// The name of an HTTP header.
///
/// * a token of RFC 9110: letters, digits and ``!#$%&'*+-.^_`|~``
/// * no header that means something else already
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderField(String);

impl HeaderField {
    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for HeaderField {
    fn default() -> Self {
        Self(ADAPTER_HEADER.to_owned())
    }
}

impl FromStr for HeaderField {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if text.is_empty() || !text.bytes().all(token) {
            return Err("not a header name, such as X-Adapter".to_owned());
        }
        if TAKEN.contains(&text.to_ascii_lowercase().as_str()) {
            return Err(
                "this header has another meaning already: choose one of your own".to_owned()
            );
        }
        Ok(Self(text.to_owned()))
    }
}

/// Where something is sent to over HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint(String);

impl Endpoint {
    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let odd = |text: char| text.is_whitespace() || text.is_control();
        let after = ["http://", "https://"].iter().find_map(|scheme| text.strip_prefix(scheme));
        // More slashes than two would be passed over, and the path taken for the host.
        let is_plain = after.is_some_and(|rest| !rest.starts_with('/')) && !text.contains(odd);
        let url = reqwest::Url::parse(text).ok().filter(|_| is_plain);
        let url = url.ok_or("not a URL such as http://127.0.0.1:4318/v1/traces")?;
        if !url.username().is_empty() || url.password().is_some() {
            let instead = "a URL with a user's name or password, which logs would show; OTEL_EXPORTER_OTLP_HEADERS has what lets this server in";
            return Err(instead.to_owned());
        }
        Ok(Self(text.to_owned()))
    }
}

/// A number of bytes: `512MiB`, `1.5 GB`, `4096`. KiB to PiB count in 1024s; kB to PB in 1000s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// Longest suffix first within each kind; matched without regard to case.
const BYTE_UNITS: [(&str, u64); 13] = [
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("pib", 1 << 50),
    ("kb", 1000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("pb", 1_000_000_000_000_000),
    ("bytes", 1),
    ("b", 1),
    ("", 1),
];

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = || {
            "a size above 0 in bytes, KiB, MiB, GiB, TiB or PiB (or kB to PB) is expected, such as \
             512MiB"
                .to_owned()
        };
        let lower = text.trim().to_ascii_lowercase();
        let (number, unit) = split_unit(&lower, &BYTE_UNITS).ok_or_else(wanted)?;
        scale(number, unit).filter(|bytes| *bytes > 0).map(Self).ok_or_else(wanted)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = [(1_u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        match named.iter().find(|(unit, _)| self.0 >= *unit) {
            Some((unit, name)) => write!(f, "{:.1} {name}", self.0 as f64 / *unit as f64),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

/// A time: `30s`, `2m`, `1.5h`, `500ms`; a bare number is seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

/// In milliseconds; `ms` stands before `s` and `m` so that it is found first.
const TIME_UNITS: [(&str, u64); 6] =
    [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000), ("", 1000)];

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = || {
            "a time above 0 in ms, s, m, h or d is expected, such as 30s, 2m or 500ms".to_owned()
        };
        let (number, unit) = split_unit(text.trim(), &TIME_UNITS).ok_or_else(wanted)?;
        let millis = scale(number, unit).filter(|millis| *millis > 0).ok_or_else(wanted)?;
        Ok(Self(Duration::from_millis(millis)))
    }
}

/// The number in front of the first unit that fits, and that unit's worth.
fn split_unit<'a>(text: &'a str, units: &[(&str, u64)]) -> Option<(&'a str, u64)> {
    units.iter().find_map(|(unit, worth)| {
        let number = text.strip_suffix(unit)?.trim_end();
        number.ends_with(|last: char| last.is_ascii_digit()).then_some((number, *worth))
    })
}

/// `number` (digits, at most one point) times `unit`, if that is a whole number that fits.
fn scale(number: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if ![whole, fraction].iter().all(|part| part.bytes().all(|digit| digit.is_ascii_digit())) {
        return None;
    }
    let places = 10_u64.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let parts = if fraction.is_empty() { 0 } else { fraction.parse::<u64>().ok()? };
    let below = u64::try_from(u128::from(parts) * u128::from(unit) / u128::from(places)).ok()?;
    whole.parse::<u64>().ok()?.checked_mul(unit)?.checked_add(below)
}

/// A TOML value that stands for what would be typed.
#[derive(Deserialize)]
#[serde(untagged, expecting = "text, a number, true or false is expected")]
enum Scalar {
    Switch(bool),
    Whole(i64),
    Decimal(f64),
    Text(String),
}

fn parse_scalar<'de, D: Deserializer<'de>, T: FromStr<Err = String>>(
    deserializer: D,
) -> Result<T, D::Error> {
    let text = match Scalar::deserialize(deserializer)? {
        Scalar::Switch(switch) => switch.to_string(),
        Scalar::Whole(number) => number.to_string(),
        Scalar::Decimal(number) => number.to_string(),
        Scalar::Text(text) => text,
    };
    text.parse().map_err(|why| de::Error::custom(format!("`{text}`: {why}")))
}

/// The file takes what the command line takes.
macro_rules! deserialize_as_typed {
    ($($knob:ty),+) => {$(
        impl<'de> Deserialize<'de> for $knob {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                parse_scalar(deserializer)
            }
        }
    )+};
}

deserialize_as_typed!(
    AdapterDtype,
    ByteSize,
    Count,
    Device,
    Endpoint,
    Guesses,
    HeaderField,
    Hosts,
    Listen,
    Kernels,
    KvDtype,
    LogFormat,
    LoraInfo,
    ModelId,
    Precision,
    Span,
    Switch
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_shown() {
        for (text, bytes) in [
            ("1", 1),
            ("256MiB", 256 << 20),
            ("1.5 GiB", 3 << 29),
            ("2gb", 2_000_000_000),
            (" 10 kB ", 10_000),
            ("7B", 7),
            ("1.0000KiB", 1024),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in
            ["", "0", "0.1", "MiB", "-1", "1e9", "1.2.3", "99999999999GiB", "1 MiB x", "+5", "1.B"]
        {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
        assert_eq!(ByteSize(98_362_432).to_string(), "93.8 MiB");
        assert_eq!(ByteSize(1 << 30).to_string(), "1.0 GiB");
        assert_eq!(ByteSize(12).to_string(), "12 bytes");
    }

    #[test]
    fn times_are_read() {
        for (text, millis) in [
            ("30", 30_000),
            ("30s", 30_000),
            ("2m", 120_000),
            ("1.5h", 5_400_000),
            ("500 ms", 500),
            ("2d", 172_800_000),
        ] {
            assert_eq!(text.parse(), Ok(Span(Duration::from_millis(millis))), "{text}");
        }
        for text in ["", "0s", "s", "1w", "-3s", "99999999999999999999s"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }
}

//! `adapter_model.safetensors`: what tensors it holds, before anything believes it.

use std::{
    collections::{BTreeMap, HashSet},
    fmt, str,
};

use safetensors::SafeTensors;
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::json;
use crate::lora::{
    limits::Limits,
    manifest::{Dtype, View},
    refusal::{Quoted, Refusal, Shape},
};

/// The header's length comes first, as a little-endian u64.
const PREFIX: usize = 8;

/// Most tensors of a file. A base of 126 layers has 884 sites, each with at most four tensors.
const MOST_TENSORS: usize = 20_000;

/// Most entries of `__metadata__`, which are not read; PEFT writes one.
const MOST_NOTES: usize = 1000;

/// Largest header in bytes; that many tensors take about 3 MB.
const LARGEST: usize = 4 << 20;

/// The tensors of the file by name.
///
/// Each is of a dtype that can be read, and together they are the file's data without gap or overlap.
pub(super) fn tensors<'a>(
    file: &'a [u8],
    limits: &Limits,
) -> Result<BTreeMap<String, View<'a>>, Refusal> {
    let bytes = file.len() as u64;
    if bytes > limits.max_bytes {
        return Err(Refusal::WeightsTooLarge { bytes, max: limits.max_bytes });
    }
    let (header, data) = split(file)?;
    let Header(entries) = parse(header)?;
    check_names(&entries)?;
    check_data(&entries, data.len() as u64)?;
    // What the format's own reader makes of the file is what is used.
    let container = SafeTensors::deserialize(file)
        .map_err(|error| Refusal::Container { reason: Quoted::new(&error.to_string()) })?;
    container
        .iter()
        .map(|(name, tensor)| {
            let view = readable(tensor.dtype())
                .and_then(|dtype| View::new(dtype, tensor.shape(), tensor.data()))
                .ok_or_else(|| Refusal::Container {
                    reason: Quoted::new("it can be understood in two ways"),
                })?;
            Ok((name.to_owned(), view))
        })
        .collect()
}

fn readable(dtype: safetensors::Dtype) -> Option<Dtype> {
    match dtype {
        safetensors::Dtype::F32 => Some(Dtype::F32),
        safetensors::Dtype::F16 => Some(Dtype::F16),
        safetensors::Dtype::BF16 => Some(Dtype::Bf16),
        _ => None,
    }
}

/// The header and the data behind it.
fn split(file: &[u8]) -> Result<(&str, &[u8]), Refusal> {
    if file.is_empty() {
        let advice = "was the upload interrupted?";
        return Err(Refusal::WeightsAre { found: "empty", advice });
    }
    let Some((length, rest)) = file.split_first_chunk::<PREFIX>() else {
        return Err(misnamed(file)
            .unwrap_or(Refusal::Truncated { expected: PREFIX as u64, found: file.len() as u64 }));
    };
    let length = u64::from_le_bytes(*length);
    let header = usize::try_from(length).ok().filter(|length| *length <= LARGEST);
    let Some(header) = header else {
        // The first bytes of another kind of file make an absurd length.
        return Err(misnamed(file).unwrap_or({
            if length > rest.len() as u64 {
                Refusal::Truncated { expected: length, found: rest.len() as u64 }
            } else {
                Refusal::HeaderTooLarge { bytes: length, max: LARGEST }
            }
        }));
    };
    let Some((header, data)) = rest.split_at_checked(header) else {
        return Err(Refusal::Truncated { expected: length, found: rest.len() as u64 });
    };
    let header = str::from_utf8(header)
        .map_err(|_| Refusal::Container { reason: Quoted::new("its header is not UTF-8 text") })?;
    Ok((header, data))
}

/// Whether the file is of a kind that is often found under this name.
fn misnamed(file: &[u8]) -> Option<Refusal> {
    let start = file[..file.len().min(512)].trim_ascii_start();
    let begins = |text: &str| {
        start.get(..text.len()).is_some_and(|start| start.eq_ignore_ascii_case(text.as_bytes()))
    };
    let (found, advice) = if begins("version https://git-lfs") {
        ("a Git LFS pointer", "run `git lfs pull` where it was cloned")
    } else if begins("<!doctype") || begins("<html") || begins("<?xml") {
        ("an HTML page", "download the file itself, not the page about it")
    } else if begins("GGUF") {
        ("a GGUF file", "use the PEFT form of the adapter")
    } else if begins("PK\x03\x04") || matches!(start, [0x80, 2..=5, ..]) {
        ("a pickle (PyTorch's .bin format)", "safetensors only; convert it, pickles can run code")
    } else {
        return None;
    };
    Some(Refusal::WeightsAre { found, advice })
}

/// The header's tensors in the order of the text.
struct Header(Vec<(String, Entry)>);

/// What the header says of one tensor.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: safetensors::Dtype,
    shape: Vec<usize>,
    /// Begin and end, counted from the header's end.
    data_offsets: (u64, u64),
}

fn parse(header: &str) -> Result<Header, Refusal> {
    serde_json::from_str(header).map_err(|error| {
        let (place, reason) = json::locate(header, &error);
        Refusal::HeaderSyntax { place, reason }
    })
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor).map(Self)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Vec<(String, Entry)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with a tensor under each name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(name) = object.next_key::<String>()? {
            if name == "__metadata__" {
                object.next_value::<Notes>()?;
                continue;
            }
            if entries.len() == MOST_TENSORS {
                return Err(A::Error::custom(format!("it has more than {MOST_TENSORS} tensors")));
            }
            entries.push((name, object.next_value()?));
        }
        Ok(entries)
    }
}

/// The entries of `__metadata__`, few enough to be passed over.
struct Notes;

impl<'de> Deserialize<'de> for Notes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(NotesVisitor)
    }
}

struct NotesVisitor;

impl<'de> Visitor<'de> for NotesVisitor {
    type Value = Notes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Notes, A::Error> {
        for _ in 0..=MOST_NOTES {
            if object.next_entry::<IgnoredAny, IgnoredAny>()?.is_none() {
                return Ok(Notes);
            }
        }
        Err(A::Error::custom(format!("its __metadata__ has more than {MOST_NOTES} entries")))
    }
}

fn check_names(entries: &[(String, Entry)]) -> Result<(), Refusal> {
    let mut seen = HashSet::with_capacity(entries.len());
    match entries.iter().find(|(name, _)| !seen.insert(name)) {
        Some((name, _)) => Err(Refusal::HeaderRepeats { tensor: Quoted::new(name) }),
        None => Ok(()),
    }
}

/// The tensors lie one behind the other, from the first byte of the data to the last.
fn check_data(entries: &[(String, Entry)], data: u64) -> Result<(), Refusal> {
    let mut entries: Vec<_> = entries.iter().collect();
    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    let mut expected = 0;
    for (name, Entry { dtype, shape, data_offsets: (begin, end) }) in entries {
        let tensor = || Quoted::new(name);
        if *begin != expected || end < begin {
            return Err(Refusal::Offsets { tensor: tensor(), begin: *begin, end: *end, expected });
        }
        if *end > data {
            return Err(Refusal::Truncated { expected: *end, found: data });
        }
        let Some(number) = readable(*dtype).map(|dtype| dtype.bytes() as u64) else {
            let dtype = Quoted::new(&dtype.to_string());
            return Err(Refusal::Dtype { tensor: tensor(), dtype });
        };
        let bytes = shape.iter().try_fold(number, |bytes, axis| bytes.checked_mul(*axis as u64));
        if bytes != Some(end - begin) {
            let (shape, bytes) = (Shape::new(shape), end - begin);
            return Err(Refusal::Bytes { tensor: tensor(), shape, bytes });
        }
        expected = *end;
    }
    match data - expected {
        0 => Ok(()),
        extra => Err(Refusal::TrailingBytes { extra }),
    }
}

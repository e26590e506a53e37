//! The `tojson` filter as chat templates know it: Python's `json.dumps`, nothing escaped for HTML.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};
use std::fmt::Write as _;

/// Deepest nesting written.
const MAX_DEPTH: usize = 100;
/// Widest indentation written.
const MAX_INDENT: usize = 16;
/// Bytes written for one unit of the template's fuel, as minijinja's own filter counts.
const BYTES_PER_FUEL: usize = 4;

/// `value | tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
#[expect(clippy::needless_pass_by_value, reason = "the shape minijinja's filters have")]
pub(super) fn tojson(state: &State<'_, '_>, value: &Value, named: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = named.get("indent")?;
    if indent.is_some_and(|width| width > MAX_INDENT) {
        return Err(refused("the indentation is too wide"));
    }
    let separators: Option<Vec<String>> = named.get("separators")?;
    let (item, key) = match separators.as_deref() {
        None => (if indent.is_some() { "," } else { ", " }, ": "),
        Some([item, key]) => (item.as_str(), key.as_str()),
        Some(_) => return Err(refused("separators are a pair of strings")),
    };
    let ascii = named.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sorted = named.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    named.assert_all_used()?;
    let style = Style { item, key, indent, ascii, sorted };
    let mut writer = Writer { state, style, text: String::new(), charged: 0 };
    writer.value(value, 0)?;
    Ok(Value::from(writer.text))
}

/// JSON as templates take it. Not by serde: minijinja marks values of its own there, and a request could write such a mark.
pub(super) fn value(json: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match json {
        Json::Null => Value::from(()),
        Json::Bool(yes) => Value::from(*yes),
        Json::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(number), _) => Value::from(number),
            (None, Some(number)) => Value::from(number),
            (None, None) => number.as_f64().map_or_else(|| Value::from(()), Value::from),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => Value::from(items.iter().map(value).collect::<Vec<_>>()),
        Json::Object(fields) => {
            Value::from_pairs(fields.iter().map(|(name, field)| (name.as_str(), value(field))))
        }
    }
}

fn refused(problem: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, problem)
}

struct Style<'a> {
    item: &'a str,
    key: &'a str,
    indent: Option<usize>,
    ascii: bool,
    sorted: bool,
}

struct Writer<'a> {
    state: &'a State<'a, 'a>,
    style: Style<'a>,
    text: String,
    /// Bytes of `text` already paid for.
    charged: usize,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(refused("the value is nested too deeply for JSON"));
        }
        match value.kind() {
            ValueKind::None => self.text.push_str("null"),
            ValueKind::Bool => self.text.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => {
                write!(self.text, "{value}").map_err(|_| refused("a number cannot be written"))?;
            }
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => self.list(value, depth)?,
            ValueKind::Map => self.map(value, depth)?,
            kind => {
                let problem = format!("a value of kind {kind} is not JSON serializable");
                return Err(Error::new(ErrorKind::InvalidOperation, problem));
            }
        }
        self.charge()
    }

    fn list(&mut self, list: &Value, depth: usize) -> Result<(), Error> {
        self.text.push('[');
        let mut count = 0;
        for item in list.try_iter()? {
            self.separate(count, depth + 1);
            self.value(&item, depth + 1)?;
            count += 1;
        }
        self.close(']', count, depth);
        Ok(())
    }

    fn map(&mut self, map: &Value, depth: usize) -> Result<(), Error> {
        self.text.push('{');
        let mut keys: Vec<Value> = map.try_iter()?.collect();
        if self.style.sorted {
            keys.sort();
        }
        for (count, key) in keys.iter().enumerate() {
            self.separate(count, depth + 1);
            match key.as_str() {
                Some(text) => self.string(text),
                None => self.string(&key.to_string()),
            }
            self.text.push_str(self.style.key);
            self.value(&map.get_item(key)?, depth + 1)?;
        }
        self.close('}', keys.len(), depth);
        Ok(())
    }

    /// What stands before the item number `count` of a list or map.
    fn separate(&mut self, count: usize, depth: usize) {
        if count > 0 {
            self.text.push_str(self.style.item);
        }
        self.new_line(depth);
    }

    fn close(&mut self, bracket: char, count: usize, depth: usize) {
        if count > 0 {
            self.new_line(depth);
        }
        self.text.push(bracket);
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(width) = self.style.indent {
            self.text.push('\n');
            self.text.extend(std::iter::repeat_n(' ', width * depth));
        }
    }

    fn string(&mut self, text: &str) {
        self.text.push('"');
        for character in text.chars() {
            match character {
                '"' => self.text.push_str("\\\""),
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                '\t' => self.text.push_str("\\t"),
                '\u{8}' => self.text.push_str("\\b"),
                '\u{c}' => self.text.push_str("\\f"),
                '\0'..='\u{1f}' => self.escape(character),
                '\u{7f}'.. if self.style.ascii && !character.is_ascii() => self.escape(character),
                _ => self.text.push(character),
            }
        }
        self.text.push('"');
    }

    fn escape(&mut self, character: char) {
        for unit in character.encode_utf16(&mut [0; 2]) {
            write!(self.text, "\\u{unit:04x}").expect("writing to a string cannot fail");
        }
    }

    /// Pays for what was written since the last time.
    fn charge(&mut self) -> Result<(), Error> {
        let fuel = (self.text.len() - self.charged) / BYTES_PER_FUEL;
        self.charged += fuel * BYTES_PER_FUEL;
        self.state.consume_fuel(fuel as u64)
    }
}

#[cfg(test)]
mod tests {
    use minijinja::{Environment, context};

    fn written(expression: &str) -> Result<String, minijinja::Error> {
        let mut environment = Environment::new();
        environment.add_filter("tojson", super::tojson);
        environment.set_recursion_limit(100);
        let text = "<a> & 'b' \"c\" \\ é 🦀\n\t\u{1}\u{7f}";
        environment.render_str(&format!("{{{{ {expression} }}}}"), context! { text })
    }

    #[test]
    fn it_writes_what_python_writes() {
        // Each expectation is the output of json.dumps(x, ensure_ascii=False, ..).
        let object = "{'b': [1, 2.5, true, none], 'a': {}, 'c': []}";
        let cases = [
            (format!("{object} | tojson"), r#"{"b": [1, 2.5, true, null], "a": {}, "c": []}"#),
            (
                format!("{object} | tojson(sort_keys=true, separators=(',', ':'))"),
                r#"{"a":{},"b":[1,2.5,true,null],"c":[]}"#,
            ),
            (
                format!("{object} | tojson(indent=2)"),
                "{\n  \"b\": [\n    1,\n    2.5,\n    true,\n    null\n  ],\n  \"a\": {},\n  \"c\": []\n}",
            ),
            ("text | tojson".to_owned(), "\"<a> & 'b' \\\"c\\\" \\\\ é 🦀\\n\\t\\u0001\u{7f}\""),
            (
                "text | tojson(ensure_ascii=true)".to_owned(),
                "\"<a> & 'b' \\\"c\\\" \\\\ \\u00e9 \\ud83e\\udd80\\n\\t\\u0001\u{7f}\"",
            ),
            ("{1: 'x'} | tojson".to_owned(), r#"{"1": "x"}"#),
        ];
        for (expression, expected) in cases {
            assert_eq!(written(&expression).unwrap(), expected, "{expression}");
        }
    }

    #[test]
    fn what_is_not_json_is_an_error() {
        for expression in [
            "nothing | tojson",
            "1 | tojson(separators=[','])",
            "1 | tojson(x=1)",
            "1 | tojson(indent=99)",
        ] {
            assert!(written(expression).is_err(), "{expression}");
        }
    }
}

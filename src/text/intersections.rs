//! How many schemas the intersections of one come to, and how many ways its objects can be written.
//!
//! `allOf` over `anyOf` is each alternative with each: eight times two alternatives are 256 schemas, and a kilobyte can ask for
//! millions. llguidance makes them all before it counts what it has made, so they are counted here first.

use std::collections::HashMap;

use serde_json::Value;

/// The most alternatives that the intersections of a schema may have together. Each costs some tenths of a millisecond.
pub(super) const MOST: u64 = 1_000;
/// How deep references are followed: those beyond count as one.
const DEPTH: usize = 64;

/// How many alternatives all `allOf` of a schema have, those of what they refer to included; no more than is needed to see that
/// they are too many.
pub(super) fn alternatives(schema: &Value) -> u64 {
    let mut count = Count { root: schema, known: HashMap::new() };
    count.below(schema)
}

/// The most pairs of properties, as [`pairs`] counts them. Each takes some hundred nanoseconds to compile.
pub(super) const MOST_PAIRS: u64 = 4_000_000;
/// A property takes as much as so many pairs.
const PROPERTY: u64 = 1_000;

/// How many pairs of properties all objects of a schema have that may follow each other, since those between may be left out, and
/// how much the properties themselves take besides.
pub(super) fn pairs(schema: &Value) -> u64 {
    match schema {
        Value::Object(fields) => {
            let properties = fields.get("properties").and_then(Value::as_object);
            let all = properties.map_or(0, |properties| properties.len() as u64);
            let required = fields.get("required").and_then(Value::as_array).map_or(0, Vec::len);
            let optional = all.saturating_sub(required as u64);
            let own = optional.saturating_mul(optional).saturating_add(all * PROPERTY);
            fields.values().map(pairs).fold(own, u64::saturating_add)
        }
        Value::Array(items) => items.iter().map(pairs).fold(0, u64::saturating_add),
        _ => 0,
    }
}

struct Count<'a> {
    root: &'a Value,
    /// By where a schema stands, so that none is counted out twice.
    known: HashMap<*const Value, u64>,
}

impl<'a> Count<'a> {
    /// Those of all `allOf` that stand in a value.
    fn below(&mut self, value: &'a Value) -> u64 {
        match value {
            Value::Object(fields) => {
                let here = if fields.contains_key("allOf") { self.of(value, DEPTH) } else { 1 };
                // One way is no choice.
                let own = if here > 1 { here } else { 0 };
                fields.values().fold(own, |sum, value| sum.saturating_add(self.below(value)))
            }
            Value::Array(items) => {
                items.iter().fold(0, |sum, item| u64::saturating_add(sum, self.below(item)))
            }
            _ => 0,
        }
    }

    /// Those of one schema.
    fn of(&mut self, schema: &'a Value, depth: usize) -> u64 {
        let place = std::ptr::from_ref(schema);
        if let Some(known) = self.known.get(&place) {
            return *known;
        }
        let Some(fields) = schema.as_object().filter(|_| depth > 0) else { return 1 };
        // What leads back to itself is one alternative of itself.
        self.known.insert(place, 1);
        let list = |name: &str| fields.get(name).and_then(Value::as_array);
        let mut ways: u64 = 1;
        for of_all in list("allOf").into_iter().flatten() {
            ways = ways.saturating_mul(self.of(of_all, depth - 1));
        }
        for choice in ["anyOf", "oneOf"] {
            let Some(choices) = list(choice) else { continue };
            let sum = choices
                .iter()
                .fold(0, |sum, choice| u64::saturating_add(sum, self.of(choice, depth - 1)));
            ways = ways.saturating_mul(sum.max(1));
        }
        let target =
            fields.get("$ref").and_then(Value::as_str).and_then(|name| name.strip_prefix('#'));
        if let Some(target) = target.and_then(|pointer| self.root.pointer(pointer)) {
            ways = ways.saturating_mul(self.of(target, depth - 1));
        }
        self.known.insert(place, ways);
        ways
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// So many choices of two, all of which are to be made.
    fn product(choices: usize) -> Value {
        let choice = |at: usize| json!({"anyOf": [{"required": [format!("{at}a")]}, {"required": [format!("{at}b")]}]});
        json!({"allOf": (0..choices).map(choice).collect::<Vec<_>>()})
    }

    #[test]
    fn each_choice_is_made_with_each() {
        assert_eq!(alternatives(&product(3)), 8);
        assert_eq!(alternatives(&product(8)), 256);
        assert!(alternatives(&product(100)) > MOST);
        assert_eq!(alternatives(&json!({"anyOf": [{}, {}, {}]})), 0, "no intersection");
        assert_eq!(alternatives(&json!({"allOf": [{"type": "object"}]})), 0);
    }

    #[test]
    fn a_schema_of_a_kilobyte_that_refers_to_many_is_counted_as_often_as_it_is_referred_to() {
        let uses = (0..10).map(|at| {
            (
                format!("q{at}"),
                json!({"allOf": [{"$ref": "#/$defs/A"}, {"required": [format!("z{at}")]}]}),
            )
        });
        let schema = json!({"properties": uses.collect::<serde_json::Map<_, _>>(), "$defs": {"A": product(8)}});
        assert_eq!(alternatives(&schema), 11 * 256);
    }

    #[test]
    fn what_may_be_left_out_is_counted_by_pairs() {
        let object = |optional: usize, required: usize| {
            let name = |at| format!("p{at}");
            let properties = (0..optional + required).map(|at| (name(at), json!({})));
            let required: Vec<_> = (0..required).map(name).collect();
            json!({"properties": properties.collect::<serde_json::Map<_, _>>(), "required": required})
        };
        assert_eq!(pairs(&object(10, 5)), 100 + 15 * PROPERTY);
        let two = json!({"anyOf": [object(3, 0), {"items": object(0, 4)}]});
        assert_eq!(pairs(&two), 9 + 7 * PROPERTY);
        assert_eq!(pairs(&json!(true)), 0);
        assert!(pairs(&object(1_000, 500)) < MOST_PAIRS && pairs(&object(2_000, 0)) > MOST_PAIRS);
    }

    #[test]
    fn what_refers_to_itself_ends() {
        let schema = json!({"allOf": [{"$ref": "#"}, {"anyOf": [{"$ref": "#"}, {}]}]});
        assert_eq!(alternatives(&schema), 2);
        let chain: serde_json::Map<String, Value> = (0..3000)
            .map(|at| (at.to_string(), json!({"allOf": [{"$ref": format!("#/$defs/{}", at + 1)}]})))
            .collect();
        assert_eq!(alternatives(&json!({"$defs": chain})), 0);
    }
}

//! How many schemas the intersections of one come to.
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
    fn what_refers_to_itself_ends() {
        let schema = json!({"allOf": [{"$ref": "#"}, {"anyOf": [{"$ref": "#"}, {}]}]});
        assert_eq!(alternatives(&schema), 2);
        let chain: serde_json::Map<String, Value> = (0..3000)
            .map(|at| (at.to_string(), json!({"allOf": [{"$ref": format!("#/$defs/{}", at + 1)}]})))
            .collect();
        assert_eq!(alternatives(&json!({"$defs": chain})), 0);
    }
}

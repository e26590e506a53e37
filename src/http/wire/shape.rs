//! JSON schemas for the types whose readers are written by hand.

use serde_json::Value;
use utoipa::{
    PartialSchema,
    openapi::{
        RefOr,
        schema::{AnyOfBuilder, ArrayBuilder, ObjectBuilder, Schema, SchemaType, Type},
    },
};

/// Any string.
pub(super) fn text() -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(Type::String).into()
}

/// One of these strings.
pub(super) fn words(words: &[&str]) -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(words.iter().copied())).into()
}

/// This string, or `null`, which is absent.
pub(super) fn word_or_null(word: &str) -> RefOr<Schema> {
    let kind = SchemaType::from_iter([Type::String, Type::Null]);
    let values = Some([Value::from(word), Value::Null]);
    ObjectBuilder::new().schema_type(kind).enum_values(values).into()
}

/// A string of at most so many characters.
pub(super) fn short(most: usize) -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(Type::String).max_length(Some(most)).into()
}

/// `true`, or nothing.
pub(super) fn yes() -> RefOr<Schema> {
    let kind = SchemaType::from_iter([Type::Boolean, Type::Null]);
    ObjectBuilder::new()
        .schema_type(kind)
        .enum_values(Some([Value::Bool(true), Value::Null]))
        .into()
}

/// A string that ends an answer.
pub(super) fn stop() -> RefOr<Schema> {
    let string = ObjectBuilder::new().schema_type(Type::String);
    string.min_length(Some(1)).max_length(Some(1024)).into()
}

/// The id of a token.
pub(super) fn token() -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0)).maximum(Some(u32::MAX)).into()
}

/// A list of so many of these.
pub(super) fn list(of: RefOr<Schema>, least: Option<usize>, most: Option<usize>) -> RefOr<Schema> {
    ArrayBuilder::new().items(of).min_items(least).max_items(most).into()
}

/// What a function may be called.
pub(super) fn name() -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(Type::String).pattern(Some("^[a-zA-Z0-9_-]{1,64}$")).into()
}

/// Any object.
pub(super) fn any_object() -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(Type::Object).into()
}

/// Any object, or `null`, which is absent.
pub(super) fn object_or_null() -> RefOr<Schema> {
    let kind = SchemaType::from_iter([Type::Object, Type::Null]);
    ObjectBuilder::new().schema_type(kind).into()
}

/// One or another.
pub(super) fn any_of(shapes: impl IntoIterator<Item = RefOr<Schema>>) -> RefOr<Schema> {
    shapes.into_iter().fold(AnyOfBuilder::new(), AnyOfBuilder::item).into()
}

/// An object with these fields, which must be there, and these, which may.
pub(super) fn object<'a>(
    required: impl IntoIterator<Item = (&'a str, RefOr<Schema>)>,
    optional: impl IntoIterator<Item = (&'a str, RefOr<Schema>)>,
) -> RefOr<Schema> {
    let object = ObjectBuilder::new().schema_type(Type::Object);
    let object = required
        .into_iter()
        .fold(object, |object, (name, schema)| object.property(name, schema).required(name));
    let object =
        optional.into_iter().fold(object, |object, (name, schema)| object.property(name, schema));
    object.into()
}

/// `{"type": KIND, "text": ".."}`, of one of these types.
pub(super) fn part(kinds: &[&str]) -> RefOr<Schema> {
    object([("type", words(kinds)), ("text", text())], [])
}

/// A string, or a list of parts of one of these types.
pub(super) fn content(kinds: &[&str]) -> RefOr<Schema> {
    any_of([text(), list(part(kinds), None, None)])
}

/// Whatever the type's own reader takes.
pub(super) fn of<T: PartialSchema>() -> RefOr<Schema> {
    T::schema()
}

/// Gives a type that is read by hand its schema, under a name of its own.
macro_rules! shape {
    ($type:ty, $name:literal, $schema:expr) => {
        impl utoipa::PartialSchema for $type {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                $schema
            }
        }
        impl utoipa::ToSchema for $type {
            fn name() -> std::borrow::Cow<'static, str> {
                std::borrow::Cow::Borrowed($name)
            }
        }
    };
}
pub(super) use shape;

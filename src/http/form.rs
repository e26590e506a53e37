//! The form that an answer must have: from a request's fields to the engine's guide.

use serde_json::Value;

use super::{
    error::ApiError,
    wire::{common::Common, form::ResponseFormat, object::Object, unsupported::Weight},
};
use crate::{
    engine::{Allowed, Guide, Lost, TokenSet},
    text::{Calls, Form, Text, Walk, Ways},
};

/// A form, and the field that asks for it.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    field: &'static str,
    form: Form,
    reach: Reach,
}

/// What of an answer has to have a form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// Its text, which there is none of where tools are called.
    Text,
    /// All that the model writes.
    Everything,
}

/// What a route's clients call a format and its parts, where the schema stands beside the type.
#[derive(Debug)]
pub(super) struct Fields {
    whole: &'static str,
    kind: &'static str,
    schema: &'static str,
}

impl Fields {
    const CHATS: Self = Self {
        whole: "response_format",
        kind: "response_format.type",
        schema: "response_format.schema",
    };
    pub(super) const RESPONSES: Self =
        Self { whole: "text.format", kind: "text.format.type", schema: "text.format.schema" };
    pub(super) const MESSAGES: Self = Self {
        whole: "output_config.format",
        kind: "output_config.format.type",
        schema: "output_config.format.schema",
    };
    pub(super) const LORAX: Self = Self {
        whole: "parameters.response_format",
        kind: "parameters.response_format.type",
        schema: "parameters.response_format.schema",
    };
}

impl Asked {
    pub(super) fn new(field: &'static str, form: Form) -> Self {
        Self { field, form, reach: Reach::Text }
    }

    /// The form that a request asks for, by one field at most.
    pub(super) fn read(common: &Common) -> Result<Option<Self>, ApiError> {
        let asked = response_format(common.response_format.as_ref())?;
        Self::one_of(asked.into_iter().chain(vllm(common)?))
    }

    /// The form that a format asks for whose schema stands beside its type.
    pub(super) fn flat(
        fields: &Fields,
        kind: &str,
        schema: Option<&Value>,
    ) -> Result<Option<Self>, ApiError> {
        let schema = schema.filter(|schema| !schema.is_null());
        if schema.is_some_and(|schema| !schema.is_object()) {
            let field = fields.schema;
            return Err(ApiError::invalid(field, format!("'{field}' must be an object")));
        }
        match (kind, schema) {
            ("text", _) => Ok(None),
            // LoRAX writes it like that.
            ("json_object", Some(Value::Object(given))) if given.is_empty() => {
                Ok(Some(Self::new(fields.whole, Form::object())))
            }
            ("json_object" | "json_schema", Some(schema)) => {
                Ok(Some(Self::new(fields.schema, Form::Schema(schema.clone()))))
            }
            ("json_object", None) => Ok(Some(Self::new(fields.whole, Form::object()))),
            ("json_schema", None) => {
                let field = fields.schema;
                Err(ApiError::invalid(field, format!("'{field}' is missing")))
            }
            (_, _) => {
                let field = fields.kind;
                let message = format!("'{field}' must be text, json_object or json_schema");
                Err(ApiError::invalid(field, message))
            }
        }
    }

    /// The only one there is; two are refused.
    pub(super) fn one_of(all: impl IntoIterator<Item = Self>) -> Result<Option<Self>, ApiError> {
        let mut all = all.into_iter();
        let first = all.next();
        if let (Some(first), Some(second)) = (&first, all.next()) {
            let message =
                format!("'{}' and '{}' cannot both be followed", first.field, second.field);
            return Err(ApiError::invalid(second.field, message));
        }
        Ok(first)
    }

    /// Refuses it where calls must come, unless it is of the text alone: there is none then.
    pub(super) fn beside_calls(self) -> Result<(), ApiError> {
        if self.reach == Reach::Text {
            return Ok(());
        }
        let message = format!("'{}' and a call that must come cannot both be followed", self.field);
        Err(ApiError::invalid(self.field, message))
    }

    /// The same, or calls of tools.
    pub(super) fn or_calls(self, calls: Calls) -> Result<Self, ApiError> {
        let Form::Schema(schema) = self.form else {
            let message = format!("'{}' and 'tools' cannot both be followed", self.field);
            return Err(ApiError::invalid(self.field, message));
        };
        Ok(Self { form: Form::Calls(calls, Some(schema)), ..self })
    }

    /// Begins it. That may take some tenths of a second, for which there is [`super::desks::Desks::compile`].
    pub(super) fn begin(&self, text: &Text) -> Result<Walk, ApiError> {
        text.form(&self.form).map_err(|bad| {
            let message = format!("'{}' cannot be followed: {bad}", self.field);
            ApiError::invalid(self.field, message)
        })
    }
}

fn response_format(format: Option<&Object<ResponseFormat>>) -> Result<Option<Asked>, ApiError> {
    let Some(Object(ResponseFormat { kind, json_schema, schema })) = format else {
        return Ok(None);
    };
    match (kind.as_str(), json_schema) {
        ("json_schema", Some(Object(given))) => {
            let form = given.schema.clone().map_or_else(Form::object, Form::Schema);
            Ok(Some(Asked::new("response_format.json_schema.schema", form)))
        }
        ("json_schema", None) => {
            let field = "response_format.json_schema";
            Err(ApiError::invalid(field, format!("'{field}' is missing")))
        }
        // Older servers take a schema beside `json_object`.
        (kind, _) => Asked::flat(&Fields::CHATS, kind, schema.as_ref()),
    }
}

/// What vLLM's fields ask for, of the older kind and of the newer.
fn vllm(common: &Common) -> Result<Vec<Asked>, ApiError> {
    let mut asked = Vec::new();
    let reach = Reach::Everything;
    let mut ask =
        |field, form: Option<Form>| asked.extend(form.map(|form| Asked { field, form, reach }));
    ask(
        "guided_json",
        common.guided_json.as_ref().map(|given| schema("guided_json", given)).transpose()?,
    );
    ask("guided_regex", common.guided_regex.clone().map(Form::Regex));
    ask("guided_choice", common.guided_choice.clone().map(Form::Choice));
    ask("guided_grammar", common.guided_grammar.clone().map(Form::Grammar));
    let Some(Object(newer)) = &common.structured_outputs else { return Ok(asked) };
    for (field, given) in newer.unsupported() {
        if !given.as_ref().is_none_or(Weight::is_nothing) {
            return Err(ApiError::unsupported(field));
        }
    }
    let json = newer.json.as_ref().map(|given| schema("structured_outputs.json", given));
    ask("structured_outputs.json", json.transpose()?);
    ask("structured_outputs.regex", newer.regex.clone().map(Form::Regex));
    ask("structured_outputs.choice", newer.choice.clone().map(Form::Choice));
    ask("structured_outputs.grammar", newer.grammar.clone().map(Form::Grammar));
    let object = newer.json_object.filter(|object| *object).map(|_| Form::object());
    ask("structured_outputs.json_object", object);
    Ok(asked)
}

/// vLLM takes a schema as JSON or as a text that is JSON.
fn schema(field: &'static str, given: &Value) -> Result<Form, ApiError> {
    let Value::String(text) = given else { return Ok(Form::Schema(given.clone())) };
    let schema = serde_json::from_str(text);
    schema.map(Form::Schema).map_err(|error| {
        ApiError::invalid(field, format!("'{field}' is a text that is no JSON: {error}"))
    })
}

/// A form as the engine follows it.
#[derive(Debug)]
pub(super) struct FormGuide(pub(super) Walk);

impl Guide for FormGuide {
    fn after(&mut self, token: Option<u32>) -> Result<Allowed, Lost> {
        match self.0.after(token) {
            Ok(Ways::None) => Ok(Allowed::Nothing),
            Ok(Ways::Some(words, may_end)) => Ok(Allowed::Tokens(TokenSet { words, may_end })),
            Err(too_complex) => {
                tracing::debug!(%too_complex, "an answer is given up");
                Err(Lost)
            }
        }
    }
}

//! Beeline's own file: `BeelineConfiguration`, `beeline.io/v1alpha1`. Its fields are the options
//! of `beeline run`, by their names without dashes: `socketLb` is `--socket-lb`.

use std::path::Path;

use clap::{Arg, ArgAction, Command};
use serde_json::Value;

use super::document::{File, FileError};
use super::flags::{self, BOOL};

/// `apiVersion` of Beeline's file.
pub(super) const API_VERSION: &str = "beeline.io/v1alpha1";
/// `kind` of Beeline's file.
pub(super) const KIND: &str = "BeelineConfiguration";
/// Beeline's file beside kube-proxy's, if none is named.
pub(super) const FILE_NAME: &str = "beeline.yaml";

/// Options that are about the files themselves, or about what the command is to do.
const OF_COMMAND: [&str; 7] = [
    "beeline-config",
    "cleanup",
    "config",
    "help",
    "init-only",
    "version",
    "write-config-to",
];

/// One field's values, as options would have them.
#[derive(Debug)]
pub(super) struct Field {
    /// The option's name.
    pub(super) option: String,
    /// Its path in the file and its value.
    pub(super) values: Vec<(String, String)>,
}

/// Whether an option is a setting, and so a field of the file.
pub(super) fn is_setting(arg: &Arg) -> bool {
    arg.get_long()
        .is_some_and(|name| !OF_COMMAND.contains(&name) && flags::find(name).is_none())
}

/// The name of the field for an option.
pub fn field_name(option: &str) -> String {
    let mut words = option.split('-');
    let mut name = words.next().unwrap_or_default().to_owned();
    for word in words {
        let (first, rest) = word.split_at(1.min(word.len()));
        name += &first.to_uppercase();
        name += rest;
    }
    name
}

/// The fields that a file sets; there is one for each setting of `command`.
pub(super) fn fields(file: &File, command: &Command) -> Result<Vec<Field>, FileError> {
    let object = file.object(API_VERSION, KIND)?;
    let fields = object.as_object().into_iter().flatten();
    let fields = fields.filter(|(name, _)| !["apiVersion", "kind"].contains(&name.as_str()));
    fields
        .map(|(name, value)| field(&file.path, command, name, value))
        .collect()
}

fn field(path: &Path, command: &Command, name: &str, value: &Value) -> Result<Field, FileError> {
    let named =
        |arg: &&Arg| is_setting(arg) && arg.get_long().map(field_name).as_deref() == Some(name);
    let arg = command.get_arguments().find(named);
    let arg = arg.ok_or_else(|| FileError::field(path, name, "unknown field"))?;
    let values = values(arg, name, value)
        .map_err(|(field, message)| FileError::field(path, &field, message))?;
    for (field, value) in &values {
        check(arg, value).map_err(|message| FileError::field(path, field, message))?;
    }
    Ok(Field {
        option: arg.get_long().unwrap_or_default().to_owned(),
        values,
    })
}

type Values = Vec<(String, String)>;

/// The texts that a value stands for, each with its path.
fn values(arg: &Arg, name: &str, value: &Value) -> Result<Values, (String, String)> {
    let form = Form::of(arg);
    let texts = match (value, form) {
        (Value::Null, _) => Vec::new(),
        (Value::Array(elements), Form::List | Form::Map) => {
            let texts = elements.iter().enumerate().map(|(index, element)| {
                let path = format!("{name}[{index}]");
                match element.as_str() {
                    Some(text) => Ok((path, text.to_owned())),
                    None => Err(wrong(&path, element, "a text")),
                }
            });
            texts.collect::<Result<_, _>>()?
        }
        (Value::Object(entries), Form::Map) => {
            let texts = entries.iter().map(|(key, entry)| {
                let path = format!("{name}.{key}");
                match entry {
                    Value::String(text) => Ok((path, format!("{key}={text}"))),
                    Value::Bool(_) | Value::Number(_) => Ok((path, format!("{key}={entry}"))),
                    Value::Null | Value::Array(_) | Value::Object(_) => {
                        Err(wrong(&path, entry, "a single value"))
                    }
                }
            });
            texts.collect::<Result<_, _>>()?
        }
        (Value::String(text), Form::Text | Form::List | Form::Map) => {
            vec![(name.to_owned(), text.clone())]
        }
        (Value::Bool(is_on), Form::Switch) => vec![(name.to_owned(), is_on.to_string())],
        (Value::Number(number), Form::Number) => vec![(name.to_owned(), number.to_string())],
        (other, form) => return Err(wrong(name, other, form.expected())),
    };
    Ok(match (is_repeated(arg), &*texts) {
        (false, [_, _, ..]) => {
            let texts: Vec<_> = texts.into_iter().map(|(_, text)| text).collect();
            vec![(name.to_owned(), texts.join(","))]
        }
        _ => texts,
    })
}

/// A field, and why its value cannot be.
fn wrong(path: &str, value: &Value, expected: &str) -> (String, String) {
    let message = format!("invalid type: {value}, expected {expected}");
    (path.to_owned(), message)
}

/// Whether each value is an option of its own; else they are one, with commas.
fn is_repeated(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Append)
}

/// What a field may be.
#[derive(Clone, Copy)]
enum Form {
    Switch,
    Number,
    Text,
    List,
    Map,
}

impl Form {
    /// What an option calls its value says what it is.
    fn of(arg: &Arg) -> Self {
        let name = arg.get_value_names().and_then(|names| names.first());
        match name.map(|name| name.as_str()) {
            Some(BOOL) => Self::Switch,
            Some("N") => Self::Number,
            Some(name) if name.contains('=') => Self::Map,
            Some(name) if name.contains('…') || is_repeated(arg) => Self::List,
            Some(_) | None => Self::Text,
        }
    }

    const fn expected(self) -> &'static str {
        match self {
            Self::Switch => "true or false",
            Self::Number => "a number",
            Self::Text => "a text",
            Self::List => "a text or a list of texts",
            Self::Map => "a text, a list of texts or an object",
        }
    }
}

/// Whether the option takes the value; if not, why.
pub(super) fn check(arg: &Arg, value: &str) -> Result<(), String> {
    let option = format!("--{}={value}", arg.get_long().unwrap_or_default());
    let command = Command::new("").no_binary_name(true).arg(arg.clone());
    match command.try_get_matches_from([option]) {
        Ok(_) => Ok(()),
        Err(error) => Err(complaint(arg, value, &error)),
    }
}

fn complaint(arg: &Arg, value: &str, error: &clap::Error) -> String {
    if let Some(source) = std::error::Error::source(error) {
        return format!("invalid value {value:?}: {source}");
    }
    let possible: Vec<_> = arg.get_possible_values();
    let possible: Vec<_> = possible.iter().map(|value| value.get_name()).collect();
    match possible.is_empty() {
        true => format!("invalid value {value:?}"),
        false => format!(
            "invalid value {value:?}, expected one of {}",
            possible.join(", ")
        ),
    }
}

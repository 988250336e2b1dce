//! A configuration file's text into the object in it.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// A configuration file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not what it should be as a whole.
    #[error("{}: {message}", path.display())]
    Text {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A field is not there, is unknown, or has a value that it cannot have.
    #[error("{}: {field}: {message}", path.display())]
    Field {
        /// Which file.
        path: PathBuf,
        /// The field's path in it, such as `conntrack.min`.
        field: String,
        /// What is wrong.
        message: String,
    },
}

impl FileError {
    /// About a field of the file at `path`.
    pub(super) fn field(path: &Path, field: &str, message: impl Into<String>) -> Self {
        Self::Field {
            path: path.to_owned(),
            field: field.to_owned(),
            message: message.into(),
        }
    }

    fn text(path: &Path, message: impl Into<String>) -> Self {
        Self::Text {
            path: path.to_owned(),
            message: message.into(),
        }
    }
}

/// A configuration file as it was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct File {
    /// Where it is.
    pub path: PathBuf,
    /// What is in it.
    pub content: Vec<u8>,
}

impl File {
    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        let path = path.to_owned();
        match std::fs::read(&path) {
            Ok(content) => Ok(Self { path, content }),
            Err(source) => Err(FileError::Read { path, source }),
        }
    }

    /// The one object in it, which is to be of this kind; in YAML or JSON.
    pub(super) fn object(&self, api_version: &str, kind: &str) -> Result<Value, FileError> {
        parse(&self.path, &self.content, api_version, kind)
    }
}

fn parse(path: &Path, content: &[u8], api_version: &str, kind: &str) -> Result<Value, FileError> {
    let text = std::str::from_utf8(content)
        .map_err(|error| FileError::text(path, format!("not UTF-8 text: {error}")))?;
    let options = serde_saphyr::options! { with_snippet: false };
    let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(text, options)
        .map_err(|error| FileError::text(path, complaint(&error)))?;
    let mut documents = documents.into_iter().filter(|document| !document.is_null());
    let object = match (documents.next(), documents.next()) {
        (Some(Value::Object(object)), None) => object,
        (Some(_), None) => return Err(FileError::text(path, "no object, but a mere value")),
        (None, _) => return Err(FileError::text(path, format!("empty; {kind} is expected"))),
        (Some(_), Some(_)) => {
            return Err(FileError::text(path, "several documents; one is expected"));
        }
    };
    expect(path, &object, "apiVersion", api_version)?;
    expect(path, &object, "kind", kind)?;
    Ok(Value::Object(object))
}

fn complaint(error: &serde_saphyr::Error) -> String {
    let message = error.render_with_formatter(&serde_saphyr::UserMessageFormatter);
    message.lines().next().unwrap_or_default().to_owned()
}

fn expect(
    path: &Path,
    object: &Map<String, Value>,
    field: &str,
    expected: &str,
) -> Result<(), FileError> {
    let message = match object.get(field) {
        Some(Value::String(text)) if text == expected => return Ok(()),
        Some(other) => format!("{other} is given, {expected:?} is expected"),
        None => format!("missing; {expected:?} is expected"),
    };
    Err(FileError::field(path, field, message))
}

/// The object as a `T`; errors have the path of the field that they are about.
pub(super) fn typed<T: DeserializeOwned>(path: &Path, object: &Value) -> Result<T, FileError> {
    serde_path_to_error::deserialize(object).map_err(|error| {
        let parent = error.path().to_string();
        let message = error.inner().to_string();
        let unknown = message.strip_prefix("unknown field `");
        match unknown.and_then(|rest| rest.split_once('`')) {
            Some((name, _)) if parent == "." => FileError::field(path, name, "unknown field"),
            // The path may have the unknown field itself already.
            Some((name, _)) if parent.ends_with(&format!(".{name}")) || parent == name => {
                FileError::field(path, &parent, "unknown field")
            }
            Some((name, _)) => FileError::field(path, &format!("{parent}.{name}"), "unknown field"),
            None => FileError::field(path, &parent, message),
        }
    })
}

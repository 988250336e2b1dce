//! Kubernetes objects into what matters of them. Pure.
//!
//! An object that is malformed in part is used for the rest (rule R172): every reading yields
//! what could be understood together with the fields that could not.

mod address;
mod node;
mod pod;
mod service;
mod service_cidr;
mod slice;

use std::collections::HashSet;
use std::fmt::{self, Display};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use proxy_common::abi::Protocol;

use crate::model::ObjectName;

pub use node::node;
pub use pod::pod;
pub use service::service;
pub use service_cidr::service_cidr;
pub use slice::endpoint_slice;

/// What was read from one object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parsed<T> {
    /// What matters of it; `None` if there is nothing in it for a proxy.
    pub object: Option<T>,
    /// The fields that were left out because they are malformed.
    pub errors: Vec<FieldError>,
}

impl<T> Parsed<T> {
    /// An object that is none of ours.
    pub const NOT_OURS: Self = Self {
        object: None,
        errors: Vec::new(),
    };

    /// An object that is useless because of `error`.
    pub fn malformed(error: FieldError) -> Self {
        Self {
            object: None,
            errors: vec![error],
        }
    }

    /// The same with another type for the object.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Parsed<U> {
        Parsed {
            object: self.object.map(f),
            errors: self.errors,
        }
    }
}

/// A field that was not understood.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{path}: {message}")]
pub struct FieldError {
    /// Where it is in the object: `spec.ports[1].protocol`.
    pub path: String,
    /// What is wrong with it.
    pub message: String,
}

impl FieldError {
    /// The error that `message` says of the field at `path`.
    pub fn new(path: impl Display, message: impl Display) -> Self {
        Self {
            path: path.to_string(),
            message: message.to_string(),
        }
    }
}

/// Strings of which one copy serves all objects.
///
/// Names of nodes, namespaces, zones and ports repeat with every endpoint; shared, they cost two
/// words each.
#[derive(Default, Debug)]
pub struct Strings {
    known: HashSet<Arc<str>>,
    sweep_at: usize,
}

impl Strings {
    /// The shared copy of `text`.
    pub fn share(&mut self, text: &str) -> Arc<str> {
        if let Some(shared) = self.known.get(text) {
            return Arc::clone(shared);
        }
        if self.known.len() >= self.sweep_at {
            self.sweep();
        }
        let shared: Arc<str> = text.into();
        self.known.insert(Arc::clone(&shared));
        shared
    }

    /// Forgets what nobody else holds. The interval doubles with what is left, so that sweeping
    /// costs a constant share of inserting.
    fn sweep(&mut self) {
        const LEAST: usize = 1024;
        self.known.retain(|text| Arc::strong_count(text) > 1);
        self.sweep_at = LEAST.max(2 * self.known.len());
    }
}

/// Namespace and name of the object with this metadata; an absent namespace reads as `default`.
///
/// # Errors
///
/// The object has no name.
pub fn object_name(strings: &mut Strings, metadata: &ObjectMeta) -> Result<ObjectName, FieldError> {
    let name = not_empty(metadata.name.as_deref())
        .ok_or_else(|| FieldError::new("metadata.name", "missing"))?;
    let namespace = not_empty(metadata.namespace.as_deref()).unwrap_or("default");
    Ok(ObjectName {
        namespace: strings.share(namespace),
        name: strings.share(name),
    })
}

/// The errors of one object while it is being read.
#[derive(Default)]
struct Errors(Vec<FieldError>);

impl Errors {
    fn add(&mut self, path: impl Display, message: impl Display) {
        self.0.push(FieldError::new(path, message));
    }

    /// `value`, or nothing and an error noted under `path`.
    fn check<T>(&mut self, path: impl Display, value: Result<T, String>) -> Option<T> {
        value.map_err(|message| self.add(path, message)).ok()
    }
}

fn not_empty(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}

fn label<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    metadata.labels.as_ref()?.get(key).map(String::as_str)
}

/// An absent protocol reads as TCP, the API's default.
fn protocol(text: Option<&str>) -> Result<Protocol, String> {
    match text {
        None | Some("TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(format!("unknown protocol '{other}'")),
    }
}

fn port(number: i32) -> Result<u16, String> {
    match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        Ok(_) | Err(_) => Err(format!("{number} is not a port (1 to 65535)")),
    }
}

/// The items of an optional list.
fn each<T>(list: Option<&Vec<T>>) -> impl Iterator<Item = (usize, &T)> {
    list.into_iter().flatten().enumerate()
}

/// `spec.ports[3]`, for errors.
#[derive(Clone, Copy)]
struct Item(&'static str, usize);

impl Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.0, self.1)
    }
}

#[cfg(test)]
mod tests;

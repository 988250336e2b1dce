//! The text of one file into what it defines. Pure.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::{
    core::v1 as core, discovery::v1 as discovery, networking::v1 as networking,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;
use serde_saphyr::{MergeKeyPolicy, NonFiniteFloatPolicy};
use tracing::debug;

use super::locate::{Place, Places};
use crate::model::{Event, ObjectName};
use crate::source::ledger::{Key, Kind};
use crate::source::parse::{self, FieldError, Parsed, Strings};

/// What one object of a file says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Definition {
    /// Announces what was understood of it; `None` if it is none of ours.
    pub(super) event: Option<Event>,
    /// What was not understood, with file and line.
    pub(super) errors: Vec<String>,
}

/// The objects of one file.
pub(super) type Definitions = BTreeMap<Key, Definition>;

/// How the parser is told to read YAML: files are an administrator's own and may be large, but
/// keep the bounds on what aliases can blow up.
pub(super) fn yaml() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: None,
        with_snippet: false,
        merge_keys: MergeKeyPolicy::Merge,
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
    }
}

/// What of a file matters beside Services, EndpointSlices and ServiceCIDRs.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// The Node of this name, and none of other nodes' Pods.
    pub(super) node: Arc<str>,
    /// Pods.
    pub(super) pods: bool,
}

/// What the file at `path` with this content defines, as far as it is `wanted`.
///
/// # Errors
///
/// The text does not parse, or an object in it has a field of the wrong type. The message names
/// file, line and field. Nothing of such a file counts.
pub(super) fn read(
    path: &Path,
    content: &[u8],
    wanted: &Wanted,
    strings: &mut Strings,
) -> Result<Definitions, String> {
    let text = std::str::from_utf8(content).map_err(|error| {
        let line = 1 + content
            .iter()
            .take(error.valid_up_to())
            .filter(|&&b| b == b'\n')
            .count();
        format!("{}:{line}: not UTF-8 text", path.display())
    })?;
    let mut file = File {
        path,
        text,
        wanted,
        strings,
        definitions: Definitions::new(),
        places: OnceCell::new(),
    };
    if path
        .extension()
        .is_some_and(|extension| extension == "json")
    {
        file.read_json()?;
    } else {
        file.read_yaml()?;
    }
    Ok(file.definitions)
}

struct File<'a> {
    path: &'a Path,
    text: &'a str,
    wanted: &'a Wanted,
    strings: &'a mut Strings,
    definitions: Definitions,
    /// Looked up once something is wrong.
    places: OnceCell<Places>,
}

/// Where an object is: the document's number and the path to it in a list, with a dot at the end.
#[derive(Clone, Copy)]
struct Position<'a> {
    document: usize,
    prefix: &'a str,
}

impl File<'_> {
    fn read_yaml(&mut self) -> Result<(), String> {
        let mut bytes = self.text.as_bytes();
        let documents = serde_saphyr::read_with_options(&mut bytes, yaml());
        for (document, value) in documents.enumerate() {
            let value = value.map_err(|error| self.yaml_error(&error))?;
            self.document(document, value)?;
        }
        Ok(())
    }

    fn read_json(&mut self) -> Result<(), String> {
        let text = self.text.trim_start_matches('\u{feff}');
        let documents = serde_json::Deserializer::from_str(text).into_iter::<&RawValue>();
        for (document, raw) in documents.enumerate() {
            let raw = raw.map_err(|error| {
                let place = Place {
                    line: error.line() as u64,
                    column: error.column() as u64,
                };
                self.error(Some(place), json_message(&error))
            })?;
            self.json_document(document, raw)?;
        }
        Ok(())
    }

    /// Large lists are taken apart item by item: values take ten times the room of their text.
    fn json_document(&mut self, document: usize, raw: &RawValue) -> Result<(), String> {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct List<'a> {
            api_version: &'a str,
            kind: &'a str,
            #[serde(borrow)]
            items: Vec<&'a RawValue>,
        }
        let value = |raw: &RawValue| serde_json::from_str(raw.get()).unwrap_or_default();
        let Ok(list) = serde_json::from_str::<List<'_>>(raw.get()) else {
            return self.document(document, value(raw));
        };
        let Some(item_kind) = list_of(self.wanted, list.api_version, list.kind) else {
            return Ok(());
        };
        for (i, item) in list.items.into_iter().enumerate() {
            let position = Position {
                document,
                prefix: &format!("items[{i}]."),
            };
            self.object(position, item_kind, value(item))?;
        }
        Ok(())
    }

    fn document(&mut self, document: usize, value: Value) -> Result<(), String> {
        if value.is_null() {
            return Ok(());
        }
        self.object(
            Position {
                document,
                prefix: "",
            },
            None,
            value,
        )
    }

    /// Reads one object, or those of a list. `item_kind` is that of a list's items, which need
    /// not repeat it.
    fn object(
        &mut self,
        position: Position<'_>,
        item_kind: Option<Type>,
        mut value: Value,
    ) -> Result<(), String> {
        let Value::Object(fields) = &mut value else {
            return Err(self.field_error(position, &FieldError::new("", "not a Kubernetes object")));
        };
        let (version, kind) =
            type_of(fields, item_kind).map_err(|error| self.field_error(position, &error))?;
        if let Some(item_kind) = list_of(self.wanted, &version, &kind) {
            return self.list(position, item_kind, value);
        }
        match (version.as_str(), kind.as_str()) {
            ("v1", "Service") => self.service(position, value),
            ("v1", "Node") => self.node(position, value),
            ("v1", "Pod") if self.wanted.pods => self.pod(position, value),
            ("discovery.k8s.io/v1", "EndpointSlice") => self.slice(position, value),
            (SERVICE_CIDR | SERVICE_CIDR_BETA, "ServiceCIDR") => self.service_cidr(position, value),
            (old, "EndpointSlice") if old.starts_with("discovery.k8s.io/") => {
                let message =
                    format!("'{old}' is not served any more, expected discovery.k8s.io/v1");
                Err(self.field_error(position, &FieldError::new("apiVersion", message)))
            }
            _ => {
                debug!(file = %self.path.display(), version, kind, "kind passed over");
                Ok(())
            }
        }
    }

    fn list(
        &mut self,
        position: Position<'_>,
        item_kind: Option<Type>,
        mut value: Value,
    ) -> Result<(), String> {
        let items = match value.get_mut("items").map(Value::take) {
            None | Some(Value::Null) => return Ok(()),
            Some(Value::Array(items)) => items,
            Some(_) => {
                return Err(self.field_error(position, &FieldError::new("items", "not a list")));
            }
        };
        for (i, item) in items.into_iter().enumerate() {
            let prefix = format!("{}items[{i}].", position.prefix);
            let position = Position {
                prefix: &prefix,
                ..position
            };
            self.object(position, item_kind, item)?;
        }
        Ok(())
    }

    fn service(&mut self, position: Position<'_>, value: Value) -> Result<(), String> {
        let mut object: core::Service = self.decode(position, value)?;
        let missing = complete_service(&mut object);
        let name = self.name(position, &object.metadata)?;
        let mut parsed = parse::service(self.strings, name.clone(), &object);
        parsed.errors.extend(missing);
        self.define(position, Kind::Service, name, parsed.map(Event::Service));
        Ok(())
    }

    fn slice(&mut self, position: Position<'_>, value: Value) -> Result<(), String> {
        let mut object: discovery::EndpointSlice = self.decode(position, value)?;
        complete_slice(&mut object);
        let name = self.name(position, &object.metadata)?;
        let parsed = parse::endpoint_slice(self.strings, name.clone(), &object);
        self.define(
            position,
            Kind::EndpointSlice,
            name,
            parsed.map(Event::Slice),
        );
        Ok(())
    }

    fn node(&mut self, position: Position<'_>, value: Value) -> Result<(), String> {
        let object: core::Node = self.decode(position, value)?;
        let name = self.name(position, &object.metadata)?;
        if name.name == self.wanted.node {
            let parsed = parse::node(self.strings, name.clone(), &object);
            self.define(position, Kind::Node, name, parsed.map(Event::Node));
        }
        Ok(())
    }

    /// A Pod that names no node is meant for this one, as the kubelet's own manifests are.
    fn pod(&mut self, position: Position<'_>, value: Value) -> Result<(), String> {
        let object: PodManifest = self.decode(position, value)?;
        let name = self.name(position, &object.metadata)?;
        let node = object.spec.and_then(|spec| spec.node_name);
        let node = node.unwrap_or_default();
        if node.is_empty() || *node == *self.wanted.node {
            let parsed = parse::pod(self.strings, name.clone(), &object.metadata);
            self.define(position, Kind::Pod, name, parsed.map(Event::Pod));
        }
        Ok(())
    }

    fn service_cidr(&mut self, position: Position<'_>, mut value: Value) -> Result<(), String> {
        // The two versions differ in name only.
        value["apiVersion"] = SERVICE_CIDR.into();
        let object: networking::ServiceCIDR = self.decode(position, value)?;
        let name = self.name(position, &object.metadata)?;
        let parsed = parse::service_cidr(&object).map(Event::ServiceCidrs);
        self.define(position, Kind::ServiceCidr, name, parsed);
        Ok(())
    }

    fn decode<K: DeserializeOwned>(
        &self,
        position: Position<'_>,
        value: Value,
    ) -> Result<K, String> {
        serde_path_to_error::deserialize(value).map_err(|error| {
            let field = FieldError::new(error.path(), error.inner());
            self.field_error(position, &field)
        })
    }

    fn name(
        &mut self,
        position: Position<'_>,
        metadata: &ObjectMeta,
    ) -> Result<ObjectName, String> {
        parse::object_name(self.strings, metadata)
            .map_err(|error| self.field_error(position, &error))
    }

    fn define(
        &mut self,
        position: Position<'_>,
        kind: Kind,
        name: ObjectName,
        parsed: Parsed<Event>,
    ) {
        let key = Key { kind, name };
        if self.definitions.contains_key(&key) {
            let again = FieldError::new("", "defined a second time; the first counts");
            let again = self.field_error(position, &again);
            self.definitions
                .entry(key)
                .and_modify(|first| first.errors.push(again));
        } else {
            let errors = parsed.errors.iter();
            let errors = errors
                .map(|error| self.field_error(position, error))
                .collect();
            self.definitions.insert(
                key,
                Definition {
                    event: parsed.object,
                    errors,
                },
            );
        }
    }

    fn field_error(&self, position: Position<'_>, error: &FieldError) -> String {
        let path = format!("{}{}", position.prefix, error.path);
        let path = path.trim_end_matches('.');
        let places = self.places.get_or_init(|| Places::of(self.text));
        let place = places.find(position.document, path);
        if path.is_empty() {
            self.error(place, error.message.clone())
        } else {
            self.error(place, format!("{path}: {}", error.message))
        }
    }

    fn yaml_error(&self, error: &serde_saphyr::Error) -> String {
        let place = error.location().map(|at| Place {
            line: at.line(),
            column: at.column(),
        });
        let message = error.render_with_formatter(&serde_saphyr::UserMessageFormatter);
        // The place comes first here.
        let message = message
            .split(" at line ")
            .next()
            .unwrap_or_default()
            .to_owned();
        self.error(place, message)
    }

    fn error(&self, place: Option<Place>, message: String) -> String {
        match place {
            Some(place) => format!("{}:{place}: {message}", self.path.display()),
            None => format!("{}: {message}", self.path.display()),
        }
    }
}

/// What is read of a Pod; errors in what its containers are do not matter here.
#[derive(serde::Deserialize)]
struct PodManifest {
    #[serde(default)]
    metadata: ObjectMeta,
    spec: Option<PodSpec>,
}

/// The one field that matters.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    node_name: Option<String>,
}

/// The versions in which there are ServiceCIDRs.
const SERVICE_CIDR: &str = "networking.k8s.io/v1";
const SERVICE_CIDR_BETA: &str = "networking.k8s.io/v1beta1";

/// `apiVersion` and `kind`.
type Type = (&'static str, &'static str);

/// What a list of this type holds, if it is one to read: anything, or one type.
fn list_of(wanted: &Wanted, version: &str, kind: &str) -> Option<Option<Type>> {
    match (version, kind) {
        ("v1", "List") => Some(None),
        ("v1", "ServiceList") => Some(Some(("v1", "Service"))),
        ("v1", "NodeList") => Some(Some(("v1", "Node"))),
        ("v1", "PodList") if wanted.pods => Some(Some(("v1", "Pod"))),
        ("discovery.k8s.io/v1", "EndpointSliceList") => {
            Some(Some(("discovery.k8s.io/v1", "EndpointSlice")))
        }
        (SERVICE_CIDR, "ServiceCIDRList") => Some(Some((SERVICE_CIDR, "ServiceCIDR"))),
        (SERVICE_CIDR_BETA, "ServiceCIDRList") => Some(Some((SERVICE_CIDR_BETA, "ServiceCIDR"))),
        _ => None,
    }
}

/// `apiVersion` and `kind`, or those that the list around says.
fn type_of(
    fields: &serde_json::Map<String, Value>,
    item_kind: Option<Type>,
) -> Result<(String, String), FieldError> {
    let field = |name: &str, default: Option<&str>| match (fields.get(name), default) {
        (Some(Value::String(text)), _) => Ok(text.clone()),
        (None | Some(Value::Null), Some(default)) => Ok(default.to_owned()),
        (None | Some(Value::Null), None) => Err(FieldError::new(name, "missing")),
        (Some(_), _) => Err(FieldError::new(name, "not a string")),
    };
    Ok((
        field("apiVersion", item_kind.map(|(version, _)| version))?,
        field("kind", item_kind.map(|(_, kind)| kind))?,
    ))
}

/// Fills in what an API server would: people write one of `clusterIP` and `clusterIPs`, and no
/// families. What it would allocate can't be filled in, and is an error.
fn complete_service(object: &mut core::Service) -> Option<FieldError> {
    let spec = object.spec.get_or_insert_default();
    let addresses = spec.cluster_ips.get_or_insert_default();
    let families = spec.ip_families.get_or_insert_default();
    let first = spec.cluster_ip.as_ref().filter(|text| !text.is_empty());
    match (first, addresses.first()) {
        (None, address) => spec.cluster_ip = address.cloned(),
        (Some(address), None) if !families.is_empty() => addresses.push(address.clone()),
        (Some(_), _) => {}
    }
    if families.is_empty() {
        let family = |text: &String| if text.contains(':') { "IPv6" } else { "IPv4" };
        families.extend(addresses.iter().map(|text| family(text).to_owned()));
    }
    (spec.cluster_ip.is_none() && spec.type_.as_deref() != Some("ExternalName")).then(|| {
        FieldError::new(
            "spec.clusterIP",
            "missing, and no API server is there to allocate one",
        )
    })
}

/// Fills in what an API server would: the name of a port without name is "" (rule R14).
fn complete_slice(object: &mut discovery::EndpointSlice) {
    for port in object.ports.iter_mut().flatten() {
        port.name.get_or_insert_default();
    }
}

/// The message without its place, which comes first here.
fn json_message(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    message.strip_suffix(&place).unwrap_or(&message).to_owned()
}

#[cfg(test)]
mod tests;

//! What the API server holds, and what the source makes of it.

use std::collections::{BTreeMap, BTreeSet};

use beeline::model::{Event, ObjectName};
use beeline::source::parse::{self, Parsed, Strings};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::case::{Manifest, ObjectKind, Objects, Reference};

/// Which order the events of one batch come in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Order {
    /// That of the case.
    AsGiven,
    /// The other way round.
    Reversed,
}

impl Order {
    pub(super) const ALL: [Self; 2] = [Self::AsGiven, Self::Reversed];

    fn arrange<T>(self, mut list: Vec<T>) -> Vec<T> {
        if self == Self::Reversed {
            list.reverse();
        }
        list
    }
}

/// Kind, namespace and name.
type Key = (ObjectKind, String, String);

/// The objects that are there.
pub(super) struct Store {
    objects: BTreeMap<Key, Manifest>,
    strings: Strings,
    /// Those that were announced: of others nobody hears that they go.
    announced: BTreeSet<Key>,
    node: String,
}

impl Store {
    /// The objects of the start, and the events that tell of them.
    pub(super) fn new(objects: &Objects, node: &str, order: Order) -> (Self, Vec<Event>) {
        let kinds = [
            (ObjectKind::Service, &objects.services),
            (ObjectKind::EndpointSlice, &objects.endpoint_slices),
            (ObjectKind::Node, &objects.nodes),
        ];
        let all = kinds.into_iter().flat_map(|(kind, list)| {
            list.iter()
                .map(move |manifest| (key(kind, manifest), manifest.clone()))
        });
        let mut store = Self {
            objects: BTreeMap::new(),
            strings: Strings::default(),
            announced: BTreeSet::new(),
            node: node.to_owned(),
        };
        let mut events = Vec::new();
        for (key, manifest) in order.arrange(all.collect()) {
            events.extend(store.put(key, manifest));
        }
        (store, events)
    }

    /// Deletes and applies objects; yields the events of the batch.
    pub(super) fn change(
        &mut self,
        delete: &[Reference],
        apply: &[Manifest],
        order: Order,
    ) -> Vec<Event> {
        let applied: Vec<(Key, Manifest)> = apply
            .iter()
            .filter_map(|it| Some((key(ObjectKind::of(it)?, it), it.clone())))
            .collect();
        let is_applied = |key: &Key| applied.iter().any(|(it, _)| it == key);
        let deleted = delete.iter().map(reference_key);
        // One that is created anew in the same batch goes before it comes, whatever the order.
        let (renewed, deleted): (Vec<_>, Vec<_>) = deleted.partition(is_applied);
        let mut news = Vec::new();
        for key in renewed {
            news.extend(self.remove(&key));
        }
        let changes = deleted
            .into_iter()
            .map(|key| (key, None))
            .chain(applied.into_iter().map(|(key, it)| (key, Some(it))));
        for (key, manifest) in order.arrange(changes.collect()) {
            news.extend(match manifest {
                Some(manifest) => self.put(key, manifest),
                None => self.remove(&key),
            });
        }
        news
    }

    /// What a source says that starts anew.
    pub(super) fn again(&mut self, order: Order) -> Vec<Event> {
        self.announced.clear();
        let objects: Vec<_> = std::mem::take(&mut self.objects).into_iter().collect();
        let mut news = Vec::new();
        for (key, manifest) in order.arrange(objects) {
            news.extend(self.put(key, manifest));
        }
        news
    }

    fn put(&mut self, key: Key, manifest: Manifest) -> Option<Event> {
        let event = self.read(&key, &manifest);
        let _before = self.objects.insert(key.clone(), manifest);
        match event {
            Read::Ours(event) => {
                let _new = self.announced.insert(key);
                Some(event)
            }
            Read::NotOurs => self.retract(&key),
            Read::Malformed => None,
        }
    }

    fn remove(&mut self, key: &Key) -> Option<Event> {
        let _object = self.objects.remove(key);
        self.retract(key)
    }

    /// An object that was announced is gone, or none of ours any more; what a Node said outlives
    /// it (rule R46).
    fn retract(&mut self, key: &Key) -> Option<Event> {
        if !self.announced.remove(key) {
            return None;
        }
        let name = ObjectName {
            namespace: self.strings.share(&key.1),
            name: self.strings.share(&key.2),
        };
        match key.0 {
            ObjectKind::Service => Some(Event::ServiceGone(name)),
            ObjectKind::EndpointSlice => Some(Event::SliceGone(name)),
            ObjectKind::Node => None,
        }
    }

    /// Reads as the sources do.
    fn read(&mut self, key: &Key, manifest: &Manifest) -> Read {
        let strings = &mut self.strings;
        let value = Value::Object(manifest.clone());
        match key.0 {
            ObjectKind::Service => decoded(strings, value, |strings, name, object: &Service| {
                parse::service(strings, name, object).map(Event::Service)
            }),
            ObjectKind::EndpointSlice => {
                decoded(strings, value, |strings, name, object: &EndpointSlice| {
                    parse::endpoint_slice(strings, name, object).map(Event::Slice)
                })
            }
            // The watch asks for this node's object only.
            ObjectKind::Node if key.2 != self.node => Read::NotOurs,
            ObjectKind::Node => decoded(strings, value, |strings, name, object: &Node| {
                parse::node(strings, name, object).map(Event::Node)
            }),
        }
    }
}

/// What an object says.
enum Read {
    Ours(Event),
    NotOurs,
    /// What it said before stays in force.
    Malformed,
}

fn decoded<K>(
    strings: &mut Strings,
    value: Value,
    read: impl FnOnce(&mut Strings, ObjectName, &K) -> Parsed<Event>,
) -> Read
where
    K: DeserializeOwned + k8s_openapi::Metadata<Ty = ObjectMeta>,
{
    let Ok(object) = serde_json::from_value::<K>(value) else {
        return Read::Malformed;
    };
    let Ok(name) = parse::object_name(strings, object.metadata()) else {
        return Read::Malformed;
    };
    read(strings, name, &object)
        .object
        .map_or(Read::NotOurs, Read::Ours)
}

fn key(kind: ObjectKind, manifest: &Manifest) -> Key {
    let field = |name: &str| {
        let metadata = manifest.get("metadata");
        metadata
            .and_then(|metadata| metadata.get(name)?.as_str())
            .map(str::to_owned)
    };
    (
        kind,
        namespace(kind, field("namespace")),
        field("name").unwrap_or_default(),
    )
}

fn reference_key(reference: &Reference) -> Key {
    (
        reference.kind,
        namespace(reference.kind, reference.metadata.namespace.clone()),
        reference.metadata.name.clone(),
    )
}

fn namespace(kind: ObjectKind, namespace: Option<String>) -> String {
    match kind {
        ObjectKind::Node => String::new(),
        ObjectKind::Service | ObjectKind::EndpointSlice => {
            namespace.unwrap_or_else(|| "default".into())
        }
    }
}

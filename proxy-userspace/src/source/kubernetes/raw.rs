//! Objects that are decoded one by one.
//!
//! Decoded as a whole, a list fails with its first malformed object, and an event of a watch
//! without a word about which object it was.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::de::{Deserialize, DeserializeOwned, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::source::parse::FieldError;

/// An object, or who it is and why it could not be decoded.
#[derive(Clone, Debug)]
pub(super) enum Raw<K> {
    Decoded(Box<K>),
    Refused(Box<Refused>),
}

/// An object that could not be decoded.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    metadata: ObjectMeta,
    pub(super) error: FieldError,
}

impl<'de, K: DeserializeOwned> Deserialize<'de> for Raw<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        match serde_json::from_str(text.get()) {
            Ok(object) => Ok(Self::Decoded(Box::new(object))),
            Err(_) => Ok(Self::Refused(Box::new(refused::<K>(text.get())))),
        }
    }
}

/// Decodes once more, slowly, to find out what is wrong.
fn refused<K: DeserializeOwned>(text: &str) -> Refused {
    let value: Value = serde_json::from_str(text).unwrap_or_default();
    let field = |name: &str| {
        value
            .pointer(name)
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    let metadata = ObjectMeta {
        name: field("/metadata/name"),
        namespace: field("/metadata/namespace"),
        resource_version: field("/metadata/resourceVersion"),
        ..ObjectMeta::default()
    };
    let error = match serde_path_to_error::deserialize::<_, K>(&value) {
        Ok(_) => FieldError::new("", "not decoded"),
        Err(error) => FieldError::new(error.path(), error.inner()),
    };
    Refused { metadata, error }
}

impl<K: Resource> Resource for Raw<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn metadata_api() -> bool {
        K::metadata_api()
    }

    fn kind(dynamic: &Self::DynamicType) -> Cow<'_, str> {
        K::kind(dynamic)
    }

    fn group(dynamic: &Self::DynamicType) -> Cow<'_, str> {
        K::group(dynamic)
    }

    fn version(dynamic: &Self::DynamicType) -> Cow<'_, str> {
        K::version(dynamic)
    }

    fn plural(dynamic: &Self::DynamicType) -> Cow<'_, str> {
        K::plural(dynamic)
    }

    fn meta(&self) -> &ObjectMeta {
        match self {
            Self::Decoded(object) => object.meta(),
            Self::Refused(refused) => &refused.metadata,
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Self::Decoded(object) => object.meta_mut(),
            Self::Refused(refused) => &mut refused.metadata,
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;
    use kube::core::{ObjectList, WatchEvent};

    use super::*;

    const LIST: &str = r#"{"kind": "ServiceList", "apiVersion": "v1",
        "metadata": {"resourceVersion": "7"}, "items": [
        {"metadata": {"name": "a", "managedFields": [{}]}, "spec": {"clusterIP": "10.0.0.1"}},
        {"metadata": {"name": "b", "namespace": "s", "resourceVersion": "5"},
         "spec": {"ports": [{"port": "http"}]}},
        {"metadata": []}, 3, null]}"#;

    #[test]
    fn a_malformed_object_does_not_hide_the_others() {
        let list: ObjectList<Raw<Service>> = serde_json::from_str(LIST).unwrap();
        let line = |raw: &Raw<Service>| match raw {
            Raw::Decoded(_) => format!("{:?}", raw.meta().name),
            Raw::Refused(refused) => {
                let meta = raw.meta();
                let (name, version) = (&meta.name, &meta.resource_version);
                format!("{name:?} {version:?} {}", refused.error)
            }
        };
        let lines: Vec<String> = list.items.iter().map(line).collect();
        assert_eq!(
            lines,
            [
                r#"Some("a")"#,
                r#"Some("b") Some("5") spec.ports[0].port: invalid type: string "http", expected i32"#,
                "None None metadata: invalid type: sequence, expected ObjectMeta",
                "None None .: invalid type: integer `3`, expected Service",
                "None None .: invalid type: null, expected Service",
            ]
        );
    }

    #[test]
    fn events_are_decoded_alike() {
        let text = r#"{"type": "MODIFIED", "object": {"metadata": {"name": "a"}, "spec": 1}}"#;
        let event: WatchEvent<Raw<Service>> = serde_json::from_str(text).unwrap();
        let WatchEvent::Modified(Raw::Refused(refused)) = event else {
            panic!("{event:?}")
        };
        assert_eq!(refused.error.path, "spec");
    }
}

//! Pods.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{FieldError, Parsed, Strings, not_empty};
use crate::model::{ObjectName, Pod};

/// Marks what the API server shows of a static Pod, which has a uid of its own.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// The uid by which the kubelet runs a static Pod.
const STATIC_UID: &str = "kubernetes.io/config.hash";

/// What matters of a Pod; its metadata tell all of it.
pub fn pod(strings: &mut Strings, name: ObjectName, metadata: &ObjectMeta) -> Parsed<Pod> {
    match uid(metadata) {
        Ok(uid) => Parsed {
            object: Some(Pod {
                name,
                uid: strings.share(uid),
                labels: metadata.labels.clone().unwrap_or_default(),
            }),
            errors: Vec::new(),
        },
        Err(error) => Parsed::malformed(error),
    }
}

/// The uid that the Pod's cgroup carries.
fn uid(metadata: &ObjectMeta) -> Result<&str, FieldError> {
    let annotation = |key| metadata.annotations.as_ref()?.get(key).map(String::as_str);
    if annotation(MIRROR).is_none() {
        let uid = not_empty(metadata.uid.as_deref());
        return uid.ok_or_else(|| FieldError::new("metadata.uid", "missing"));
    }
    let path = format_args!("metadata.annotations.{STATIC_UID}");
    not_empty(annotation(STATIC_UID)).ok_or_else(|| FieldError::new(path, "missing"))
}

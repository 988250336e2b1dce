//! What the daemon has to be allowed at the API server.

use k8s_openapi::Resource;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::networking::v1::ServiceCIDR;

use super::ledger::Kind;

/// Some verbs on one resource, in the whole cluster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Right {
    /// The API group; empty for the core group.
    pub group: &'static str,
    /// The resource's plural.
    pub resource: &'static str,
    /// What is done with it.
    pub verbs: &'static [&'static str],
}

const READ: &[&str] = &["list", "watch"];
/// A new Event, and one that comes again.
const TELL: &[&str] = &["create", "patch"];

/// What every daemon needs.
pub fn rights() -> Vec<Right> {
    let kinds = [
        Kind::Service,
        Kind::EndpointSlice,
        Kind::Node,
        Kind::ServiceCidr,
    ];
    let mut rights: Vec<_> = kinds.map(to_read).into();
    rights.push(right::<Event>(TELL));
    rights
}

/// What is needed to tell pods apart, besides.
pub fn rights_for_pods() -> Vec<Right> {
    vec![to_read(Kind::Pod)]
}

const fn to_read(kind: Kind) -> Right {
    match kind {
        Kind::Service => right::<Service>(READ),
        Kind::EndpointSlice => right::<EndpointSlice>(READ),
        Kind::Node => right::<Node>(READ),
        Kind::ServiceCidr => right::<ServiceCIDR>(READ),
        Kind::Pod => right::<Pod>(READ),
    }
}

const fn right<K: Resource>(verbs: &'static [&'static str]) -> Right {
    Right {
        group: K::GROUP,
        resource: K::URL_PATH_SEGMENT,
        verbs,
    }
}

//! What is known of the cluster: the few facts of each object that decide about traffic.
//!
//! Sources translate Kubernetes objects into these types at the rim, with an error that names
//! object and field; behind it nothing is malformed.

mod world;

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use proxy_common::abi::{Family, Protocol};

use crate::node::GoneBackends;

pub use world::{Affected, World};

/// Namespace and name of an object.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ObjectName {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl std::fmt::Display for ObjectName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A Service that is proxied (rules R1 to R3): sources leave out all others.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Service {
    /// Namespace and name.
    pub name: ObjectName,
    /// The cluster IP of each family that the Service has (rule R151), at most two.
    pub cluster_ips: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Governs traffic to cluster IPs (rule R52).
    pub internal_policy: TrafficPolicy,
    /// Governs traffic to external addresses (rule R53).
    pub external_policy: TrafficPolicy,
    /// `spec.externalIPs`, both families (rule R106).
    pub external_ips: Vec<IpAddr>,
    /// Load balancer addresses in mode VIP, both families (rules R100, R101).
    pub load_balancer_ips: Vec<IpAddr>,
    /// `loadBalancerSourceRanges`, both families (rules R102, R103).
    pub source_ranges: Vec<IpNet>,
    /// Time-out in seconds if session affinity is ClientIP (rule R111).
    pub affinity_seconds: Option<u32>,
    /// What becomes of TCP and SCTP flows to endpoints that are removed; `None`: what is usual on
    /// the node.
    pub gone_backends: Option<GoneBackends>,
    /// `healthCheckNodePort` where it applies (rule R120).
    pub health_check_node_port: Option<u16>,
}

/// One entry of `spec.ports`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ServicePort {
    /// The name, "" if it has none (rule R13).
    pub name: Arc<str>,
    /// The protocol.
    pub protocol: Protocol,
    /// The number that clients of a cluster IP dial.
    pub port: u16,
    /// The NodePort, if any (rule R89).
    pub node_port: Option<u16>,
}

/// Which endpoints traffic may go to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub enum TrafficPolicy {
    /// All of the cluster set (rule R31).
    #[default]
    Cluster,
    /// Those of this node (rule R32).
    Local,
}

/// An EndpointSlice that belongs to a Service (rules R20, R21): sources leave out all others.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct EndpointSlice {
    /// Namespace and name of the slice itself.
    pub name: ObjectName,
    /// The Service that its label names.
    pub service: ObjectName,
    /// Its address type.
    pub family: Family,
    /// Ports with name and number (rule R14).
    pub ports: Vec<SlicePort>,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
    /// When the change was made that it tells of.
    pub changed_at: ChangedAt,
}

/// When something came about that an object tells of, by the clock of who wrote it: the time since
/// 1970 began.
///
/// It says nothing about whether two objects are the same: all times are equal.
#[derive(Clone, Copy, Default, Debug)]
pub struct ChangedAt(pub Option<Duration>);

impl PartialEq for ChangedAt {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for ChangedAt {}

impl Hash for ChangedAt {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

/// One entry of an EndpointSlice's `ports`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct SlicePort {
    /// The name that a Service port must have to match (rule R11).
    pub name: Arc<str>,
    /// The protocol that a Service port must have to match.
    pub protocol: Protocol,
    /// The number to send to.
    pub port: u16,
}

/// One entry of an EndpointSlice's `endpoints`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Endpoint {
    /// The first of its addresses (rule R26).
    pub address: IpAddr,
    /// Takes traffic (rule R24: true if absent).
    pub ready: bool,
    /// Could serve (rule R24: true if absent).
    pub serving: bool,
    /// Is being deleted (rule R24: false if absent).
    pub terminating: bool,
    /// The node that it is on (rule R25).
    pub node: Option<Arc<str>>,
    /// Topology hints, if there are any. Boxed, since most endpoints have none.
    pub hints: Option<Box<Hints>>,
}

/// Topology hints of an endpoint.
#[derive(Clone, PartialEq, Eq, Hash, Default, Debug)]
pub struct Hints {
    /// For zones (rule R41).
    pub zones: Vec<Arc<str>>,
    /// For nodes (rule R40).
    pub nodes: Vec<Arc<str>>,
}

/// What matters of this node's Node object.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Node {
    /// Its name.
    pub name: Arc<str>,
    /// `topology.kubernetes.io/zone`, if set and not empty (rules R46, R48).
    pub zone: Option<Arc<str>>,
    /// `status.addresses` that are IPs, InternalIP before ExternalIP (rule R181).
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs` (rule R51).
    pub pod_cidrs: Vec<IpNet>,
    /// It is about to go: it has the taint `ToBeDeletedByClusterAutoscaler` or a
    /// `deletionTimestamp` (rule R134).
    pub to_be_deleted: bool,
}

/// What matters of a Pod of this node. Sources tell of Pods only if they are asked to.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Pod {
    /// Namespace and name.
    pub name: ObjectName,
    /// The uid that its cgroup carries. Of a static Pod, that is not the uid of its mirror.
    pub uid: Arc<str>,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
}

/// A change of what is known; what every source yields.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Event {
    /// A Service is there, new or changed.
    Service(Service),
    /// A Service is gone, or none of ours any more.
    ServiceGone(ObjectName),
    /// An EndpointSlice is there, new or changed.
    Slice(EndpointSlice),
    /// An EndpointSlice is gone, or none of ours any more.
    SliceGone(ObjectName),
    /// This node's Node object is there, new or changed.
    Node(Node),
    /// What the cluster's ServiceCIDRs say, all together, in order and without duplicates (rule
    /// R186). Empty: not known.
    ServiceCidrs(Vec<IpNet>),
    /// A Pod of this node is there, new or changed.
    Pod(Pod),
    /// A Pod of this node is gone, or has ended.
    PodGone(ObjectName),
    /// The first list of this node's Pods is complete. Sent once, if Pods are told of at all.
    PodsKnown,
    /// Both first lists are complete (rule R7). Sent once; nothing is programmed before.
    Synced,
    /// An object, file or connection is in trouble; what it said before stays in force.
    Problem(Problem),
    /// The trouble of this subject is over.
    Solved(String),
}

/// Something that an administrator should know, until it is solved.
#[derive(
    Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize,
)]
pub struct Problem {
    /// What is in trouble: `Service shop/web`, `file x.yaml`, `API server`. One problem a subject.
    pub subject: String,
    /// What is wrong, with the field and the value: lower case, no full stop.
    pub message: String,
}

//! The form of a case: a node's configuration, Kubernetes objects, and what becomes of packets.
//!
//! Strict: what is not understood is an error that names file and field, since an expectation
//! that is not read is one that can't fail. README.md in `cases` describes the fields.

mod check;
mod config;
mod flow;
mod read;

use serde::Deserialize;
use serde_json::{Map, Value};

pub use check::{Check, HttpCheck, HttpExpect, MetricCheck};
pub use config::{Config, DetectLocal, NodePortAddresses};
pub use flow::{Dialled, Expect, ExpectByMode, Flow, From, Kind, Packet, Protocol, Verdict};
pub use read::{CaseError, Read, Wrong, folder};

/// A Kubernetes object as it stands in the file.
pub type Manifest = Map<String, Value>;

/// One file.
#[derive(Clone, Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Case {
    /// Version of the form.
    pub format_version: FormatVersion,
    /// Unique; the file's name without `.json`.
    pub id: String,
    /// What it is about.
    pub topic: Topic,
    /// What it shows.
    pub title: String,
    /// Rules that it shows: `R22`.
    pub rules: Vec<String>,
    /// Where upstream says so.
    pub source: Vec<Source>,
    /// How upstream says so.
    pub basis: Basis,
    /// What a runner must be able to do, else it leaves the case out.
    #[serde(default)]
    pub requires: Vec<String>,
    /// A remark.
    #[serde(default)]
    pub notes: Option<String>,
    /// The node.
    pub config: Config,
    /// What the API server holds at the start.
    pub objects: Objects,
    /// Packets sent in the state of `objects`.
    #[serde(default)]
    pub flows: Vec<Flow>,
    /// Other observations in that state, made after the packets.
    #[serde(default)]
    pub checks: Vec<Check>,
    /// Changes after that, in order.
    #[serde(default)]
    pub steps: Vec<Step>,
}

/// The version of the form: 1.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize, Debug)]
#[serde(try_from = "u32")]
pub struct FormatVersion(u32);

impl TryFrom<u32> for FormatVersion {
    type Error = String;

    fn try_from(version: u32) -> Result<Self, String> {
        if version == 1 {
            Ok(Self(version))
        } else {
            Err(format!("unknown version {version}: only 1 is"))
        }
    }
}

/// What a case is about.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize, Debug)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the names say it")]
pub enum Topic {
    ServiceSelection,
    PortsProtocols,
    #[serde(rename = "endpointslices")]
    EndpointSlices,
    Topology,
    TrafficPolicy,
    Terminating,
    Masquerade,
    #[serde(rename = "nodeports")]
    NodePorts,
    #[serde(rename = "loadbalancer")]
    LoadBalancer,
    NoEndpoints,
    SessionAffinity,
    Health,
    DualStack,
    Updates,
    Conntrack,
    Metrics,
}

/// A place in upstream's repositories.
#[derive(Clone, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// The file.
    pub file: String,
    /// The test, or the place in code or document.
    pub test: String,
    /// The sub-test, or where in it.
    #[serde(default)]
    pub case: Option<String>,
}

/// What the expectations follow from.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize, Debug)]
#[serde(rename_all = "kebab-case")]
pub enum Basis {
    /// They are those of a test.
    UpstreamTest,
    /// They follow from code.
    UpstreamCode,
    /// They stand in a document.
    UpstreamDoc,
}

/// What the API server holds.
#[derive(Clone, Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Objects {
    /// `v1` Services.
    #[serde(default)]
    pub services: Vec<Manifest>,
    /// `discovery.k8s.io/v1` EndpointSlices.
    #[serde(default)]
    pub endpoint_slices: Vec<Manifest>,
    /// This node's Node object.
    #[serde(default)]
    pub nodes: Vec<Manifest>,
}

/// A change: time passes, then `simulate`, then `delete` and `apply` as one batch; then `flows`,
/// then `checks`.
#[derive(Clone, Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Step {
    /// What happens.
    pub title: String,
    /// Seconds that pass before the change.
    #[serde(default)]
    pub advance_seconds: u64,
    /// What else happens.
    #[serde(default)]
    pub simulate: Option<Simulate>,
    /// Objects that are created or replaced.
    #[serde(default)]
    pub apply: Vec<Manifest>,
    /// Objects that are deleted.
    #[serde(default)]
    pub delete: Vec<Reference>,
    /// Packets sent after the change.
    #[serde(default)]
    pub flows: Vec<Flow>,
    /// Other observations, made after the packets.
    #[serde(default)]
    pub checks: Vec<Check>,
}

/// What happens to the proxy itself.
#[derive(Clone, Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Simulate {
    /// Families whose updates of the data plane hang from now on; `[]` ends it.
    #[serde(default)]
    pub block_sync: Option<Vec<Family>>,
    /// The proxy stops, the changes of this step are made while it is down, it starts again.
    #[serde(default)]
    pub restart: bool,
}

/// An address family.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize, Debug)]
#[serde(rename_all = "PascalCase")]
pub enum Family {
    /// IPv4.
    #[serde(rename = "IPv4")]
    Ipv4,
    /// IPv6.
    #[serde(rename = "IPv6")]
    Ipv6,
}

/// An object that is deleted.
#[derive(Clone, PartialEq, Eq, Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Reference {
    /// `v1`, `discovery.k8s.io/v1`.
    pub api_version: String,
    /// The kind.
    pub kind: ObjectKind,
    /// Which one.
    pub metadata: ReferenceName,
}

/// The kinds of objects that cases hold.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub enum ObjectKind {
    Service,
    EndpointSlice,
    Node,
}

impl ObjectKind {
    /// What an object says that it is.
    pub fn of(manifest: &Manifest) -> Option<Self> {
        Self::deserialize(manifest.get("kind")?).ok()
    }
}

/// Which object.
#[derive(Clone, PartialEq, Eq, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct ReferenceName {
    /// Its name.
    pub name: String,
    /// Its namespace; a Node has none.
    #[serde(default)]
    pub namespace: Option<String>,
}

//! Services from the Kubernetes API.
//!
//! Four watches (Services, EndpointSlices, this Node, ServiceCIDRs), and a fifth of this node's
//! Pods if they are asked for, run side by side. Each lists in pages, then watches with bookmarks,
//! and lists again when the API server has forgotten where it was (410 Gone). Of the objects only
//! fingerprints and versions are kept. An API server that has no ServiceCIDRs is asked for them now
//! and then.

mod connection;
mod feed;
mod raw;

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::{
    core::v1 as core, discovery::v1 as discovery, networking::v1 as networking,
};
use kube::api::{Api, Resource};
use kube::config::{InferConfigError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, DefaultBackoff, watcher};
use kube::{Client, Config};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tracing::debug;

use self::feed::{Closed, Feed};
use self::raw::Raw;
use crate::model::{Event, ObjectName};
use crate::source::ledger::Kind;
use crate::source::parse::{self, Parsed, Strings};
use crate::source::state::{Restart, SourceState};

/// Yields what the API server says, and follows its changes.
#[derive(Clone)]
pub struct KubernetesSource {
    /// The connection to the API server: see [`client`].
    pub client: Client,
    /// This node's name.
    pub node: Arc<str>,
    /// Whether to tell of this node's Pods.
    pub pods: bool,
    /// Is told how the source is getting on: see [`state`].
    pub state: watch::Sender<SourceState>,
}

/// Nothing has been heard of what a [`KubernetesSource`] follows.
pub fn state(pods: bool) -> watch::Sender<SourceState> {
    let kinds = [
        Kind::Service,
        Kind::EndpointSlice,
        Kind::Node,
        Kind::ServiceCidr,
    ];
    let kinds = kinds.into_iter().chain(pods.then_some(Kind::Pod));
    watch::Sender::new(SourceState::new(kinds.map(Kind::resource), Instant::now()))
}

/// Why there is no connection to an API server.
#[derive(Debug, thiserror::Error)]
pub enum KubernetesError {
    /// The kubeconfig is not there or not understood.
    #[error("kubeconfig {}: {message}", path.display())]
    Kubeconfig {
        /// As it was given.
        path: PathBuf,
        /// What is wrong with it, in one line.
        message: String,
    },
    /// No kubeconfig was named, and none of the usual ways leads to one.
    #[error("no kubeconfig given, and not in a cluster")]
    NoConfiguration(#[source] InferConfigError),
    /// What the configuration says can't be used.
    #[error("API client")]
    Client(#[source] kube::Error),
}

/// A client for the API server that the file `kubeconfig` names; without one, for that of
/// `$KUBECONFIG`, of `~/.kube/config`, or of the cluster that this is a pod of.
///
/// Nothing is sent yet: the API server may still be away.
///
/// # Errors
///
/// There is no usable configuration.
pub async fn client(kubeconfig: Option<&Path>) -> Result<Client, KubernetesError> {
    let mut config = match kubeconfig {
        Some(path) => from_file(path)
            .await
            .map_err(|error| KubernetesError::Kubeconfig {
                path: path.to_owned(),
                message: complaint(&error),
            })?,
        None => Config::infer()
            .await
            .map_err(KubernetesError::NoConfiguration)?,
    };
    // Trouble is reported and retried by the watches; the client's own retries would hide it.
    config.default_retry = false;
    Client::try_from(config).map_err(KubernetesError::Client)
}

async fn from_file(path: &Path) -> Result<Config, KubeconfigError> {
    let kubeconfig = Kubeconfig::read_from(path)?;
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await
}

/// What is wrong with a kubeconfig whose name has been said already.
fn complaint(error: &KubeconfigError) -> String {
    let text = if let KubeconfigError::ReadConfig(error, _) = error {
        error.to_string().to_lowercase()
    } else {
        error.to_string().replacen(": error: ", ": ", 1)
    };
    // After its first line the parser draws the place.
    let line = text.lines().next().unwrap_or_default();
    let line = line.split(" (os error").next().unwrap_or_default();
    line.to_owned()
}

impl KubernetesSource {
    /// Sends what the API server says, [`Event::Synced`] once the first lists of Services and
    /// EndpointSlices are complete, and what changes, until the receiver is dropped.
    ///
    /// An API server that is away changes nothing: that is reported as a problem of the subject
    /// `API server`, and tried again with growing pauses.
    pub async fn run(self, events: mpsc::Sender<Event>) {
        let feed = Arc::new(Feed::new(self.node, events.clone(), self.state));
        let services = watcher::Config::default()
            .labels("!service.kubernetes.io/service-proxy-name")
            .fields("spec.clusterIP!=None");
        let slices = watcher::Config::default().labels("!service.kubernetes.io/headless");
        let node = watcher::Config::default().fields(&format!("metadata.name={}", feed.node()));
        let cidrs = watcher::Config::default();
        let watches = futures::future::join5(
            follow(&feed, &self.client, Kind::Service, services, read_service),
            follow(&feed, &self.client, Kind::EndpointSlice, slices, read_slice),
            follow(&feed, &self.client, Kind::Node, node, read_node),
            follow(
                &feed,
                &self.client,
                Kind::ServiceCidr,
                cidrs,
                read_service_cidr,
            ),
            follow_pods(&feed, &self.client, self.pods),
        );
        tokio::select! {
            (Closed, Closed, Closed, Closed, Closed) = watches => {}
            () = events.closed() => {}
        }
    }
}

/// How an object of one kind is read.
type Read<K> = fn(&mut Strings, ObjectName, &K) -> Parsed<Event>;

fn read_service(strings: &mut Strings, name: ObjectName, object: &core::Service) -> Parsed<Event> {
    parse::service(strings, name, object).map(Event::Service)
}

fn read_slice(
    strings: &mut Strings,
    name: ObjectName,
    object: &discovery::EndpointSlice,
) -> Parsed<Event> {
    parse::endpoint_slice(strings, name, object).map(Event::Slice)
}

fn read_node(strings: &mut Strings, name: ObjectName, object: &core::Node) -> Parsed<Event> {
    parse::node(strings, name, object).map(Event::Node)
}

fn read_service_cidr(
    _: &mut Strings,
    _: ObjectName,
    object: &networking::ServiceCIDR,
) -> Parsed<Event> {
    parse::service_cidr(object).map(Event::ServiceCidrs)
}

/// All that matters of a Pod is in its metadata, and no more is asked for.
type PodMetadata = PartialObjectMeta<core::Pod>;

fn read_pod(strings: &mut Strings, name: ObjectName, object: &PodMetadata) -> Parsed<Event> {
    parse::pod(strings, name, &object.metadata).map(Event::Pod)
}

/// Follows the Pods of this node that have not ended, if they are wanted.
async fn follow_pods(feed: &Arc<Feed>, client: &Client, is_wanted: bool) -> Closed {
    if !is_wanted {
        return Closed;
    }
    let ours = format!(
        "spec.nodeName={},status.phase!=Succeeded,status.phase!=Failed",
        feed.node()
    );
    let pods = watcher::Config::default().fields(&ours);
    follow(feed, client, Kind::Pod, pods, read_pod).await
}

/// Follows the objects of one kind until nobody listens.
async fn follow<K>(
    feed: &Arc<Feed>,
    client: &Client,
    kind: Kind,
    config: watcher::Config,
    read: Read<K>,
) -> Closed
where
    K: Resource<DynamicType = ()>
        + DeserializeOwned
        + Clone
        + std::fmt::Debug
        + Send
        + Sync
        + 'static,
{
    let api: Api<Raw<K>> = Api::all(connection::observed(client.clone(), kind, Arc::clone(feed)));
    let mut backoff = DefaultBackoff::default();
    loop {
        let mut events = pin!(watcher(api.clone(), config.clone()));
        while let Some(event) = events.next().await {
            let error = match event {
                Ok(event) => match feed.take(kind, event, read).await {
                    Ok(()) => continue,
                    Err(Closed) => return Closed,
                },
                Err(error) => error,
            };
            debug!(?kind, %error, "watch interrupted");
            feed.restarted(kind, restart(&error));
            if kind == Kind::ServiceCidr && is_unknown_resource(&error) {
                // Older API servers have none; the ranges are then not known (rule R16).
                if feed.none(kind).await == Err(Closed) {
                    return Closed;
                }
                tokio::time::sleep(UNKNOWN_PAUSE).await;
                break;
            }
            let remedy = Remedy::of(&error);
            if let Some(message) = remedy.message(kind, &error)
                && feed.trouble(kind, message).await == Err(Closed)
            {
                return Closed;
            }
            if remedy != Remedy::Resume {
                // Never ends: `DefaultBackoff` has no last element.
                tokio::time::sleep(backoff.next().unwrap_or(Duration::from_secs(30))).await;
            }
            if remedy.is_relist() {
                break;
            }
        }
    }
}

/// How long an API server that does not know a resource is not asked for it.
const UNKNOWN_PAUSE: Duration = Duration::from_secs(300);

/// Whether the API server says that there is no such resource.
fn is_unknown_resource(error: &watcher::Error) -> bool {
    use kube::Error::Api;
    use watcher::Error::{InitialListFailed, WatchStartFailed};
    matches!(error, InitialListFailed(Api(status)) | WatchStartFailed(Api(status)) if status.code == 404)
}

/// What to do about an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Remedy {
    /// Watch on from the last version, at once: connections are cut now and then.
    Resume,
    /// Go on after a pause; the watcher knows how.
    Pause,
    /// Forget the version, which the API server has forgotten too, and list after a pause. The
    /// watcher itself knows only that of the two ways in which it is told (an event in the
    /// stream, and the status of the answer) which comes as an event.
    Relist,
    /// List after a pause: it is not known what was lost.
    RelistAfterLoss,
}

impl Remedy {
    fn of(error: &watcher::Error) -> Self {
        use kube::Error::{Api, HyperError, ReadEvents};
        use watcher::Error::{WatchError, WatchFailed, WatchStartFailed};
        match error {
            WatchError(status) if status.code == 410 => Self::Relist,
            WatchStartFailed(Api(status)) if status.code == 410 => Self::Relist,
            WatchFailed(ReadEvents(_) | HyperError(_)) => Self::Resume,
            WatchFailed(_) => Self::RelistAfterLoss,
            WatchError(_)
            | WatchStartFailed(_)
            | watcher::Error::InitialListFailed(_)
            | watcher::Error::NoResourceVersion => Self::Pause,
        }
    }

    fn is_relist(self) -> bool {
        matches!(self, Self::Relist | Self::RelistAfterLoss)
    }

    /// What to report, if this is trouble and not everyday life.
    fn message(self, kind: Kind, error: &watcher::Error) -> Option<String> {
        match self {
            Self::Resume | Self::Relist => None,
            Self::Pause | Self::RelistAfterLoss => Some(message(kind, error)),
        }
    }
}

/// Why the watch has to be begun anew.
fn restart(error: &watcher::Error) -> Restart {
    use watcher::Error::{InitialListFailed, WatchError, WatchFailed, WatchStartFailed};
    let by_status = |status: &kube::core::Status| match status.code {
        401 => Restart::Unauthorized,
        403 => Restart::Refused,
        410 => Restart::Gone,
        429 | 503 => Restart::Throttled,
        _ => Restart::Other,
    };
    match error {
        WatchError(status) => by_status(status),
        InitialListFailed(kube::Error::Api(status))
        | WatchStartFailed(kube::Error::Api(status)) => by_status(status),
        InitialListFailed(_) | WatchStartFailed(_) => Restart::Refused,
        WatchFailed(kube::Error::ReadEvents(_) | kube::Error::HyperError(_)) => Restart::Closed,
        WatchFailed(_) | watcher::Error::NoResourceVersion => Restart::Other,
    }
}

fn message(kind: Kind, error: &watcher::Error) -> String {
    let things = match kind {
        Kind::Service => "Services",
        Kind::EndpointSlice => "EndpointSlices",
        Kind::Node => "this Node",
        Kind::ServiceCidr => "ServiceCIDRs",
        Kind::Pod => "Pods",
    };
    match error {
        watcher::Error::InitialListFailed(error) => format!("listing {things}: {}", reason(error)),
        watcher::Error::WatchStartFailed(error) | watcher::Error::WatchFailed(error) => {
            format!("watching {things}: {}", reason(error))
        }
        watcher::Error::WatchError(status) => format!("watching {things}: {}", words(status)),
        watcher::Error::NoResourceVersion => format!("listing {things}: no resourceVersion"),
    }
}

/// The innermost cause, which is the one that an administrator can do something about.
fn reason(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return words(status);
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    let text = cause.to_string();
    text.split(" (os error")
        .next()
        .unwrap_or_default()
        .to_lowercase()
}

fn words(status: &kube::core::Status) -> String {
    // What kube makes of a line in a watch that is neither an event nor a status.
    if *status == kube::core::Status::default() {
        return "unreadable event".into();
    }
    let text = if status.message.is_empty() {
        &status.reason
    } else {
        &status.message
    };
    format!("{text} (status {})", status.code)
}

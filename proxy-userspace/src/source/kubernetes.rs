//! Services from the Kubernetes API.
//!
//! Four watches (Services, EndpointSlices, this Node, ServiceCIDRs), and a fifth of this node's
//! Pods if they are asked for, run side by side. Each lists in pages, then watches with bookmarks,
//! and lists again when the API server has forgotten where it was (410 Gone). Of the objects only
//! fingerprints and versions are kept. An API server that has no ServiceCIDRs is asked for them now
//! and then.

mod access;
mod backoff;
mod connection;
mod feed;
mod raw;
mod rights;
mod servers;

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::{
    core::v1 as core, discovery::v1 as discovery, networking::v1 as networking,
};
use kube::Client;
use kube::api::{Api, Resource};
use kube::config::InClusterError;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, watcher};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tracing::debug;

pub use self::access::{Access, Timing};
use self::backoff::{Backoff, jitter};
use self::feed::{Closed, Feed};
use self::raw::Raw;
pub use self::rights::{RIGHTS, Right};
use self::servers::{Servers, Silence};
use crate::model::{Event, ObjectName};
use crate::source::ledger::Kind;
use crate::source::parse::{self, Parsed, Strings};
use crate::source::state::{Restart, SourceState};

/// Yields what the API server says, and follows its changes.
#[derive(Clone)]
pub struct KubernetesSource {
    /// The connection to the API server: see [`client`].
    pub client: Client,
    /// What is waited for.
    pub timing: Timing,
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
    #[error("no kubeconfig given ({kubeconfig}), and not in a cluster")]
    NoConfiguration {
        /// Why the usual kubeconfig is none.
        kubeconfig: String,
        /// Why the surroundings of a pod are none.
        source: InClusterError,
    },
    /// What the configuration says can't be used.
    #[error("API client")]
    Client(#[source] kube::Error),
}

/// A client for the API servers of a cluster, which reads credentials again when they change on
/// disk, and asks another server when one fails.
///
/// Nothing is sent yet: they may still be away.
///
/// # Errors
///
/// There is no usable configuration.
pub async fn client(access: &Access) -> Result<Client, KubernetesError> {
    Ok(Servers::new(access.clone()).await?.client().await)
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
        let line = Line {
            feed: &feed,
            client: &self.client,
            timing: &self.timing,
        };
        let watches = futures::future::join5(
            line.follow(Kind::Service, services, read_service),
            line.follow(Kind::EndpointSlice, slices, read_slice),
            line.follow(Kind::Node, node, read_node),
            line.follow(Kind::ServiceCidr, cidrs, read_service_cidr),
            line.follow_pods(self.pods),
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

/// What all watches share.
struct Line<'a> {
    feed: &'a Arc<Feed>,
    client: &'a Client,
    timing: &'a Timing,
}

impl Line<'_> {
    /// Follows the Pods of this node that have not ended, if they are wanted.
    async fn follow_pods(&self, is_wanted: bool) -> Closed {
        if !is_wanted {
            return Closed;
        }
        let ours = format!(
            "spec.nodeName={},status.phase!=Succeeded,status.phase!=Failed",
            self.feed.node()
        );
        let pods = watcher::Config::default().fields(&ours);
        self.follow(Kind::Pod, pods, read_pod).await
    }

    /// Follows the objects of one kind until nobody listens.
    async fn follow<K>(&self, kind: Kind, config: watcher::Config, read: Read<K>) -> Closed
    where
        K: Resource<DynamicType = ()>
            + DeserializeOwned
            + Clone
            + std::fmt::Debug
            + Send
            + Sync
            + 'static,
    {
        let (feed, timing) = (self.feed, self.timing.clone());
        // Silence is noticed on the way; the watcher itself is to be more patient.
        let config = config.timeout(2 * timing.idle.as_secs() as u32 + 60);
        let mut backoff = Backoff::new(timing.pause);
        let client = connection::observed(self.client.clone(), kind, Arc::clone(feed), timing);
        let api: Api<Raw<K>> = Api::all(client);
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
                    tokio::time::sleep(backoff.next(Instant::now())).await;
                }
                if remedy.is_relist() {
                    break;
                }
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
        InitialListFailed(error) | WatchStartFailed(error) | WatchFailed(error)
            if is_silence(error) =>
        {
            Restart::Stalled
        }
        WatchError(status) => by_status(status),
        InitialListFailed(kube::Error::Api(status))
        | WatchStartFailed(kube::Error::Api(status)) => by_status(status),
        InitialListFailed(_) | WatchStartFailed(_) => Restart::Refused,
        WatchFailed(kube::Error::ReadEvents(_) | kube::Error::HyperError(_)) => Restart::Closed,
        WatchFailed(_) | watcher::Error::NoResourceVersion => Restart::Other,
    }
}

/// Whether the error is that nothing was heard.
fn is_silence(error: &kube::Error) -> bool {
    let mut causes = std::iter::successors(Some(error as &dyn std::error::Error), |it| it.source());
    causes.any(|cause| cause.is::<Silence>())
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

//! How a source is getting on: what it has read, what it hears of, and how often it had to begin
//! anew.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::sync::watch;

/// What is known of a source's connections, by resource: `files`, or the plural names of the
/// Kubernetes API (`services`, `endpointslices`, `nodes`, `servicecidrs`, `pods`).
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct SourceState {
    /// Every resource that is followed, from the start on.
    pub resources: BTreeMap<&'static str, ResourceState>,
}

/// What is known of one resource.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ResourceState {
    /// Whether the first list is complete.
    pub is_listed: bool,
    /// Whether changes are heard of.
    pub is_connected: bool,
    /// When `is_connected` changed last, or when the source was started.
    pub since: Instant,
    /// How often the watch had to be begun anew, by [`Restart::name`]. All reasons are in here.
    pub n_restarts: BTreeMap<&'static str, u64>,
}

/// Why a watch had to be begun anew.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Restart {
    /// The API server has forgotten the version to go on from (410).
    Gone,
    /// Nothing was heard for too long.
    Stalled,
    /// The credentials were not accepted (401).
    Unauthorized,
    /// The API server asks for patience (429, 503).
    Throttled,
    /// There is no right to do so (403), or nobody accepts the connection.
    Refused,
    /// The connection was closed, as happens now and then.
    Closed,
    /// Anything else.
    Other,
}

impl Restart {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Gone,
        Self::Stalled,
        Self::Unauthorized,
        Self::Throttled,
        Self::Refused,
        Self::Closed,
        Self::Other,
    ];

    /// As metrics and `beeline status` say it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Stalled => "stalled",
            Self::Unauthorized => "unauthorized",
            Self::Throttled => "throttled",
            Self::Refused => "refused",
            Self::Closed => "closed",
            Self::Other => "other",
        }
    }
}

impl ResourceState {
    fn new(now: Instant) -> Self {
        Self {
            is_listed: false,
            is_connected: false,
            since: now,
            n_restarts: Restart::ALL.map(|reason| (reason.name(), 0)).into(),
        }
    }
}

impl SourceState {
    /// Nothing has been heard of these resources yet.
    pub fn new(resources: impl IntoIterator<Item = &'static str>, now: Instant) -> Self {
        let state = |resource| (resource, ResourceState::new(now));
        Self {
            resources: resources.into_iter().map(state).collect(),
        }
    }

    /// Whether the first lists of all resources are complete.
    pub fn is_listed(&self) -> bool {
        self.resources.values().all(|state| state.is_listed)
    }

    /// The resources whose changes are not heard of, and for how long that has been so at `now`.
    pub fn away(&self, now: Instant) -> impl Iterator<Item = (&'static str, Duration)> {
        let away = move |(resource, state): (&&'static str, &ResourceState)| {
            let time = now.saturating_duration_since(state.since);
            (!state.is_connected).then_some((*resource, time))
        };
        self.resources.iter().filter_map(away)
    }

    /// Takes note that the first list of a resource is complete.
    pub(crate) fn listed(sender: &watch::Sender<Self>, resource: &str) {
        edit(sender, resource, |state| {
            !std::mem::replace(&mut state.is_listed, true)
        });
    }

    /// Takes note of whether changes of a resource are heard of.
    pub(crate) fn connected(sender: &watch::Sender<Self>, resource: &str, is_connected: bool) {
        edit(sender, resource, |state| {
            let is_news = state.is_connected != is_connected;
            if is_news {
                state.is_connected = is_connected;
                state.since = Instant::now();
            }
            is_news
        });
    }

    /// Counts one more beginning of a resource's watch.
    pub(crate) fn restarted(sender: &watch::Sender<Self>, resource: &str, reason: Restart) {
        edit(sender, resource, |state| {
            *state.n_restarts.entry(reason.name()).or_default() += 1;
            true
        });
    }
}

/// Wakes those who listen only if something has changed.
fn edit(
    sender: &watch::Sender<SourceState>,
    resource: &str,
    change: impl FnOnce(&mut ResourceState) -> bool,
) {
    sender.send_if_modified(|state| state.resources.get_mut(resource).is_some_and(change));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changes_is_told() {
        let start = Instant::now();
        let sender = watch::Sender::new(SourceState::new(["nodes", "services"], start));
        let mut told = sender.subscribe();
        SourceState::connected(&sender, "nodes", false);
        SourceState::connected(&sender, "pods", true);
        assert!(!told.has_changed().unwrap());
        SourceState::connected(&sender, "nodes", true);
        SourceState::listed(&sender, "nodes");
        SourceState::restarted(&sender, "nodes", Restart::Gone);
        let state = told.borrow_and_update().clone();
        let nodes = &state.resources["nodes"];
        assert!(nodes.is_listed && nodes.is_connected && nodes.since >= start);
        assert_eq!(nodes.n_restarts["gone"], 1);
        assert_eq!(nodes.n_restarts.len(), Restart::ALL.len());
        assert!(!state.is_listed());
        SourceState::listed(&sender, "nodes");
        assert!(!told.has_changed().unwrap());
    }

    #[test]
    fn times_are_never_negative() {
        let now = Instant::now();
        let later = now + Duration::from_secs(3);
        let state = SourceState::new(["nodes"], later);
        assert_eq!(Vec::from_iter(state.away(now)), [("nodes", Duration::ZERO)]);
        let much_later = later + Duration::from_secs(2);
        let away = Vec::from_iter(state.away(much_later));
        assert_eq!(away, [("nodes", Duration::from_secs(2))]);
    }
}

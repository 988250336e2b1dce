//! What is known from the API server, and the news of it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::runtime::watcher;
use tokio::sync::{Mutex, mpsc, watch};
use tracing::{debug, warn};

use super::Read;
use super::raw::Raw;
use crate::model::{Event, ObjectName};
use crate::source::ledger::{Key, Kind, Ledger, trouble};
use crate::source::parse::{self, Strings};
use crate::source::state::{Restart, SourceState};

/// The subject of all trouble with the connection.
const SUBJECT: &str = "API server";

/// Nobody listens any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Closed;

/// Turns what the watches yield into events.
///
/// The state stays locked while its news is sent, so that news is sent in the order in which it
/// became known.
pub(super) struct Feed {
    node: Arc<str>,
    events: mpsc::Sender<Event>,
    state: Mutex<State>,
    told: watch::Sender<SourceState>,
}

impl Feed {
    /// `told` is told how the watches are getting on.
    pub(super) fn new(
        node: Arc<str>,
        events: mpsc::Sender<Event>,
        told: watch::Sender<SourceState>,
    ) -> Self {
        Self {
            node,
            events,
            state: Mutex::default(),
            told,
        }
    }

    pub(super) fn node(&self) -> &str {
        &self.node
    }

    /// Takes in an event of the watch of one kind.
    pub(super) async fn take<K: Resource>(
        &self,
        kind: Kind,
        event: watcher::Event<Raw<K>>,
        read: Read<K>,
    ) -> Result<(), Closed> {
        let mut state = self.state.lock().await;
        let mut news = Vec::new();
        match event {
            watcher::Event::Init => state.watch(kind).start_list(),
            watcher::Event::InitApply(object) => {
                state.put(&self.node, kind, &object, read, true, &mut news);
            }
            watcher::Event::Apply(object) => {
                state.put(&self.node, kind, &object, read, false, &mut news);
            }
            watcher::Event::InitDone => {
                state.finish_list(kind, &mut news);
                SourceState::listed(&self.told, kind.resource());
            }
            watcher::Event::Delete(object) => state.delete(kind, object.meta(), &mut news),
        }
        self.send(news).await
    }

    /// Takes note that a watch does not get on.
    pub(super) async fn trouble(&self, kind: Kind, message: String) -> Result<(), Closed> {
        let mut state = self.state.lock().await;
        let mut news = Vec::new();
        state.trouble.insert(kind, message);
        state.report(&mut news);
        SourceState::connected(&self.told, kind.resource(), false);
        self.send(news).await
    }

    /// Takes note that there is nothing of a kind, since there is no such kind.
    pub(super) async fn none(&self, kind: Kind) -> Result<(), Closed> {
        let mut state = self.state.lock().await;
        let mut news = Vec::new();
        state.watch(kind).start_list();
        state.finish_list(kind, &mut news);
        SourceState::listed(&self.told, kind.resource());
        SourceState::connected(&self.told, kind.resource(), true);
        self.send(news).await
    }

    /// Takes note that a watch gets on.
    pub(super) async fn fine(&self, kind: Kind) {
        let mut state = self.state.lock().await;
        let mut news = Vec::new();
        state.fine(kind, &mut news);
        SourceState::connected(&self.told, kind.resource(), true);
        // If nobody listens any more, the next event of the watch tells.
        let (Ok(()) | Err(Closed)) = self.send(news).await;
    }

    /// Counts one more beginning of a watch.
    pub(super) fn restarted(&self, kind: Kind, reason: Restart) {
        SourceState::restarted(&self.told, kind.resource(), reason);
    }

    async fn send(&self, news: Vec<Event>) -> Result<(), Closed> {
        for event in news {
            self.events.send(event).await.map_err(|_| Closed)?;
        }
        Ok(())
    }
}

#[derive(Default)]
struct State {
    strings: Strings,
    ledger: Ledger,
    services: Watched,
    slices: Watched,
    node: Watched,
    service_cidrs: Watched,
    pods: Watched,
    trouble: BTreeMap<Kind, String>,
    synced: bool,
}

impl State {
    fn watch(&mut self, kind: Kind) -> &mut Watched {
        match kind {
            Kind::Service => &mut self.services,
            Kind::EndpointSlice => &mut self.slices,
            Kind::Node => &mut self.node,
            Kind::ServiceCidr => &mut self.service_cidrs,
            Kind::Pod => &mut self.pods,
        }
    }

    /// The object is there. What a list says counts in any case; what a watch says only if it is
    /// not older than what is known.
    fn put<K: Resource>(
        &mut self,
        node: &str,
        kind: Kind,
        object: &Raw<K>,
        read: Read<K>,
        listed: bool,
        news: &mut Vec<Event>,
    ) {
        let Some(name) = self.name(kind, object.meta()) else {
            return;
        };
        if kind == Kind::Node && *name.name != *node {
            return;
        }
        let version = version(object.meta());
        if !self.watch(kind).note(&name, version, true, listed) {
            debug!(?kind, %name, version, "older than what is known");
            return;
        }
        let key = Arc::new(Key {
            kind,
            name: name.clone(),
        });
        match object {
            Raw::Decoded(object) => {
                let parsed = read(&mut self.strings, name, object);
                self.ledger
                    .put(&key, parsed.object, trouble(&parsed.errors), news);
            }
            // What it said before stays in force.
            Raw::Refused(refused) => {
                self.ledger
                    .problem(key.to_string(), refused.error.to_string(), news);
            }
        }
    }

    fn delete(&mut self, kind: Kind, metadata: &ObjectMeta, news: &mut Vec<Event>) {
        let Some(name) = self.name(kind, metadata) else {
            return;
        };
        if self
            .watch(kind)
            .note(&name, version(metadata), false, false)
        {
            self.ledger.remove(&Key { kind, name }, news);
        }
    }

    fn name(&mut self, kind: Kind, metadata: &ObjectMeta) -> Option<ObjectName> {
        parse::object_name(&mut self.strings, metadata)
            .inspect_err(|error| warn!(?kind, %error, "object without a name"))
            .ok()
    }

    fn finish_list(&mut self, kind: Kind, news: &mut Vec<Event>) {
        let is_first = !self.watch(kind).is_listed;
        for name in self.watch(kind).finish_list() {
            self.ledger.remove(&Key { kind, name }, news);
        }
        self.fine(kind, news);
        if is_first && kind == Kind::Pod {
            news.push(Event::PodsKnown);
        }
        if !self.synced && self.services.is_listed && self.slices.is_listed {
            self.synced = true;
            news.push(Event::Synced);
        }
    }

    fn fine(&mut self, kind: Kind, news: &mut Vec<Event>) {
        if self.trouble.remove(&kind).is_some() {
            self.report(news);
        }
    }

    fn report(&mut self, news: &mut Vec<Event>) {
        let messages: Vec<&String> = self.trouble.values().collect();
        match trouble(&messages) {
            Some(message) => self.ledger.problem(SUBJECT.into(), message, news),
            None => self.ledger.solved(SUBJECT, news),
        }
    }
}

/// The objects of one kind, whether ours or not, as the API server has named them.
#[derive(Default)]
struct Watched {
    is_listed: bool,
    /// The number of the list that runs or has run last.
    list: u32,
    objects: HashMap<ObjectName, Seen>,
    /// How many of them are not there any more.
    gone: usize,
}

/// When an object was last heard of.
#[derive(Clone, Copy)]
struct Seen {
    version: Option<u64>,
    list: u32,
    /// A deleted object is remembered for a while, lest an older event revive it.
    is_there: bool,
}

impl Watched {
    fn start_list(&mut self) {
        self.list = self.list.wrapping_add(1);
    }

    /// Takes note of an object. `false` if what is known is newer.
    fn note(
        &mut self,
        name: &ObjectName,
        version: Option<u64>,
        is_there: bool,
        listed: bool,
    ) -> bool {
        let seen = Seen {
            version,
            list: self.list,
            is_there,
        };
        let known = self.objects.get(name).copied();
        let is_old = matches!((known.and_then(|known| known.version), version),
            (Some(known), Some(new)) if new < known);
        if is_old && !listed {
            return false;
        }
        let was_gone = known.is_some_and(|known| !known.is_there);
        self.gone = self.gone + usize::from(!is_there) - usize::from(was_gone);
        self.objects.insert(name.clone(), seen);
        if self.gone > 1000.max(self.objects.len() / 2) {
            self.forget_gone();
        }
        true
    }

    /// Those that the list that has run did not name any more.
    fn finish_list(&mut self) -> Vec<ObjectName> {
        self.is_listed = true;
        self.forget_gone();
        let vanished: Vec<ObjectName> = self
            .objects
            .extract_if(|_, seen| seen.list != self.list)
            .map(|(name, _)| name)
            .collect();
        vanished
    }

    fn forget_gone(&mut self) {
        self.objects.retain(|_, seen| seen.is_there);
        self.gone = 0;
    }
}

/// Versions of one API server are numbers that grow.
fn version(metadata: &ObjectMeta) -> Option<u64> {
    metadata.resource_version.as_deref()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> ObjectName {
        ObjectName {
            namespace: "s".into(),
            name: name.into(),
        }
    }

    #[test]
    fn older_events_are_no_news() {
        let mut watched = Watched::default();
        let a = name("a");
        assert!(watched.note(&a, Some(5), true, false));
        assert!(!watched.note(&a, Some(4), true, false));
        assert!(!watched.note(&a, Some(4), false, false));
        assert!(watched.note(&a, Some(5), true, false));
        assert!(watched.note(&a, Some(6), false, false));
        assert!(!watched.note(&a, Some(5), true, false));
        assert!(watched.note(&a, Some(7), true, false));
        // An API server restored from a backup counts from where it was.
        assert!(watched.note(&a, Some(2), true, true));
        assert!(watched.note(&a, Some(3), true, false));
        assert!(watched.note(&a, None, true, false));
    }

    #[test]
    fn what_a_list_does_not_name_has_vanished() {
        let mut watched = Watched::default();
        watched.start_list();
        for object in ["a", "b", "c"] {
            watched.note(&name(object), Some(1), true, true);
        }
        assert!(!watched.is_listed);
        assert_eq!(watched.finish_list(), []);
        assert!(watched.is_listed);
        watched.note(&name("c"), Some(2), false, false);
        watched.start_list();
        watched.note(&name("b"), Some(1), true, true);
        // A list that breaks off starts anew.
        watched.start_list();
        watched.note(&name("d"), Some(3), true, true);
        let mut vanished = watched.finish_list();
        vanished.sort();
        assert_eq!(vanished, [name("a"), name("b")]);
    }

    #[test]
    fn what_is_gone_is_not_remembered_for_ever() {
        let mut watched = Watched::default();
        for n in 0..10_000 {
            watched.note(&name(&n.to_string()), Some(n), false, false);
        }
        assert!(watched.objects.len() <= 1001, "{}", watched.objects.len());
    }
}

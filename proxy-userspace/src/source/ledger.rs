//! What has been announced, so that nothing is announced twice.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use ipnet::IpNet;

use crate::model::{Event, ObjectName, Problem};

/// The kinds of object that sources read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Kind {
    Service,
    EndpointSlice,
    Node,
    ServiceCidr,
    Pod,
}

impl Kind {
    /// The resource, as paths of the API name it.
    pub(super) const fn resource(self) -> &'static str {
        match self {
            Self::Service => "services",
            Self::EndpointSlice => "endpointslices",
            Self::Node => "nodes",
            Self::ServiceCidr => "servicecidrs",
            Self::Pod => "pods",
        }
    }
}

/// Which object.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Key {
    pub(super) kind: Kind,
    pub(super) name: ObjectName,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Service => write!(f, "Service {}", self.name),
            Kind::EndpointSlice => write!(f, "EndpointSlice {}", self.name),
            Kind::Node => write!(f, "Node {}", self.name.name),
            Kind::ServiceCidr => write!(f, "ServiceCIDR {}", self.name.name),
            Kind::Pod => write!(f, "Pod {}", self.name),
        }
    }
}

/// A fingerprint of every announced object, and the problems that are not solved yet.
///
/// The hash is keyed, so that nobody can make two versions of an object that look alike.
#[derive(Default)]
pub(super) struct Ledger {
    hasher: RandomState,
    announced: HashMap<Arc<Key>, u64>,
    /// What each ServiceCIDR says; they are announced together.
    service_cidrs: BTreeMap<ObjectName, Vec<IpNet>>,
    /// All together, as announced last.
    all_cidrs: Vec<IpNet>,
    problems: BTreeMap<String, String>,
}

impl Ledger {
    /// Takes note of an object as it is now. `event` announces what was understood of it, and
    /// `None` that it is none of ours (any more); `trouble` is what was not understood.
    pub(super) fn put(
        &mut self,
        key: &Arc<Key>,
        event: Option<Event>,
        trouble: Option<String>,
        out: &mut Vec<Event>,
    ) {
        match event {
            Some(Event::ServiceCidrs(ranges)) => {
                self.service_cidrs.insert(key.name.clone(), ranges);
                self.announce_cidrs(out);
            }
            Some(event) => {
                let fingerprint = self.hasher.hash_one(&event);
                if self.announced.insert(Arc::clone(key), fingerprint) != Some(fingerprint) {
                    out.push(event);
                }
            }
            None => self.gone(key, out),
        }
        match trouble {
            Some(message) => self.problem(key.to_string(), message, out),
            None => self.solved(&key.to_string(), out),
        }
    }

    /// Takes note that an object is not there any more.
    pub(super) fn remove(&mut self, key: &Key, out: &mut Vec<Event>) {
        self.gone(key, out);
        self.solved(&key.to_string(), out);
    }

    /// The union of all ServiceCIDRs, if it is another than before (rule R186).
    fn announce_cidrs(&mut self, out: &mut Vec<Event>) {
        let all: BTreeSet<IpNet> = self.service_cidrs.values().flatten().copied().collect();
        let all = Vec::from_iter(all);
        if all != self.all_cidrs {
            self.all_cidrs.clone_from(&all);
            out.push(Event::ServiceCidrs(all));
        }
    }

    fn gone(&mut self, key: &Key, out: &mut Vec<Event>) {
        if key.kind == Kind::ServiceCidr {
            self.service_cidrs.remove(&key.name);
            self.announce_cidrs(out);
            return;
        }
        if self.announced.remove(key).is_none() {
            return;
        }
        match key.kind {
            Kind::Service => out.push(Event::ServiceGone(key.name.clone())),
            Kind::EndpointSlice => out.push(Event::SliceGone(key.name.clone())),
            Kind::Pod => out.push(Event::PodGone(key.name.clone())),
            // What a Node said outlives it (rules R46, R136).
            Kind::Node | Kind::ServiceCidr => {}
        }
    }

    /// Takes note of trouble; the same message again is no news.
    pub(super) fn problem(&mut self, subject: String, message: String, out: &mut Vec<Event>) {
        if self.problems.get(&subject) != Some(&message) {
            self.problems.insert(subject.clone(), message.clone());
            out.push(Event::Problem(Problem { subject, message }));
        }
    }

    /// Takes note that there is no trouble, or none any more.
    pub(super) fn solved(&mut self, subject: &str, out: &mut Vec<Event>) {
        if let Some((subject, _)) = self.problems.remove_entry(subject) {
            out.push(Event::Solved(subject));
        }
    }
}

/// One message for all that is wrong with an object; the first few tell enough.
pub(super) fn trouble(errors: &[impl fmt::Display]) -> Option<String> {
    const SHOWN: usize = 5;
    let mut shown: Vec<String> = errors.iter().take(SHOWN).map(ToString::to_string).collect();
    if errors.len() > SHOWN {
        shown.push(format!("and {} more", errors.len() - SHOWN));
    }
    (!shown.is_empty()).then(|| shown.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Node;

    fn node(zone: &str) -> Option<Event> {
        Some(Event::Node(Node {
            name: "n1".into(),
            zone: Some(zone.into()),
            addresses: Vec::new(),
            pod_cidrs: Vec::new(),
            to_be_deleted: false,
        }))
    }

    fn key(kind: Kind) -> Arc<Key> {
        Arc::new(Key {
            kind,
            name: ObjectName {
                namespace: "s".into(),
                name: "n1".into(),
            },
        })
    }

    #[test]
    fn only_news_is_announced() {
        let mut ledger = Ledger::default();
        let mut out = Vec::new();
        let key = key(Kind::Node);
        ledger.put(&key, node("a"), None, &mut out);
        ledger.put(&key, node("a"), None, &mut out);
        ledger.put(&key, node("b"), Some("x".into()), &mut out);
        ledger.put(&key, node("b"), Some("x".into()), &mut out);
        ledger.put(&key, node("b"), None, &mut out);
        ledger.remove(&key, &mut out);
        let problem = Problem {
            subject: "Node n1".into(),
            message: "x".into(),
        };
        assert_eq!(
            out,
            [
                node("a").unwrap(),
                node("b").unwrap(),
                Event::Problem(problem),
                Event::Solved("Node n1".into()),
            ]
        );
    }

    #[test]
    fn an_object_that_is_none_of_ours_any_more_is_gone() {
        let mut ledger = Ledger::default();
        let mut out = Vec::new();
        let key = key(Kind::Service);
        ledger.put(&key, None, None, &mut out);
        ledger.remove(&key, &mut out);
        assert_eq!(out, []);
        ledger.put(&key, node("a"), None, &mut out);
        ledger.put(&key, None, Some("x".into()), &mut out);
        let problem = Problem {
            subject: "Service s/n1".into(),
            message: "x".into(),
        };
        let gone = Event::ServiceGone(key.name.clone());
        assert_eq!(out, [node("a").unwrap(), gone, Event::Problem(problem)]);
    }

    #[test]
    fn service_cidrs_are_announced_together_and_once() {
        let mut ledger = Ledger::default();
        let named = |name: &str| {
            Arc::new(Key {
                kind: Kind::ServiceCidr,
                name: ObjectName {
                    namespace: "default".into(),
                    name: name.into(),
                },
            })
        };
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let cidrs = |texts: &[&str]| Some(Event::ServiceCidrs(nets(texts)));
        let mut out = Vec::new();
        ledger.put(
            &named("b"),
            cidrs(&["10.0.0.0/16", "fd00::/112"]),
            None,
            &mut out,
        );
        ledger.put(
            &named("a"),
            cidrs(&["10.1.0.0/16", "10.0.0.0/16"]),
            None,
            &mut out,
        );
        ledger.put(&named("a"), cidrs(&["10.1.0.0/16"]), None, &mut out);
        let all = ["10.0.0.0/16", "10.1.0.0/16", "fd00::/112"];
        let expected = [&[all[0], all[2]][..], &all];
        assert_eq!(out, expected.map(|texts| cidrs(texts).unwrap()));
        out.clear();
        // One that is being deleted is none of ours any more.
        ledger.put(&named("b"), None, None, &mut out);
        ledger.remove(&named("b"), &mut out);
        ledger.remove(&named("a"), &mut out);
        assert_eq!(out, [&[all[1]][..], &[]].map(|texts| cidrs(texts).unwrap()));
    }

    #[test]
    fn messages_stay_short() {
        assert_eq!(trouble(&[""; 0]), None);
        assert_eq!(trouble(&["a", "b"]).unwrap(), "a; b");
        let many = ["a", "b", "c", "d", "e", "f", "g"];
        assert_eq!(trouble(&many).unwrap(), "a; b; c; d; e; and 2 more");
    }
}

//! What could not be read when the first lists came, and what is therefore not to be removed.
//!
//! A Service that a predecessor left in force and that the lists do not name is gone, unless it
//! is in a file that does not parse, or is an object that cannot be decoded: then it is merely
//! unknown, and so are the endpoints of a Service whose EndpointSlice is in there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proxy_common::abi::Family;

use crate::model::{EndpointSlice, ObjectName, Problem, Service, World};

/// The subject of the problem that something is kept which may be gone.
const SUBJECT: &str = "start";
/// Services and subjects that are named; the others are counted.
const NAMED: usize = 5;

/// The problems that have hidden objects since the first lists, by subject.
#[derive(Default, Debug)]
pub(super) struct Unread(BTreeMap<String, Extent>);

/// The Services of which something may be hidden.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Extent {
    /// A file or folder may hold any.
    All,
    /// This one.
    Service(ObjectName),
    /// The slice of this name tells of a Service in its namespace.
    Slice(ObjectName),
}

impl Unread {
    /// Of the problems that were there when the first lists were complete, those that hide
    /// something. An object of which a part was understood is known.
    pub(super) fn new<'a>(subjects: impl IntoIterator<Item = &'a String>, world: &World) -> Self {
        let hidden = subjects
            .into_iter()
            .filter_map(|subject| Some((subject.clone(), Extent::of(subject)?)))
            .filter(|(_, extent)| extent.is_unknown(world));
        Self(hidden.collect())
    }

    /// Forgets what has been solved or has become known since. A problem that comes later hides
    /// nothing: what its subject said before stays in force.
    pub(super) fn update(&mut self, problems: &BTreeMap<String, String>, world: &World) {
        self.0
            .retain(|subject, extent| problems.contains_key(subject) && extent.is_unknown(world));
    }

    /// Whether a Service may be there although nobody names it, or may have EndpointSlices that
    /// nobody names.
    pub(super) fn hides(&self, name: &ObjectName) -> bool {
        self.0.values().any(|extent| match extent {
            Extent::All => true,
            Extent::Service(service) => service == name,
            Extent::Slice(slice) => slice.namespace == name.namespace,
        })
    }

    /// What to tell of the Services that are kept for now, if there are any.
    pub(super) fn problem(&self, kept: &BTreeSet<ObjectName>) -> Option<Problem> {
        (!kept.is_empty()).then(|| Problem {
            subject: SUBJECT.to_owned(),
            message: format!(
                "{}: kept as before the restart until this can be read: {}",
                some(kept.iter().map(|name| format!("Service {name}"))),
                some(self.0.keys().cloned())
            ),
        })
    }
}

impl Extent {
    /// What is hidden by trouble with a subject, as the sources word it.
    fn of(subject: &str) -> Option<Self> {
        let (kind, name) = subject.split_once(' ')?;
        let object = || {
            let (namespace, name) = name.split_once('/')?;
            Some(ObjectName {
                namespace: Arc::from(namespace),
                name: Arc::from(name),
            })
        };
        match kind {
            "file" | "folder" => Some(Self::All),
            "Service" => object().map(Self::Service),
            "EndpointSlice" => object().map(Self::Slice),
            _ => None,
        }
    }

    fn is_unknown(&self, world: &World) -> bool {
        match self {
            Self::All => true,
            Self::Service(name) => world.service(name).is_none(),
            Self::Slice(name) => !world.has_slice(name),
        }
    }
}

/// Whether no EndpointSlice is known for one of the Service's families. A cluster has one for
/// each, be it empty.
pub(super) fn lacks_slices((service, slices): (&Service, &[EndpointSlice])) -> bool {
    let mut families = service.cluster_ips.iter().map(|ip| Family::of(*ip));
    families.any(|family| slices.iter().all(|slice| slice.family != family))
}

fn some(mut names: impl ExactSizeIterator<Item = String>) -> String {
    let named: Vec<_> = names.by_ref().take(NAMED).collect();
    match names.len() {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Event, TrafficPolicy};

    fn name(text: &str) -> ObjectName {
        let (namespace, name) = text.split_once('/').unwrap();
        ObjectName {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    fn service(text: &str) -> Service {
        Service {
            name: name(text),
            cluster_ips: vec!["10.96.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            ports: vec![],
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            external_ips: vec![],
            load_balancer_ips: vec![],
            source_ranges: vec![],
            affinity_seconds: None,
            gone_backends: None,
            health_check_node_port: None,
        }
    }

    fn slice(family: Family) -> EndpointSlice {
        EndpointSlice {
            name: name("shop/web-1"),
            service: name("shop/web"),
            family,
            ports: vec![],
            endpoints: vec![],
            changed_at: Default::default(),
        }
    }

    fn problems(subjects: &[&str]) -> BTreeMap<String, String> {
        let problem = |subject: &&str| ((*subject).to_owned(), "x".to_owned());
        subjects.iter().map(problem).collect()
    }

    /// Which of three Services are hidden by trouble with these subjects.
    fn hidden(subjects: &[&str], world: &World) -> Vec<&'static str> {
        let unread = Unread::new(problems(subjects).keys(), world);
        let all = ["shop/web", "shop/db", "other/web"];
        all.into_iter()
            .filter(|text| unread.hides(&name(text)))
            .collect()
    }

    #[test]
    fn trouble_hides_as_little_as_it_can() {
        let world = World::new();
        let all = ["shop/web", "shop/db", "other/web"];
        assert_eq!(hidden(&["file a b/c.yaml"], &world), all);
        assert_eq!(hidden(&["folder m"], &world), all);
        assert_eq!(hidden(&["Service shop/web"], &world), ["shop/web"]);
        let namespace = ["shop/web", "shop/db"];
        assert_eq!(hidden(&["EndpointSlice shop/web-1"], &world), namespace);
        assert_eq!(hidden(&["API server", "Node n1", "maps"], &world), [""; 0]);
    }

    #[test]
    fn what_was_understood_in_part_is_known() {
        let mut world = World::new();
        world.apply(Event::Service(service("shop/web")));
        world.apply(Event::Slice(slice(Family::Ipv4)));
        let subjects = ["Service shop/web", "EndpointSlice shop/web-1"];
        assert_eq!(hidden(&subjects, &world), [""; 0]);
    }

    #[test]
    fn only_trouble_from_the_start_hides_and_only_until_it_is_over() {
        let mut world = World::new();
        let first = problems(&["file a.yaml", "Service shop/web"]);
        let mut unread = Unread::new(first.keys(), &world);
        unread.update(&problems(&["file b.yaml", "Service shop/web"]), &world);
        assert!(unread.hides(&name("shop/web")) && !unread.hides(&name("shop/db")));
        world.apply(Event::Service(service("shop/web")));
        unread.update(&first, &world);
        assert!(!unread.hides(&name("shop/web")));
    }

    #[test]
    fn the_problem_names_what_it_waits_for() {
        let unread = Unread::new(problems(&["file a.yaml"]).keys(), &World::new());
        assert_eq!(unread.problem(&BTreeSet::new()), None);
        let kept = BTreeSet::from([name("shop/web"), name("shop/db")]);
        let problem = unread.problem(&kept).unwrap();
        assert_eq!(problem.subject, "start");
        assert_eq!(
            problem.message,
            "Service shop/db, Service shop/web: kept as before the restart until this can be \
             read: file a.yaml"
        );
        let many = (1..=7).map(|number| name(&format!("s/{number}"))).collect();
        let message = unread.problem(&many).unwrap().message;
        assert!(
            message.contains("Service s/5 and 2 more: kept"),
            "{message}"
        );
    }

    #[test]
    fn each_family_needs_a_slice() {
        let (web, v4, v6) = (
            service("shop/web"),
            slice(Family::Ipv4),
            slice(Family::Ipv6),
        );
        assert!(lacks_slices((&web, &[])));
        assert!(lacks_slices((&web, &[v4.clone(), v4.clone()])));
        assert!(!lacks_slices((&web, &[v4, v6])));
    }
}

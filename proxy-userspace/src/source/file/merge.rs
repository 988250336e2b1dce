//! All files together: which definition of an object counts, and what is news. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use super::manifest::{Definition, Definitions};
use crate::model::Event;
use crate::source::ledger::{Key, Kind, Ledger, trouble};

/// What happened to a file or folder.
#[derive(Debug)]
pub(super) enum Change {
    /// The file defines this now.
    Read(Arc<Path>, Definitions),
    /// The file is not there any more.
    Removed(Arc<Path>),
    /// This file or folder is in trouble; what it said before stays in force.
    Trouble {
        /// `file x.yaml`.
        subject: String,
        /// What is wrong.
        message: String,
    },
    /// The trouble of this subject is over.
    Solved(String),
}

/// The subject under which trouble with a file is reported.
pub(super) fn subject(path: &Path) -> String {
    format!("file {}", path.display())
}

/// What all files say.
///
/// Definitions are kept only of objects that several files define, for one of these to take over
/// from another. All else is with the consumer, or in the file.
#[derive(Default)]
pub(super) struct Manifests {
    /// The objects that each file defines.
    files: BTreeMap<Arc<Path>, Vec<Arc<Key>>>,
    /// The files that define an object, in the order of their paths.
    places: HashMap<Arc<Key>, Vec<Arc<Path>>>,
    /// What they say of it, as far as it is at hand. Few are for long, and no room is kept for more.
    definitions: BTreeMap<Arc<Key>, Vec<(Arc<Path>, Definition)>>,
    ledger: Ledger,
}

/// What comes of a batch of changes.
#[derive(Default, PartialEq, Eq, Debug)]
pub(super) struct Update {
    /// The news.
    pub(super) events: Vec<Event>,
    /// Files whose definitions matter now but are not at hand: they should be read again.
    pub(super) wanted: BTreeSet<Arc<Path>>,
}

impl Update {
    /// Adds what comes of another batch.
    pub(super) fn append(&mut self, mut other: Self) {
        self.events.append(&mut other.events);
        self.wanted.append(&mut other.wanted);
    }
}

impl Manifests {
    /// Takes in a batch of changes. An object that one file loses and another gains in the same
    /// batch does not go in between.
    pub(super) fn update(&mut self, changes: Vec<Change>) -> Update {
        let mut update = Update {
            events: Vec::new(),
            wanted: BTreeSet::new(),
        };
        let out = &mut update.events;
        let (mut touched, mut solved) = (BTreeSet::new(), Vec::new());
        for change in changes {
            match change {
                Change::Read(path, definitions) => {
                    solved.push(subject(&path));
                    self.replace(&path, definitions, &mut touched);
                }
                Change::Removed(path) => {
                    solved.push(subject(&path));
                    self.replace(&path, Definitions::new(), &mut touched);
                }
                Change::Trouble { subject, message } => {
                    self.ledger.problem(subject, message, out);
                }
                Change::Solved(subject) => solved.push(subject),
            }
        }
        self.announce(touched, &mut update);
        // Whoever hears that trouble is over knows all that it hid.
        for subject in solved {
            self.ledger.solved(&subject, &mut update.events);
        }
        update
    }

    fn replace(&mut self, path: &Arc<Path>, new: Definitions, touched: &mut BTreeSet<Arc<Key>>) {
        for key in self.files.remove(path).unwrap_or_default() {
            if let Some(places) = self.places.get_mut(&key) {
                places.retain(|place| place != path);
            }
            if let Some(definitions) = self.definitions.get_mut(&key) {
                definitions.retain(|(place, _)| place != path);
            }
            touched.insert(key);
        }
        let mut keys = Vec::with_capacity(new.len());
        for (key, definition) in new {
            let key = Arc::new(key);
            keys.push(Arc::clone(&key));
            let places = self
                .places
                .entry(Arc::clone(&key))
                .or_insert_with(|| Vec::with_capacity(1));
            let at = places.partition_point(|place| place < path);
            places.insert(at, Arc::clone(path));
            let definitions = self.definitions.entry(Arc::clone(&key));
            definitions
                .or_insert_with(|| Vec::with_capacity(1))
                .push((Arc::clone(path), definition));
            touched.insert(key);
        }
        if !keys.is_empty() {
            self.files.insert(Arc::clone(path), keys);
        }
    }

    fn announce(&mut self, touched: BTreeSet<Arc<Key>>, update: &mut Update) {
        // Addresses of Services that go may be taken by Services that come (rule R162); endpoints
        // that move should be seen in the new place first (rule R165).
        let (there, gone): (Vec<Arc<Key>>, Vec<Arc<Key>>) = touched.into_iter().partition(|key| {
            self.places
                .get(key)
                .is_some_and(|places| !places.is_empty())
        });
        let (services, others): (Vec<Arc<Key>>, Vec<Arc<Key>>) =
            gone.into_iter().partition(|key| key.kind == Kind::Service);
        for key in &services {
            self.remove(key, &mut update.events);
        }
        for key in &there {
            self.put(key, update);
        }
        for key in &others {
            self.remove(key, &mut update.events);
        }
    }

    fn remove(&mut self, key: &Arc<Key>, out: &mut Vec<Event>) {
        self.places.remove(key);
        self.definitions.remove(key);
        self.ledger.remove(key, out);
    }

    fn put(&mut self, key: &Arc<Key>, update: &mut Update) {
        let Some(places) = self.places.get(key) else {
            return;
        };
        let mut definitions = self.definitions.remove(key).unwrap_or_default();
        let missing = places
            .iter()
            .filter(|place| !definitions.iter().any(|(p, _)| p == *place));
        update.wanted.extend(missing.cloned());
        let Some(first) = places.first() else { return };
        let at = definitions.iter().position(|(place, _)| place == first);
        let mut conflict = None;
        let definition = if places.len() == 1 {
            at.map(|at| definitions.swap_remove(at).1)
        } else {
            let names: Vec<String> = places.iter().map(|p| p.display().to_string()).collect();
            let names = names.join(" and in ");
            conflict = Some(format!("defined in {names}; {} counts", first.display()));
            let definition = at
                .and_then(|at| definitions.get(at))
                .map(|(_, first)| first.clone());
            self.definitions.insert(Arc::clone(key), definitions);
            definition
        };
        let Some(Definition { event, mut errors }) = definition else {
            return;
        };
        errors.extend(conflict);
        self.ledger
            .put(key, event, trouble(&errors), &mut update.events);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::file::manifest;
    use crate::source::parse::Strings;

    fn path(name: &str) -> Arc<Path> {
        Path::new(name).into()
    }

    /// The file `name` defines a Service `web` of this address, or nothing.
    fn file(name: &str, address: &str) -> Change {
        let text = format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: web}}, spec: {{clusterIP: {address}}}}}"
        );
        let text = if address.is_empty() { "" } else { &text };
        let definitions = manifest::read(
            Path::new(name),
            text.as_bytes(),
            &manifest::Wanted {
                node: "n".into(),
                pods: false,
            },
            &mut Strings::default(),
        );
        Change::Read(path(name), definitions.unwrap())
    }

    fn lines(events: &[Event]) -> Vec<String> {
        let line = |event: &Event| match event {
            Event::Service(service) => format!("{} {}", service.name, service.cluster_ips[0]),
            Event::ServiceGone(name) => format!("{name} gone"),
            Event::Problem(problem) => format!("{}: {}", problem.subject, problem.message),
            Event::Solved(subject) => format!("{subject} solved"),
            other @ (Event::Slice(_)
            | Event::SliceGone(_)
            | Event::Node(_)
            | Event::ServiceCidrs(_)
            | Event::Pod(_)
            | Event::PodGone(_)
            | Event::PodsKnown
            | Event::Synced) => {
                format!("{other:?}")
            }
        };
        events.iter().map(line).collect()
    }

    #[test]
    fn the_first_file_counts_and_the_next_takes_over() {
        let mut manifests = Manifests::default();
        let mut update = |changes| {
            let update = manifests.update(changes);
            let wanted = update
                .wanted
                .iter()
                .map(|path| format!("{}?", path.display()));
            lines(&update.events)
                .into_iter()
                .chain(wanted)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            update(vec![file("b.yaml", "10.0.0.2")]),
            ["default/web 10.0.0.2"]
        );
        assert_eq!(
            update(vec![file("a.yaml", "10.0.0.1")]),
            [
                "default/web 10.0.0.1",
                "Service default/web: defined in a.yaml and in b.yaml; a.yaml counts",
                "b.yaml?",
            ]
        );
        assert_eq!(update(vec![file("b.yaml", "10.0.0.3")]), [""; 0]);
        let broken = Change::Trouble {
            subject: subject(Path::new("b.yaml")),
            message: "x".into(),
        };
        assert_eq!(update(vec![broken]), ["file b.yaml: x"]);
        assert_eq!(
            update(vec![Change::Removed(path("a.yaml"))]),
            ["default/web 10.0.0.3", "Service default/web solved"]
        );
        assert_eq!(
            update(vec![Change::Removed(path("b.yaml"))]),
            ["default/web gone", "file b.yaml solved"]
        );
    }

    #[test]
    fn an_object_that_moves_does_not_go() {
        let mut manifests = Manifests::default();
        manifests.update(vec![file("a.yaml", "10.0.0.1")]);
        let moved = vec![file("a.yaml", ""), file("b.yaml", "10.0.0.1")];
        assert_eq!(manifests.update(moved).events, []);
        assert_eq!(manifests.definitions.len(), 0);
    }
}

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
/// Definitions are kept, not only fingerprints of them: when a file goes, another one's
/// definition of the same object takes over, even if that one's file is broken by then.
#[derive(Default)]
pub(super) struct Manifests {
    files: BTreeMap<Arc<Path>, Definitions>,
    /// The files that define an object, in the order of their paths.
    places: HashMap<Key, Vec<Arc<Path>>>,
    ledger: Ledger,
}

impl Manifests {
    /// Takes in a batch of changes and returns the news. An object that one file loses and
    /// another gains in the same batch does not go in between.
    pub(super) fn update(&mut self, changes: Vec<Change>) -> Vec<Event> {
        let mut out = Vec::new();
        let mut touched = BTreeSet::new();
        for change in changes {
            match change {
                Change::Read(path, definitions) => {
                    self.ledger.solved(&subject(&path), &mut out);
                    self.replace(&path, definitions, &mut touched);
                }
                Change::Removed(path) => {
                    self.ledger.solved(&subject(&path), &mut out);
                    self.replace(&path, Definitions::new(), &mut touched);
                }
                Change::Trouble { subject, message } => {
                    self.ledger.problem(subject, message, &mut out);
                }
                Change::Solved(subject) => self.ledger.solved(&subject, &mut out),
            }
        }
        self.announce(touched, &mut out);
        out
    }

    fn replace(&mut self, path: &Arc<Path>, new: Definitions, touched: &mut BTreeSet<Key>) {
        for key in self.files.remove(path).unwrap_or_default().into_keys() {
            if !new.contains_key(&key)
                && let Some(places) = self.places.get_mut(&key)
            {
                places.retain(|place| place != path);
            }
            touched.insert(key);
        }
        for key in new.keys() {
            let places = self.places.entry(key.clone()).or_default();
            if let Err(at) = places.binary_search(path) {
                places.insert(at, Arc::clone(path));
            }
            touched.insert(key.clone());
        }
        if !new.is_empty() {
            self.files.insert(Arc::clone(path), new);
        }
    }

    fn announce(&mut self, touched: BTreeSet<Key>, out: &mut Vec<Event>) {
        // Addresses of Services that go may be taken by Services that come (rule R162); endpoints
        // that move should be seen in the new place first (rule R165).
        let (there, gone): (Vec<Key>, Vec<Key>) = touched.into_iter().partition(|key| {
            self.places
                .get(key)
                .is_some_and(|places| !places.is_empty())
        });
        let (services, others): (Vec<Key>, Vec<Key>) =
            gone.into_iter().partition(|key| key.kind == Kind::Service);
        for key in &services {
            self.remove(key, out);
        }
        for key in &there {
            let Some((definition, trouble)) = self.in_force(key) else {
                continue;
            };
            self.ledger.put(key, definition.event.clone(), trouble, out);
        }
        for key in &others {
            self.remove(key, out);
        }
    }

    fn remove(&mut self, key: &Key, out: &mut Vec<Event>) {
        self.places.remove(key);
        self.ledger.remove(key, out);
    }

    /// The definition that counts, and what is wrong with the object.
    fn in_force(&self, key: &Key) -> Option<(&Definition, Option<String>)> {
        let places = self.places.get(key)?;
        let first = places.first()?;
        let definition = self.files.get(first)?.get(key)?;
        let mut errors = definition.errors.clone();
        if places.len() > 1 {
            let names: Vec<String> = places.iter().map(|p| p.display().to_string()).collect();
            errors.push(format!(
                "defined in {}; {} counts",
                names.join(" and in "),
                first.display()
            ));
        }
        Some((definition, trouble(&errors)))
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
            "n",
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
            other @ (Event::Slice(_) | Event::SliceGone(_) | Event::Node(_) | Event::Synced) => {
                format!("{other:?}")
            }
        };
        events.iter().map(line).collect()
    }

    #[test]
    fn the_first_file_counts_and_the_next_takes_over() {
        let mut manifests = Manifests::default();
        let mut update = |changes| lines(&manifests.update(changes));
        assert_eq!(
            update(vec![file("b.yaml", "10.0.0.2")]),
            ["default/web 10.0.0.2"]
        );
        assert_eq!(
            update(vec![file("a.yaml", "10.0.0.1")]),
            [
                "default/web 10.0.0.1",
                "Service default/web: defined in a.yaml and in b.yaml; a.yaml counts",
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
            ["file b.yaml solved", "default/web gone"]
        );
    }

    #[test]
    fn an_object_that_moves_does_not_go() {
        let mut manifests = Manifests::default();
        manifests.update(vec![file("a.yaml", "10.0.0.1")]);
        let moved = vec![file("a.yaml", ""), file("b.yaml", "10.0.0.1")];
        assert_eq!(manifests.update(moved), []);
    }
}

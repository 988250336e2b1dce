//! What the servers have trouble with.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

use crate::model::Problem;

/// The trouble of all servers, by subject. Clones are the same list.
#[derive(Clone, Default, Debug)]
pub struct Problems(Arc<watch::Sender<BTreeMap<String, String>>>);

impl Problems {
    /// All of them, ordered by subject.
    pub fn all(&self) -> Vec<Problem> {
        let problem = |(subject, message): (&String, &String)| Problem {
            subject: subject.clone(),
            message: message.clone(),
        };
        self.0.borrow().iter().map(problem).collect()
    }

    /// Tells of every change.
    pub fn changes(&self) -> watch::Receiver<BTreeMap<String, String>> {
        self.0.subscribe()
    }

    /// What is wrong with this subject now; nothing if `None`. What is new is logged.
    pub(crate) fn set(&self, subject: &str, message: Option<String>) {
        self.0.send_if_modified(|known| {
            if known.get(subject) == message.as_ref() {
                return false;
            }
            match message {
                Some(message) => {
                    tracing::warn!("{subject}: {message}");
                    known.insert(subject.to_owned(), message);
                }
                None => {
                    tracing::info!("{subject}: solved");
                    known.remove(subject);
                }
            }
            true
        });
    }
}

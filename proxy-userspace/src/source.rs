//! Where Services come from: manifest files or the Kubernetes API.
//!
//! Both sources yield the same [`Event`](crate::model::Event)s from the same reading of objects
//! ([`parse`]), announce an object only if what matters of it has changed, and report what they
//! can't understand as a [`Problem`](crate::model::Problem) that stays until it is solved.

pub mod file;
pub mod kubernetes;
mod ledger;
pub mod parse;
mod rights;
pub mod state;

pub use file::{FileError, FileSource};
pub use kubernetes::{KubernetesError, KubernetesSource};
pub use rights::{Right, rights, rights_for_pods};
pub use state::{ResourceState, Restart, SourceState};

//! Packets on the devices of a node made of network namespaces.

use crate::case::Case;
use crate::outcome::Outcome;

/// Runs a case.
pub fn run(_case: &Case) -> Outcome {
    Outcome::NotOnTheWire("this level is not built yet".into())
}

/// How many cases may run at a time.
pub const fn n_workers() -> usize {
    1
}

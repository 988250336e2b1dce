//! The local and the cluster set of a service port (rules R31 to R49), laid out as one block.

use std::sync::Arc;

use super::endpoints::Candidate;
use super::{DesiredBackend, NodeFacts};

/// All backends in the order of the block, and where the two sets stand in it.
pub(super) struct Choice {
    pub(super) backends: Vec<DesiredBackend>,
    pub(super) n_local: u32,
    pub(super) cluster_offset: u32,
    pub(super) n_cluster: u32,
}

/// Where a backend stands in the block.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    LocalOnly,
    Both,
    ClusterOnly,
    NoSet,
}

/// Puts endpoints into the two sets; what stood in order stays in order within each part.
pub(super) fn choose(candidates: Vec<Candidate<'_>>, node: &NodeFacts) -> Choice {
    let in_cluster = cluster_set(&candidates, node);
    let in_local = local_set(&candidates);
    let any_serves = candidates.iter().any(Candidate::is_serving);
    let mut placed: Vec<(Part, DesiredBackend)> = candidates
        .iter()
        .map(|it| {
            let part = part(in_local.holds(it), in_cluster.holds(it));
            (part, it.backend(any_serves))
        })
        .collect();
    placed.sort_by_key(|&(part, _)| part);
    let count = |wanted| {
        u32::try_from(placed.iter().filter(|&&(part, _)| part == wanted).count())
            .unwrap_or(u32::MAX)
    };
    let (local_only, both, cluster_only) = (
        count(Part::LocalOnly),
        count(Part::Both),
        count(Part::ClusterOnly),
    );
    Choice {
        n_local: local_only + both,
        cluster_offset: local_only,
        n_cluster: both + cluster_only,
        backends: placed.into_iter().map(|(_, backend)| backend).collect(),
    }
}

fn part(is_in_local: bool, is_in_cluster: bool) -> Part {
    match (is_in_local, is_in_cluster) {
        (true, false) => Part::LocalOnly,
        (true, true) => Part::Both,
        (false, true) => Part::ClusterOnly,
        (false, false) => Part::NoSet,
    }
}

/// What makes an endpoint a member of a set.
enum Members<'a> {
    Ready,
    ReadyForNode(&'a Arc<str>),
    ReadyForZone(&'a Arc<str>),
    Fallback,
    LocalReady,
    LocalFallback,
}

impl Members<'_> {
    fn holds(&self, it: &Candidate<'_>) -> bool {
        match *self {
            Self::Ready => it.is_ready(),
            Self::ReadyForNode(node) => it.is_ready() && it.node_hints().contains(node),
            Self::ReadyForZone(zone) => it.is_ready() && it.zone_hints().contains(zone),
            Self::Fallback => it.is_fallback(),
            Self::LocalReady => it.is_local() && it.is_ready(),
            Self::LocalFallback => it.is_local() && it.is_fallback(),
        }
    }
}

/// Rule R31; rule R33: what is in the local set plays no part.
fn cluster_set<'a>(candidates: &[Candidate<'_>], node: &'a NodeFacts) -> Members<'a> {
    if candidates.iter().any(Candidate::is_ready) {
        by_topology(candidates, node)
    } else {
        Members::Fallback
    }
}

/// Rules R40 to R42, R45. Only ready endpoints are asked (rule R43).
fn by_topology<'a>(candidates: &[Candidate<'_>], node: &'a NodeFacts) -> Members<'a> {
    let ready = || candidates.iter().filter(|it| it.is_ready());
    let zone = node.zone.as_ref().filter(|zone| !zone.is_empty());
    if node.same_node_hints && hints_apply(ready().map(Candidate::node_hints), &node.name) {
        return Members::ReadyForNode(&node.name);
    }
    match zone {
        Some(zone) if hints_apply(ready().map(Candidate::zone_hints), zone) => {
            Members::ReadyForZone(zone)
        }
        Some(_) | None => Members::Ready,
    }
}

/// Whether everybody has a hint of this kind and at least one is for `here`.
fn hints_apply<'a>(hints: impl Iterator<Item = &'a [Arc<str>]>, here: &Arc<str>) -> bool {
    let mut any_here = false;
    for names in hints {
        if names.is_empty() {
            return false;
        }
        any_here |= names.contains(here);
    }
    any_here
}

/// Rule R32; rule R39: what is on other nodes plays no part.
fn local_set(candidates: &[Candidate<'_>]) -> Members<'static> {
    if candidates.iter().any(|it| Members::LocalReady.holds(it)) {
        Members::LocalReady
    } else {
        Members::LocalFallback
    }
}

//! The endpoints of a service port: the union over its slices (rules R10 to R29).

use std::net::IpAddr;
use std::sync::Arc;

use proxy_common::abi::{Addr, BackendState, Family, Port};

use super::{DesiredBackend, NodeFacts};
use crate::model::{Endpoint, EndpointSlice, ServicePort};

/// An endpoint with the number that one of its slice's ports gives it.
#[derive(Clone, Copy)]
pub(super) struct Candidate<'a> {
    endpoint: &'a Endpoint,
    port: u16,
    is_local: bool,
}

impl<'a> Candidate<'a> {
    /// Takes part in the sets whatever else there is.
    pub(super) fn is_ready(&self) -> bool {
        self.endpoint.ready
    }

    /// May stand in where no endpoint is ready (rules R31, R32, R34).
    pub(super) fn is_fallback(&self) -> bool {
        self.endpoint.serving && self.endpoint.terminating
    }

    /// Whether it is on this node.
    pub(super) fn is_local(&self) -> bool {
        self.is_local
    }

    /// The nodes that it is hinted for (rule R49).
    pub(super) fn node_hints(&self) -> &'a [Arc<str>] {
        self.endpoint.hints.as_ref().map_or(&[], |it| &it.nodes)
    }

    /// The zones that it is hinted for (rule R49).
    pub(super) fn zone_hints(&self) -> &'a [Arc<str>] {
        self.endpoint.hints.as_ref().map_or(&[], |it| &it.zones)
    }

    /// What the maps shall know of it; `any_serves`: some endpoint of the service port does.
    pub(super) fn backend(&self, any_serves: bool) -> DesiredBackend {
        DesiredBackend {
            addr: self.endpoint.address.into(),
            port: Port::new(self.port),
            state: self.state(any_serves),
            is_local: self.is_local,
        }
    }

    /// Whether UDP flows may stay with it in any case (rules R141, R144).
    pub(super) fn is_serving(&self) -> bool {
        self.endpoint.serving
    }

    /// A terminating endpoint that does not serve is as good as one that is not ready: neither
    /// gets new flows by any fall-back (rule R34). One that is ready gets new flows, so there is
    /// no point in moving those that it has, even if it does not serve.
    fn state(&self, any_serves: bool) -> BackendState {
        if self.is_ready() {
            BackendState::Active
        } else if !self.is_serving() && any_serves {
            BackendState::NotServing
        } else if self.is_fallback() {
            BackendState::Terminating
        } else {
            BackendState::NotReady
        }
    }

    fn socket(&self) -> (IpAddr, u16) {
        (self.endpoint.address, self.port)
    }

    /// Smaller is better among entries for the same address and port. Only the first criterion is
    /// kube-proxy's (rule R23); the others make the result independent of the slices' order.
    fn rank(&self) -> (bool, bool, bool, bool) {
        let endpoint = self.endpoint;
        (
            endpoint.terminating,
            !endpoint.ready,
            !endpoint.serving,
            !self.is_local,
        )
    }
}

/// The endpoints of a service port in one family, ordered by address and port, each pair once
/// (rules R22, R23).
pub(super) fn collect<'a>(
    port: &ServicePort,
    family: Family,
    slices: &'a [EndpointSlice],
    node: &NodeFacts,
) -> Vec<Candidate<'a>> {
    let mut all: Vec<_> = slices
        .iter()
        .filter(|slice| slice.family == family)
        .flat_map(|slice| numbers(port, slice).map(move |number| (slice, number)))
        .flat_map(|(slice, number)| slice.endpoints.iter().map(move |it| (it, number)))
        .filter(|(endpoint, _)| Addr::from(endpoint.address).family() == family)
        .map(|(endpoint, port)| Candidate {
            endpoint,
            port,
            is_local: is_local(endpoint, node),
        })
        .collect();
    all.sort_by_key(|candidate| (candidate.socket(), candidate.rank()));
    all.dedup_by_key(|candidate| candidate.socket());
    all
}

/// The numbers that a slice has for a service port: those of the same name and protocol
/// (rules R11, R12).
fn numbers(port: &ServicePort, slice: &EndpointSlice) -> impl Iterator<Item = u16> {
    slice
        .ports
        .iter()
        .filter(|it| it.name == port.name && it.protocol == port.protocol)
        .map(|it| it.port)
}

fn is_local(endpoint: &Endpoint, node: &NodeFacts) -> bool {
    endpoint.node.as_ref() == Some(&node.name)
}

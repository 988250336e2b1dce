//! How clients are made, and what is expected of them then.

use std::fmt;

use beeline::node::SocketLb;

use super::plan;
use crate::case::{Case, Expect, Flow, Kind, Protocol};

/// How a case is run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Way {
    /// `None`: clients on pods are frames.
    pub(super) socket_lb: Option<SocketLb>,
    /// UDP sockets are not connected.
    pub(super) is_unconnected: bool,
    /// NodePorts at localhost, as kube-proxy's iptables mode has them.
    pub(super) has_localhost: bool,
}

impl Way {
    /// Whether clients on pods are sockets.
    pub(super) const fn has_sockets(self) -> bool {
        self.socket_lb.is_some()
    }

    /// Whether some sockets are served.
    pub(super) fn has_edge(self) -> bool {
        self.socket_lb.is_some_and(SocketLb::is_on)
    }

    /// The ways in which a case is run.
    pub(super) fn all(case: &Case, socket_lb: Option<SocketLb>) -> Vec<Self> {
        let way = Self {
            socket_lb,
            is_unconnected: false,
            has_localhost: false,
        };
        let mut ways = vec![way];
        let is_udp = |flow: &Flow| {
            let is_socket = matches!(flow.from.kind, Kind::Pod | Kind::Node);
            is_socket && flow.to.protocol == Protocol::Udp
        };
        if way.has_sockets() && plan::flows(case).any(is_udp) {
            ways.push(Self {
                is_unconnected: true,
                ..way
            });
        }
        if way.has_edge() && plan::flows(case).any(|flow| at_localhost(flow).is_some()) {
            ways.push(Self {
                has_localhost: true,
                ..way
            });
        }
        ways
    }

    /// A flow with what is expected of it; `None` if nothing is.
    pub(super) fn flow(self, flow: &Flow) -> Option<Flow> {
        if !self.has_localhost || !flow.to.ip.is_loopback() {
            return Some(flow.clone());
        }
        // Of IPv6 no mode of kube-proxy's says anything.
        let expect = at_localhost(flow)?.clone();
        Some(Flow {
            expect,
            ..flow.clone()
        })
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_unconnected {
            write!(f, " (UDP sockets not connected)")?;
        }
        if self.has_localhost {
            write!(f, " (NodePorts at localhost)")?;
        }
        Ok(())
    }
}

/// What becomes of a flow to localhost in iptables mode.
fn at_localhost(flow: &Flow) -> Option<&Expect> {
    let by_mode = flow.expect_by_mode.as_ref()?;
    let is_localhost = flow.to.ip.is_loopback();
    by_mode.iptables.as_ref().filter(|_| is_localhost)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::case::{self, Verdict};

    fn own(id: &str) -> Case {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
        let mut cases = case::folder(&folder).unwrap().into_iter();
        cases.find(|read| read.id() == id).unwrap().case.unwrap()
    }

    fn ways(id: &str, socket_lb: Option<SocketLb>) -> Vec<String> {
        let ways = Way::all(&own(id), socket_lb);
        ways.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn sockets_are_used_in_all_ways_that_matter() {
        let unconnected = " (UDP sockets not connected)";
        assert_eq!(ways("aff-udp", None), [""]);
        assert_eq!(ways("aff-udp", Some(SocketLb::Off)), ["", unconnected]);
        assert_eq!(ways("aff-sticks", Some(SocketLb::All)), [""]);
        let localhost = ["", " (NodePorts at localhost)"];
        assert_eq!(
            ways("np-localhost-iptables", Some(SocketLb::Host)),
            localhost
        );
        assert_eq!(ways("np-localhost-iptables", Some(SocketLb::Off)), [""]);
    }

    #[test]
    fn at_localhost_other_modes_expectations_count() {
        let case = own("np-localhost-iptables");
        let ways = Way::all(&case, Some(SocketLb::All));
        let expected = |way: &Way| -> Vec<_> {
            let flows = case.flows.iter().map(|flow| way.flow(flow));
            flows.map(|flow| Some(flow?.expect.verdict)).collect()
        };
        assert_eq!(expected(&ways[0]), [Some(Verdict::Pass); 2]);
        assert_eq!(expected(&ways[1]), [Some(Verdict::Forward), None]);
    }
}

//! What is compared: a proxy and a way by it, with a name and a look of its own, the same one
//! everywhere.

use xtask::figures::{Case, Proxy, Way};

/// A way to a pod on nodes with a proxy.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Series {
    /// The node's proxy.
    pub(super) proxy: Proxy,
    /// How the pod is dialled.
    pub(super) way: Way,
}

/// A pod dialled on a node that has no proxy.
pub(super) const NO_PROXY: Series = Series::new(Proxy::Direct, Way::Pod);
/// A Service, by Beeline's socket edge.
pub(super) const SOCKET_EDGE: Series = Series::new(Proxy::Beeline, Way::SocketEdge);
/// A Service, by Beeline's packet edge.
pub(super) const PACKET_EDGE: Series = Series::new(Proxy::Beeline, Way::PacketEdge);

/// A Service, by the rules of each of kube-proxy's modes.
pub(super) const PEERS: [Series; 3] = [
    Series::new(Proxy::Nftables, Way::Rules),
    Series::new(Proxy::Iptables, Way::Rules),
    Series::new(Proxy::IptablesLegacy, Way::Rules),
];

/// What dials a Service, and what that is compared with, in the order of charts and tables.
pub(super) const ALL: [Series; 6] = [
    NO_PROXY,
    SOCKET_EDGE,
    PACKET_EDGE,
    PEERS[0],
    PEERS[1],
    PEERS[2],
];

/// A pod dialled on a node whose proxy has nothing to do with it.
pub(super) const BESIDE: [Series; 5] = [
    NO_PROXY,
    Series::new(Proxy::Beeline, Way::Pod),
    Series::new(Proxy::Nftables, Way::Pod),
    Series::new(Proxy::Iptables, Way::Pod),
    Series::new(Proxy::IptablesLegacy, Way::Pod),
];

impl Series {
    const fn new(proxy: Proxy, way: Way) -> Self {
        Self { proxy, way }
    }

    /// Whether a case is one of it.
    pub(super) fn has(self, case: &Case) -> bool {
        self == Self::new(case.proxy, case.way)
    }

    /// Its name where there is room for one.
    pub(super) fn name(self) -> String {
        match self.proxy {
            Proxy::Direct => "no proxy".to_owned(),
            Proxy::Beeline if self.way == Way::Pod => "Beeline".to_owned(),
            Proxy::Beeline => format!("Beeline, {}", self.short()),
            Proxy::Iptables | Proxy::IptablesLegacy | Proxy::Nftables => {
                format!("kube-proxy, {}", self.short())
            }
        }
    }

    /// Its name at the head of a column.
    pub(super) fn short(self) -> &'static str {
        match self.way {
            Way::SocketEdge => "socket edge",
            Way::PacketEdge => "packet edge",
            Way::Pod | Way::Rules => match self.proxy {
                Proxy::Direct => "no proxy",
                Proxy::Beeline => "Beeline",
                Proxy::Iptables => "iptables",
                Proxy::IptablesLegacy => "iptables-legacy",
                Proxy::Nftables => "nftables",
            },
        }
    }

    /// The class of its marks, which the style sheet gives a colour.
    pub(super) fn class(self) -> &'static str {
        match self.way {
            Way::PacketEdge => "packet-edge",
            Way::SocketEdge | Way::Pod | Way::Rules => proxy_class(self.proxy),
        }
    }

    /// The outline of its marks in charts of lines, about the origin, so that no colour is needed
    /// to tell it.
    pub(super) fn mark(self) -> &'static str {
        match (self.proxy, self.way) {
            (Proxy::Direct, _) => "M-6-2H6V2H-6Z",
            (Proxy::Beeline, Way::PacketEdge) => "M-4.5-4.5H4.5V4.5H-4.5Z",
            (Proxy::Beeline, Way::SocketEdge | Way::Pod | Way::Rules) => {
                "M-5 0A5 5 0 1 1 5 0A5 5 0 1 1-5 0Z"
            }
            (Proxy::Nftables, _) => "M0-5.5L5 4H-5Z",
            (Proxy::Iptables, _) => "M0-6L6 0L0 6L-6 0Z",
            (Proxy::IptablesLegacy, _) => "M0 5.5L5-4H-5Z",
        }
    }
}

/// The class of the marks of all that is of a proxy.
pub(super) fn proxy_class(proxy: Proxy) -> &'static str {
    match proxy {
        Proxy::Direct => "no-proxy",
        Proxy::Beeline => "socket-edge",
        Proxy::Iptables => "iptables",
        Proxy::IptablesLegacy => "iptables-legacy",
        Proxy::Nftables => "nftables",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_has_a_name_and_a_look_of_its_own() {
        let names: BTreeSet<_> = ALL.iter().map(|series| series.name()).collect();
        let classes: BTreeSet<_> = ALL.iter().map(|series| series.class()).collect();
        let marks: BTreeSet<_> = ALL.iter().map(|series| series.mark()).collect();
        assert_eq!([names.len(), classes.len(), marks.len()], [ALL.len(); 3]);
    }
}

//! What the datapath decided, and why.
//!
//! The names are stable: metrics, `beeline status` and documentation use them.

/// What becomes of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Verdict {
    /// Untouched, on its way.
    Pass(Pass),
    /// Rewritten, on its way.
    Rewrite(Rewrite),
    /// Turned into an answer to its sender.
    Reply(Reply),
    /// Gone.
    Drop(Drop),
}

macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident from $base:literal { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u8)]
        pub enum $name { $($(#[$vdoc])* $variant),* }

        impl $name {
            /// Every variant, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];
            const BASE: u32 = $base;

            /// The stable name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
        }
    };
}

reasons! {
    /// Why a packet was left alone.
    Pass from 0 {
        /// Neither IPv4 nor IPv6.
        NotIp = "not-ip",
        /// A protocol that Services cannot use.
        OtherProtocol = "other-protocol",
        /// Too short, or lengths that contradict each other; the stack will judge.
        Malformed = "malformed",
        /// Not to a Service, not from one.
        NoService = "no-service",
        /// In mid-flow and unknown here; netfilter may know it.
        MidFlow = "mid-flow",
        /// A later fragment whose first one was not seen.
        UnknownFragment = "unknown-fragment",
        /// An ICMP error that quotes nothing translated here.
        UnrelatedError = "unrelated-error",
        /// Tagged for a virtual LAN, whose own device it comes to next, or comes from.
        Tagged = "tagged",
        /// Delivered into this node by Beeline itself a moment ago.
        Delivered = "delivered",
        /// A socket that dialled a Service and is not pointed at a backend: its packets are
        /// translated where they leave.
        ByPacket = "by-packet",
        /// The same, because the socket edge has no room for it.
        SocketsFull = "sockets-full",
        /// It would open a flow, or be refused or dropped, but Beeline hands its traffic back:
        /// somebody else serves it.
        HandedBack = "handed-back",
    }
}

reasons! {
    /// Which way a packet was rewritten.
    Rewrite from 16 {
        /// Frontend to backend, known flow.
        Forward = "forward",
        /// Frontend to backend, first packet.
        NewFlow = "new-flow",
        /// Backend to frontend.
        Reverse = "reverse",
        /// Frontend to backend, back to the pod it came from.
        HairpinForward = "hairpin-forward",
        /// Backend to frontend, back to the pod it came from.
        HairpinReverse = "hairpin-reverse",
        /// An ICMP error whose quoted packet was translated.
        IcmpError = "icmp-error",
        /// A socket that connects to a frontend, pointed at a backend.
        Connect = "connect",
        /// A datagram of a socket that is not connected, sent to a backend instead.
        Datagram = "datagram",
    }
}

reasons! {
    /// What a packet was answered with.
    Reply from 32 {
        /// No endpoints: TCP reset.
        NoEndpointReset = "no-endpoint-reset",
        /// No endpoints: ICMP port unreachable.
        NoEndpointUnreachable = "no-endpoint-unreachable",
        /// The flow's backend is gone: TCP reset.
        GoneReset = "gone-reset",
        /// The flow's backend is gone: SCTP ABORT.
        GoneAbort = "gone-abort",
        /// A port that the Service at this cluster IP does not have: TCP reset (rule R15).
        UnusedPortReset = "unused-port-reset",
        /// The same: ICMP port unreachable.
        UnusedPortUnreachable = "unused-port-unreachable",
        /// Too long for the device by which it would leave: ICMP, with the length that fits.
        TooLong = "too-long",
        /// A socket that dialled a Service without endpoints, or without this port:
        /// `ECONNREFUSED`.
        SocketRefused = "socket-refused",
    }
}

reasons! {
    /// Why a packet was dropped.
    Drop from 48 {
        /// Endpoints exist, but none that the policy allows here (rule R66).
        NoLocalEndpoint = "no-local-endpoint",
        /// A slot or backend that the frontend names does not exist.
        Inconsistent = "inconsistent",
        /// No free port to keep two flows apart.
        PortsExhausted = "ports-exhausted",
        /// The kernel refused a flow record.
        FlowTable = "flow-table",
        /// A fragment of an SCTP packet whose port would change: its checksum covers all of it.
        SctpFragment = "sctp-fragment",
        /// The packet could not be written.
        Write = "write",
        /// No answer is owed, or none can be built: to a reset, an ABORT, an error.
        NoAnswer = "no-answer",
        /// The client is outside the Service's source ranges (rule R104).
        SourceRange = "source-range",
        /// An address of a ServiceCIDR that no Service has (rule R16).
        Unallocated = "unallocated",
        /// No route from this node to the backend or back to the client.
        NoRoute = "no-route",
        /// Too long for the device that leads to where it should go, and no answer can be built.
        TooLong = "too-long-unanswered",
    }
}

impl Verdict {
    /// Index into the per-CPU map `OUTCOMES`.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        match self {
            Self::Pass(reason) => Pass::BASE + reason as u32,
            Self::Rewrite(reason) => Rewrite::BASE + reason as u32,
            Self::Reply(reason) => Reply::BASE + reason as u32,
            Self::Drop(reason) => Drop::BASE + reason as u32,
        }
    }

    /// The stable name of the reason.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass(reason) => reason.name(),
            Self::Rewrite(reason) => reason.name(),
            Self::Reply(reason) => reason.name(),
            Self::Drop(reason) => reason.name(),
        }
    }

    /// What kind of verdict this is.
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Pass(_) => "pass",
            Self::Rewrite(_) => "rewrite",
            Self::Reply(_) => "reply",
            Self::Drop(_) => "drop",
        }
    }

    /// Every verdict there is, for reading the counters.
    pub fn all() -> impl Iterator<Item = Self> {
        let pass = Pass::ALL.iter().map(|&reason| Self::Pass(reason));
        let rewrite = Rewrite::ALL.iter().map(|&reason| Self::Rewrite(reason));
        let reply = Reply::ALL.iter().map(|&reason| Self::Reply(reason));
        let drop = Drop::ALL.iter().map(|&reason| Self::Drop(reason));
        pass.chain(rewrite).chain(reply).chain(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::abi::limits;

    #[test]
    fn every_verdict_has_its_own_counter() {
        let indices: BTreeSet<_> = Verdict::all().map(Verdict::index).collect();
        assert_eq!(indices.len(), Verdict::all().count());
        assert!(indices.iter().all(|&index| index < limits::OUTCOMES));
    }
}

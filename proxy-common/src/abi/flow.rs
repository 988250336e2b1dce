//! Flow records: connection tracking.

use bytemuck::{Pod, Zeroable};

use super::{Addr, Port};

/// Source and destination of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Tuple {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Source port.
    pub src_port: Port,
    /// Destination port.
    pub dst_port: Port,
}

impl Tuple {
    /// The tuple of an answer.
    #[inline(always)]
    #[must_use]
    pub const fn swapped(self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            src_port: self.dst_port,
            dst_port: self.src_port,
        }
    }
}

/// Key of the map `FLOWS`: a packet as it is seen at an edge.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct FlowKey {
    /// The packet's addresses and ports, before anything is rewritten.
    pub tuple: Tuple,
    /// IANA protocol number.
    pub protocol: u8,
    /// A [`Side`].
    pub side: u8,
    /// Always 0.
    pub _pad: u16,
}

/// Which way a packet crosses the edge where it is seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Side {
    /// It comes in from the client's side of the device (TC ingress).
    Ingress = 0,
    /// It goes out to the client's side of the device (TC egress).
    Egress = 1,
}

impl Side {
    /// The side with this number.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Ingress),
            1 => Some(Self::Egress),
            _ => None,
        }
    }

    /// A word for tables and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// Value of the map `FLOWS`: what becomes of a packet of this flow.
///
/// Each conversation has two records, twins. The key of the twin is `to` with source and
/// destination swapped, at side `twin_side`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Flow {
    /// Of no use: a change of the layout, to rehearse one.
    #[cfg(feature = "next-layout")]
    pub rehearsed: u64,
    /// Addresses and ports after rewriting.
    pub to: Tuple,
    /// Id of the backend.
    pub backend: u32,
    /// Generation of the backend when it was chosen.
    pub generation: u32,
    /// The service port.
    pub service: u32,
    /// With [`Exit::Host`]: the device as which the packet comes in.
    pub device: u32,
    /// A [`FlowState`], the same in both twins.
    pub state: u8,
    /// A [`FlowRole`].
    pub role: u8,
    /// The [`Side`] at which the twin is seen.
    pub twin_side: u8,
    /// An [`Exit`].
    pub exit: u8,
    /// The kernel's tick counter at the last packet that was taken note of.
    pub tick: u32,
    /// Always 0.
    pub _pad: u32,
    /// When the flow began: nanoseconds of `CLOCK_MONOTONIC`.
    pub created: u64,
    /// Last packet in either direction, to within three seconds: nanoseconds of `CLOCK_MONOTONIC`.
    pub last_seen: u64,
}

/// Where a rewritten packet goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    /// On its way through the kernel's stack.
    Stack = 0,
    /// Back out of the device it came in by: a pod that reaches itself.
    Back = 1,
    /// Past the stack, to the device and neighbour that the routing table names: a packet with an
    /// address of this node as source would not be let in.
    Route = 2,
    /// Into this node, as if it came in by the device that the record names.
    Host = 3,
}

impl Exit {
    /// The exit with this number.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Back,
            2 => Self::Route,
            3 => Self::Host,
            _ => Self::Stack,
        }
    }
}

/// Which of two twins a [`Flow`] is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum FlowRole {
    /// Client to backend.
    Forward = 0,
    /// Backend to client.
    Reverse = 1,
}

impl FlowRole {
    /// The role with this number.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Forward),
            1 => Some(Self::Reverse),
            _ => None,
        }
    }
}

/// How far a conversation has come, after Linux' `nf_conntrack_proto_{tcp,udp,sctp}.c`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum FlowState {
    /// SYN seen from the client.
    TcpSynSent = 0,
    /// SYN and ACK seen from the backend.
    TcpSynRecv = 1,
    /// Both sides have acknowledged.
    TcpEstablished = 2,
    /// The client has sent FIN.
    TcpFinWait = 3,
    /// The backend has sent FIN.
    TcpCloseWait = 4,
    /// Both sides have sent FIN.
    TcpTimeWait = 5,
    /// RST seen.
    TcpClose = 6,
    /// Datagrams from the client only.
    UdpUnreplied = 7,
    /// Datagrams both ways, for less than two seconds.
    UdpReplied = 8,
    /// Datagrams both ways, for longer.
    UdpStream = 9,
    /// INIT seen from the client.
    SctpCookieWait = 10,
    /// COOKIE ECHO seen.
    SctpCookieEchoed = 11,
    /// COOKIE ACK seen.
    SctpEstablished = 12,
    /// SHUTDOWN seen.
    SctpShutdown = 13,
    /// SHUTDOWN COMPLETE or ABORT seen.
    SctpClosed = 14,
}

impl FlowState {
    /// All states, in order of their numbers.
    pub const ALL: [Self; 15] = [
        Self::TcpSynSent,
        Self::TcpSynRecv,
        Self::TcpEstablished,
        Self::TcpFinWait,
        Self::TcpCloseWait,
        Self::TcpTimeWait,
        Self::TcpClose,
        Self::UdpUnreplied,
        Self::UdpReplied,
        Self::UdpStream,
        Self::SctpCookieWait,
        Self::SctpCookieEchoed,
        Self::SctpEstablished,
        Self::SctpShutdown,
        Self::SctpClosed,
    ];

    /// The state with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// A word for tables, JSON and configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TcpSynSent => "syn-sent",
            Self::TcpSynRecv => "syn-recv",
            Self::TcpEstablished => "established",
            Self::TcpFinWait => "fin-wait",
            Self::TcpCloseWait => "close-wait",
            Self::TcpTimeWait => "time-wait",
            Self::TcpClose => "close",
            Self::UdpUnreplied => "unreplied",
            Self::UdpReplied => "replied",
            Self::UdpStream => "stream",
            Self::SctpCookieWait => "cookie-wait",
            Self::SctpCookieEchoed => "cookie-echoed",
            Self::SctpEstablished => "established",
            Self::SctpShutdown => "shutdown",
            Self::SctpClosed => "closed",
        }
    }
}

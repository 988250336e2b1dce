//! Finding and closing sockets of others, by `sock_diag`.

use std::io;
use std::net::IpAddr;

use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_packet_sock_diag::{SockDiagDestroy, SockDiagMessage, TCP_SYN_SENT};
use proxy_common::abi::{Addr, Family, Peer, Port, Protocol};
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_DUMP};
use rtnetlink::sys::Socket;
use rtnetlink::sys::protocols::NETLINK_SOCK_DIAG;

use super::netlink;

/// A connected socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Found {
    /// Its cookie.
    pub(super) cookie: u64,
    /// What it is connected to.
    pub(super) peer: Peer,
    /// The family of the socket; the address of an IPv6 socket's peer may be a v4-mapped one.
    pub(super) family: Family,
    /// The protocol.
    pub(super) protocol: Protocol,
    /// Whether it is a TCP socket that has no answer yet.
    pub(super) is_connecting: bool,
    /// By which processes name it.
    pub(super) inode: u32,
    /// How the kernel names it.
    id: SocketId,
}

/// The sockets of one network namespace.
pub(super) struct Sockets(Socket);

impl Sockets {
    /// Those of the caller's network namespace.
    ///
    /// # Errors
    /// If the kernel has no `sock_diag`.
    pub(super) fn open() -> io::Result<Self> {
        netlink::open(NETLINK_SOCK_DIAG).map(Self)
    }

    /// Hands every connected socket of a protocol and a family to `each`; with a port, only those
    /// that are connected to that one.
    ///
    /// # Errors
    /// If the kernel refuses, for instance because it lacks `INET_UDP_DIAG`.
    pub(super) fn dump(
        &self,
        protocol: Protocol,
        family: Family,
        port: Option<Port>,
        mut each: impl FnMut(Found),
    ) -> io::Result<()> {
        let mut id = nobody(family);
        id.destination_port = port.map_or(0, Port::number);
        // A UDP socket that is not connected is closed to the kernel.
        let states =
            StateFlags::all() - StateFlags::LISTEN - StateFlags::TIME_WAIT - StateFlags::CLOSE;
        let request = request(protocol, family, states, id);
        let request = SockDiagMessage::InetRequest(request);
        netlink::ask(&self.0, request, NLM_F_DUMP, |answer| {
            if let SockDiagMessage::InetResponse(response) = answer {
                each(found(&response.header, protocol, family));
            }
        })
    }

    /// Ends a connection: who uses the socket is told `ECONNABORTED`, and a TCP peer gets a reset.
    ///
    /// # Errors
    /// `NotFound` if there is no such socket any more; `Unsupported` if the kernel lacks
    /// `INET_DIAG_DESTROY`.
    pub(super) fn destroy(&self, socket: &Found) -> io::Result<()> {
        let request = request(
            socket.protocol,
            socket.family,
            StateFlags::all(),
            socket.id.clone(),
        );
        let request = SockDiagDestroy::new(SockDiagMessage::InetRequest(request));
        netlink::ask(&self.0, request, NLM_F_ACK, |_: SockDiagMessage| ())
    }
}

fn nobody(family: Family) -> SocketId {
    match family {
        Family::Ipv4 => SocketId::new_v4(),
        Family::Ipv6 => SocketId::new_v6(),
    }
}

fn request(
    protocol: Protocol,
    family: Family,
    states: StateFlags,
    socket_id: SocketId,
) -> InetRequest {
    InetRequest {
        family: match family {
            Family::Ipv4 => AF_INET,
            Family::Ipv6 => AF_INET6,
        },
        protocol: protocol.number(),
        extensions: ExtensionFlags::empty(),
        states,
        socket_id,
    }
}

fn found(
    header: &netlink_packet_sock_diag::inet::InetResponseHeader,
    protocol: Protocol,
    family: Family,
) -> Found {
    let id = &header.socket_id;
    Found {
        cookie: cookie(id.cookie),
        peer: peer(id.destination_address, id.destination_port),
        family,
        protocol,
        is_connecting: header.state == TCP_SYN_SENT,
        inode: header.inode,
        id: id.clone(),
    }
}

fn peer(ip: IpAddr, port: u16) -> Peer {
    Peer::new(Addr::from(ip), Port::new(port))
}

/// A cookie comes in two words, the lower one first, each in the byte order of the machine.
fn cookie([a, b, c, d, e, f, g, h]: [u8; 8]) -> u64 {
    let low = u32::from_ne_bytes([a, b, c, d]);
    let high = u32::from_ne_bytes([e, f, g, h]);
    u64::from(high) << 32 | u64::from(low)
}

//! The node's own network stack: what is delivered there, and servers.

use std::collections::BTreeMap;
use std::io::{self, IoSliceMut};
use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg, setsockopt, sockopt};
use proxy_common::testing::Frame;
use socket2::{Domain, Socket, Type};

use super::packet::Seen;
use crate::case::Protocol;

/// Room for packets that wait to be read, in bytes.
const BUFFER: usize = 4 << 20;
const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// The IANA number of a protocol.
pub(super) const fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

/// Sockets in the node's namespace.
#[derive(Debug)]
pub(super) struct Host {
    /// They get a copy of everything that is delivered.
    ears: Vec<(Protocol, Domain, Socket)>,
    /// TCP's answer by themselves.
    servers: BTreeMap<(Protocol, SocketAddr), Socket>,
}

impl Host {
    /// Listens in the caller's namespace.
    pub(super) fn open(
        servers: impl IntoIterator<Item = (Protocol, SocketAddr)>,
    ) -> io::Result<Self> {
        let mut ears = Vec::new();
        for protocol in PROTOCOLS {
            for domain in [Domain::IPV4, Domain::IPV6] {
                let socket = raw(domain, protocol)?;
                socket.set_recv_buffer_size(BUFFER)?;
                if domain == Domain::IPV6 {
                    setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
                }
                ears.push((protocol, domain, socket));
            }
        }
        let servers = servers
            .into_iter()
            .map(|(protocol, address)| Ok(((protocol, address), serve(protocol, address)?)))
            .collect::<io::Result<_>>()?;
        Ok(Self { ears, servers })
    }

    /// What was delivered since the last call.
    pub(super) fn receive(&self) -> io::Result<Vec<Seen>> {
        let mut all = Vec::new();
        for (protocol, domain, socket) in &self.ears {
            while let Some(seen) = receive(*protocol, *domain, socket)? {
                all.extend(seen);
            }
        }
        Ok(all)
    }

    /// What to wait for.
    pub(super) fn ears(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.ears.iter().map(|(_, _, socket)| socket.as_fd())
    }

    /// Answers a client from a server of the node's. TCP's answers by itself.
    pub(super) fn answer(&self, protocol: Protocol, reply: &Frame) -> io::Result<()> {
        let from = SocketAddr::new(reply.src, reply.src_port);
        let missing = || io::Error::other(format!("no server at {from}"));
        let server = self.servers.get(&(protocol, from)).ok_or_else(missing)?;
        let sent = match protocol {
            Protocol::Tcp => return Ok(()),
            Protocol::Udp => {
                let to = SocketAddr::new(reply.dst, reply.dst_port);
                server.send_to(&reply.payload, &to.into())
            }
            Protocol::Sctp => {
                let to = SocketAddr::new(reply.dst, 0);
                server.send_to(&transport(reply), &to.into())
            }
        };
        sent.map(drop)
    }
}

pub(super) fn raw(domain: Domain, protocol: Protocol) -> io::Result<Socket> {
    let number = socket2::Protocol::from(i32::from(number(protocol)));
    let socket = Socket::new(domain, Type::RAW, Some(number))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn serve(protocol: Protocol, address: SocketAddr) -> io::Result<Socket> {
    let domain = Domain::for_address(address);
    let socket = match protocol {
        Protocol::Tcp => Socket::new(domain, Type::STREAM, None)?,
        Protocol::Udp => Socket::new(domain, Type::DGRAM, None)?,
        Protocol::Sctp => raw(domain, protocol)?,
    };
    let port = if protocol == Protocol::Sctp {
        0
    } else {
        address.port()
    };
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::new(address.ip(), port).into())?;
    if protocol == Protocol::Tcp {
        socket.listen(4096)?;
    }
    Ok(socket)
}

/// The next packet that was delivered. The inner `None`: it is of no interest.
fn receive(
    protocol: Protocol,
    domain: Domain,
    socket: &Socket,
) -> io::Result<Option<Option<Seen>>> {
    let mut buffer = [0; 2048];
    let mut control = nix::cmsg_space!(libc::in6_pktinfo);
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let fd = socket.as_raw_fd();
    let received = recvmsg::<SockaddrIn6>(fd, &mut slices, Some(&mut control), MsgFlags::empty());
    let message = match received {
        Ok(message) => message,
        Err(Errno::EAGAIN) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let source = message.address.map(|address| address.ip());
    let dst = message.cmsgs()?.find_map(|message| {
        if let ControlMessageOwned::Ipv6PacketInfo(info) = message {
            Some(Ipv6Addr::from(info.ipi6_addr.s6_addr))
        } else {
            None
        }
    });
    let len = message.bytes;
    let bytes = &buffer[..len];
    Ok(Some(if domain == Domain::IPV4 {
        Seen::ipv4(bytes)
    } else {
        let ends = source.zip(dst);
        ends.and_then(|(src, dst)| Seen::of(src.into(), dst.into(), number(protocol), bytes))
    }))
}

/// A packet's transport header and what follows.
pub(super) fn transport(packet: &Frame) -> Vec<u8> {
    let ip_len = if packet.src.is_ipv4() { 20 } else { 40 };
    packet.packet().split_off(ip_len)
}

//! Clients that are sockets.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{SockaddrStorage, recvfrom, setsockopt, sockopt};
use proxy_common::testing::Frame;
use socket2::{Domain, Socket, Type};

use super::host::{number, raw, transport};
use super::packet::Seen;
use crate::case::Protocol;

/// How long it may take another thread to start a process.
const STARTING: Duration = Duration::from_secs(2);

/// A client that is a socket, of the node's processes or of a pod's.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) protocol: Protocol,
    socket: Socket,
    manner: Manner,
    /// Its address, and the port that it got.
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
}

/// How a client uses its socket.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Manner {
    /// UDP: it names the server with each datagram, and is not connected.
    pub(super) is_unconnected: bool,
    /// It speaks IPv4 by an IPv6 socket.
    pub(super) is_mapped: bool,
    /// It leaves the choice of its address to the kernel, but not that of its port.
    pub(super) is_unbound: bool,
}

/// What a client has heard.
#[derive(Debug)]
pub(super) enum Heard {
    /// Nothing yet.
    Nothing,
    /// TCP: the connection is open. Others: this.
    Answer(Vec<u8>),
    /// Connection refused.
    Refused,
    /// The socket was closed from outside.
    Closed,
}

impl Process {
    /// A client of `to` at `from`, with any port if that is 0. For SCTP, which has no sockets
    /// everywhere, a raw one that uses `raw_port`.
    pub(super) fn new(
        protocol: Protocol,
        manner: Manner,
        from: SocketAddr,
        raw_port: u16,
        to: SocketAddr,
    ) -> io::Result<Self> {
        let mut process = Self {
            protocol,
            socket: client(protocol, manner, to)?,
            manner,
            from,
            to,
        };
        process.bind()?;
        if protocol == Protocol::Sctp {
            process.from.set_port(raw_port);
        }
        Ok(process)
    }

    /// Closes its socket, and takes another with the same address and port.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        self.socket = client(self.protocol, self.manner, self.to)?;
        self.bind()
    }

    fn bind(&mut self) -> io::Result<()> {
        let address = match (self.manner.is_unbound, self.from) {
            (false, from) => from.ip(),
            (true, SocketAddr::V4(_)) => Ipv4Addr::UNSPECIFIED.into(),
            (true, SocketAddr::V6(_)) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let address = SocketAddr::new(address, self.from.port());
        self.take(self.as_dialled(address))?;
        match self.protocol {
            Protocol::Tcp => self.socket.set_linger(Some(Duration::ZERO))?,
            Protocol::Udp if self.manner.is_unconnected => self.ask_for_errors()?,
            Protocol::Udp => {}
            Protocol::Sctp => {
                let to = SocketAddr::new(self.to.ip(), 0);
                return self.socket.connect(&to.into());
            }
        }
        let bound = self.socket.local_addr()?.as_socket();
        let bound = bound.ok_or_else(|| io::Error::other("no address"))?;
        self.from.set_port(bound.port());
        Ok(())
    }

    /// Binds to an address. Of a socket that was closed a moment ago there may still be a copy: all
    /// of this process's are in a child that another thread starts, until it executes its program.
    fn take(&self, address: SocketAddr) -> io::Result<()> {
        let deadline = Instant::now() + STARTING;
        loop {
            match self.socket.bind(&address.into()) {
                Err(error)
                    if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline =>
                {
                    std::thread::sleep(Duration::from_millis(5));
                }
                bound => return bound,
            }
        }
    }

    /// Sockets that are not connected hear of errors only if they want to.
    fn ask_for_errors(&self) -> io::Result<()> {
        if self.to.is_ipv6() || self.manner.is_mapped {
            setsockopt(&self.socket, sockopt::Ipv6RecvErr, &true)?;
        }
        if self.to.is_ipv4() {
            setsockopt(&self.socket, sockopt::Ipv4RecvErr, &true)?;
        }
        Ok(())
    }

    /// An address as this socket has to be told.
    fn as_dialled(&self, address: SocketAddr) -> SocketAddr {
        match address.ip() {
            IpAddr::V4(ip) if self.manner.is_mapped => {
                SocketAddr::new(ip.to_ipv6_mapped().into(), address.port())
            }
            IpAddr::V4(_) | IpAddr::V6(_) => address,
        }
    }

    fn connect(&self) -> io::Result<()> {
        self.socket.connect(&self.as_dialled(self.to).into())
    }

    /// Opens a TCP connection, or sends this packet's content.
    pub(super) fn open(&self, packet: &Frame) -> io::Result<()> {
        match self.protocol {
            Protocol::Tcp => match self.connect() {
                Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
                other => other,
            },
            Protocol::Udp | Protocol::Sctp => self.send(packet),
        }
    }

    /// Sends what this packet carries. A UDP socket that is to be connected is so then.
    pub(super) fn send(&self, packet: &Frame) -> io::Result<()> {
        if self.is_connected_udp() && self.socket.peer_addr().is_err() {
            self.connect()?;
        }
        let sent = match self.protocol {
            Protocol::Udp if self.manner.is_unconnected => {
                let to = self.as_dialled(self.to);
                self.socket.send_to(&packet.payload, &to.into())
            }
            Protocol::Tcp | Protocol::Udp => self.socket.send(&packet.payload),
            Protocol::Sctp => self.socket.send(&transport(packet)),
        };
        sent.map(drop)
    }

    /// Whether it is a UDP socket that is connected.
    pub(super) fn is_connected_udp(&self) -> bool {
        self.protocol == Protocol::Udp && !self.manner.is_unconnected
    }

    /// Whether it is a UDP socket that is not.
    pub(super) fn is_unconnected(&self) -> bool {
        self.protocol == Protocol::Udp && self.manner.is_unconnected
    }

    /// The kernel's number of the socket.
    pub(super) fn cookie(&self) -> io::Result<u64> {
        self.socket.cookie()
    }

    /// What it has heard: of the opening of its connection, or after that.
    pub(super) fn hears(&self, is_first: bool) -> io::Result<Heard> {
        if !is_first || self.protocol != Protocol::Tcp {
            return self.hears_more();
        }
        match self.socket.take_error()? {
            Some(error) => refused(error),
            None => match self.socket.peer_addr() {
                Ok(_) => {
                    self.check_peer()?;
                    Ok(Heard::Answer(Vec::new()))
                }
                Err(_) => Ok(Heard::Nothing),
            },
        }
    }

    fn hears_more(&self) -> io::Result<Heard> {
        let mut buffer = [0; 2048];
        let received = recvfrom::<SockaddrStorage>(self.socket.as_raw_fd(), &mut buffer);
        let (len, sender) = match received {
            Ok(received) => received,
            Err(Errno::EAGAIN) => return Ok(Heard::Nothing),
            Err(error) => {
                self.forget_errors();
                return refused(error.into());
            }
        };
        let bytes = buffer[..len].to_vec();
        match self.protocol {
            // The sender of a stream is its peer.
            Protocol::Tcp => self.check_peer()?,
            Protocol::Udp => {
                self.check(
                    "the sender of the answer",
                    sender.as_ref().and_then(address),
                )?;
                if self.is_connected_udp() {
                    self.check_peer()?;
                }
            }
            Protocol::Sctp => return Ok(self.raw_answer(&bytes)),
        }
        Ok(Heard::Answer(bytes))
    }

    /// What an error was about would be kept for reading, and wake whoever waits.
    fn forget_errors(&self) {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 2048];
        while self.is_unconnected()
            && self
                .socket
                .recv_with_flags(&mut buffer, libc::MSG_ERRQUEUE)
                .is_ok()
        {}
    }

    fn raw_answer(&self, bytes: &[u8]) -> Heard {
        let seen = if self.from.is_ipv4() {
            Seen::ipv4(bytes)
        } else {
            Seen::of(self.to.ip(), self.from.ip(), number(self.protocol), bytes)
        };
        // A raw socket hears what is meant for others, too.
        let for_us = |seen: &Seen| seen.from() == self.to && seen.to() == self.from;
        match seen.filter(for_us).as_ref().and_then(Seen::transport) {
            Some(transport) => Heard::Answer(transport.payload.clone()),
            None => Heard::Nothing,
        }
    }

    fn check_peer(&self) -> io::Result<()> {
        self.check("its peer", self.socket.peer_addr()?.as_socket())
    }

    /// Whoever a socket talks to, it is told the address that it dialled.
    fn check(&self, what: &str, told: Option<SocketAddr>) -> io::Result<()> {
        if told == Some(self.as_dialled(self.to)) {
            return Ok(());
        }
        let told = told.map_or_else(|| "nothing".to_owned(), |told| told.to_string());
        let wrong = format!("{what} is {told}, but it dialled {}", self.to);
        Err(io::Error::other(wrong))
    }

    /// What to wait for, while a connection is opened and after.
    pub(super) fn events(&self, is_first: bool) -> (BorrowedFd<'_>, PollFlags) {
        let flags = if is_first && self.protocol == Protocol::Tcp {
            PollFlags::POLLOUT
        } else {
            PollFlags::POLLIN
        };
        (self.socket.as_fd(), flags)
    }
}

fn client(protocol: Protocol, manner: Manner, to: SocketAddr) -> io::Result<Socket> {
    let domain = if manner.is_mapped {
        Domain::IPV6
    } else {
        Domain::for_address(to)
    };
    let socket = match protocol {
        Protocol::Tcp => Socket::new(domain, Type::STREAM, None)?,
        Protocol::Udp => Socket::new(domain, Type::DGRAM, None)?,
        Protocol::Sctp => raw(domain, protocol)?,
    };
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn refused(error: io::Error) -> io::Result<Heard> {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => Ok(Heard::Refused),
        Some(libc::ECONNABORTED) => Ok(Heard::Closed),
        _ => Err(error),
    }
}

fn address(sender: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = sender
        .as_sockaddr_in()
        .map(|it| SocketAddrV4::from(*it).into());
    v4.or_else(|| {
        sender
            .as_sockaddr_in6()
            .map(|it| SocketAddrV6::from(*it).into())
    })
}

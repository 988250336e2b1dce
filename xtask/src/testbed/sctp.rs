//! SCTP for clients and servers: the kernel's own where it has SCTP, else a small one over raw
//! IP sockets that is as strict about checksums as the kernel's.

mod association;
mod crc32c;
mod packet;
mod raw;

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use proxy_common::abi::Family;
use socket2::{Domain, Protocol, Socket, Type};

/// Longest message, in bytes.
const MESSAGE: usize = 65_536;

/// Whether the kernel has SCTP sockets.
pub fn kernel_has_sctp() -> bool {
    kernel_socket(Family::Ipv4).is_ok()
}

/// Whether the kernel answers SCTP packets, because somebody has used sockets of its own.
pub fn kernel_answers() -> bool {
    let protocols = std::fs::read_to_string("/proc/net/protocols").unwrap_or_default();
    protocols.lines().any(|line| line.starts_with("SCTP "))
}

/// An association with a server.
#[derive(Debug)]
pub struct Association(Kind);

#[derive(Debug)]
enum Kind {
    // The kernel's one-to-one sockets are used like TCP's.
    Kernel(TcpStream),
    Raw(Box<raw::Client>),
}

impl Association {
    /// Opens an association from `port` (0: any) to a server. Nothing that it does may take
    /// longer than `patience` each.
    ///
    /// It has one address at this end. The kernel would offer all of them, and the server would
    /// try the others behind the translation's back, where nobody knows it: the ABORT that it gets
    /// ends the association (RFC 9260, 5.4 and 8.4).
    ///
    /// # Errors
    /// [`io::ErrorKind::ConnectionRefused`] if the other side says so or an ICMP error does,
    /// [`io::ErrorKind::TimedOut`] if there is no answer.
    pub fn open(port: u16, server: SocketAddr, patience: Duration) -> io::Result<Self> {
        if !kernel_has_sctp() {
            return Self::open_raw(port, server, patience);
        }
        let socket = kernel_socket(Family::of(server.ip()))?;
        socket.set_reuse_address(port != 0)?;
        socket.bind(&SocketAddr::new(address_towards(server)?, port).into())?;
        socket.connect_timeout(&server.into(), patience)?;
        socket.set_read_timeout(Some(patience))?;
        socket.set_write_timeout(Some(patience))?;
        Ok(Self(Kind::Kernel(socket.into())))
    }

    /// As [`Self::open`], but over a raw socket even if the kernel has SCTP. The kernel's sockets
    /// do not hear of an ICMP error that answers their first packet, only the second one's, 3
    /// seconds later.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_raw(port: u16, server: SocketAddr, patience: Duration) -> io::Result<Self> {
        let client = raw::Client::open(port, server, patience)?;
        Ok(Self(Kind::Raw(Box::new(client))))
    }

    /// Sends a message (up to 60,000 bytes) and waits for one.
    ///
    /// # Errors
    /// The association is aborted, or there is no answer in time.
    pub fn exchange(&mut self, message: &[u8]) -> io::Result<Vec<u8>> {
        match &mut self.0 {
            Kind::Kernel(stream) => {
                stream.write_all(message)?;
                let mut answer = vec![0; MESSAGE];
                let length = stream.read(&mut answer)?;
                answer.truncate(length);
                Ok(answer)
            }
            Kind::Raw(client) => client.exchange(message),
        }
    }

    /// Makes packets with this message (up to 1,200 bytes), all alike, for a server that drops them
    /// ([`Serve::SctpSink`](super::Serve::SctpSink)).
    ///
    /// # Errors
    /// The association is the kernel's.
    pub fn generator(&self, message: &[u8]) -> io::Result<Generator<'_>> {
        match &self.0 {
            Kind::Kernel(_) => Err(io::ErrorKind::Unsupported.into()),
            Kind::Raw(client) => {
                let (socket, packet) = client.generator(message)?;
                Ok(Generator { socket, packet })
            }
        }
    }

    /// Ends the association, with the other side's consent.
    ///
    /// # Errors
    /// There is no answer in time.
    pub fn close(self) -> io::Result<()> {
        match self.0 {
            Kind::Kernel(mut stream) => {
                stream.shutdown(std::net::Shutdown::Write)?;
                match stream.read(&mut [0; 1]) {
                    Ok(0) => Ok(()),
                    Ok(_) => Err(io::Error::other("a message after the end")),
                    // The association may have ended before it is read from.
                    Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
                    Err(error) => Err(error),
                }
            }
            Kind::Raw(mut client) => client.close(),
        }
    }
}

/// Sends one packet of an association again and again.
#[derive(Debug)]
pub struct Generator<'a> {
    socket: &'a UdpSocket,
    packet: Vec<u8>,
}

impl Generator<'_> {
    /// Sends the packet once.
    ///
    /// # Errors
    /// The kernel refuses, or an ICMP error has come back.
    pub fn send(&self) -> io::Result<()> {
        self.socket.send(&self.packet).map(|_| ())
    }
}

/// A server that answers each message with one that starts with the server's name.
#[derive(Debug)]
pub(super) enum Listener {
    Kernel(TcpListener),
    Raw(raw::Socket),
}

impl Listener {
    /// Binds a raw socket, which sees no packet that begins with data.
    pub(super) fn bind_sink(address: SocketAddr) -> io::Result<raw::Socket> {
        let socket = raw::Socket::bind(address)?;
        socket.drop_data()?;
        Ok(socket)
    }

    /// Binds an address. The kernel's socket is non-blocking.
    pub(super) fn bind(address: SocketAddr) -> io::Result<Self> {
        if !kernel_has_sctp() {
            return raw::Socket::bind(address).map(Self::Raw);
        }
        let socket = kernel_socket(Family::of(address.ip()))?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(1024)?;
        socket.set_nonblocking(true)?;
        Ok(Self::Kernel(socket.into()))
    }
}

pub(super) use raw::serve as serve_raw;

fn kernel_socket(family: Family) -> io::Result<Socket> {
    let domain = match family {
        Family::Ipv4 => Domain::IPV4,
        Family::Ipv6 => Domain::IPV6,
    };
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::SCTP))?;
    if family == Family::Ipv6 {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

/// The address from which packets to `server` are sent.
fn address_towards(server: SocketAddr) -> io::Result<IpAddr> {
    let probe = UdpSocket::bind((Family::of(server.ip()).unspecified(), 0))?;
    probe.connect(server)?;
    Ok(probe.local_addr()?.ip())
}

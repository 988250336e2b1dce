//! What is measured: a client does the same thing again and again for a while.

mod arrivals;
mod timing;

use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use xtask::figures::Measure;
use xtask::testbed::sctp::Association;

use super::manifests::{ASSOCIATION, BULK, ECHO, SINK, STREAM, ServicePort, TALK};
pub(super) use arrivals::Arrivals;
pub(super) use timing::{Sample, Turn};

/// Length of what is sent one way and not answered, in bytes.
const DATAGRAM: usize = 64;
/// How much of a bulk is written at a time, in bytes.
const PIECE: usize = 128 * 1024;
/// How long an association may take to come about.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a measure is called in messages.
pub(super) fn name(measure: Measure) -> &'static str {
    match measure {
        Measure::TcpConnection => "TCP connection",
        Measure::TcpRequest => "TCP request",
        Measure::TcpBulk => "TCP bulk",
        Measure::UdpRequest => "UDP request",
        Measure::UdpUnconnected => "UDP request, socket not connected",
        Measure::UdpNewSocket => "UDP request, new socket each",
        Measure::UdpPackets => "UDP packets",
        Measure::SctpPackets => "SCTP packets",
        Measure::Connect => "connect",
        Measure::ConnectToEach => "connect, another Service each",
        Measure::SocketConnectClose => "socket, connect, close",
        Measure::SendTo => "sendto",
    }
}

fn port(measure: Measure) -> ServicePort {
    match measure {
        Measure::TcpConnection => STREAM,
        Measure::TcpRequest => TALK,
        Measure::TcpBulk => BULK,
        Measure::UdpRequest | Measure::UdpUnconnected | Measure::UdpNewSocket => ECHO,
        Measure::UdpPackets
        | Measure::Connect
        | Measure::ConnectToEach
        | Measure::SocketConnectClose
        | Measure::SendTo => SINK,
        Measure::SctpPackets => ASSOCIATION,
    }
}

/// Where a client's operations lead.
#[derive(Clone, Debug)]
pub(super) struct Targets {
    at: At,
    /// UDP addresses for [`Measure::ConnectToEach`].
    each: Arc<[SocketAddr]>,
}

#[derive(Clone, Debug)]
enum At {
    /// A Service, at its ports.
    Service(IpAddr),
    /// The pods behind it, at theirs.
    Pods(Vec<IpAddr>),
    /// One port, whatever is measured.
    Port(SocketAddr),
}

impl Targets {
    /// A Service by its address, and others for [`Measure::ConnectToEach`].
    pub(super) fn service(address: IpAddr, each: Vec<SocketAddr>) -> Self {
        Self {
            at: At::Service(address),
            each: each.into(),
        }
    }

    /// Its pods by theirs, in turn.
    pub(super) fn pods(addresses: Vec<IpAddr>, each: Vec<SocketAddr>) -> Self {
        Self {
            at: At::Pods(addresses),
            each: each.into(),
        }
    }

    /// One port.
    pub(super) fn port(address: SocketAddr) -> Self {
        Self {
            at: At::Port(address),
            each: Arc::default(),
        }
    }

    /// Where a measure's operations lead, in turn.
    pub(super) fn of(&self, measure: Measure) -> Vec<SocketAddr> {
        let port = port(measure);
        match &self.at {
            _ if measure == Measure::ConnectToEach => self.each.to_vec(),
            At::Service(address) => vec![SocketAddr::new(*address, port.port)],
            At::Pods(addresses) => addresses
                .iter()
                .map(|&address| SocketAddr::new(address, port.target))
                .collect(),
            At::Port(address) => vec![*address],
        }
    }
}

impl Turn<'_> {
    /// Does what a measure is about, in the calling thread.
    ///
    /// # Errors
    /// An operation fails.
    pub(super) fn take(&self, measure: Measure, targets: &Targets) -> Result<Sample> {
        let to: Vec<SockAddr> = targets
            .of(measure)
            .into_iter()
            .map(SockAddr::from)
            .collect();
        let first = to.first().and_then(SockAddr::as_socket);
        let first = first.context("nothing to dial")?;
        let mut round = to.iter().cycle();
        let mut next = move || round.next().context("nothing to dial");
        let result = match measure {
            Measure::TcpConnection => self.each_timed(|| tcp_connection(next()?)),
            Measure::TcpRequest => self.tcp_request(first),
            Measure::TcpBulk => self.tcp_bulk(first),
            Measure::SctpPackets => self.sctp_packets(first),
            Measure::UdpRequest => {
                let socket = connected(first)?;
                self.each_timed(|| request(&socket))
            }
            Measure::UdpPackets => {
                let socket = connected(first)?;
                self.arriving(|| {
                    socket.send(&[0; DATAGRAM])?;
                    Ok(())
                })
            }
            Measure::UdpUnconnected => {
                // It stays with the pod that it gets when it dials a Service, and so it does when
                // it dials pods.
                let (socket, to) = (unconnected(first.ip())?, SockAddr::from(first));
                self.each_timed(|| {
                    socket.send_to(&[0], &to)?;
                    let mut answer = [MaybeUninit::uninit()];
                    let _from = socket.recv_from(&mut answer)?;
                    Ok(())
                })
            }
            Measure::UdpNewSocket => self.each_timed(|| {
                let socket = unconnected(first.ip())?;
                socket.connect(next()?)?;
                request(&socket)
            }),
            Measure::Connect | Measure::ConnectToEach => {
                let socket = unconnected(first.ip())?;
                self.batches_timed(|| Ok(socket.connect(next()?)?))
            }
            Measure::SocketConnectClose => {
                self.batches_timed(|| Ok(unconnected(first.ip())?.connect(next()?)?))
            }
            Measure::SendTo => {
                let (socket, to) = (unconnected(first.ip())?, SockAddr::from(first));
                self.batches_timed(|| {
                    socket.send_to(&[0], &to)?;
                    Ok(())
                })
            }
        };
        result.with_context(|| format!("{} at {first}", name(measure)))
    }

    fn tcp_request(&self, to: SocketAddr) -> Result<Sample> {
        let socket = tcp(to)?;
        let sample = self.each_timed(|| request(&socket));
        reset(socket)?;
        sample
    }

    fn tcp_bulk(&self, to: SocketAddr) -> Result<Sample> {
        let mut socket = tcp(to)?;
        let piece = vec![0; PIECE];
        let sample = self.reading(|| Ok(socket.write_all(&piece)?));
        reset(socket)?;
        sample
    }

    fn sctp_packets(&self, to: SocketAddr) -> Result<Sample> {
        let association = Association::open_raw(self.port, to, PATIENCE)?;
        let generator = association.generator(&[0; DATAGRAM])?;
        let sample = self.arriving(|| Ok(generator.send()?));
        association.close()?;
        sample
    }
}

fn tcp(to: SocketAddr) -> Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    socket.connect(&to.into())?;
    Ok(socket)
}

/// Closes by a reset, so that the port is free at once: a client with all its ports in TIME_WAIT
/// would be measuring the search for a free one.
fn reset(socket: Socket) -> Result<()> {
    Ok(socket.set_linger(Some(Duration::ZERO))?)
}

fn tcp_connection(to: &SockAddr) -> Result<()> {
    let socket = Socket::new(to.domain(), Type::STREAM, Some(Protocol::TCP))?;
    socket.connect(to)?;
    request(&socket)?;
    reset(socket)
}

/// Sends a byte and waits for the answer. There is no time limit, which would be a system call
/// more: whoever asked for the measurement has one.
fn request(mut socket: &Socket) -> Result<()> {
    let mut byte = [0];
    socket.send(&byte)?;
    socket.read_exact(&mut byte)?;
    Ok(())
}

fn connected(to: SocketAddr) -> Result<Socket> {
    let socket = unconnected(to.ip())?;
    socket.connect(&to.into())?;
    Ok(socket)
}

fn unconnected(family_of: IpAddr) -> Result<Socket> {
    let any = match family_of {
        IpAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        IpAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    Ok(Socket::new(
        Domain::for_address(any),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_dialled_at_its_ports_and_pods_at_theirs() {
        let service = Targets::service([10, 96, 0, 80].into(), Vec::new());
        assert_eq!(
            service.of(Measure::UdpRequest),
            ["10.96.0.80:53".parse().unwrap()]
        );
        let each = vec!["10.96.1.2:9".parse().unwrap()];
        let pods = Targets::pods(
            vec![[10, 0, 0, 1].into(), [10, 0, 0, 2].into()],
            each.clone(),
        );
        let at: Vec<_> = pods
            .of(Measure::UdpRequest)
            .iter()
            .map(SocketAddr::to_string)
            .collect();
        assert_eq!(at, ["10.0.0.1:5353", "10.0.0.2:5353"]);
        assert_eq!(pods.of(Measure::ConnectToEach), each);
        let node = Targets::port("172.18.0.2:30080".parse().unwrap());
        assert_eq!(
            node.of(Measure::TcpConnection),
            ["172.18.0.2:30080".parse().unwrap()]
        );
    }
}

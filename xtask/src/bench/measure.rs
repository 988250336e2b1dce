//! What is measured: a client does the same thing again and again for a while.

use std::io::Read;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::manifests::{ECHO, SINK, STREAM, ServicePort};
use super::processor;
use super::statistics::quantile;

/// Operations between two looks at the clock, where one takes far less than a microsecond.
const BATCH: usize = 64;
/// The part of a turn that comes first and does not count: caches and predictors get used to it.
const WARM_UP: u32 = 8;

/// Something a client does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Measure {
    /// A TCP connection: open it, one byte each way, close it.
    TcpConnection,
    /// A datagram and its answer on one connected UDP socket.
    UdpConnected,
    /// The same on one socket that is not connected.
    UdpUnconnected,
    /// The same with a new socket each time, as a resolver does it.
    UdpNewSocket,
    /// `connect` of one UDP socket, which sends nothing.
    Connect,
    /// `connect` to another Service, or another pod, each time.
    ConnectToEach,
    /// `socket`, `connect`, `close`.
    SocketConnectClose,
    /// `sendto` of a socket that is not connected, to where nobody reads.
    SendTo,
}

/// Where a client's operations lead.
#[derive(Clone, Debug)]
pub(super) struct Targets {
    /// The Service, or the pods behind it.
    addresses: Vec<IpAddr>,
    /// Whether the Service's ports are dialled, and not those of the pods.
    by_service: bool,
    /// UDP addresses for [`Measure::ConnectToEach`].
    each: Vec<SocketAddr>,
}

/// A turn's result.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// How often it was done.
    pub(super) operations: u64,
    /// And before, to get warm.
    pub(super) warm_up: u64,
    /// How long that took.
    pub(super) elapsed: Duration,
    /// The processor time that client and servers used meanwhile.
    pub(super) used: Duration,
    /// What half of the operations and what 99 of 100 took at most, in nanoseconds, where it was
    /// measured.
    pub(super) latency: Option<(f64, f64)>,
}

impl Measure {
    /// What is measured as requests, by rate and latency.
    pub(super) const REQUESTS: [Self; 4] = [
        Self::TcpConnection,
        Self::UdpConnected,
        Self::UdpUnconnected,
        Self::UdpNewSocket,
    ];
    /// What is measured as system calls, by their cost.
    pub(super) const CALLS: [Self; 4] = [
        Self::Connect,
        Self::ConnectToEach,
        Self::SocketConnectClose,
        Self::SendTo,
    ];

    /// What it is called in tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::TcpConnection => "TCP connection",
            Self::UdpConnected => "UDP, connected socket",
            Self::UdpUnconnected => "UDP, unconnected socket",
            Self::UdpNewSocket => "UDP, new socket each",
            Self::Connect => "connect",
            Self::ConnectToEach => "connect, another Service each",
            Self::SocketConnectClose => "socket, connect, close",
            Self::SendTo => "sendto",
        }
    }

    fn port(self) -> ServicePort {
        match self {
            Self::TcpConnection => STREAM,
            Self::UdpConnected | Self::UdpUnconnected | Self::UdpNewSocket => ECHO,
            Self::Connect | Self::ConnectToEach | Self::SocketConnectClose | Self::SendTo => SINK,
        }
    }

    /// Does it for about as long as `duration`, in the calling thread.
    ///
    /// # Errors
    /// An operation fails.
    pub(super) fn take(self, targets: &Targets, duration: Duration) -> Result<Sample> {
        let addresses: Vec<SockAddr> = if self == Self::ConnectToEach {
            targets.each.iter().copied().map(SockAddr::from).collect()
        } else {
            targets.at(self.port()).map(SockAddr::from).collect()
        };
        // A socket that is not connected stays with the pod that it got when it dials a Service,
        // and so it does here.
        let stays = matches!(self, Self::UdpUnconnected | Self::SendTo);
        let at_most = if stays { 1 } else { addresses.len() };
        let mut round = addresses.iter().take(at_most).cycle();
        let mut next = move || round.next().context("nothing to dial");
        let first = next()?.as_socket().context("not an address of IP")?;
        let socket = unconnected(first.ip())?;
        let result = match self {
            Self::TcpConnection => each_timed(duration, || tcp_connection(next()?)),
            Self::UdpConnected => {
                socket.connect(&first.into())?;
                each_timed(duration, || request(&socket))
            }
            Self::UdpUnconnected => each_timed(duration, || {
                socket.send_to(&[0], next()?)?;
                let mut answer = [MaybeUninit::uninit()];
                let _from = socket.recv_from(&mut answer)?;
                Ok(())
            }),
            Self::UdpNewSocket => each_timed(duration, || {
                let socket = unconnected(first.ip())?;
                socket.connect(next()?)?;
                request(&socket)
            }),
            Self::Connect | Self::ConnectToEach => {
                batches_timed(duration, || Ok(socket.connect(next()?)?))
            }
            Self::SocketConnectClose => {
                batches_timed(duration, || Ok(unconnected(first.ip())?.connect(next()?)?))
            }
            Self::SendTo => batches_timed(duration, || {
                socket.send_to(&[0], next()?)?;
                Ok(())
            }),
        };
        result.with_context(|| format!("{} at {first}", self.name()))
    }
}

impl Targets {
    /// A Service by its address, and others for [`Measure::ConnectToEach`].
    pub(super) fn service(address: IpAddr, each: Vec<SocketAddr>) -> Self {
        Self {
            addresses: vec![address],
            by_service: true,
            each,
        }
    }

    /// Its pods by theirs, in turn.
    pub(super) fn pods(addresses: Vec<IpAddr>, each: Vec<SocketAddr>) -> Self {
        Self {
            addresses,
            by_service: false,
            each,
        }
    }

    fn at(&self, port: ServicePort) -> impl Iterator<Item = SocketAddr> {
        let number = if self.by_service {
            port.port
        } else {
            port.target
        };
        self.addresses
            .iter()
            .map(move |&address| SocketAddr::new(address, number))
    }
}

/// Closed by a reset, so that the port is free at once: a client with all its ports in TIME_WAIT
/// would be measuring the search for a free one.
fn tcp_connection(to: &SockAddr) -> Result<()> {
    let socket = Socket::new(to.domain(), Type::STREAM, Some(Protocol::TCP))?;
    socket.connect(to)?;
    request(&socket)?;
    socket.set_linger(Some(Duration::ZERO))?;
    Ok(())
}

/// Sends a byte and waits for the answer. There is no time limit, which would be a system call
/// more: whoever asked for the measurement has one.
fn request(mut socket: &Socket) -> Result<()> {
    let mut byte = [0];
    socket.send(&byte)?;
    socket.read_exact(&mut byte)?;
    Ok(())
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

/// Looks at the clock after each operation.
fn each_timed(duration: Duration, mut operation: impl FnMut() -> Result<()>) -> Result<Sample> {
    let warm_up = get_warm(duration, &mut operation)?;
    let mut latencies = Vec::with_capacity(1 << 16);
    let used = processor::time_used()?;
    let start = Instant::now();
    let (end, mut now) = (start + duration, start);
    while now < end {
        operation()?;
        let then = std::mem::replace(&mut now, Instant::now());
        latencies.push((now - then).as_nanos() as f64);
    }
    let used = processor::time_used()? - used;
    latencies.sort_by(f64::total_cmp);
    Ok(Sample {
        operations: latencies.len() as u64,
        warm_up,
        elapsed: now - start,
        used,
        latency: quantile(&latencies, 0.5).zip(quantile(&latencies, 0.99)),
    })
}

/// Looks at the clock now and then.
fn batches_timed(duration: Duration, mut operation: impl FnMut() -> Result<()>) -> Result<Sample> {
    let warm_up = get_warm(duration, &mut operation)?;
    let used = processor::time_used()?;
    let start = Instant::now();
    let mut operations = 0;
    while start.elapsed() < duration {
        for _ in 0..BATCH {
            operation()?;
        }
        operations += BATCH as u64;
    }
    Ok(Sample {
        operations,
        warm_up,
        elapsed: start.elapsed(),
        used: processor::time_used()? - used,
        latency: None,
    })
}

fn get_warm(duration: Duration, operation: &mut impl FnMut() -> Result<()>) -> Result<u64> {
    let end = Instant::now() + duration / WARM_UP;
    let mut operations = 0;
    while Instant::now() < end {
        operation()?;
        operations += 1;
    }
    Ok(operations)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_dialled_at_its_ports_and_pods_at_theirs() {
        let service = Targets::service([10, 96, 0, 80].into(), Vec::new());
        let at: Vec<_> = service.at(ECHO).map(|at| at.to_string()).collect();
        assert_eq!(at, ["10.96.0.80:53"]);
        let pods = Targets::pods(vec![[10, 0, 0, 1].into(), [10, 0, 0, 2].into()], Vec::new());
        let at: Vec<_> = pods.at(ECHO).map(|at| at.to_string()).collect();
        assert_eq!(at, ["10.0.0.1:5353", "10.0.0.2:5353"]);
    }

    #[test]
    fn operations_are_counted_without_the_warm_up() {
        let mut done = 0;
        let mut operation = || {
            done += 1;
            Ok(())
        };
        let each = each_timed(Duration::from_millis(2), &mut operation).unwrap();
        let batches = batches_timed(Duration::from_millis(2), &mut operation).unwrap();
        assert!(each.operations > 0 && each.latency.is_some());
        assert!(batches.operations > 0 && batches.operations.is_multiple_of(BATCH as u64));
        let counted = [each, batches].map(|sample| sample.operations + sample.warm_up);
        assert_eq!(counted.iter().sum::<u64>(), done);
        assert!(each.warm_up > 0 && batches.warm_up > 0);
    }

    #[test]
    fn the_first_failure_ends_a_turn() {
        let fail = || Err(anyhow::anyhow!("refused"));
        each_timed(Duration::from_secs(60), fail).unwrap_err();
        batches_timed(Duration::from_secs(60), fail).unwrap_err();
    }
}

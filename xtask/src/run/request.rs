//! The requests of the demonstration: what clients do.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use xtask::testbed::{Pod, Testbed, dns, in_namespace, sctp};

/// How long a client waits for anything.
const PATIENCE: Duration = Duration::from_secs(2);
/// After so many failures no more requests are sent: each may take as long as a client waits.
/// Those that were not sent count as failed.
const ENOUGH: u32 = 3;
/// Longest answer, in bytes.
const ANSWER: usize = 4_096;

/// Stands in the place of a backend's name where being refused is right.
pub(super) const REFUSED: &str = "nobody: refused at once";

/// Who dials.
#[derive(Clone, Copy)]
pub(super) enum From {
    /// A process in pod `client`.
    Pod,
    /// A process of the node itself.
    Node,
    /// A machine in the network around.
    Outside,
}

impl fmt::Display for From {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pod => "a pod",
            Self::Node => "the node",
            Self::Outside => "outside",
        })
    }
}

/// A Service port that is dialled.
pub(super) struct Frontend {
    /// Who dials it.
    pub(super) from: From,
    /// The Service's namespace.
    pub(super) namespace: &'static str,
    /// The Service's name.
    pub(super) service: &'static str,
    /// One of its addresses.
    pub(super) address: IpAddr,
    /// The port.
    pub(super) port: u16,
    /// The protocol, as Kubernetes names it.
    pub(super) protocol: &'static str,
    /// Makes one request and returns who answered.
    request: fn(SocketAddr) -> io::Result<String>,
}

impl Frontend {
    /// The same, dialled by somebody else.
    const fn from(self, from: From) -> Self {
        Self { from, ..self }
    }

    /// What clients dial.
    pub(super) fn socket_address(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            from,
            namespace,
            service,
            protocol,
            ..
        } = self;
        write!(
            f,
            "{namespace}/{service} at {} {protocol} from {from}",
            self.socket_address()
        )
    }
}

/// The Service ports, in the order of the table.
const FRONTENDS: [Frontend; 14] = [
    default("hello", v4(20), 80, "TCP", http),
    default("frontend", v4(30), 80, "TCP", http),
    default("database", v4(40), 27017, "TCP", banner),
    cluster_dns("UDP", dns_datagram),
    cluster_dns("TCP", dns_stream),
    default("signalling", v4(50), 38412, "SCTP", sctp_message),
    default("dual-stack", v4(60), 80, "TCP", http),
    default("dual-stack", v6(0x60), 80, "TCP", http),
    default("retired", v4(70), 80, "TCP", refused),
    default("hello", v4(20), 80, "TCP", http).from(From::Node),
    default("signalling", v4(50), 38412, "SCTP", sctp_message).from(From::Node),
    default("shop", NODE_V4, 30080, "TCP", http).from(From::Outside),
    default("shop", NODE_V6, 30080, "TCP", http).from(From::Outside),
    default("shop", VIP, 80, "TCP", http).from(From::Outside),
];

/// The node's addresses, as its Node object has them.
pub(super) const NODE_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 18, 0, 2));
const NODE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x172, 0x18, 0, 0, 0, 0, 2));
/// The address that a load balancer has announced for `shop`.
pub(super) const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 80));

const fn v4(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 96, 0, last))
}

const fn v6(last: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, last))
}

const fn default(
    service: &'static str,
    address: IpAddr,
    port: u16,
    protocol: &'static str,
    request: fn(SocketAddr) -> io::Result<String>,
) -> Frontend {
    Frontend {
        from: From::Pod,
        namespace: "default",
        service,
        address,
        port,
        protocol,
        request,
    }
}

const fn cluster_dns(
    protocol: &'static str,
    request: fn(SocketAddr) -> io::Result<String>,
) -> Frontend {
    let (namespace, service) = ("kube-system", "kube-dns");
    Frontend {
        from: From::Pod,
        namespace,
        service,
        address: v4(10),
        port: 53,
        protocol,
        request,
    }
}

/// What became of the requests to one Service port.
pub(super) struct Outcome {
    /// Where they went.
    pub(super) frontend: Frontend,
    /// How often each backend answered.
    pub(super) answers: BTreeMap<String, u32>,
    /// Requests that were to be sent.
    pub(super) sent: u32,
    /// What went wrong first.
    pub(super) first_error: Option<io::Error>,
}

impl Outcome {
    /// Requests that were answered as they should be.
    pub(super) fn succeeded(&self) -> u32 {
        self.answers.values().sum()
    }

    /// The others.
    pub(super) fn failed(&self) -> u32 {
        self.sent - self.succeeded()
    }
}

/// Sends `count` requests to each Service port, one after the other; `client` is the pod.
pub(super) fn send_all(testbed: &Testbed, client: &Pod, count: u32) -> Vec<Outcome> {
    let send_from_there = |frontend: Frontend| {
        let namespace = match frontend.from {
            From::Pod => &client.namespace,
            From::Node => &testbed.node().namespace,
            From::Outside => testbed.outside(),
        };
        in_namespace(namespace, || send(frontend, count))
    };
    FRONTENDS.into_iter().map(send_from_there).collect()
}

fn send(frontend: Frontend, count: u32) -> Outcome {
    let mut outcome = Outcome {
        frontend,
        answers: BTreeMap::new(),
        sent: count,
        first_error: None,
    };
    let mut failures = 0;
    for _ in 0..count {
        match (outcome.frontend.request)(outcome.frontend.socket_address()) {
            Ok(backend) => *outcome.answers.entry(backend).or_default() += 1,
            Err(error) => {
                outcome.first_error.get_or_insert(error);
                failures += 1;
            }
        }
        if failures == ENOUGH {
            break;
        }
    }
    outcome
}

fn connect(server: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn http(server: SocketAddr) -> io::Result<String> {
    let mut stream = connect(server)?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer
        .split_once("\r\n\r\n")
        .map(|(_head, body)| body.trim().to_owned());
    body.ok_or_else(|| io::Error::other("not an HTTP answer"))
}

/// Reads what a server says of itself, and talks to it a little.
fn banner(server: SocketAddr) -> io::Result<String> {
    let mut stream = connect(server)?;
    let mut name = vec![0; ANSWER];
    let length = stream.read(&mut name)?;
    let mut echo = [0; 4];
    stream.write_all(b"ping")?;
    stream.read_exact(&mut echo)?;
    if echo != *b"ping" {
        return Err(io::Error::other("something else came back"));
    }
    first_line(&name[..length])
}

fn dns_datagram(server: SocketAddr) -> io::Result<String> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(&dns::question(1, dns::NAME, false))?;
    let mut answer = vec![0; ANSWER];
    let length = socket.recv(&mut answer)?;
    resolved(&answer[..length])
}

fn dns_stream(server: SocketAddr) -> io::Result<String> {
    let mut stream = connect(server)?;
    let question = dns::question(1, dns::NAME, false);
    stream.write_all(&[&(question.len() as u16).to_be_bytes()[..], &question].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut answer)?;
    resolved(&answer)
}

fn resolved(answer: &[u8]) -> io::Result<String> {
    match dns::read_answer(answer) {
        Some(dns::Answer {
            address: Some(address),
            server: Some(server),
            ..
        }) if address == dns::ADDRESS => Ok(server),
        other => Err(io::Error::other(format!("a wrong DNS answer: {other:?}"))),
    }
}

fn sctp_message(server: SocketAddr) -> io::Result<String> {
    let mut association = sctp::Association::open(0, server, PATIENCE)?;
    let answer = association.exchange(b"hello")?;
    association.close()?;
    first_line(&answer)
}

fn refused(server: SocketAddr) -> io::Result<String> {
    match connect(server) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(REFUSED.to_owned()),
        Err(error) => Err(error),
        Ok(_) => Err(io::Error::other("somebody answered")),
    }
}

fn first_line(answer: &[u8]) -> io::Result<String> {
    let text = String::from_utf8_lossy(answer);
    let line = text.lines().next().map(str::to_owned);
    line.ok_or_else(|| io::Error::other("an empty answer"))
}

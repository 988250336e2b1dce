//! Backends that go away under sockets that are pointed at them.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use beeline::conntrack_gc::Timeouts;
use beeline::loader::pins::Pins;
use beeline::maps::{List, Table};
use beeline::node::GoneBackends;
use beeline::sockets::{Keeper, KeeperConfig};
use proxy_common::abi::{
    Addr, Backend, BackendState, Family, Frontend, FrontendKey, Peer, Port, Protocol, SocketClient,
    SocketRecord,
};
use socket2::{Domain, SockRef, Socket, Type};
use xtask::testbed::{Layout, NODE_NAME, Namespace, REMOTE_NODE_NAME, in_namespace};

use crate::client::{Connection, PATIENCE, udp, udp_echo};
use crate::cluster::TARGET_PORT;
use crate::world::{Answer, Endpoint, Kind, Service, World};

/// Within this, whoever uses a socket has to be told.
const AT_ONCE: Duration = Duration::from_secs(1);
/// How long the daemon may take to notice what happens to devices.
const NOTICED: Duration = Duration::from_secs(10);

/// How a client dials.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Dial {
    V4,
    V6,
    /// IPv4 by an IPv6 socket.
    Mapped,
}

impl Dial {
    const ALL: [Self; 3] = [Self::V4, Self::V6, Self::Mapped];

    fn family(self) -> Family {
        match self {
            Self::V4 | Self::Mapped => Family::Ipv4,
            Self::V6 => Family::Ipv6,
        }
    }

    /// An address as this client writes it.
    fn as_written(self, address: SocketAddr) -> SocketAddr {
        match (self, address.ip()) {
            (Self::Mapped, IpAddr::V4(ip)) => (ip.to_ipv6_mapped(), address.port()).into(),
            _ => address,
        }
    }
}

/// The sockets of one client.
struct Client {
    who: String,
    udp: UdpSocket,
    tcp: Connection,
    /// Not connected.
    open: UdpSocket,
    service: SocketAddr,
    /// The same to the endpoint itself.
    direct_udp: UdpSocket,
    direct_tcp: Connection,
}

impl Client {
    fn dial(
        (who, namespace): (&str, &Namespace),
        dial: Dial,
        service: SocketAddr,
        endpoint: SocketAddr,
    ) -> Self {
        let [service, endpoint] = [service, endpoint].map(|it| dial.as_written(it));
        let opened = in_namespace(namespace, || {
            let any = match service {
                SocketAddr::V4(_) => "0.0.0.0:0",
                SocketAddr::V6(_) => "[::]:0",
            };
            let open = UdpSocket::bind(any)?;
            open.set_read_timeout(Some(PATIENCE))?;
            std::io::Result::Ok(Self {
                who: format!("{who}, {dial:?}"),
                udp: udp(0, service)?,
                tcp: Connection::open(service)?,
                open,
                service,
                direct_udp: udp(0, endpoint)?,
                direct_tcp: Connection::open(endpoint)?,
            })
        });
        opened.unwrap_or_else(|error| panic!("{who}, {dial:?}: {error}"))
    }

    /// Who answers at the connected UDP socket.
    fn ask(&self) -> Result<String, ErrorKind> {
        backend(udp_echo(&self.udp, b"who?"))
    }

    /// Who answers at the one that is not connected.
    fn ask_openly(&self) -> String {
        self.open.send_to(b"who?", self.service).unwrap();
        let mut answer = [0; 100];
        let (length, from) = self.open.recv_from(&mut answer).unwrap();
        assert_eq!(from, self.service, "{}", self.who);
        let line = String::from_utf8_lossy(&answer[..length]);
        Answer::parse(line.lines().next().unwrap()).unwrap().backend
    }

    fn echo(&mut self) -> Result<(), ErrorKind> {
        self.tcp.echo(b"still there?").map_err(|it| it.kind())
    }

    /// Dialling the endpoint itself is nobody's business.
    fn goes_on_directly(&mut self, endpoint: &str) {
        let answer = backend(udp_echo(&self.direct_udp, b"who?"));
        assert_eq!(answer.as_deref(), Ok(endpoint), "{}", self.who);
        self.direct_tcp.echo(b"still there?").unwrap();
    }

    /// What a reader of the connected UDP socket is told, though nobody sends anything.
    fn udp_is_told(&self, since: Instant) {
        let told = self.udp.recv(&mut [0; 10]).map_err(|error| error.kind());
        assert_eq!(told, Err(ErrorKind::ConnectionAborted), "{}", self.who);
        assert!(since.elapsed() < AT_ONCE, "{}", self.who);
    }

    fn tcp_is_told(&self, since: Instant) {
        let told = (&self.tcp.stream).read(&mut [0; 10]);
        let told = told.map_err(|error| error.kind());
        let is_told = [ErrorKind::ConnectionAborted, ErrorKind::ConnectionReset];
        assert!(
            told.is_err_and(|it| is_told.contains(&it)),
            "{}: {told:?}",
            self.who
        );
        assert!(since.elapsed() < AT_ONCE, "{}", self.who);
    }
}

fn backend(answer: std::io::Result<String>) -> Result<String, ErrorKind> {
    let line = answer.map_err(|error| error.kind())?;
    Ok(Answer::parse(&line).unwrap().backend)
}

/// A world whose daemon serves sockets.
fn world(layout: Layout, args: &[&str]) -> World {
    let mut world = World::new(layout, 1500, &["--socket-lb", "off"]);
    serve_sockets(&mut world, args);
    world
}

fn serve_sockets(world: &mut World, args: &[&str]) {
    let cgroup = world.testbed.cgroup().to_str().unwrap().to_owned();
    let ours = ["--socket-lb", "all", "--cgroup-path", &cgroup];
    world.start_again_with(&[&ours, args].concat());
}

fn service(endpoints: &[&Endpoint]) -> Service {
    Service {
        name: "moving",
        number: 9,
        endpoints: endpoints.iter().copied().cloned().collect(),
    }
}

fn pins(world: &World) -> Pins {
    Pins::new(&world.testbed.bpffs())
}

fn sockets(world: &World) -> Table<u64, SocketRecord> {
    Table::open(&pins(world), "SOCKETS").unwrap()
}

fn cookie<'a>(socket: impl Into<SockRef<'a>>) -> u64 {
    socket.into().cookie().unwrap()
}

/// Clients of each kind, in each of the ways to dial.
fn clients(world: &World) -> Vec<Client> {
    let mut clients = Vec::new();
    let records = sockets(world);
    for who in [("node", world.node()), ("pod", &world.pod.namespace)] {
        for dial in Dial::ALL {
            let address = service(&[]).at(Kind::ClusterIp, dial.family());
            let endpoint = (world.local.address(dial.family()), TARGET_PORT);
            let mut client = Client::dial(who, dial, address, endpoint.into());
            assert_eq!(client.ask().as_deref(), Ok("local"), "{}", client.who);
            assert_eq!(client.ask_openly(), "local", "{}", client.who);
            client.goes_on_directly("local");
            let is_pointed = |cookie| records.get(&cookie).unwrap().is_some();
            assert!(is_pointed(cookie(&client.udp)), "{}", client.who);
            assert!(is_pointed(cookie(&client.tcp.stream)), "{}", client.who);
            assert!(!is_pointed(cookie(&client.direct_udp)), "{}", client.who);
            clients.push(client);
        }
    }
    clients
}

#[test]
fn sockets_are_told_that_their_backend_is_gone() {
    let mut world = world(Layout::Routed, &[]);
    let local = Endpoint::new(&world.local, NODE_NAME);
    let far = Endpoint::new(&world.far, REMOTE_NODE_NAME);
    for rest in [&[&far][..], &[]] {
        world.apply(&service(&[&local]));
        let mut open = clients(&world);
        world.apply(&service(rest));
        let since = Instant::now();
        for client in &mut open {
            client.udp_is_told(since);
            client.tcp_is_told(since);
        }
        let records = sockets(&world);
        for client in &mut open {
            client.goes_on_directly("local");
            if !rest.is_empty() {
                assert_eq!(client.ask_openly(), "far", "{}", client.who);
                // It is as good as new.
                client.udp.connect(client.service).unwrap();
                assert_eq!(client.ask().as_deref(), Ok("far"), "{}", client.who);
            }
            let left = records.get(&cookie(&client.tcp.stream)).unwrap();
            assert_eq!(left, None, "{}", client.who);
        }
    }

    serve_sockets(&mut world, &["--gone-backends", "keep"]);
    world.apply(&service(&[&local]));
    let mut open = clients(&world);
    world.apply(&service(&[]));
    std::thread::sleep(AT_ONCE);
    for client in &mut open {
        assert_eq!(client.ask().as_deref(), Ok("local"), "{}", client.who);
        assert_eq!(client.echo(), Ok(()), "{}", client.who);
    }
    world.apply(&service(&[&far]));
    let since = Instant::now();
    for client in &mut open {
        client.udp_is_told(since);
        assert_eq!(client.echo(), Ok(()), "{}", client.who);
    }
}

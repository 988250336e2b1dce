//! Backends that go away under sockets that are pointed at them.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use beeline::conntrack_gc::Timeouts;
use beeline::loader::netns_of;
use beeline::loader::pins::Pins;
use beeline::maps::{Maps, Table};
use beeline::node::GoneBackends;
use beeline::sockets::{Counts, Keeper, KeeperConfig};
use proxy_common::abi::{
    BackendFlags, BackendState, Family, FrontendKey, Protocol, SocketClient, SocketRecord,
};
use serde_json::Value;
use socket2::SockRef;
use xtask::testbed::{Layout, NODE_NAME, Namespace, Pod, REMOTE_NODE_NAME, in_namespace};

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
    let mut world = World::new(layout, 1500, &[]);
    serve_sockets(&mut world, args);
    world
}

fn serve_sockets(world: &mut World, args: &[&str]) {
    assert!(world.daemon.stop().is_some());
    let started = world.beeline().socket_lb("all").run(args);
    world.daemon = started.unwrap();
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
            let is_forgotten = |cookie| records.get(&cookie).unwrap().is_none();
            wait_until(&client.who, || is_forgotten(cookie(&client.tcp.stream)));
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

/// The manifests of the moving Service, changed by hand.
fn edit(world: &World, change: impl Fn(&mut Value)) {
    let file = world.testbed.manifests().join("moving.json");
    let mut list: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    list["items"]
        .as_array_mut()
        .unwrap()
        .iter_mut()
        .for_each(change);
    world.write("moving.json", &list);
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < NOTICED, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_service_has_the_last_word_on_its_connections() {
    let mut world = world(Layout::Routed, &[]);
    let local = Endpoint::new(&world.local, NODE_NAME);
    for (args, word, flag) in [
        (
            &["--gone-backends", "reset"],
            "keep",
            BackendFlags::KEEP_WHEN_GONE,
        ),
        (
            &["--gone-backends", "keep"],
            "reset",
            BackendFlags::RESET_WHEN_GONE,
        ),
    ] {
        serve_sockets(&mut world, args);
        world.apply(&service(&[&local]));
        let mut open = clients(&world);
        // From outside, it is packets that are translated.
        let outside = in_namespace(&world.client.namespace, || {
            Connection::open(service(&[]).at(Kind::Vip, Family::Ipv4))
        });
        let mut outside = outside.unwrap();
        edit(&world, |object| {
            if object["kind"] == "Service" {
                object["metadata"]["annotations"] =
                    serde_json::json!({ "beeline.io/gone-backends": word });
            }
        });
        let maps = Maps::open(&pins(&world)).unwrap();
        let backend = |client: &Client| {
            let tcp = cookie(&client.tcp.stream);
            let record = maps.sockets.get(&tcp).unwrap().unwrap();
            maps.backends.get(record.id).unwrap()
        };
        wait_until(word, || {
            open.iter()
                .all(|client| backend(client).flags.contains(flag))
        });
        edit(&world, |object| {
            if object["kind"] == "EndpointSlice" {
                object["endpoints"] = serde_json::json!([]);
            }
        });
        let gone = BackendState::Gone as u8;
        let mut known: Vec<_> = open
            .iter()
            .map(|client| {
                let tcp = cookie(&client.tcp.stream);
                maps.sockets.get(&tcp).unwrap().unwrap().id
            })
            .collect();
        wait_until("the backends are gone", || {
            known.retain(|&id| maps.backends.get(id).unwrap().state != gone);
            known.is_empty()
        });
        let since = Instant::now();
        if word == "reset" {
            for client in &mut open {
                client.tcp_is_told(since);
                client.udp_is_told(since);
            }
            let told = outside.echo(b"still there?").map_err(|it| it.kind());
            assert_eq!(told, Err(ErrorKind::ConnectionReset));
        } else {
            std::thread::sleep(AT_ONCE);
            for client in &mut open {
                assert_eq!(client.echo(), Ok(()), "{}", client.who);
                assert_eq!(client.ask().as_deref(), Ok("local"), "{}", client.who);
            }
            outside.echo(b"still there?").unwrap();
        }
    }
}

/// Rule R147: what a deleted Service had goes on, for longer than it takes to look for flows.
#[test]
fn sockets_outlive_their_service() {
    const PASSES: Duration = Duration::from_secs(22);
    let world = world(Layout::Routed, &[]);
    let local = Endpoint::new(&world.local, NODE_NAME);
    world.apply(&service(&[&local]));
    let mut open = clients(&world);
    world.delete(&service(&[]));
    std::thread::sleep(PASSES);
    for client in &mut open {
        assert_eq!(client.ask().as_deref(), Ok("local"), "{}", client.who);
        assert_eq!(client.echo(), Ok(()), "{}", client.who);
    }
}

/// Where the kernel can't destroy sockets.
#[test]
fn the_next_best_way_moves_udp_and_resets_tcp() {
    let world = world(Layout::Routed, &[]);
    let local = Endpoint::new(&world.local, NODE_NAME);
    let far = Endpoint::new(&world.far, REMOTE_NODE_NAME);
    world.apply(&service(&[&local]));
    let mut open = clients(&world);
    world.apply(&service(&[&local, &far]));
    // Without a daemon, whose keeper would be faster. Its programs stay.
    assert!(world.daemon.stop().is_some());
    let mut maps = Maps::open(&pins(&world)).unwrap();
    for client in &open {
        leave(&mut maps, cookie(&client.udp));
        leave(&mut maps, cookie(&client.tcp.stream));
    }
    let config = KeeperConfig {
        gone_backends: GoneBackends::Reset,
        timeouts: Timeouts::default(),
        proc: "/proc".into(),
    };
    let start = || Keeper::start_without_destroy(&pins(&world), config.clone());
    let keeper = world.on_node(start).unwrap();
    let n = open.len() as u64;
    let expected = Counts {
        udp_moved: n,
        tcp_closed: n,
        ..Counts::default()
    };
    wait_until("all have left", || *keeper.counts().borrow() == expected);
    for client in &mut open {
        assert_eq!(client.ask().as_deref(), Ok("far"), "{}", client.who);
        assert_eq!(
            client.udp.peer_addr().unwrap(),
            client.service,
            "{}",
            client.who
        );
        client.tcp_is_told(Instant::now());
        client.goes_on_directly("local");
    }
}

/// Ends the life of the backend that a socket is pointed at, and has its frontend lead to others.
fn leave(maps: &mut Maps, cookie: u64) {
    let record = maps.sockets.get(&cookie).unwrap().unwrap();
    let mut backend = maps.backends.get(record.id).unwrap();
    if backend.generation != record.generation {
        return;
    }
    let protocol = Protocol::from_number(record.protocol).unwrap();
    let dialled = FrontendKey::exact(record.frontend.addr, record.frontend.port, protocol);
    let frontend = maps.frontends.get(&dialled).unwrap().unwrap();
    let slots = frontend.first_slot..;
    let slots = slots.take((frontend.cluster_offset + frontend.n_cluster) as usize);
    let slots: Vec<_> = slots
        .map(|slot| (slot, maps.slots.get(slot).unwrap()))
        .collect();
    let (_, other) = slots.iter().find(|(_, id)| *id != record.id).unwrap();
    for (slot, _) in &slots {
        maps.slots.set(*slot, other).unwrap();
    }
    backend.state = BackendState::Gone as u8;
    backend.generation += 1;
    maps.backends.set(record.id, &backend).unwrap();
}

/// Whether the kernel tells cookies of network namespaces (Linux 5.14).
fn tells_namespaces() -> bool {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    netns_of(&socket).unwrap().is_some()
}

/// The entry of a pod's network namespace.
fn client_of(world: &World, pod: &Pod) -> Option<SocketClient> {
    let clients: Table<u64, SocketClient> = Table::open(&pins(world), "CLIENTS").unwrap();
    let socket = pod.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    let cookie = netns_of(&socket).unwrap();
    clients.get(&cookie?).unwrap()
}

fn expected_client(world: &World, pod: &Pod) -> SocketClient {
    let index = world.on_node(|| nix::net::if_::if_nametoindex(pod.device.as_str()));
    SocketClient {
        v4: pod.ipv4.into(),
        v6: pod.ipv6.into(),
        device: index.unwrap(),
        _pad: 0,
    }
}

#[test]
fn the_kernel_is_told_of_pods_as_they_come_and_go() {
    if !tells_namespaces() {
        eprintln!("left out: this kernel tells no cookies of network namespaces");
        return;
    }
    for layout in [Layout::Routed, Layout::Bridge] {
        let world = world(layout, &[]);
        let is_known = |pod: &Pod| client_of(&world, pod) == Some(expected_client(&world, pod));
        wait_until("a pod that was there", || is_known(&world.pod));
        for elsewhere in [&world.far, &world.client, &world.host] {
            assert_eq!(client_of(&world, elsewhere), None, "{}", elsewhere.name);
        }
        let late = world.testbed.pod("late").unwrap();
        wait_until("a new pod", || is_known(&late));
        let clients: Table<u64, SocketClient> = Table::open(&pins(&world), "CLIENTS").unwrap();
        let n_known = || clients.keys().count();
        let before = n_known();
        world.testbed.remove_pod(&late).unwrap();
        wait_until("a pod that is gone", || n_known() < before);
    }
}

/// A list of what is pointed where.
#[test]
fn sockets_are_listed() {
    let world = world(Layout::Routed, &[]);
    let local = Endpoint::new(&world.local, NODE_NAME);
    world.apply(&service(&[&local]));
    wait_until("the pod is known", || {
        !tells_namespaces() || client_of(&world, &world.pod).is_some()
    });
    let open = clients(&world);
    let listed = world
        .beeline()
        .json(["sockets", "--service", "moving"])
        .unwrap();
    let listed = listed["sockets"].as_array().unwrap();
    for client in &open {
        let about = |cookie: u64| listed.iter().filter(move |it| it["cookie"] == cookie);
        let [udp, tcp, unconnected] = [
            cookie(&client.udp),
            cookie(&client.tcp.stream),
            cookie(&client.open),
        ]
        .map(|cookie| about(cookie).next().unwrap());
        assert_eq!(about(cookie(&client.direct_udp)).count(), 0);
        for (socket, protocol, is_connected) in [
            (udp, "UDP", true),
            (tcp, "TCP", true),
            (unconnected, "UDP", false),
        ] {
            assert_eq!(socket["protocol"], protocol, "{}", client.who);
            assert_eq!(socket["connected"], is_connected, "{}", client.who);
            if !tells_namespaces() {
                continue;
            }
            let who = socket["client"].as_str().unwrap();
            let pods = [world.pod.ipv4.to_string(), world.pod.ipv6.to_string()];
            let is_right = if client.who.starts_with("node") {
                who == "node"
            } else {
                pods.contains(&who.to_owned())
            };
            assert!(is_right, "{}: {who}", client.who);
        }
    }
}

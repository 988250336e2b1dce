//! What sockets are told about Services that they dial: as if nobody stood between.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::libc;
use proxy_common::abi::Family;
use socket2::{Domain, Socket, Type};
use xtask::testbed::dns;

use crate::client::{Connection, PATIENCE, udp, udp_echo};
use crate::socket_option::disconnect;
use crate::socket_world::{Edges, Kind, Port, SHOP, Service, SocketWorld, WHO, Who, connect};

/// How long nothing must come where nothing is expected.
const SILENCE: Duration = Duration::from_millis(200);

fn unspecified(family: Family) -> IpAddr {
    match family {
        Family::Ipv4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::Ipv6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// A UDP socket that is not connected.
fn open(family: Family) -> UdpSocket {
    let socket = UdpSocket::bind((unspecified(family), 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// What an echo server answers to a datagram: its name, and where the answer seems to be from.
fn ask(socket: &UdpSocket, server: SocketAddr) -> io::Result<(String, SocketAddr)> {
    socket.send_to(b"hello", server)?;
    hear(socket)
}

fn hear(socket: &UdpSocket) -> io::Result<(String, SocketAddr)> {
    let mut answer = [0; 100];
    let (length, from) = socket.recv_from(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
    match answer.split_once('\n') {
        Some((name, "hello")) => Ok((name.to_owned(), from)),
        _ => Ok((answer, from)),
    }
}

/// An IPv4 address as IPv6 sockets have it.
fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

/// An IPv6 socket that speaks IPv4, too.
fn dual(kind: Type) -> Socket {
    let socket = Socket::new(Domain::IPV6, kind, None).unwrap();
    socket.set_only_v6(false).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Every way to talk to an address shows that address.
fn is_all_that_is_seen(server: SocketAddr) {
    let stream = connect(server).unwrap_or_else(|error| panic!("{server}: {error}"));
    assert_eq!(stream.peer_addr().unwrap(), server);
    Connection::greet(stream).unwrap().echo(b"hello").unwrap();

    let socket = udp(0, server).unwrap();
    assert_eq!(socket.peer_addr().unwrap(), server);
    socket.send(b"hello").unwrap();
    assert_eq!(hear(&socket).unwrap().1, server);

    let socket = open(Family::of(server.ip()));
    assert_eq!(ask(&socket, server).unwrap().1, server);

    let (v6, stream) = (mapped(server), dual(Type::STREAM));
    stream.connect_timeout(&v6.into(), PATIENCE).unwrap();
    let stream = TcpStream::from(stream);
    assert_eq!(stream.peer_addr().unwrap(), v6);
    Connection::greet(stream).unwrap().echo(b"hello").unwrap();

    let socket = dual(Type::DGRAM);
    socket.connect(&v6.into()).unwrap();
    let socket = UdpSocket::from(socket);
    assert_eq!(socket.peer_addr().unwrap(), v6);
    socket.send(b"hello").unwrap();
    assert_eq!(hear(&socket).unwrap().1, v6);

    let socket = dual(Type::DGRAM);
    let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
    socket.bind(&any.into()).unwrap();
    assert_eq!(ask(&socket.into(), v6).unwrap().1, v6);
}

fn clients_see_what_they_dialled(world: &SocketWorld) {
    for (who, family) in Who::in_families() {
        for kind in Kind::ANYWHERE {
            let server = SHOP.at(Port::Echo, kind, family);
            world.run(who, || is_all_that_is_seen(server));
        }
    }
    if world.edges == Edges::Sockets {
        let dialled = Who::in_families().count() * Kind::ANYWHERE.len();
        assert!(world.count("connect") >= 4 * dialled as u64);
        assert!(world.count("datagram") >= 2 * dialled as u64);
    }
}

fn node_ports_are_served_at_loopback_addresses(world: &SocketWorld) {
    for family in Family::ALL {
        let server = SHOP.at(Port::Echo, Kind::Localhost, family);
        world.run(Who::Node, || is_all_that_is_seen(server));
    }
    let port = SHOP.at(Port::Echo, Kind::Localhost, Family::Ipv4).port();
    let other = SocketAddr::new([127, 1, 2, 3].into(), port);
    world.run(Who::Node, || is_all_that_is_seen(other));
    for family in Family::ALL {
        // To the kernel that is the node, too.
        let server = SocketAddr::new(unspecified(family), port);
        let backend = world.run(Who::Node, || Connection::open(server).unwrap().backend);
        assert!(backend.starts_with("shop-"), "{backend}");
        // A pod's loopback addresses are its own.
        let server = SHOP.at(Port::Echo, Kind::Localhost, family);
        let refused = world.run(Who::Pod, || Connection::open(server).map(drop));
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
}

fn datagrams_from_elsewhere_are_what_they_are(world: &SocketWorld) {
    world.apply(SHOP, &[0]);
    for (who, family) in Who::in_families() {
        let server = SHOP.cluster(Port::Echo, family);
        let connected = world.run(who, || udp(0, server).unwrap());
        let open = world.run(who, || open(family));
        let mut client = connected.local_addr().unwrap();
        // Not its name for itself at loopback addresses.
        client.set_ip(match who {
            Who::Pod => world.pod.address(family),
            Who::Node => SHOP.at(Port::Echo, Kind::NodePort, family).ip(),
        });
        assert_eq!(udp_echo(&connected, b"hello").unwrap(), "shop-0");
        assert_eq!(ask(&open, server).unwrap().1, server);
        let mut open_at = open.local_addr().unwrap();
        open_at.set_ip(client.ip());
        connected.set_read_timeout(Some(SILENCE)).unwrap();
        for backend in &world.backends {
            // Of the right pod, but of another port.
            let stranger = backend
                .pod
                .run(|| UdpSocket::bind((unspecified(family), 0)));
            let stranger = stranger.unwrap();
            stranger.send_to(b"forged", client).unwrap();
            stranger.send_to(b"frank", open_at).unwrap();
            let heard = connected.recv(&mut [0; 9]).map_err(|error| error.kind());
            assert_eq!(heard, Err(ErrorKind::WouldBlock), "{who:?} {family:?}");
            let port = stranger.local_addr().unwrap().port();
            let from = SocketAddr::new(backend.pod.address(family), port);
            assert_eq!(hear(&open).unwrap(), ("frank".to_owned(), from));
        }
        connected.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(udp_echo(&connected, b"hello").unwrap(), "shop-0");
        if world.edges == Edges::Packets {
            // To them, both would be one flow.
            continue;
        }
        // What is spoken to directly is shown directly, until it is dialled again.
        let pod = world.backends[0].pod.address(family);
        let direct = SocketAddr::new(pod, Port::Echo.target());
        for address in [direct, server, direct, server] {
            let seen = ("shop-0".to_owned(), address);
            assert_eq!(ask(&open, address).unwrap(), seen, "{who:?}");
        }
    }
}

fn one_socket_talks_to_many_services(world: &SocketWorld) {
    // The first three have an endpoint each, the others share them.
    let services: Vec<_> = (10..22).map(|number| Service { number }).collect();
    let backends = services.iter().enumerate();
    let backends: Vec<_> = backends.map(|(at, it)| (*it, at % 3)).collect();
    world.apply_all(&backends);
    for (who, family) in Who::in_families() {
        let socket = world.run(who, || open(family));
        for round in 0..3 {
            for (at, service) in services.iter().enumerate() {
                let server = service.cluster(Port::Echo, family);
                let seen = (format!("shop-{}", at % 3), server);
                assert_eq!(ask(&socket, server).unwrap(), seen, "{who:?} {round}");
            }
        }
        let own = services[..3].iter();
        let own = own.map(|service| service.cluster(Port::Echo, family));
        for server in own.clone() {
            socket.send_to(b"hello", server).unwrap();
        }
        let mut heard: Vec<_> = own.clone().map(|_| hear(&socket).unwrap()).collect();
        heard.sort();
        let expected = own
            .enumerate()
            .map(|(at, server)| (format!("shop-{at}"), server));
        assert_eq!(heard, expected.collect::<Vec<_>>(), "{who:?}");
    }
}

fn a_pod_reaches_itself(world: &SocketWorld) {
    world.apply(SHOP, &[0]);
    for family in Family::ALL {
        let server = SHOP.cluster(Port::Echo, family);
        world.backends[0].pod.run(|| is_all_that_is_seen(server));
    }
}

fn a_socket_that_is_disconnected_starts_afresh(world: &SocketWorld) {
    let other = Service { number: 2 };
    world.apply_all(&[(SHOP, 0), (other, 1)]);
    for (who, family) in Who::in_families() {
        let [here, there] = [SHOP, other].map(|it| it.cluster(Port::Echo, family));
        let socket = world.run(who, || udp(0, here).unwrap());
        assert_eq!(udp_echo(&socket, b"hello").unwrap(), "shop-0");
        disconnect(&socket).unwrap();
        assert_eq!(
            socket.peer_addr().unwrap_err().kind(),
            ErrorKind::NotConnected
        );
        assert_eq!(ask(&socket, here).unwrap(), ("shop-0".to_owned(), here));
        // Whom an IPv6 socket was connected to, it still hears alone (Linux up to 6.18).
        if family == Family::Ipv4 {
            assert_eq!(ask(&socket, there).unwrap(), ("shop-1".to_owned(), there));
        }
        for (server, name) in [(there, "shop-1"), (here, "shop-0")] {
            socket.connect(server).unwrap();
            assert_eq!(socket.peer_addr().unwrap(), server);
            assert_eq!(udp_echo(&socket, b"hello").unwrap(), name, "{who:?}");
        }

        let stream = world.run(who, || connect(here).unwrap());
        disconnect(&stream).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let socket = Socket::from(stream);
        socket.connect_timeout(&there.into(), PATIENCE).unwrap();
        let stream = TcpStream::from(socket);
        assert_eq!(stream.peer_addr().unwrap(), there);
        assert_eq!(Connection::greet(stream).unwrap().backend, "shop-1");
    }
}

fn a_socket_that_is_disconnected_outlives_its_endpoint(world: &SocketWorld) {
    let other = Service { number: 2 };
    world.apply_all(&[(SHOP, 0), (other, 1)]);
    let sockets: Vec<_> = Who::ALL
        .into_iter()
        .map(|who| {
            let [here, there] = [SHOP, other].map(|it| it.cluster(Port::Echo, Family::Ipv4));
            let socket = world.run(who, || udp(0, here).unwrap());
            assert_eq!(udp_echo(&socket, b"hello").unwrap(), "shop-0");
            disconnect(&socket).unwrap();
            assert_eq!(ask(&socket, there).unwrap(), ("shop-1".to_owned(), there));
            (socket, there)
        })
        .collect();
    world.apply(SHOP, &[1]);
    for (socket, there) in sockets {
        std::thread::sleep(SILENCE);
        assert_eq!(ask(&socket, there).unwrap(), ("shop-1".to_owned(), there));
    }
}

/// What a client's sockets that are bound to its `eth0` reach.
fn bound_to_device(world: &SocketWorld, who: Who, server: SocketAddr) -> [Option<String>; 3] {
    let bound = |kind| {
        let socket = Socket::new(Domain::for_address(server), kind, None)?;
        socket.bind_device(Some(b"eth0"))?;
        socket.set_read_timeout(Some(PATIENCE / 5))?;
        io::Result::Ok(socket)
    };
    let tcp = || {
        let socket = bound(Type::STREAM)?;
        socket.connect_timeout(&server.into(), PATIENCE / 5)?;
        let stream = TcpStream::from(socket);
        assert_eq!(stream.peer_addr()?, server);
        Ok(Connection::greet(stream)?.backend)
    };
    let connected = || {
        let socket = UdpSocket::from(bound(Type::DGRAM)?);
        socket.connect(server)?;
        udp_echo(&socket, b"hello")
    };
    let open = || {
        let (name, from) = ask(&bound(Type::DGRAM)?.into(), server)?;
        assert_eq!(from, server);
        Ok(name)
    };
    world.run(who, || [tcp(), connected(), open()].map(io::Result::ok))
}

fn sockets_bound_to_devices_reach_all(world: &SocketWorld) {
    world.apply(SHOP, &[0]);
    for (who, family) in Who::in_families() {
        let names = bound_to_device(world, who, SHOP.cluster(Port::Echo, family));
        assert_eq!(names, ["shop-0"; 3].map(|name| Some(name.to_owned())));
    }
}

fn served_in_all_ways(world: &SocketWorld) {
    clients_see_what_they_dialled(world);
    a_pod_reaches_itself(world);
    sockets_bound_to_devices_reach_all(world);
    datagrams_from_elsewhere_are_what_they_are(world);
    a_socket_that_is_disconnected_starts_afresh(world);
    one_socket_talks_to_many_services(world);
}

#[test]
fn sockets_are_served_by_packets() {
    served_in_all_ways(&SocketWorld::new(Edges::Packets, 3, &[]));
}

#[test]
fn sockets_are_served_by_sockets() {
    let world = SocketWorld::new(Edges::Sockets, 3, &[]);
    served_in_all_ways(&world);
    node_ports_are_served_at_loopback_addresses(&world);
    a_socket_that_is_disconnected_outlives_its_endpoint(&world);
    where_nobody_serves_sockets_are_told_at_once(&world);
}

#[test]
fn sockets_opened_before_beeline_started_are_served() {
    let mut world = SocketWorld::without_beeline(Edges::Sockets, 1, &[]);
    // The packets of one that is connected already have the Service's address.
    world.open_ways();
    let sockets: Vec<_> = Who::in_families()
        .map(|(who, family)| {
            let server = SHOP.cluster(Port::Echo, family);
            let open = || {
                let kind = Domain::for_address(server);
                let stream = Socket::new(kind, Type::STREAM, None).unwrap();
                (stream, open(family), udp(0, server).unwrap())
            };
            (server, world.run(who, open))
        })
        .collect();
    world.start_beeline();
    for (server, (stream, open, connected)) in sockets {
        stream.connect_timeout(&server.into(), PATIENCE).unwrap();
        let stream = TcpStream::from(stream);
        assert_eq!(stream.peer_addr().unwrap(), server);
        assert_eq!(Connection::greet(stream).unwrap().backend, "shop-0");
        assert_eq!(ask(&open, server).unwrap(), ("shop-0".to_owned(), server));
        assert_eq!(udp_echo(&connected, b"hello").unwrap(), "shop-0");
        assert_eq!(connected.peer_addr().unwrap(), server);
    }
}

fn where_nobody_serves_sockets_are_told_at_once(world: &SocketWorld) {
    // Kernels that cannot say it at the socket leave it to packets.
    world.open_ways();
    let none = Service { number: 2 };
    world.apply(none, &[]);
    let refused = Some(ErrorKind::ConnectionRefused);
    for (who, family) in Who::in_families() {
        let mut unused = SHOP.cluster(Port::Echo, family);
        unused.set_port(99);
        let kinds = Kind::ANYWHERE.map(|kind| none.at(Port::Echo, kind, family));
        for server in kinds.into_iter().chain([unused]) {
            let start = Instant::now();
            let [tcp, udp, open] = world.run(who, || {
                let tcp = connect(server).map(drop);
                let udp = udp(0, server).and_then(|socket| udp_echo(&socket, b"hello").map(drop));
                let open = open(family).send_to(b"hello", server).map(drop);
                [tcp, udp, open].map(|it| it.map_err(|error| error.kind()).err())
            });
            assert_eq!([tcp, udp], [refused; 2], "{who:?} at {server}");
            // The nearest that older kernels have.
            let or_denied = [refused, Some(ErrorKind::PermissionDenied)];
            assert!(or_denied.contains(&open), "{who:?} at {server}: {open:?}");
            assert!(
                start.elapsed() < Duration::from_secs(2),
                "{who:?} at {server}"
            );
        }
    }
}

/// Opens connections and asks without a pause.
fn never_fails(server: SocketAddr, done: &AtomicBool) -> usize {
    let mut n_rounds = 0;
    while !done.load(Ordering::Relaxed) {
        Connection::open(server).unwrap().echo(b"hello").unwrap();
        assert_eq!(
            ask(&open(Family::of(server.ip())), server).unwrap().1,
            server
        );
        n_rounds += 1;
    }
    n_rounds
}

#[test]
fn no_socket_notices_a_restart() {
    let mut world = SocketWorld::new(Edges::Sockets, 2, &[]);
    let lasting: Vec<_> = Who::in_families()
        .map(|(who, family)| {
            let server = SHOP.cluster(Port::Echo, family);
            world.run(who, || {
                let open = open(family);
                let name = ask(&open, server).unwrap().0;
                let connection = Connection::open(server).unwrap();
                (server, connection, open, name)
            })
        })
        .collect();
    let done = AtomicBool::new(false);
    let places = Who::in_families()
        .map(|(who, family)| (world.place(who).clone(), SHOP.cluster(Port::Echo, family)))
        .collect::<Vec<_>>();
    std::thread::scope(|scope| {
        let done = &done;
        let threads: Vec<_> = places
            .iter()
            .map(|(place, server)| {
                scope.spawn(move || {
                    xtask::testbed::in_namespace(place, || never_fails(*server, done))
                })
            })
            .collect();
        let restarted = catch_unwind(AssertUnwindSafe(|| {
            for _ in 0..3 {
                assert!(world.daemon.take().unwrap().stop().is_some());
                std::thread::sleep(Duration::from_millis(50));
                world.start_beeline();
            }
        }));
        done.store(true, Ordering::Relaxed);
        for thread in threads {
            assert!(thread.join().unwrap() > 10, "too little to show anything");
        }
        restarted.unwrap_or_else(|panic| resume_unwind(panic));
    });
    for (server, mut connection, open, name) in lasting {
        connection.echo(b"still there?").unwrap();
        assert_eq!(connection.stream.peer_addr().unwrap(), server);
        assert_eq!(ask(&open, server).unwrap(), (name, server));
    }
}

/// Sockets that wait for an answer are told that none will come.
#[test]
fn idle_sockets_are_told_when_their_endpoint_goes() {
    let world = SocketWorld::new(Edges::Sockets, 2, &[]);
    world.apply(SHOP, &[0]);
    let waiting: Vec<_> = Who::in_families()
        .map(|(who, family)| {
            let server = SHOP.cluster(Port::Echo, family);
            world.run(who, || {
                let connection = Connection::open(server).unwrap();
                let socket = udp(0, server).unwrap();
                assert_eq!(udp_echo(&socket, b"hello").unwrap(), "shop-0");
                (format!("{who:?} at {server}"), connection.stream, socket)
            })
        })
        .collect();
    let told = |what: &str, result: io::Result<usize>| {
        let kind = result.map_err(|error| error.kind());
        let expected = [ErrorKind::ConnectionReset, ErrorKind::ConnectionAborted];
        assert!(
            kind.is_err_and(|kind| expected.contains(&kind)),
            "{what}: {kind:?}"
        );
    };
    std::thread::scope(|scope| {
        for (what, stream, socket) in &waiting {
            let _tcp = scope.spawn(|| told(what, (&*stream).read(&mut [0; 9])));
            let _udp = scope.spawn(|| told(what, socket.recv(&mut [0; 9])));
        }
        world.apply(SHOP, &[1]);
    });
    for (_, mut stream, _) in waiting {
        assert!(stream.write(b"hello").is_err());
    }
}

/// How a resolver fared that keeps one socket.
#[derive(Default, Debug)]
struct Resolved {
    answers: usize,
    /// System errors by number.
    told: Vec<i32>,
    longest_gap: Duration,
    failures: Vec<String>,
}

/// Asks again and again on one connected socket, and opens another only after an error: as
/// resolvers of Go programs do.
fn resolve(server: SocketAddr, done: &AtomicBool) -> Resolved {
    let mut resolved = Resolved::default();
    let mut socket = udp(0, server).unwrap();
    let (mut id, mut last) = (0_u16, Instant::now());
    while !done.load(Ordering::Relaxed) {
        id = id.wrapping_add(1);
        match lookup(&socket, id) {
            Ok(()) => {
                resolved.answers += 1;
                resolved.longest_gap = resolved.longest_gap.max(last.elapsed());
                last = Instant::now();
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                resolved.failures.push(format!("query {id} hung"));
                last = Instant::now();
            }
            Err(error) => {
                resolved.told.push(error.raw_os_error().unwrap());
                socket = udp(0, server).unwrap();
            }
        }
        std::thread::sleep(Duration::from_millis(4));
    }
    resolved
}

fn lookup(socket: &UdpSocket, id: u16) -> io::Result<()> {
    socket.send(&dns::question(id, WHO, false))?;
    let mut answer = [0; 512];
    loop {
        let length = socket.recv(&mut answer)?;
        let answer = dns::read_answer(&answer[..length]).unwrap();
        if answer.id == id {
            assert!(answer.address.is_some(), "{answer:?}");
            return Ok(());
        }
    }
}

/// Takes one of three away after the other; who is taken away is soon not there at all.
fn replace_resolvers(world: &SocketWorld) {
    for change in 0..12 {
        let [gone, next, thawed] = [0, 1, 2].map(|it| (change + it) % 3);
        let program = |at: usize| world.backends[at].program(Port::Dns);
        program(thawed).thaw().unwrap();
        world.apply(SHOP, &[next, thawed]);
        std::thread::sleep(Duration::from_millis(100));
        program(gone).freeze().unwrap();
    }
}

fn resolvers_do_not_hang(edges: Edges) {
    let world = SocketWorld::new(edges, 3, &[Port::Dns]);
    let done = AtomicBool::new(false);
    let all: Vec<_> = std::thread::scope(|scope| {
        let (world, done) = (&world, &done);
        let threads: Vec<_> = Who::in_families()
            .map(|(who, family)| {
                let server = SHOP.cluster(Port::Dns, family);
                scope.spawn(move || world.run(who, || resolve(server, done)))
            })
            .collect();
        let changed = catch_unwind(AssertUnwindSafe(|| replace_resolvers(world)));
        done.store(true, Ordering::Relaxed);
        let all = threads.into_iter().map(|it| it.join().unwrap()).collect();
        changed.unwrap_or_else(|panic| resume_unwind(panic));
        all
    });
    for resolved in all {
        assert!(resolved.failures.is_empty(), "{resolved:?}");
        assert!(
            resolved.answers > 50,
            "too little to show anything: {resolved:?}"
        );
        assert!(
            resolved.longest_gap < Duration::from_secs(2),
            "{resolved:?}"
        );
        // The last: it was told while it asked nothing, and has no peer any more.
        let expected = [libc::ECONNREFUSED, libc::ECONNABORTED, libc::EDESTADDRREQ];
        assert!(
            resolved.told.iter().all(|it| expected.contains(it)),
            "{resolved:?}"
        );
    }
}

#[test]
fn resolvers_do_not_hang_by_packets() {
    resolvers_do_not_hang(Edges::Packets);
}

#[test]
fn resolvers_do_not_hang_by_sockets() {
    resolvers_do_not_hang(Edges::Sockets);
}

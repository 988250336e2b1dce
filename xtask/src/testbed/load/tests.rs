//! Against servers that lose things.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::*;

const PATIENCE: Patience = Patience {
    answer: Duration::from_millis(400),
    resend: Duration::from_millis(100),
};

/// How long loads last.
const A_WHILE: Duration = Duration::from_millis(300);

/// What becomes of a load of one kind, a hundred a second.
fn count(to: SocketAddr, kind: Kind) -> Tally {
    let shared = Shared::new("test");
    let phase = watch::Sender::new(Phase::On);
    let client = Client {
        to,
        patience: PATIENCE,
        shared: shared.clone(),
        phase: phase.subscribe(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut tasks = JoinSet::new();
        clock::start(&mut tasks, client, kind, 100.0, 0.0);
        tokio::time::sleep(A_WHILE).await;
        phase.send_replace(Phase::Ending);
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    });
    assert!(shared.under_way().is_empty());
    let tally = shared.tally().clone();
    println!("{kind:?}: {tally}");
    tally
}

/// A TCP server, which does this with a connection, given its number.
fn tcp_server(
    serve: impl Fn(&mut std::net::TcpStream, usize) -> std::io::Result<()> + Send + Copy + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || serve(&mut stream, number));
        }
    });
    address
}

/// A UDP server that answers a datagram in the name that this gives it, if it does.
fn udp_server(name: impl Fn(&[u8]) -> Option<&'static str> + Send + 'static) -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut datagram = [0; 100];
        loop {
            let (length, client) = socket.recv_from(&mut datagram).unwrap();
            let datagram = &datagram[..length];
            if let Some(name) = name(datagram) {
                let answer = [name.as_bytes(), b"\n", datagram].concat();
                socket.send_to(&answer, client).unwrap();
            }
        }
    });
    address
}

/// Greets and echoes so many messages.
fn echo(stream: &mut std::net::TcpStream, times: usize) -> std::io::Result<()> {
    use std::io::{Read, Write};
    stream.write_all(b"web 192.0.2.1\n")?;
    for _ in 0..times {
        let mut message = [0; MESSAGE];
        stream.read_exact(&mut message)?;
        stream.write_all(&message)?;
    }
    Ok(())
}

const SHORT: [Kind; 2] = [Kind::TcpShort, Kind::UdpShort];
const LONG: [Kind; 2] = [Kind::TcpLong { sockets: 5 }, Kind::UdpLong { sockets: 5 }];

#[test]
fn a_good_server_loses_nothing() {
    let tcp = tcp_server(|stream, _| echo(stream, usize::MAX));
    let udp = udp_server(|_| Some("web"));
    for (short, server) in SHORT.into_iter().zip([tcp, udp]) {
        let tally = count(server, short);
        assert!(tally.opened >= 25, "{tally}");
        assert_eq!(
            tally.backends,
            BTreeMap::from([("web".into(), tally.opened)])
        );
        assert_eq!(tally.exchanges, tally.opened);
        assert_eq!((tally.n_failed(), tally.n_broken()), (0, 0), "{tally}");
    }
    for (long, server) in LONG.into_iter().zip([tcp, udp]) {
        let tally = count(server, long);
        assert_eq!(tally.backends, BTreeMap::from([("web".into(), 5)]));
        assert!(tally.exchanges >= 25, "{tally}");
        assert_eq!((tally.n_failed(), tally.n_broken()), (0, 0), "{tally}");
        assert_eq!((tally.lost, tally.late, tally.moved), (0, 0, 0), "{tally}");
    }
}

#[test]
fn what_is_under_way_is_known() {
    let shared = Shared::new("test");
    let [early, late] = [1, 2].map(|seconds| shared.start + Duration::from_secs(seconds));
    for due in [late, early, early] {
        shared.begun(due);
    }
    shared.ended(early);
    assert!(shared.has_before(late) && !shared.has_before(early));
    shared.ended(early);
    assert!(!shared.has_before(late));
}

#[test]
fn a_closed_port_fails_all() {
    // Ports that are taken, by sockets that have nothing to do with their clients.
    let here = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let deaf = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    deaf.bind(&here.into()).unwrap();
    let tcp = deaf.local_addr().unwrap().as_socket().unwrap();
    let taken = UdpSocket::bind(here).unwrap();
    taken.connect(tcp).unwrap();
    let udp = taken.local_addr().unwrap();
    let kinds = [SHORT, LONG].concat().into_iter();
    for (kind, server) in kinds.zip([tcp, udp].into_iter().cycle()) {
        let tally = count(server, kind);
        assert!(tally.opened >= 25, "{tally}");
        assert_eq!(tally.n_failed(), tally.opened, "{tally}");
        let reason = tally.failed.keys().next().unwrap();
        assert!(reason.contains("refused (os error 111)"), "{reason}");
        assert_eq!(tally.n_broken(), 0, "{tally}");
    }
}

#[test]
fn a_connection_that_ends_by_itself_is_broken() {
    let server = tcp_server(|stream, _| echo(stream, 1));
    let tally = count(server, Kind::TcpLong { sockets: 5 });
    assert!(tally.n_broken() >= 10, "{tally}");
    assert_eq!(tally.n_failed(), 0, "{tally}");
    // Another one came in its place.
    assert!(tally.opened >= 10, "{tally}");
}

#[test]
fn silence_is_noticed_and_does_not_stop_the_clock() {
    let silent = tcp_server(|stream, number| match number {
        // Some time later than anybody waits.
        3.. => {
            std::thread::sleep(Duration::from_secs(3));
            Ok(())
        }
        _ => echo(stream, usize::MAX),
    });
    let start = Instant::now();
    let tally = count(silent, Kind::TcpShort);
    assert!(tally.opened >= 25, "{tally}");
    assert_eq!(tally.n_broken(), tally.opened - 3, "{tally}");
    // All of them at a time.
    assert!(start.elapsed() < A_WHILE + 3 * PATIENCE.answer);
    let tally = count(udp_server(|_| None), Kind::UdpShort);
    assert!(tally.opened >= 25, "{tally}");
    assert_eq!(tally.n_failed(), tally.opened, "{tally}");
}

#[test]
fn a_socket_that_falls_silent_is_broken() {
    let first_one = |datagram: &[u8]| (datagram[7] == 1).then_some("web");
    let tally = count(udp_server(first_one), Kind::UdpLong { sockets: 5 });
    assert_eq!(tally.n_broken(), 5, "{tally}");
    assert_eq!((tally.n_failed(), tally.opened), (0, 5), "{tally}");
}

#[test]
fn a_lost_datagram_is_no_broken_flow() {
    let second_try = |datagram: &[u8]| (datagram[MESSAGE - 1] == 1).then_some("web");
    let server = udp_server(second_try);
    for kind in [Kind::UdpShort, Kind::UdpLong { sockets: 5 }] {
        let tally = count(server, kind);
        assert_eq!(tally.lost, tally.exchanges, "{tally}");
        assert!(tally.lost >= 5, "{tally}");
        assert_eq!((tally.n_failed(), tally.n_broken()), (0, 0), "{tally}");
        assert_eq!(tally.late, 0, "{tally}");
        assert!(tally.longest >= PATIENCE.resend, "{tally}");
    }
}

#[test]
fn another_backend_on_the_same_socket_is_noticed() {
    let by_turns = |datagram: &[u8]| Some(["one", "two"][usize::from(datagram[7] % 2)]);
    let tally = count(udp_server(by_turns), Kind::UdpLong { sockets: 5 });
    assert_eq!(tally.moved, tally.exchanges - 5, "{tally}");
    assert_eq!(tally.backends, BTreeMap::from([("two".into(), 5)]));
}

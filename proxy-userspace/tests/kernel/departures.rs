//! Backends and Services that go away under open flows, seen from every kind of client.

use std::io::{Error, ErrorKind};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use proxy_common::abi::Family;
use xtask::testbed::{Layout, NODE_NAME, Namespace, REMOTE_NODE_NAME, in_namespace, sctp};

use crate::client::{Connection, PATIENCE, udp, udp_echo};
use crate::world::{Answer, Endpoint, Kind, Service, World};

/// How long nothing must come where nothing is expected.
const SILENCE: Duration = Duration::from_millis(300);

/// Open flows of one client to one address.
struct Talk {
    who: String,
    tcp: Connection,
    udp: UdpSocket,
    sctp: sctp::Association,
}

impl Talk {
    fn open(client: (&str, &Namespace), address: SocketAddr, backend: &str) -> Self {
        let (who, namespace) = client;
        let opened = in_namespace(namespace, || {
            let tcp = Connection::open(address)?;
            let udp = udp(0, address)?;
            let sctp = sctp::Association::open(0, address, PATIENCE)?;
            Ok::<_, Error>(Self {
                who: format!("{who} at {address}"),
                tcp,
                udp,
                sctp,
            })
        });
        let mut talk = opened.unwrap_or_else(|error| panic!("{who} to {address}: {error}"));
        assert!(talk.tcp.backend.starts_with(backend), "{}", talk.who);
        talk.goes_on(backend);
        talk
    }

    fn tcp(&mut self) -> Result<(), ErrorKind> {
        self.tcp.echo(b"still there?").map_err(|it| it.kind())
    }

    fn udp(&self) -> Result<String, ErrorKind> {
        let said = udp_echo(&self.udp, b"still there?").map_err(|it| it.kind())?;
        Ok(Answer::parse(&said).unwrap().backend)
    }

    fn sctp(&mut self) -> Result<(), ErrorKind> {
        let said = self.sctp.exchange(b"still there?");
        said.map(drop).map_err(|it| it.kind())
    }

    fn goes_on(&mut self, backend: &str) {
        assert_eq!(self.tcp(), Ok(()), "TCP of {}", self.who);
        assert_eq!(self.udp().as_deref(), Ok(backend), "UDP of {}", self.who);
        assert_eq!(self.sctp(), Ok(()), "SCTP of {}", self.who);
    }

    fn is_cut(&mut self) {
        let reset = Err(ErrorKind::ConnectionReset);
        assert_eq!(self.tcp(), reset, "TCP of {}", self.who);
        let sctp = self.sctp();
        let aborted = [ErrorKind::ConnectionReset, ErrorKind::ConnectionRefused];
        let is_aborted = sctp.is_err_and(|kind| aborted.contains(&kind));
        assert!(is_aborted, "SCTP of {}: {sctp:?}", self.who);
    }
}

/// Flows of every kind of client, at addresses that take different ways.
fn talks(world: &World, service: &Service, backend: &str) -> Vec<Talk> {
    let clients = [
        ("node", world.node()),
        ("pod", &world.pod.namespace),
        ("outside", &world.client.namespace),
    ];
    let mut talks = Vec::new();
    for client in clients {
        for kind in [Kind::ClusterIp, Kind::Vip, Kind::NodePort] {
            for family in Family::ALL {
                talks.push(Talk::open(client, service.at(kind, family), backend));
            }
        }
    }
    talks
}

fn each(talks: &mut [Talk], check: impl FnMut(&mut Talk)) {
    talks.iter_mut().for_each(check);
}

#[test]
fn flows_end_move_or_stay_as_their_backends_go() {
    let mut world = World::new(Layout::Routed, 1500, &[]);
    let local = Endpoint::new(&world.local, NODE_NAME);
    let far = Endpoint::new(&world.far, REMOTE_NODE_NAME);
    let service = |endpoints: &[&Endpoint]| Service {
        name: "moving",
        number: 9,
        endpoints: endpoints.iter().copied().cloned().collect(),
    };
    world.apply(&service(&[&local]));

    let mut open = talks(&world, &service(&[]), "local");
    let mut leaving = local.clone();
    leaving.terminating = true;
    world.apply(&service(&[&leaving, &far]));
    each(&mut open, |talk| talk.goes_on("local"));
    world.apply(&service(&[&far]));
    each(&mut open, |talk| {
        assert_eq!(talk.udp().as_deref(), Ok("far"), "{}", talk.who);
        talk.is_cut();
    });

    let mut open = talks(&world, &service(&[]), "far");
    world.apply(&service(&[]));
    each(&mut open, |talk| {
        let refused = Err(ErrorKind::ConnectionRefused);
        assert_eq!(talk.udp(), refused, "UDP of {}", talk.who);
        talk.is_cut();
    });
    world.apply(&service(&[&local]));
    each(&mut open, |talk| {
        assert_eq!(talk.udp().as_deref(), Ok("local"), "{}", talk.who);
    });

    a_service_that_is_deleted_and_comes_back(&world, &service(&[&local]));

    world.start_again_with(&["--gone-backends", "keep"]);
    let mut open = talks(&world, &service(&[]), "local");
    world.apply(&service(&[&far]));
    each(&mut open, |talk| {
        assert_eq!(talk.tcp(), Ok(()), "TCP of {}", talk.who);
        assert_eq!(talk.sctp(), Ok(()), "SCTP of {}", talk.who);
        assert_eq!(talk.udp().as_deref(), Ok("far"), "{}", talk.who);
    });
}

/// Open connections do not notice; between, there is no Service for new ones.
fn a_service_that_is_deleted_and_comes_back(world: &World, service: &Service) {
    let mut open = talks(world, service, "local");
    world.delete(service);
    each(&mut open, |talk| talk.goes_on("local"));
    for namespace in [world.node(), &world.pod.namespace, &world.client.namespace] {
        for family in Family::ALL {
            let address = service.at(Kind::ClusterIp, family);
            let result = in_namespace(namespace, || TcpStream::connect_timeout(&address, SILENCE));
            assert_eq!(
                result.map_err(|it| it.kind()).err(),
                Some(ErrorKind::TimedOut)
            );
        }
    }
    world.apply(service);
    drop(talks(world, service, "local"));
    each(&mut open, |talk| talk.goes_on("local"));
}

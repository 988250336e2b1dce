//! Who is there while nothing is to be lost: a node whose Services are dialled from every place,
//! in both families and by every protocol.

use std::time::{Duration, Instant};

use proxy_common::abi::Family;
use xtask::testbed::load::{Counts, Kind, Load, Stream};
use xtask::testbed::{Layout, NODE_NAME, Namespace, Pod, REMOTE_NODE_NAME, Server};

use crate::world::{self, Endpoint, Service, World, witness};

/// How many new sockets show where they go, and how long they may take.
const ENOUGH: u64 = 30;
const IN_TIME: Duration = Duration::from_secs(10);

/// A node under load. Fields are dropped in this order.
#[derive(Debug)]
pub(crate) struct Crowd {
    load: Option<Load>,
    /// Its endpoints, of which one is on another node, stay.
    pub(crate) steady: Service,
    /// Its endpoints change.
    pub(crate) changing: Service,
    _servers: Vec<Server>,
    /// Those that it may have.
    pods: [Pod; 3],
    pub(crate) world: World,
}

impl Crowd {
    /// Makes a node of which these sockets are served (`--socket-lb`), and starts the load.
    pub(crate) fn new(socket_lb: &'static str) -> Self {
        // All of a test has room: each connection leaves two records.
        let args = ["flows", "sockets", "datagrams"].map(|map| format!("--max-{map}=200000"));
        let args = args.each_ref().map(String::as_str);
        let world = World::with_sockets(socket_lb, Layout::Routed, 1500, &args);
        let pods = ["web-0", "web-1", "web-2"].map(|name| world.testbed.pod(name).unwrap());
        let of = |name, number, endpoints| Service {
            name,
            number,
            endpoints,
        };
        let near = Endpoint::new(&world.local, NODE_NAME);
        let far = Endpoint::new(&world.far, REMOTE_NODE_NAME);
        let mut crowd = Self {
            load: None,
            steady: of("steady", 11, vec![near, far]),
            changing: of("changing", 12, vec![Endpoint::new(&pods[0], NODE_NAME)]),
            _servers: pods.iter().flat_map(witness).collect(),
            pods,
            world,
        };
        crowd.world.apply(&crowd.steady);
        crowd.world.apply(&crowd.changing);
        crowd.load = Some(Load::start(crowd.streams()).unwrap());
        crowd
    }

    fn streams(&self) -> Vec<Stream> {
        let clients = [
            Client::pod(&self.world),
            Client::node(&self.world),
            Client::outside(&self.world),
        ];
        let streams = clients.map(|client| client.streams(&self.steady, &self.changing));
        streams.into_iter().flatten().collect()
    }

    /// What became of the load so far.
    pub(crate) fn counts(&self) -> Counts {
        self.load.as_ref().unwrap().counts()
    }

    /// Ends the load. It must have lost nothing.
    pub(crate) fn end(&mut self) {
        expect_no_loss(&self.load.take().unwrap().stop().unwrap());
    }

    /// Gives the changing Service the endpoints of step `step`, whether or not anybody reads it:
    /// another one comes and the old one is terminating; then that one is not there any more.
    pub(crate) fn change(&mut self, step: usize) {
        let at = step / 2 % self.pods.len();
        let [old, new] = [at, (at + 1) % self.pods.len()];
        let [mut old, new] = [old, new].map(|at| Endpoint::new(&self.pods[at], NODE_NAME));
        old.terminating = true;
        self.changing.endpoints = match step % 2 {
            0 => vec![old, new],
            _ => vec![new],
        };
        self.world.put(&self.changing);
    }

    /// Waits until the changing Service is in force: from then on, new sockets only find endpoints
    /// that are ready.
    pub(crate) fn expect_changed(&self) {
        self.world.expect_in_force(&self.changing);
        self.load.as_ref().unwrap().settle();
        let (start, before) = (Instant::now(), self.new_sockets());
        while self.new_sockets().ready < before.ready + ENOUGH {
            assert!(start.elapsed() < IN_TIME, "{}", self.counts());
            std::thread::sleep(Duration::from_millis(5));
        }
        let others = self.new_sockets().others;
        assert_eq!(others, before.others, "{}", self.counts());
    }

    /// The changing Service's so far, by what its endpoints are now.
    fn new_sockets(&self) -> NewSockets {
        let counts = self.counts();
        // A UDP socket may have the port of an earlier one, whose flow goes on as long as its
        // endpoint is there.
        let goes_on = self.changing.endpoints.iter().any(|it| it.terminating);
        let changing = counts
            .iter()
            .filter(|(name, _)| name.contains("changing") && !(goes_on && name.contains("UDP")));
        let mut sockets = NewSockets::default();
        for (backend, count) in changing.flat_map(|(_, tally)| &tally.backends) {
            let is_ready = self.pods.iter().any(|pod| {
                let mut ready = self.changing.endpoints.iter().filter(|it| !it.terminating);
                pod.name == *backend && ready.any(|it| it.is_of(pod))
            });
            if is_ready {
                sockets.ready += count;
            } else {
                sockets.others += count;
            }
        }
        sockets
    }
}

/// Nothing failed, nothing broke, and everybody has been at work.
pub(crate) fn expect_no_loss(counts: &Counts) {
    println!("{counts}");
    let all = counts.sum();
    assert_eq!((all.n_failed(), all.n_broken()), (0, 0), "{counts}");
    assert_eq!((all.lost, all.moved), (0, 0), "{counts}");
    for (name, tally) in counts.iter() {
        assert!(tally.exchanges > 0, "{name}: too little to show anything");
    }
}

/// How many new sockets found endpoints that are ready, and others.
#[derive(Clone, Copy, Default)]
struct NewSockets {
    ready: u64,
    others: u64,
}

/// A place from which Services are dialled, and at which of their addresses.
#[derive(Debug)]
struct Client {
    name: &'static str,
    namespace: Namespace,
    kinds: [world::Kind; 2],
}

impl Client {
    fn pod(world: &World) -> Self {
        Self {
            name: "pod",
            namespace: world.pod.namespace.clone(),
            kinds: [world::Kind::ClusterIp, world::Kind::NodePort],
        }
    }

    fn node(world: &World) -> Self {
        Self {
            name: "node",
            namespace: world.node().clone(),
            kinds: [world::Kind::ClusterIp, world::Kind::Vip],
        }
    }

    fn outside(world: &World) -> Self {
        Self {
            name: "outside",
            namespace: world.client.namespace.clone(),
            kinds: [world::Kind::NodePort, world::Kind::Vip],
        }
    }

    /// All kinds of traffic to a Service whose endpoints stay, and short-lived ones to one whose
    /// endpoints change: 196 new sockets and 160 exchanges of those that stay a second.
    fn streams(&self, steady: &Service, changing: &Service) -> Vec<Stream> {
        let kinds = [
            (steady, Kind::TcpShort, 12.0),
            (steady, Kind::UdpShort, 12.0),
            (steady, Kind::TcpLong { sockets: 5 }, 20.0),
            (steady, Kind::UdpLong { sockets: 5 }, 20.0),
            (steady, Kind::Sctp, 1.0),
            (changing, Kind::TcpShort, 12.0),
            (changing, Kind::UdpShort, 12.0),
        ];
        let places = Family::ALL
            .into_iter()
            .flat_map(|family| self.kinds.map(|at| (at, family)));
        let streams = places.flat_map(|(at, family)| {
            kinds.map(|(service, kind, per_second)| Stream {
                name: format!("{} to {}, {}", self.name, service.name, name(kind)),
                from: self.namespace.clone(),
                to: service.at(at, family),
                kind,
                per_second,
            })
        });
        streams.collect()
    }
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::TcpShort => "TCP connections",
        Kind::TcpLong { .. } => "TCP connections that stay",
        Kind::UdpShort => "UDP sockets",
        Kind::UdpLong { .. } => "UDP sockets that stay",
        Kind::Sctp => "SCTP associations",
    }
}

//! Two nodes with a Beeline each, which follow one API server, and what goes on between them.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use proxy_common::abi::Family;
use xtask::testbed::load::{Counts, Kind as LoadKind, Load, Stream};
use xtask::testbed::{Namespace, Pod, in_namespace};

use crate::loss_crowd::expect_no_loss;
use crate::two_nodes_world::{Kind, Local, NODES, Service, TwoNodes};
use crate::vitals::get;
use crate::world::{Answer, Speak, ask};

/// Before a lost SYN would be sent again.
const AT_ONCE: Duration = Duration::from_millis(950);
/// How long it takes to see that nobody answers.
const A_WHILE: Duration = Duration::from_millis(300);
/// How often one client asks until it has met all backends of a Service: of two, it misses one
/// once in a million times.
const TRIES: usize = 20;

/// Who answers at an address, and whom they see.
fn meet(from: &Namespace, speak: Speak, server: SocketAddr) -> io::Result<BTreeSet<Seen>> {
    in_namespace(from, || {
        let answers = (0..TRIES).map(|_| ask(speak, server, AT_ONCE));
        let seen = answers.map(|answer| answer.map(Seen::from));
        seen.collect()
    })
}

/// A backend, and the address of the client that it saw.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Seen {
    backend: String,
    client: IpAddr,
}

impl From<Answer> for Seen {
    fn from(answer: Answer) -> Self {
        Self {
            backend: answer.backend,
            client: answer.client,
        }
    }
}

fn seen(backend: &Pod, client: IpAddr) -> Seen {
    Seen {
        backend: backend.name.clone(),
        client,
    }
}

#[test]
fn traffic_finds_its_way_across_nodes() {
    let nodes = TwoNodes::new("off");
    pods_and_nodes_reach_the_pods_of_both(&nodes);
    clients_outside_reach_both_by_either_node(&nodes);
    external_traffic_stays_where_it_has_to(&nodes);
    internal_traffic_stays_where_it_has_to(&nodes);
}

#[test]
fn traffic_finds_its_way_across_nodes_by_sockets() {
    let nodes = TwoNodes::new("all");
    pods_and_nodes_reach_the_pods_of_both(&nodes);
    clients_outside_reach_both_by_either_node(&nodes);
    external_traffic_stays_where_it_has_to(&nodes);
    internal_traffic_stays_where_it_has_to(&nodes);
}

/// By TCP, UDP and SCTP, in both families.
fn all_ways() -> impl Iterator<Item = (Speak, Family)> {
    Speak::ALL
        .into_iter()
        .flat_map(|speak| Family::ALL.map(|family| (speak, family)))
}

fn pods_and_nodes_reach_the_pods_of_both(nodes: &TwoNodes) {
    let web = Service::new("web", 1, &[nodes.backend(0), nodes.backend(1)]);
    nodes.apply(&web);
    for node in NODES {
        let (client, namespace) = (nodes.client(node), nodes.namespace(node));
        for (speak, family) in all_ways() {
            let server = web.at(Kind::ClusterIp, family);
            let met = meet(&client.namespace, speak, server).unwrap();
            let backends = NODES.map(|it| seen(nodes.backend(it), client.address(family)));
            assert_eq!(met, BTreeSet::from(backends), "pod, {speak:?} {server}");
            let met = meet(namespace, speak, server).unwrap();
            let names: BTreeSet<_> = met.iter().map(|it| it.backend.as_str()).collect();
            assert_eq!(names, nodes.backend_names(), "node, {speak:?} {server}");
        }
    }
    nodes.delete(&web);
}

fn clients_outside_reach_both_by_either_node(nodes: &TwoNodes) {
    let web = Service::new("web", 2, &[nodes.backend(0), nodes.backend(1)]);
    nodes.apply(&web);
    for node in NODES {
        nodes.balance_to(node);
        for (speak, family) in all_ways() {
            for kind in [Kind::NodePort(node), Kind::Vip] {
                let server = web.at(kind, family);
                let met = meet(&nodes.outside.namespace, speak, server).unwrap();
                // The reply of a backend elsewhere has to come back by this node.
                let own = nodes.outside.address(family);
                let expected = BTreeSet::from([
                    seen(nodes.backend(node), own),
                    seen(nodes.backend(1 - node), nodes.node_address(node, family)),
                ]);
                assert_eq!(met, expected, "{kind:?}, {speak:?} {server}");
            }
        }
    }
    nodes.delete(&web);
}

/// With externalTrafficPolicy Local only the node that has an endpoint answers, and its health
/// check says so. The endpoint moves.
fn external_traffic_stays_where_it_has_to(nodes: &TwoNodes) {
    let mut web = Service::new("web", 3, &[]).local(Local::External);
    for node in [1, 0, 1] {
        web.endpoints = vec![nodes.backend(node).clone()];
        nodes.apply(&web);
        let health = |of| {
            let check = SocketAddr::new(nodes.node_address(of, Family::Ipv4), web.health_check());
            let answer = nodes.outside.run(|| get(check, "/"));
            answer.map(|(status, _)| status)
        };
        nodes.until("health checks", || {
            health(node) == Some(200) && health(1 - node) == Some(503)
        });
        nodes.balance_to(node);
        for (speak, family) in all_ways() {
            let expected =
                BTreeSet::from([seen(nodes.backend(node), nodes.outside.address(family))]);
            for kind in [Kind::NodePort(node), Kind::Vip] {
                let server = web.at(kind, family);
                let met = meet(&nodes.outside.namespace, speak, server).unwrap();
                assert_eq!(met, expected, "{kind:?}, {speak:?} {server}");
            }
            let elsewhere = web.at(Kind::NodePort(1 - node), family);
            let answer = nodes.outside.run(|| ask(speak, elsewhere, A_WHILE));
            assert!(answer.is_err(), "{speak:?} {elsewhere}: {answer:?}");
        }
        // Pods of the other node are no outsiders.
        let client = nodes.client(1 - node);
        for kind in [Kind::ClusterIp, Kind::Vip] {
            let server = web.at(kind, Family::Ipv4);
            let met = meet(&client.namespace, Speak::Tcp, server).unwrap();
            let own = seen(nodes.backend(node), client.ipv4.into());
            assert_eq!(met, BTreeSet::from([own]), "{kind:?}");
        }
    }
    nodes.delete(&web);
}

/// With internalTrafficPolicy Local each node's pods meet its own endpoints, and nobody where
/// there is none.
fn internal_traffic_stays_where_it_has_to(nodes: &TwoNodes) {
    let both = [nodes.backend(0), nodes.backend(1)];
    let mut web = Service::new("web", 4, &both).local(Local::Internal);
    nodes.apply(&web);
    let meet_at = |node, speak, family| {
        let server = web.at(Kind::ClusterIp, family);
        meet(&nodes.client(node).namespace, speak, server)
    };
    for node in NODES {
        for (speak, family) in all_ways() {
            let own = seen(nodes.backend(node), nodes.client(node).address(family));
            let met = meet_at(node, speak, family).unwrap();
            assert_eq!(met, BTreeSet::from([own]), "{speak:?} {family:?}");
        }
    }
    web.endpoints.pop();
    nodes.apply(&web);
    for family in Family::ALL {
        let server = web.at(Kind::ClusterIp, family);
        let nobody = nodes.client(1).run(|| ask(Speak::Tcp, server, A_WHILE));
        assert!(nobody.is_err(), "{server}: {nobody:?}");
        let met = meet(&nodes.client(0).namespace, Speak::Tcp, server).unwrap();
        let own = seen(nodes.backend(0), nodes.client(0).address(family));
        assert_eq!(met, BTreeSet::from([own]), "{server}");
    }
    nodes.delete(&web);
}

/// How often pods move from one node to the other.
const MOVES: usize = 20;
/// How often each daemon is restarted.
const ROLLOUTS: usize = 5;

/// Nodes under load: a Service whose endpoints, one on each node, stay, and one whose endpoint
/// moves between the nodes.
struct Busy {
    load: Load,
    moving: Service,
    nodes: TwoNodes,
}

impl Busy {
    fn new(socket_lb: &'static str) -> Self {
        let nodes = TwoNodes::new(socket_lb);
        let steady = Service::new("steady", 5, &[nodes.backend(0), nodes.backend(1)]);
        let moving = Service::new("moving", 6, &[nodes.backend(0)]);
        nodes.apply(&steady);
        nodes.apply(&moving);
        // The load balancer sends what is for one family by one node, the rest by the other.
        nodes.balance_by_family();
        let load = Load::start(streams(&nodes, &steady, &moving)).unwrap();
        Self {
            load,
            moving,
            nodes,
        }
    }

    /// Has the moving Service's endpoint on this node, step by step as Kubernetes does: the new
    /// pod comes, the old one is terminating, and gone.
    fn announce_move_to(&mut self, node: usize) {
        self.moving.endpoints = vec![self.nodes.backend(node).clone()];
        self.moving.terminating = vec![self.nodes.backend(1 - node).clone()];
        self.nodes.put(&self.moving);
    }

    fn forget_terminating(&mut self) {
        // Nobody is talking to them any more.
        self.load.settle();
        self.moving.terminating.clear();
        self.nodes.put(&self.moving);
    }

    /// Waits until new sockets find a backend.
    fn expect_new_sockets_at(&self, node: usize) {
        let name = &self.nodes.backend(node).name;
        let found = |counts: &Counts| {
            let moving = counts.iter().filter(|(name, _)| name.contains("moving"));
            let found = moving.filter_map(|(_, tally)| tally.backends.get(name));
            found.sum::<u64>()
        };
        let before = found(&self.load.counts());
        self.nodes.until("new sockets at the new pod", || {
            found(&self.load.counts()) > before + 20
        });
    }

    /// A pod moves. The old one is there until both nodes' daemons know.
    fn move_to(&mut self, node: usize) {
        self.announce_move_to(node);
        for at in NODES {
            self.nodes.expect_in_force(at, &self.moving);
        }
        self.expect_new_sockets_at(node);
        self.forget_terminating();
    }

    fn end(self) {
        expect_no_loss(&self.load.stop().unwrap());
    }
}

/// From pods of both nodes, from both nodes, and from outside by both: 250 new sockets and 200
/// exchanges of those that stay a second.
fn streams(nodes: &TwoNodes, steady: &Service, moving: &Service) -> Vec<Stream> {
    let mut clients = vec![(
        "outside".to_owned(),
        &nodes.outside.namespace,
        vec![Kind::NodePort(0), Kind::NodePort(1), Kind::Vip],
    )];
    for node in NODES {
        let pod = &nodes.client(node).namespace;
        clients.push((format!("pod {node}"), pod, vec![Kind::ClusterIp]));
        let own = nodes.namespace(node);
        clients.push((format!("node {node}"), own, vec![Kind::ClusterIp]));
    }
    let kinds = [
        (steady, LoadKind::TcpShort, 5.0),
        (steady, LoadKind::UdpShort, 5.0),
        (steady, LoadKind::TcpLong { sockets: 3 }, 7.0),
        (steady, LoadKind::UdpLong { sockets: 3 }, 7.0),
        (moving, LoadKind::TcpShort, 5.0),
        (moving, LoadKind::UdpShort, 5.0),
    ];
    let mut streams = Vec::new();
    for (name, from, addresses) in clients {
        for (kind, family) in addresses
            .into_iter()
            .flat_map(|kind| Family::ALL.map(|family| (kind, family)))
        {
            streams.extend(kinds.map(|(service, load, per_second)| Stream {
                name: format!("{name} to {}, {load:?}", service.name),
                from: from.clone(),
                to: service.at(kind, family),
                kind: load,
                per_second,
            }));
        }
    }
    streams
}

#[test]
fn nothing_is_lost_while_pods_move_and_daemons_and_the_api_server_go() {
    nothing_is_lost("off");
}

#[test]
fn nothing_is_lost_by_sockets_while_pods_move_and_daemons_and_the_api_server_go() {
    nothing_is_lost("all");
}

fn nothing_is_lost(socket_lb: &'static str) {
    let mut busy = Busy::new(socket_lb);
    for turn in 0..MOVES {
        busy.move_to((turn + 1) % 2);
    }
    a_pod_moves_while_a_daemon_is_dead(&mut busy);
    a_pod_moves_while_the_api_server_is_away(&mut busy);
    for _ in 0..ROLLOUTS {
        roll_out(&mut busy);
    }
    busy.end();
}

/// The node goes on with what it knows, and catches up.
fn a_pod_moves_while_a_daemon_is_dead(busy: &mut Busy) {
    for (dead, to) in [(1, 1), (0, 0)] {
        busy.nodes.kill(dead);
        busy.announce_move_to(to);
        busy.nodes.expect_in_force(1 - dead, &busy.moving);
        busy.expect_new_sockets_at(to);
        busy.nodes.start(dead);
        busy.nodes.expect_in_force(dead, &busy.moving);
        busy.forget_terminating();
    }
}

fn a_pod_moves_while_the_api_server_is_away(busy: &mut Busy) {
    busy.nodes.api.down();
    busy.announce_move_to(1);
    // A daemon that starts meanwhile knows no better.
    busy.nodes.kill(0);
    busy.nodes.launch(0);
    std::thread::sleep(A_WHILE);
    busy.nodes.api.up();
    for node in NODES {
        busy.nodes.expect_in_force(node, &busy.moving);
    }
    busy.expect_new_sockets_at(1);
    busy.forget_terminating();
    busy.move_to(0);
}

/// As the rolling update of a DaemonSet does it: node by node, and a node's new pod is started
/// when the old one has ended. Meanwhile pods move.
fn roll_out(busy: &mut Busy) {
    for node in NODES {
        busy.nodes.stop(node);
        busy.announce_move_to(1 - node);
        busy.nodes.start(node);
        busy.move_to(1 - node);
    }
}

//! Sockets that dial, and what becomes of them.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;
use proptest::sample::subsequence;

use crate::abi::{
    Addr, AddressFlags, BackendFlags, BackendState, Device, DeviceFlags, FlowRole, Frontend,
    FrontendFlags, FrontendKey, Pass, Peer, PodFlags, Port, Protocol, Reply, Rewrite, Settings,
    SettingsFlags, SocketClient, SocketFlags, SourceRangeKey, Verdict,
};
use crate::datapath::socket::{Answer, Dial, close, connect, peer, receive, send};
use crate::datapath::{Hook, decide};
use crate::testing::{Frame, Memory, Skb};

const SERVICE: &str = "10.96.0.1:80";
const OTHER: &str = "10.96.0.2:80";
const ONE: &str = "10.244.1.1:8080";
const TWO: &str = "10.244.2.2:8080";
const NODE: &str = "172.18.0.2";
const POD: &str = "10.244.0.5";
const POD_NETNS: u64 = 70;
const POD_DEVICE: u32 = 7;

const BY_PACKET: Answer = Answer::Leave(Pass::ByPacket);
const NO_SERVICE: Answer = Answer::Leave(Pass::NoService);
const SECOND: u64 = 1_000_000_000;

fn at(text: &str) -> Peer {
    let addr: SocketAddr = text.parse().expect("an address and a port");
    Peer::new(addr.ip().into(), Port::new(addr.port()))
}

fn ip(text: &str) -> Addr {
    text.parse::<IpAddr>().expect("an address").into()
}

/// A node with a Service at both protocols, and all sockets served.
fn node(backends: &[&str]) -> Memory {
    let mut memory = Memory::default();
    let backends: Vec<SocketAddr> = backends.iter().map(|it| it.parse().unwrap()).collect();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let _service = memory.serve(SERVICE.parse().unwrap(), protocol, &backends);
    }
    memory.sockets.settings.flags = SocketFlags::NODE
        .union(SocketFlags::PODS)
        .union(SocketFlags::LOCALHOST_NODE_PORTS);
    let _none = memory
        .addresses
        .insert(ip(NODE), AddressFlags::NODE.union(AddressFlags::NODE_PORTS));
    memory
}

/// Lets the rules know the pod.
fn know_the_pod(memory: &mut Memory) {
    let client = SocketClient {
        v4: ip(POD),
        v6: Addr::UNSPECIFIED,
        device: POD_DEVICE,
        _pad: 0,
    };
    let _none = memory.sockets.clients.insert(POD_NETNS, client);
    memory.settings.flags = memory.settings.flags.union(SettingsFlags::DETECT_DEVICE);
    let device = Device {
        v4: Addr::UNSPECIFIED,
        v6: Addr::UNSPECIFIED,
        mtu: 1500,
        mac: [0; 3],
        flags: DeviceFlags::LOCAL_PODS,
    };
    let _none = memory.devices.insert(POD_DEVICE, device);
}

/// A NodePort that leads where the Service leads.
fn with_node_port(memory: &mut Memory, protocol: Protocol) {
    let frontend = Frontend {
        flags: FrontendFlags::EXTERNAL,
        ..*memory.frontend_mut(SERVICE.parse().unwrap(), protocol)
    };
    for family in crate::abi::Family::ALL {
        let key = FrontendKey::node_port(family, Port::new(30_080), protocol);
        let _none = memory.frontends.insert(key, frontend);
    }
}

fn frontend_of(memory: &mut Memory) -> &mut Frontend {
    memory.frontend_mut(SERVICE.parse().unwrap(), Protocol::Tcp)
}

/// A pod's socket.
fn by_pod(protocol: Protocol, cookie: u64, to: &str) -> Dial {
    Dial {
        cookie,
        netns: POD_NETNS,
        is_node: false,
        protocol,
        to: at(to),
        from: Addr::UNSPECIFIED,
        device: 0,
        is_connected: false,
    }
}

fn tcp(to: &str) -> Dial {
    by_pod(Protocol::Tcp, 1, to)
}

fn udp(to: &str) -> Dial {
    by_pod(Protocol::Udp, 1, to)
}

fn by_node(dial: Dial) -> Dial {
    Dial {
        is_node: true,
        ..dial
    }
}

fn connected(to: &str) -> Answer {
    Answer::Point(Rewrite::Connect, at(to))
}

fn sent(to: &str) -> Answer {
    Answer::Point(Rewrite::Datagram, at(to))
}

fn pointed(answer: Answer) -> Peer {
    match answer {
        Answer::Point(_, peer) => peer,
        Answer::Leave(_) | Answer::Refuse => panic!("not pointed: {answer:?}"),
    }
}

#[test]
fn a_socket_that_connects_talks_to_a_backend_and_sees_the_frontend() {
    let memory = node(&[ONE]);
    for dial in [tcp(SERVICE), udp(SERVICE), by_node(tcp(SERVICE))] {
        assert_eq!(connect(&memory, &dial), connected(ONE), "{dial:?}");
        assert_eq!(peer(&memory, 1, at(ONE)), Some(at(SERVICE)));
        assert_eq!(peer(&memory, 1, at(TWO)), None);
        assert_eq!(peer(&memory, 2, at(ONE)), None);
        assert_eq!(receive(&memory, 1, true, at(ONE)), Some(at(SERVICE)));
        close(&memory, 1);
        assert_eq!(peer(&memory, 1, at(ONE)), None);
    }
    let service = memory.frontends
        [&FrontendKey::exact(ip("10.96.0.1"), Port::new(80), Protocol::Tcp)]
        .service;
    assert_eq!(memory.counters.borrow()[&service].flows, 2);
}

#[test]
fn what_is_no_service_is_left_alone() {
    let mut memory = node(&[ONE]);
    for to in [
        "10.1.1.1:80",
        "127.0.0.1:80",
        "[fd00::1]:80",
        "0.0.0.0:80",
        ONE,
    ] {
        assert_eq!(connect(&memory, &tcp(to)), NO_SERVICE, "{to}");
        assert_eq!(send(&memory, &udp(to)), NO_SERVICE, "{to}");
        assert_eq!(connect(&memory, &by_node(tcp(to))), NO_SERVICE, "{to}");
    }
    let addresses = AddressFlags::EXTERNAL;
    let _none = memory.addresses.insert(ip("203.0.113.1"), addresses);
    assert_eq!(connect(&memory, &tcp("203.0.113.1:22")), NO_SERVICE);
    assert!(memory.sockets.connected.borrow().is_empty());
}

#[test]
fn without_endpoints_a_socket_is_told_at_once() {
    let memory = node(&[]);
    assert_eq!(connect(&memory, &tcp(SERVICE)), Answer::Refuse);
    assert_eq!(connect(&memory, &udp(SERVICE)), Answer::Refuse);
    assert_eq!(send(&memory, &udp(SERVICE)), Answer::Refuse);
    let refused: u64 = memory
        .counters
        .borrow()
        .values()
        .map(|it| it.n_refused())
        .sum();
    assert_eq!(refused, 3);
    // Rule R15.
    assert_eq!(connect(&memory, &tcp("10.96.0.1:81")), Answer::Refuse);
    assert_eq!(send(&memory, &udp("10.96.0.1:81")), Answer::Refuse);
    // As getaddrinfo() does to sort what it has found (RFC 6724).
    assert_eq!(connect(&memory, &udp("10.96.0.1:0")), BY_PACKET);
}

#[test]
fn handed_back_sockets_are_left_alone_but_correspondences_go_on() {
    const HANDED_BACK: Answer = Answer::Leave(Pass::HandedBack);
    let mut memory = node(&[ONE]);
    let other = by_pod(Protocol::Udp, 2, SERVICE);
    assert_eq!(connect(&memory, &tcp(SERVICE)), connected(ONE));
    assert_eq!(send(&memory, &other), sent(ONE));
    memory.settings.flags = SettingsFlags::HANDED_BACK;
    assert_eq!(peer(&memory, 1, at(ONE)), Some(at(SERVICE)));
    assert_eq!(receive(&memory, 2, false, at(ONE)), Some(at(SERVICE)));
    assert_eq!(send(&memory, &other), sent(ONE));
    for dial in [
        by_pod(Protocol::Tcp, 3, SERVICE),
        by_pod(Protocol::Udp, 3, SERVICE),
        by_node(by_pod(Protocol::Tcp, 3, SERVICE)),
        by_pod(Protocol::Tcp, 3, "10.96.0.1:81"),
    ] {
        assert_eq!(connect(&memory, &dial), HANDED_BACK, "{dial:?}");
    }
    assert_eq!(send(&memory, &udp(SERVICE)), HANDED_BACK);
    assert_eq!(connect(&memory, &tcp(ONE)), NO_SERVICE);
    // It was connected before.
    assert_eq!(connect(&memory, &tcp(SERVICE)), HANDED_BACK);
    assert_eq!(peer(&memory, 1, at(ONE)), None);
    memory.remove_backends_at("10.244.1.1".parse().unwrap());
    assert_eq!(send(&memory, &other), HANDED_BACK);
    memory.point(SERVICE.parse().unwrap(), Protocol::Tcp, &[]);
    let dial = by_pod(Protocol::Tcp, 4, SERVICE);
    assert_eq!(connect(&memory, &dial), HANDED_BACK);
}

#[test]
fn the_mode_says_whose_sockets_are_served() {
    let mut memory = node(&[ONE]);
    for (flags, pod, of_pod, of_node) in [
        (SocketFlags::NONE, None, false, false),
        (SocketFlags::NODE, None, false, true),
        (SocketFlags::PODS, None, true, false),
        (
            SocketFlags::PODS.union(SocketFlags::KNOWN_PODS),
            None,
            false,
            false,
        ),
        (
            SocketFlags::PODS.union(SocketFlags::KNOWN_PODS),
            Some(PodFlags::SKIP),
            false,
            false,
        ),
        (
            SocketFlags::PODS.union(SocketFlags::KNOWN_PODS),
            Some(PodFlags::NONE),
            true,
            false,
        ),
    ] {
        memory.sockets.settings.flags = flags;
        memory.sockets.pod = pod;
        let expected = |is_served| {
            if is_served {
                connected(ONE)
            } else {
                NO_SERVICE
            }
        };
        assert_eq!(
            connect(&memory, &tcp(SERVICE)),
            expected(of_pod),
            "{flags:?} {pod:?}"
        );
        let dial = by_node(tcp(SERVICE));
        assert_eq!(
            connect(&memory, &dial),
            expected(of_node),
            "{flags:?} {pod:?}"
        );
    }
}

#[test]
fn node_ports_are_found_at_the_nodes_addresses_and_at_its_loopback() {
    let mut memory = node(&[ONE]);
    with_node_port(&mut memory, Protocol::Tcp);
    assert_eq!(connect(&memory, &tcp("172.18.0.2:30080")), connected(ONE));
    assert_eq!(connect(&memory, &tcp("172.18.0.3:30080")), NO_SERVICE);
    for to in [
        "172.18.0.2",
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",
        "[::1]",
        "[::]",
    ] {
        let to = format!("{to}:30080");
        assert_eq!(connect(&memory, &by_node(tcp(&to))), connected(ONE), "{to}");
        // A pod's loopback is its own.
        if !to.starts_with("172") {
            assert_eq!(connect(&memory, &tcp(&to)), NO_SERVICE, "{to}");
        }
    }
    let _answer = connect(&memory, &by_node(tcp("0.0.0.0:30080")));
    assert_eq!(peer(&memory, 1, at(ONE)), Some(at("127.0.0.1:30080")));
    memory.sockets.settings.flags = SocketFlags::NODE;
    assert_eq!(
        connect(&memory, &by_node(tcp("127.0.0.1:30080"))),
        NO_SERVICE
    );
}

#[test]
fn a_socket_of_the_node_that_cannot_reach_a_pod_is_left_to_packets() {
    let mut memory = node(&[ONE]);
    let bound = Dial {
        device: 2,
        ..by_node(tcp(SERVICE))
    };
    assert_eq!(connect(&memory, &bound), NO_SERVICE);
    let by_pod = Dial {
        is_node: false,
        ..bound
    };
    assert_eq!(connect(&memory, &by_pod), NO_SERVICE);
    // A pod has one device, and everything leaves by it.
    know_the_pod(&mut memory);
    assert_eq!(connect(&memory, &by_pod), connected(ONE));
    let from_loopback = Dial {
        from: ip("127.0.0.1"),
        ..by_node(tcp(SERVICE))
    };
    assert_eq!(connect(&memory, &from_loopback), BY_PACKET);
}

#[test]
fn a_table_without_room_leaves_sockets_to_packets() {
    let mut memory = node(&[ONE]);
    memory.sockets.is_full = true;
    let full = Answer::Leave(Pass::SocketsFull);
    assert_eq!(connect(&memory, &tcp(SERVICE)), full);
    assert_eq!(send(&memory, &udp(SERVICE)), full);
}

#[test]
fn source_ranges_need_the_clients_address() {
    let mut memory = node(&[ONE]);
    let frontend = frontend_of(&mut memory);
    frontend.flags = FrontendFlags::SOURCE_RANGES;
    let range = SourceRangeKey {
        prefix_len: 32 + 96 + 24,
        service: frontend.service,
        addr: ip("10.244.0.0"),
    };
    let _new = memory.source_ranges.insert(range);
    assert_eq!(connect(&memory, &tcp(SERVICE)), BY_PACKET);
    assert_eq!(connect(&memory, &by_node(tcp(SERVICE))), BY_PACKET);
    let bound = |from| Dial {
        from: ip(from),
        ..tcp(SERVICE)
    };
    assert_eq!(connect(&memory, &bound(POD)), connected(ONE));
    assert_eq!(connect(&memory, &bound("10.244.1.1")), BY_PACKET);
    know_the_pod(&mut memory);
    assert_eq!(connect(&memory, &tcp(SERVICE)), connected(ONE));
    // What it is bound to comes before what is usual.
    assert_eq!(connect(&memory, &bound("10.244.1.1")), BY_PACKET);
    let _none = memory.addresses.insert(
        ip("10.96.0.1"),
        AddressFlags::CLUSTER_IP.union(AddressFlags::NODE),
    );
    assert_eq!(connect(&memory, &by_node(bound(POD))), connected(ONE));
}

#[test]
fn affinity_is_shared_with_packets_and_needs_the_clients_address() {
    let mut memory = node(&[ONE, TWO]);
    frontend_of(&mut memory).affinity_seconds = 60;
    assert_eq!(connect(&memory, &tcp(SERVICE)), BY_PACKET);
    know_the_pod(&mut memory);
    let syn = Frame::tcp(0x02, "10.244.0.5:4000", SERVICE);
    let _verdict = decide(&mut Skb::new(syn.bytes()), &memory, Hook::PodIngress);
    let chosen: Vec<Addr> = memory
        .flows
        .borrow()
        .values()
        .map(|flow| flow.to.dst)
        .collect();
    for cookie in 0..20 {
        let dial = by_pod(Protocol::Tcp, cookie, SERVICE);
        let backend = pointed(connect(&memory, &dial));
        assert!(chosen.contains(&backend.addr), "{backend:?}");
    }
    // The node's is known where it dials itself.
    with_node_port(&mut memory, Protocol::Tcp);
    for to in ["127.0.0.1:30080", "172.18.0.2:30080"] {
        let _backend = pointed(connect(&memory, &by_node(tcp(to))));
    }
}

#[test]
fn datagrams_stick_to_their_backend_until_it_is_gone() {
    let mut memory = node(&[ONE]);
    assert_eq!(send(&memory, &udp(SERVICE)), sent(ONE));
    assert_eq!(receive(&memory, 1, false, at(ONE)), Some(at(SERVICE)));
    assert_eq!(receive(&memory, 1, false, at(TWO)), None);
    assert_eq!(receive(&memory, 2, false, at(ONE)), None);
    let many: Vec<SocketAddr> = (2..40)
        .map(|n| format!("10.244.2.{n}:8080").parse().unwrap())
        .collect();
    let both: Vec<_> = [ONE.parse().unwrap()]
        .into_iter()
        .chain(many.clone())
        .collect();
    memory.point(SERVICE.parse().unwrap(), Protocol::Udp, &both);
    assert_eq!(send(&memory, &udp(SERVICE)), sent(ONE));
    // Rule R141.
    memory.point(SERVICE.parse().unwrap(), Protocol::Udp, &many);
    memory.retire_backends_at("10.244.1.1".parse().unwrap(), BackendState::NotReady);
    assert_eq!(send(&memory, &udp(SERVICE)), sent(ONE));
    memory.retire_backends_at("10.244.1.1".parse().unwrap(), BackendState::NotServing);
    let moved = pointed(send(&memory, &udp(SERVICE)));
    assert_ne!(moved, at(ONE));
    memory.remove_backends_at(IpAddr::from(moved.addr.v4_word().to_ne_bytes()));
    let rest: Vec<_> = many
        .into_iter()
        .filter(|it| at(&it.to_string()) != moved)
        .collect();
    memory.point(SERVICE.parse().unwrap(), Protocol::Udp, &rest);
    assert_ne!(pointed(send(&memory, &udp(SERVICE))), moved);
    memory.point(SERVICE.parse().unwrap(), Protocol::Udp, &[]);
    for address in rest {
        memory.remove_backends_at(address.ip());
    }
    assert_eq!(send(&memory, &udp(SERVICE)), Answer::Refuse);
}

#[test]
fn a_socket_that_sends_to_many_is_told_who_answers() {
    let mut memory = node(&[ONE]);
    let _service = memory.serve(
        OTHER.parse().unwrap(),
        Protocol::Udp,
        &[ONE.parse().unwrap()],
    );
    let _service = memory.serve(
        "10.96.0.3:80".parse().unwrap(),
        Protocol::Udp,
        &[TWO.parse().unwrap()],
    );
    for (to, backend) in [
        (SERVICE, ONE),
        ("10.96.0.3:80", TWO),
        (OTHER, ONE),
        (SERVICE, ONE),
    ] {
        assert_eq!(send(&memory, &udp(to)), sent(backend));
        assert_eq!(receive(&memory, 1, false, at(backend)), Some(at(to)));
    }
    // Directly, it is itself.
    assert_eq!(send(&memory, &udp(ONE)), NO_SERVICE);
    assert_eq!(receive(&memory, 1, false, at(ONE)), None);
    assert_eq!(
        receive(&memory, 1, false, at(TWO)),
        Some(at("10.96.0.3:80"))
    );
    assert_eq!(send(&memory, &udp(SERVICE)), sent(ONE));
    assert_eq!(receive(&memory, 1, false, at(ONE)), Some(at(SERVICE)));
}

#[test]
fn a_connected_socket_that_names_its_peer_sends_to_the_same_backend() {
    let mut memory = node(&[ONE]);
    assert_eq!(connect(&memory, &udp(SERVICE)), connected(ONE));
    memory.point(
        SERVICE.parse().unwrap(),
        Protocol::Udp,
        &[TWO.parse().unwrap()],
    );
    let again = Dial {
        is_connected: true,
        ..udp(SERVICE)
    };
    assert_eq!(send(&memory, &again), sent(ONE));
}

#[test]
fn a_socket_that_connects_elsewhere_is_forgotten() {
    let memory = node(&[ONE]);
    assert_eq!(send(&memory, &udp(SERVICE)), sent(ONE));
    assert_eq!(connect(&memory, &udp(SERVICE)), connected(ONE));
    assert_eq!(connect(&memory, &udp(ONE)), NO_SERVICE);
    assert_eq!(peer(&memory, 1, at(ONE)), None);
    assert_eq!(receive(&memory, 1, true, at(ONE)), None);
}

#[test]
fn correspondences_in_use_stay_young() {
    let memory = node(&[ONE]);
    assert_eq!(send(&memory, &udp(SERVICE)), sent(ONE));
    let times = || -> Vec<u64> {
        let records = memory.sockets.datagrams.borrow();
        records.values().map(|record| record.last_seen).collect()
    };
    memory.advance(10 * SECOND);
    assert_eq!(send(&memory, &udp(SERVICE)), sent(ONE));
    assert_eq!(times(), [10 * SECOND; 2]);
    memory.advance(SECOND / 2);
    assert_eq!(send(&memory, &udp(SERVICE)), sent(ONE));
    assert_eq!(times(), [10 * SECOND; 2]);
    memory.advance(10 * SECOND);
    assert_eq!(receive(&memory, 1, false, at(ONE)), Some(at(SERVICE)));
    assert!(times().contains(&memory.now.get()));
    // One that was evicted comes back.
    memory
        .sockets
        .datagrams
        .borrow_mut()
        .retain(|key, _| key.side == 0);
    assert_eq!(send(&memory, &udp(SERVICE)), sent(ONE));
    assert_eq!(times().len(), 2);
}

/// A Service in any shape.
#[derive(Clone, Debug)]
struct Shape {
    flags: FrontendFlags,
    affinity: bool,
    in_range: bool,
    n_local: u32,
    n_cluster: u32,
    settings: SettingsFlags,
    is_local_pod: bool,
    /// One of the backends is the client.
    is_hairpin: bool,
}

fn shape() -> impl Strategy<Value = Shape> {
    let flags = subsequence(
        vec![
            FrontendFlags::LOCAL_ONLY,
            FrontendFlags::EXTERNAL,
            FrontendFlags::SOURCE_RANGES,
        ],
        0..=3,
    );
    let settings = subsequence(
        vec![
            SettingsFlags::DETECT_DEVICE,
            SettingsFlags::MASQUERADE_ALL,
            SettingsFlags::SOURCE_NAT_LIKE_KUBE_PROXY,
        ],
        0..=3,
    );
    let bools = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    (flags, settings, bools, 0..=2_u32, 0..=3_u32).prop_map(
        |(flags, settings, (affinity, in_range, is_local_pod, is_hairpin), n_local, n_cluster)| {
            Shape {
                flags: flags
                    .into_iter()
                    .fold(FrontendFlags::NONE, FrontendFlags::union),
                settings: settings
                    .into_iter()
                    .fold(SettingsFlags::NONE, SettingsFlags::union),
                affinity,
                in_range,
                n_local: n_local.min(n_cluster),
                n_cluster,
                is_local_pod,
                is_hairpin,
            }
        },
    )
}

impl Shape {
    fn memory(&self) -> Memory {
        let mut memory = node(&[]);
        know_the_pod(&mut memory);
        let backends: Vec<SocketAddr> = (0..self.n_cluster)
            .map(|n| match (n, self.is_hairpin) {
                (0, true) => format!("{POD}:8080").parse().unwrap(),
                _ => format!("10.244.{n}.1:8080").parse().unwrap(),
            })
            .collect();
        memory.point(SERVICE.parse().unwrap(), Protocol::Tcp, &backends);
        for backend in &mut memory.backends {
            backend.flags = BackendFlags::IN_CLUSTER_SET.union(BackendFlags::IN_LOCAL_SET);
        }
        if !self.is_local_pod {
            memory.devices.get_mut(&POD_DEVICE).unwrap().flags = DeviceFlags::NONE;
        }
        memory.settings = Settings {
            node_v4: ip(NODE),
            flags: self.settings,
            ..memory.settings
        };
        let frontend = frontend_of(&mut memory);
        frontend.flags = frontend.flags.union(self.flags);
        frontend.n_local = self.n_local;
        frontend.affinity_seconds = if self.affinity { 60 } else { 0 };
        let service = frontend.service;
        if self.in_range {
            let _new = memory.source_ranges.insert(SourceRangeKey {
                prefix_len: 160,
                service,
                addr: ip(POD),
            });
        }
        memory
    }
}

/// What becomes of the first packet of a connection: its verdict, and the backend and source
/// address of the flow.
fn first_packet(memory: &Memory, port: u16) -> (Verdict, Option<(Addr, Addr)>) {
    memory.flows.borrow_mut().clear();
    let syn = Frame::tcp(0x02, &format!("{POD}:{port}"), SERVICE);
    let mut skb = Skb::new(syn.bytes());
    skb.device = POD_DEVICE;
    let _none = skb.routes.insert(crate::testing::network("0.0.0.0/0"), 9);
    let verdict = decide(&mut skb, memory, Hook::PodIngress);
    let flows = memory.flows.borrow();
    let forward = flows
        .values()
        .find(|flow| flow.role == FlowRole::Forward as u8);
    (verdict, forward.map(|flow| (flow.to.dst, flow.to.src)))
}

proptest! {
    /// What a socket is pointed at is what its packets could get; where packets need more than
    /// another destination, it is left to them.
    #[test]
    fn the_edges_agree(shape in shape()) {
        let memory = shape.memory();
        let mut by_socket = BTreeSet::new();
        let mut by_packet = BTreeSet::new();
        for n in 0..64_u16 {
            let (verdict, flow) = first_packet(&memory, 4000 + n);
            let answer = connect(&memory, &by_pod(Protocol::Tcp, n.into(), SERVICE));
            let keeps_source = flow.is_some_and(|(_, src)| src == ip(POD));
            // A pod that reaches itself needs no other source where no packet is rewritten, unless
            // it is to look like with kube-proxy.
            let asks_for_source = shape.settings.contains(SettingsFlags::MASQUERADE_ALL)
                || shape.settings.contains(SettingsFlags::SOURCE_NAT_LIKE_KUBE_PROXY);
            match answer {
                Answer::Point(how, backend) => {
                    prop_assert_eq!(how, Rewrite::Connect);
                    prop_assert!(
                        matches!(verdict, Verdict::Rewrite(_)),
                        "{:?} {:?}", verdict, answer
                    );
                    let _new = by_socket.insert(backend.addr);
                }
                Answer::Refuse => prop_assert_eq!(
                    verdict, Verdict::Reply(Reply::NoEndpointReset)
                ),
                Answer::Leave(reason) => {
                    prop_assert_eq!(reason, Pass::ByPacket);
                    prop_assert!(
                        matches!(verdict, Verdict::Drop(_)) || asks_for_source,
                        "{:?} {:?}", verdict, flow
                    );
                }
            }
            if let Some((backend, _)) = flow
                && (keeps_source || (backend == ip(POD) && !asks_for_source))
            {
                let _new = by_packet.insert(backend);
            }
        }
        prop_assert_eq!(by_socket, by_packet);
    }

    /// A client that is not known gets the same, or is left to packets.
    #[test]
    fn who_is_not_known_is_not_guessed(shape in shape(), cookie: u64) {
        let known = shape.memory();
        let mut unknown = known.clone();
        unknown.sockets.clients.clear();
        let dial = by_pod(Protocol::Tcp, cookie, SERVICE);
        for dial in [dial, Dial { from: ip(POD), ..dial }] {
            let answer = connect(&unknown, &dial);
            prop_assert!(answer == BY_PACKET || answer == connect(&known, &dial), "{:?}", answer);
        }
    }
}

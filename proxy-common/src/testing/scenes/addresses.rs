//! Which address and port leads to a Service, and what becomes of those that lead nowhere (rules
//! R15 to R17, R70, R85 to R94, R102 to R104).

use super::site::{KINDS, Kind, POD, UPLINK, frontend, mac, site};
use super::stage::{
    ACK, FORWARD, NEW_FLOW, NO_ENDPOINT_RESET, NO_ENDPOINT_UNREACHABLE, NO_SERVICE, PROTOCOLS,
    REVERSE, RST_ACK, STAGES, Stage, at, host, ip, reply_to, unreachable, with_port,
};
use crate::abi::{
    Addr, AddressFlags, Drop, FrontendFlags, FrontendKey, NetworkFlags, Pass, Port, Protocol,
    Reply, SettingsFlags, SourceRangeKey, Verdict,
};
use crate::datapath::Hook;
use crate::testing::{Frame, Icmp, Memory, Scene, Sent, network};

const PASS: Verdict = Verdict::Pass(NO_SERVICE);
const UNALLOCATED: Verdict = Verdict::Drop(Drop::Unallocated);
const SOURCE_RANGE: Verdict = Verdict::Drop(Drop::SourceRange);
const UNUSED_RESET: Verdict = Verdict::Reply(Reply::UnusedPortReset);
const UNUSED_UNREACHABLE: Verdict = Verdict::Reply(Reply::UnusedPortUnreachable);

pub(super) fn scenes() -> Vec<Scene> {
    let mut scenes = Vec::new();
    for stage in STAGES {
        for protocol in PROTOCOLS {
            for kind in KINDS {
                scenes.extend([
                    reached(stage, protocol, kind),
                    source_ranges(stage, protocol, kind),
                    refused_outside(stage, protocol, kind),
                ]);
            }
            scenes.extend([
                exact_match_first(stage, protocol),
                node_port_elsewhere(stage, protocol),
                other_protocol(stage, protocol),
                external_other_port(stage, protocol),
                unused_port(stage, protocol),
                unused_port_of_a_node_address(stage, protocol),
                unallocated(stage, protocol),
                inner_network(stage, protocol),
            ]);
        }
        scenes.extend([
            without_ports(stage),
            without_ports_external(stage),
            without_ports_from_the_node(stage),
            without_ports_unallocated(stage),
            in_mid_flow(stage),
        ]);
    }
    scenes
}

fn title(stage: Stage, what: &str) -> String {
    format!("addresses over {}: {what}", stage.family)
}

trait Comes: Sized {
    /// Somebody outside sends this.
    fn comes(
        self,
        packet: impl Into<Vec<u8>>,
        verdict: Verdict,
        expected: impl Into<Vec<u8>>,
    ) -> Self;

    /// Somebody outside sends this, and it stays as it is.
    fn ignored(self, packet: impl Into<Vec<u8>>, reason: Pass) -> Self;
}

impl Comes for Scene {
    fn comes(
        self,
        packet: impl Into<Vec<u8>>,
        verdict: Verdict,
        expected: impl Into<Vec<u8>>,
    ) -> Self {
        self.seen(Hook::NodeIngress, packet, verdict, expected)
            .by(UPLINK)
    }

    fn ignored(self, packet: impl Into<Vec<u8>>, reason: Pass) -> Self {
        let packet = packet.into();
        self.comes(packet.clone(), Verdict::Pass(reason), packet)
    }
}

/// From a pod and from outside, with a backend here that sees who it is.
fn reached(stage: Stage, protocol: Protocol, kind: Kind) -> Scene {
    let memory = site(stage, protocol, kind, &[stage.local_backend]);
    let dialled = &kind.dialled(stage);
    let clients = [
        (Hook::PodIngress, Hook::PodEgress, POD, stage.client),
        (Hook::NodeIngress, Hook::NodeEgress, UPLINK, stage.outside),
    ];
    let scene = Scene::new(
        title(stage, &format!("{protocol}, {kind:?} is reached")),
        memory,
    );
    clients
        .into_iter()
        .fold(scene, |scene, (there, back, device, client)| {
            let opening = stage.opening(protocol).between(client, dialled);
            let more = stage.more(protocol).between(client, dialled);
            let answer = stage.answer(protocol).between(stage.local_backend, client);
            let forward = |frame: &Frame| frame.between(client, stage.local_backend);
            scene
                .seen(there, &opening, NEW_FLOW, &forward(&opening))
                .by(device)
                .seen(back, &answer, REVERSE, &answer.between(dialled, client))
                .by(device)
                .seen(there, &more, FORWARD, &forward(&more))
                .by(device)
        })
}

/// An external IP that is the node's own address, with the number of a NodePort (rule R94).
fn exact_match_first(stage: Stage, protocol: Protocol) -> Scene {
    let kind = Kind::NodePort;
    let mut memory = site(stage, protocol, kind, &[stage.local_backend]);
    let dialled = &kind.dialled(stage);
    let flags = memory.addresses[&Addr::from(at(dialled).ip())];
    let _service = memory.serve(at(dialled), protocol, &[at(stage.self_backend)]);
    let both = flags.union(AddressFlags::EXTERNAL);
    let _flags = memory.addresses.insert(at(dialled).ip().into(), both);
    let opening = stage.opening(protocol).between(stage.outside, dialled);
    for backend in &mut memory.backends {
        backend.flags = backend.flags.union(crate::abi::BackendFlags::IS_LOCAL);
    }
    let exact = FrontendKey::exact(
        at(dialled).ip().into(),
        Port::new(at(dialled).port()),
        protocol,
    );
    let what = format!("{protocol}, an exact match comes before a NodePort");
    Scene::new(title(stage, &what), memory)
        .comes(
            &opening,
            NEW_FLOW,
            &opening.between(stage.outside, stage.self_backend),
        )
        .change(move |memory| {
            memory.flows.borrow_mut().clear();
            let _external = memory.frontends.remove(&exact);
        })
        .comes(
            &opening,
            NEW_FLOW,
            &opening.between(stage.outside, stage.local_backend),
        )
}

/// At an address of the node that does not take them, at another node's (rules R85, R91).
fn node_port_elsewhere(stage: Stage, protocol: Protocol) -> Scene {
    let memory = site(stage, protocol, Kind::NodePort, &[stage.local_backend]);
    let to = |host: &str| {
        stage
            .opening(protocol)
            .between(stage.outside, &with_port(host, 30_080))
    };
    let what = format!("{protocol}, NodePorts where they are not taken");
    Scene::new(title(stage, &what), memory)
        .ignored(&to(stage.uplink), NO_SERVICE)
        .ignored(&to(stage.router), NO_SERVICE)
        .ignored(
            &stage
                .opening(protocol)
                .between(stage.outside, &with_port(stage.node, 30_081)),
            NO_SERVICE,
        )
}

fn other_protocol(stage: Stage, protocol: Protocol) -> Scene {
    let memory = site(stage, protocol, Kind::NodePort, &[stage.local_backend]);
    let dialled = &Kind::NodePort.dialled(stage);
    let what = format!("a NodePort for {protocol} is none for others");
    let others = PROTOCOLS.into_iter().filter(|other| *other != protocol);
    others.fold(Scene::new(title(stage, &what), memory), |scene, other| {
        let opening = stage.opening(other).between(stage.outside, dialled);
        scene.ignored(&opening, NO_SERVICE)
    })
}

/// The address may have another use (rule R15).
fn external_other_port(stage: Stage, protocol: Protocol) -> Scene {
    let memory = site(stage, protocol, Kind::External, &[stage.local_backend]);
    let other = with_port(&host(stage.frontend), 81);
    let what = format!("{protocol}, another port of an external address");
    Scene::new(title(stage, &what), memory).ignored(
        &stage.opening(protocol).between(stage.outside, &other),
        NO_SERVICE,
    )
}

/// The refusal of a packet that opens a flow.
fn refusal(opening: &Frame, reset: Verdict, other: Verdict) -> (Verdict, Vec<u8>) {
    if opening.protocol == Protocol::Tcp {
        let answer = Frame {
            flags: RST_ACK,
            seq: 0,
            ack: opening.seq + 1,
            ..reply_to(opening)
        };
        (reset, answer.bytes())
    } else {
        let quoted = opening.packet().len();
        (other, unreachable(opening, quoted).bytes())
    }
}

/// Rule R15, for a pod, for somebody outside and for the node.
fn unused_port(stage: Stage, protocol: Protocol) -> Scene {
    let memory = site(stage, protocol, Kind::ClusterIp, &[stage.local_backend]);
    let unused = &with_port(&host(stage.frontend), 81);
    let from = |client: &str| stage.opening(protocol).between(client, unused);
    let refused = |opening: &Frame| refusal(opening, UNUSED_RESET, UNUSED_UNREACHABLE);
    let [pod, outside, node] = [stage.client, stage.outside, &stage.process()].map(from);
    let ((verdict, to_pod), (_, to_outside), (_, mut to_node)) =
        (refused(&pod), refused(&outside), refused(&node));
    to_node[..6].copy_from_slice(&mac(UPLINK));
    to_node[6..12].copy_from_slice(&mac(UPLINK));
    let what = format!("{protocol}, a port that a cluster IP does not have");
    Scene::new(title(stage, &what), memory)
        .seen(Hook::PodIngress, &pod, verdict, to_pod)
        .by(POD)
        .comes(&outside, verdict, to_outside)
        .seen(Hook::NodeEgress, &node, verdict, to_node)
        .by(UPLINK)
        .sent(Sent::In(UPLINK))
        .check(|memory| {
            assert!(memory.flows.borrow().is_empty());
            assert!(memory.counters.borrow().is_empty());
        })
}

/// A cluster IP that this node owns is its own business (rule R17).
fn unused_port_of_a_node_address(stage: Stage, protocol: Protocol) -> Scene {
    let mut memory = site(stage, protocol, Kind::ClusterIp, &[stage.local_backend]);
    let flags = AddressFlags::CLUSTER_IP.union(AddressFlags::NODE);
    let _flags = memory.addresses.insert(ip(stage.frontend).into(), flags);
    let unused = with_port(&host(stage.frontend), 81);
    let opening = stage.opening(protocol).between(stage.outside, &unused);
    let what = format!("{protocol}, a cluster IP that the node owns");
    Scene::new(title(stage, &what), memory)
        .ignored(&opening, NO_SERVICE)
        .ignored(
            &echo(stage, stage.outside, stage.frontend),
            Pass::UnrelatedError,
        )
}

/// The network of Services, of which [`Stage::other_frontend`] is none.
fn with_services(stage: Stage, protocol: Protocol) -> Memory {
    let mut memory = site(stage, protocol, Kind::ClusterIp, &[stage.local_backend]);
    let _services = memory
        .networks
        .insert(services(stage), NetworkFlags::SERVICES);
    memory.settings.flags = SettingsFlags::SERVICE_CIDRS;
    memory
}

fn services(stage: Stage) -> crate::abi::NetworkKey {
    network(if stage.family == "IPv4" {
        "10.96.0.0/16"
    } else {
        "fd00:96::/64"
    })
}

/// Rule R16.
fn unallocated(stage: Stage, protocol: Protocol) -> Scene {
    let opening = stage
        .opening(protocol)
        .between(stage.outside, stage.other_frontend);
    let from = |client: &str| opening.between(client, stage.other_frontend);
    let [pod, node, forwarded] = [stage.client, &stage.process(), stage.client].map(from);
    let elsewhere = opening.between(stage.outside, &with_port(stage.router, 80));
    let what = format!("{protocol}, an address that no Service has");
    Scene::new(title(stage, &what), with_services(stage, protocol))
        .comes(&opening, UNALLOCATED, [])
        .seen(Hook::PodIngress, &pod, UNALLOCATED, [])
        .by(POD)
        .seen(Hook::NodeEgress, &node, UNALLOCATED, [])
        .by(UPLINK)
        .seen(Hook::NodeEgress, &forwarded, PASS, &forwarded)
        .by(UPLINK)
        .ignored(&elsewhere, NO_SERVICE)
        .change(|memory| memory.settings.flags = SettingsFlags::NONE)
        .ignored(&opening, NO_SERVICE)
}

/// The smallest network decides.
fn inner_network(stage: Stage, protocol: Protocol) -> Scene {
    let mut memory = with_services(stage, protocol);
    let inner = network(if stage.family == "IPv4" {
        "10.96.0.0/28"
    } else {
        "fd00:96::/120"
    });
    let _inner = memory.networks.insert(inner, NetworkFlags::LOCAL_PODS);
    let opening = stage
        .opening(protocol)
        .between(stage.outside, stage.other_frontend);
    let what = format!("{protocol}, a network within that of Services");
    Scene::new(title(stage, &what), memory)
        .ignored(&opening, NO_SERVICE)
        .change(move |memory| {
            let both = NetworkFlags::LOCAL_PODS.union(NetworkFlags::SERVICES);
            let _inner = memory.networks.insert(inner, both);
        })
        .comes(&opening, UNALLOCATED, [])
}

/// An ICMP echo request.
fn echo(stage: Stage, from: &str, to: &str) -> Icmp {
    let kind = if stage.family == "IPv4" {
        [8, 0]
    } else {
        [128, 0]
    };
    Icmp {
        parameter: 0x0001_0007,
        ..Icmp::new(kind, &host(from), &host(to), b"are you there?..".to_vec())
    }
}

/// An ICMP error about a flow that nobody knows.
fn error(stage: Stage, from: &str, to: &str) -> Icmp {
    let about = stage.answer(Protocol::Udp).between(to, from);
    let kind = super::stage::port_unreachable(&about);
    Icmp::new(kind, &host(from), &host(to), about.packet())
}

/// The port unreachable that an echo request is refused with.
fn no_echo(echo: &Icmp) -> Icmp {
    let packet = echo.bytes().split_off(14);
    let kind = if echo.src.is_ipv4() { [3, 3] } else { [1, 4] };
    let (from, to) = (echo.dst.to_string(), echo.src.to_string());
    Icmp {
        dont_fragment: true,
        ..Icmp::new(kind, &from, &to, packet[..packet.len().min(72)].to_vec()).turned()
    }
}

/// A packet of a protocol that Services cannot use.
fn tunnel(stage: Stage, to: &str) -> Frame {
    stage.opening(Protocol::Udp).between(stage.outside, to)
}

/// What it is refused with.
fn no_tunnel(tunnel: &Frame) -> Icmp {
    let quote = tunnel.claiming(47).split_off(14);
    let whole = quote.len() / 4 * 4;
    Icmp {
        quote: quote[..whole].to_vec(),
        ..unreachable(tunnel, 0)
    }
}

/// A cluster IP refuses what asks, and does not answer errors (rule R15).
fn without_ports(stage: Stage) -> Scene {
    let memory = site(
        stage,
        Protocol::Tcp,
        Kind::ClusterIp,
        &[stage.local_backend],
    );
    let tunnel = tunnel(stage, stage.frontend);
    let no_answer = Verdict::Drop(Drop::NoAnswer);
    let echo = |from| echo(stage, from, stage.frontend);
    let reply = Icmp {
        kind: if stage.family == "IPv4" {
            [0, 0]
        } else {
            [129, 0]
        },
        ..echo(stage.outside)
    };
    let long = tunnel.with_payload(vec![3; 64]);
    let (first, later) = (long.piece(3, 0, 40), long.piece(3, 40, 40));
    let header = if stage.family == "IPv4" { 20 } else { 48 };
    let quoted = (header + 40).min(72) / 4 * 4;
    let refused_piece = Icmp {
        quote: first.claiming(47)[14..14 + quoted].to_vec(),
        ..unreachable(&tunnel, 0)
    };
    Scene::new(title(stage, "a cluster IP has nothing but ports"), memory)
        .comes(
            &echo(stage.outside),
            UNUSED_UNREACHABLE,
            &no_echo(&echo(stage.outside)),
        )
        .seen(
            Hook::PodIngress,
            &echo(stage.client),
            UNUSED_UNREACHABLE,
            &no_echo(&echo(stage.client)),
        )
        .by(POD)
        .comes(tunnel.claiming(47), UNUSED_UNREACHABLE, &no_tunnel(&tunnel))
        .comes(&error(stage, stage.outside, stage.frontend), no_answer, [])
        .comes(&reply, no_answer, [])
        .comes(first.claiming(47), UNUSED_UNREACHABLE, &refused_piece)
        .comes(later.claiming(47), no_answer, [])
}

fn without_ports_external(stage: Stage) -> Scene {
    let memory = site(stage, Protocol::Tcp, Kind::External, &[stage.local_backend]);
    let [service, node, nobody] = [
        stage.frontend.to_owned(),
        with_port(stage.node, 0),
        with_port(stage.router, 0),
    ];
    [service, node, nobody].into_iter().fold(
        Scene::new(title(stage, "pings and tunnels to other addresses"), memory),
        |scene, to| {
            scene
                .ignored(&echo(stage, stage.outside, &to), Pass::UnrelatedError)
                .ignored(tunnel(stage, &to).claiming(47), Pass::OtherProtocol)
        },
    )
}

/// Its own are refused, those that it forwards have been looked at where they came in.
fn without_ports_from_the_node(stage: Stage) -> Scene {
    let memory = site(
        stage,
        Protocol::Tcp,
        Kind::ClusterIp,
        &[stage.local_backend],
    );
    let own = echo(stage, &stage.process(), stage.frontend);
    let forwarded = echo(stage, stage.client, stage.frontend);
    let refused = Icmp {
        from_mac: mac(UPLINK),
        to_mac: mac(UPLINK),
        ..no_echo(&own)
    };
    Scene::new(title(stage, "the node pings a cluster IP"), memory)
        .seen(Hook::NodeEgress, &own, UNUSED_UNREACHABLE, &refused)
        .by(UPLINK)
        .sent(Sent::In(UPLINK))
        .seen(
            Hook::NodeEgress,
            &forwarded,
            Verdict::Pass(Pass::UnrelatedError),
            &forwarded,
        )
        .by(UPLINK)
}

fn without_ports_unallocated(stage: Stage) -> Scene {
    let to = stage.other_frontend;
    Scene::new(
        title(stage, "pings and tunnels to an address that no Service has"),
        with_services(stage, Protocol::Tcp),
    )
    .comes(&echo(stage, stage.outside, to), UNALLOCATED, [])
    .comes(&error(stage, stage.outside, to), UNALLOCATED, [])
    .comes(tunnel(stage, to).claiming(47), UNALLOCATED, [])
    .change(|memory| memory.settings.flags = SettingsFlags::NONE)
    .ignored(&echo(stage, stage.outside, to), Pass::UnrelatedError)
}

/// Only new traffic is refused: netfilter may know the rest.
fn in_mid_flow(stage: Stage) -> Scene {
    let ack = |to: &str| Frame::tcp(ACK, stage.outside, to);
    let unused = with_port(&host(stage.frontend), 81);
    Scene::new(
        title(stage, "segments in mid-flow to what is not there"),
        with_services(stage, Protocol::Tcp),
    )
    .ignored(&ack(&unused), Pass::MidFlow)
    .ignored(&ack(stage.other_frontend), Pass::MidFlow)
}

/// The range of this network for a Service.
fn range(service: u32, net: &str) -> SourceRangeKey {
    let net = network(net);
    SourceRangeKey {
        prefix_len: net.prefix_len + 32,
        service,
        addr: net.addr,
    }
}

/// A frontend that is guarded, and the networks of pods and of outside clients.
fn guarded(
    stage: Stage,
    protocol: Protocol,
    kind: Kind,
    backends: &[&str],
) -> (Memory, [&'static str; 2]) {
    let mut memory = site(stage, protocol, kind, backends);
    let frontend = frontend(&mut memory, stage, protocol, kind);
    frontend.flags = frontend.flags.union(FrontendFlags::SOURCE_RANGES);
    let nets = if stage.family == "IPv4" {
        ["10.0.1.0/24", "198.51.100.0/24"]
    } else {
        ["fd00:1::/64", "2001:db8:51::/64"]
    };
    (memory, nets)
}

/// Nobody is exempt (rule R104), and what is open stays so (rule R68).
fn source_ranges(stage: Stage, protocol: Protocol, kind: Kind) -> Scene {
    let backends = [stage.local_backend];
    let (mut memory, [pods, outside]) = guarded(stage, protocol, kind, &backends);
    // Another Service's range does not count.
    let _pods = memory.source_ranges.insert(range(1, pods));
    let _other = memory.source_ranges.insert(range(2, outside));
    let dialled = &kind.dialled(stage);
    let from = |client: &str| stage.opening(protocol).between(client, dialled);
    let [pod, out, node] = [stage.client, stage.outside, &stage.process()].map(from);
    let more = stage.more(protocol).between(stage.client, dialled);
    let forward = |frame: &Frame| frame.between(stage.client, stage.local_backend);
    let what = format!("{protocol}, {kind:?}, source ranges");
    Scene::new(title(stage, &what), memory)
        .seen(Hook::PodIngress, &pod, NEW_FLOW, &forward(&pod))
        .by(POD)
        .comes(&out, SOURCE_RANGE, [])
        .seen(Hook::NodeEgress, &node, SOURCE_RANGE, [])
        .by(UPLINK)
        .check(|memory| assert_eq!(memory.counters.borrow()[&1].refused, 2))
        .change(move |memory| {
            memory.source_ranges.clear();
            let _outside = memory.source_ranges.insert(range(1, outside));
        })
        .seen(Hook::PodIngress, &more, FORWARD, &forward(&more))
        .by(POD)
        .comes(
            &out,
            NEW_FLOW,
            &out.between(stage.outside, stage.local_backend),
        )
        .change(|memory| memory.source_ranges.clear())
        .change(|memory| memory.flows.borrow_mut().clear())
        .seen(Hook::PodIngress, &pod, SOURCE_RANGE, [])
        .by(POD)
        .change(move |memory| {
            let frontend = frontend(memory, stage, protocol, kind);
            frontend.flags = FrontendFlags::NONE;
        })
        .seen(Hook::PodIngress, &pod, NEW_FLOW, &forward(&pod))
        .by(POD)
}

/// They are judged before it is known whether there are endpoints (rule R70), or local ones.
fn refused_outside(stage: Stage, protocol: Protocol, kind: Kind) -> Scene {
    let (mut memory, [pods, _]) = guarded(stage, protocol, kind, &[]);
    let _pods = memory.source_ranges.insert(range(1, pods));
    let dialled = &kind.dialled(stage);
    let from = |client: &str| stage.opening(protocol).between(client, dialled);
    let (pod, outside) = (from(stage.client), from(stage.outside));
    let (verdict, answer) = refusal(&pod, NO_ENDPOINT_RESET, NO_ENDPOINT_UNREACHABLE);
    let what = format!("{protocol}, {kind:?}, source ranges without endpoints");
    Scene::new(title(stage, &what), memory)
        .comes(&outside, SOURCE_RANGE, [])
        .seen(Hook::PodIngress, &pod, verdict, answer)
        .by(POD)
        .change(move |memory| {
            let frontend = frontend(memory, stage, protocol, kind);
            frontend.flags = FrontendFlags::SOURCE_RANGES.union(FrontendFlags::LOCAL_ONLY);
        })
        .comes(&outside, SOURCE_RANGE, [])
        .seen(
            Hook::PodIngress,
            &pod,
            Verdict::Drop(Drop::NoLocalEndpoint),
            [],
        )
        .by(POD)
}

//! Addresses of Services without the port that a packet is for, or without a Service (rules R15 to
//! R17).

use super::{Comes, PASS, refusal, title};
use crate::abi::{
    AddressFlags, Drop, NetworkFlags, NetworkKey, Pass, Protocol, Reply, SettingsFlags, Verdict,
};
use crate::datapath::Hook;
use crate::testing::scenes::site::{Kind, POD, UPLINK, mac, site};
use crate::testing::scenes::stage::{
    ACK, NO_SERVICE, PROTOCOLS, STAGES, Stage, host, ip, port_unreachable, unreachable, with_port,
};
use crate::testing::{Frame, Icmp, Memory, Scene, Sent, network};

const UNALLOCATED: Verdict = Verdict::Drop(Drop::Unallocated);
const UNUSED_RESET: Verdict = Verdict::Reply(Reply::UnusedPortReset);
const UNUSED_UNREACHABLE: Verdict = Verdict::Reply(Reply::UnusedPortUnreachable);

pub(super) fn scenes() -> Vec<Scene> {
    let mut scenes = Vec::new();
    for stage in STAGES {
        for protocol in PROTOCOLS {
            scenes.extend([
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

fn services(stage: Stage) -> NetworkKey {
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
    let kind = port_unreachable(&about);
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
    .ignored(&ack(stage.other_frontend), Pass::NoService)
}

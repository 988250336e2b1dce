//! What is not for a Service, or nothing that can be understood, goes its way untouched.

use super::stage::{NO_SERVICE, PROTOCOLS, STAGES, Stage, V4, V6, host};
use crate::abi::{Pass, Protocol};
use crate::testing::{CLIENT_MAC, Extension, Frame, Icmp, NODE_MAC, Scene};

pub(super) fn scenes() -> Vec<Scene> {
    let mut scenes = vec![other_link_layers(), bad_ipv4_headers(), bad_ipv6_headers()];
    for stage in STAGES {
        scenes.extend([other_protocols(stage), echo(stage)]);
        for protocol in PROTOCOLS {
            scenes.extend([
                elsewhere(stage, protocol),
                without_flow(stage, protocol),
                cut(stage, protocol),
                length_too_short(stage, protocol),
            ]);
        }
    }
    scenes
}

fn other_link_layers() -> Scene {
    let header = |ethertype: u16| [&NODE_MAC[..], &CLIENT_MAC, &ethertype.to_be_bytes()].concat();
    let packet = V4.opening(Protocol::Tcp).packet();
    let arp = [header(0x0806), vec![0; 28]].concat();
    let tagged = [header(0x8100), vec![0, 7, 8, 0], packet.clone()].concat();
    let pppoe = [header(0x8864), packet].concat();
    Scene::new("ARP, VLAN tags and PPPoE pass", V4.serving(Protocol::Tcp))
        .passes(arp.clone(), Pass::NotIp)
        .passes(tagged, Pass::NotIp)
        .passes(pppoe, Pass::NotIp)
        .passes_to_client(arp, Pass::NotIp)
}

/// GRE, ESP, OSPF, a Service's protocol of the other kind.
fn other_protocols(stage: Stage) -> Scene {
    let frame = stage.opening(Protocol::Tcp);
    [47, 50, 89, 255].into_iter().fold(
        Scene::new(
            format!(
                "protocols over {} that Services cannot use pass",
                stage.family
            ),
            stage.external(Protocol::Tcp),
        ),
        |scene, protocol| {
            let frame = frame.claiming(protocol);
            scene
                .passes(frame.clone(), Pass::OtherProtocol)
                .passes_to_client(frame, Pass::OtherProtocol)
        },
    )
}

fn echo(stage: Stage) -> Scene {
    let [request, answer] = if stage.family == "IPv4" {
        [[8, 0], [0, 0]]
    } else {
        [[128, 0], [129, 0]]
    };
    let (client, frontend) = (host(stage.client), host(stage.frontend));
    let request = Icmp::new(request, &client, &frontend, b"abcdefgh".to_vec());
    let answer = Icmp::new(answer, &frontend, &client, b"abcdefgh".to_vec());
    let foreign = if stage.family == "IPv4" { 58 } else { 1 };
    let frame = stage.opening(Protocol::Tcp).claiming(foreign);
    Scene::new(
        format!(
            "echo requests over {} pass, and the other family's ICMP",
            stage.family
        ),
        stage.external(Protocol::Tcp),
    )
    .passes(&request, Pass::UnrelatedError)
    .passes_to_client(&answer, Pass::UnrelatedError)
    .passes(frame, Pass::OtherProtocol)
}

/// Another port, another address, the backend itself, the same port of another protocol.
fn elsewhere(stage: Stage, protocol: Protocol) -> Scene {
    let frame = stage.opening(protocol);
    let other_port = stage.frontend.replace(":80", ":81");
    let other_protocols = PROTOCOLS.into_iter().filter(|&other| other != protocol);
    let scene = Scene::new(
        format!("{protocol} over {} to no Service passes", stage.family),
        stage.external(protocol),
    )
    .passes(&frame.between(stage.client, &other_port), NO_SERVICE)
    .passes(
        &frame.between(stage.client, stage.other_frontend),
        NO_SERVICE,
    )
    .passes(&frame.between(stage.client, stage.backend), NO_SERVICE)
    .passes(&frame.between(stage.frontend, stage.client), NO_SERVICE);
    other_protocols.fold(scene, |scene, other| {
        scene.passes(&stage.opening(other), NO_SERVICE)
    })
}

/// What comes from a backend of its own accord, and what goes to a Service on the wrong side.
fn without_flow(stage: Stage, protocol: Protocol) -> Scene {
    Scene::new(
        format!(
            "{protocol} over {}: to the client passes what is no answer",
            stage.family
        ),
        stage.external(protocol),
    )
    .passes_to_client(&stage.answer(protocol), NO_SERVICE)
    .passes_to_client(&stage.opening(protocol), NO_SERVICE)
}

/// Every beginning of a packet: none has what its length says.
fn cut(stage: Stage, protocol: Protocol) -> Scene {
    let options = vec![1; 8];
    let content = vec![0; 14];
    let extensions = vec![Extension { kind: 60, content }];
    let whole = Frame {
        options,
        extensions,
        ..stage.opening(protocol)
    }
    .bytes();
    (0..whole.len()).fold(
        Scene::new(
            format!(
                "{protocol} over {}: a packet cut short passes",
                stage.family
            ),
            stage.external(protocol),
        ),
        |scene, len| scene.passes(&whole[..len], Pass::Malformed),
    )
}

/// The IP header ends the packet before its transport header does; what follows is padding.
fn length_too_short(stage: Stage, protocol: Protocol) -> Scene {
    let packet = stage.opening(protocol);
    let whole = packet.bytes();
    let l3 = if stage.family == "IPv4" { 34 } else { 54 };
    let needed = match protocol {
        Protocol::Tcp => 20,
        Protocol::Udp => 8,
        Protocol::Sctp => 14,
    };
    (0..needed).fold(
        Scene::new(
            format!(
                "{protocol} over {}: a header that ends in padding passes",
                stage.family
            ),
            stage.external(protocol),
        ),
        |scene, len| {
            let mut padded = packet.shortened(len);
            padded.resize(whole.len().max(60), 0);
            padded[l3..whole.len()].copy_from_slice(&whole[l3..]);
            scene.passes(padded, Pass::Malformed)
        },
    )
}

fn bad_ipv4_headers() -> Scene {
    let with = |at: usize, value: u8| {
        let mut frame = V4.opening(Protocol::Tcp).bytes();
        frame[14 + at] = value;
        frame
    };
    Scene::new(
        "IPv4 of another version, with too short a header or a header longer than all passes",
        V4.serving(Protocol::Tcp),
    )
    .passes(with(0, 0x65), Pass::Malformed)
    .passes(with(0, 0x44), Pass::Malformed)
    .passes(with(0, 0x40), Pass::Malformed)
    .passes(with(0, 0x4f), Pass::Malformed)
    .passes(with(3, 19), Pass::Malformed)
}

fn bad_ipv6_headers() -> Scene {
    let mut other_version = V6.opening(Protocol::Tcp).bytes();
    other_version[14] = 0x45;
    let mut endless = Frame {
        extensions: vec![Extension {
            kind: 60,
            content: vec![0; 6],
        }],
        ..V6.opening(Protocol::Tcp)
    }
    .bytes();
    endless[14 + 40 + 1] = 0xff;
    Scene::new(
        "IPv6 of another version, or with an extension longer than all, passes",
        V6.serving(Protocol::Tcp),
    )
    .passes(other_version, Pass::Malformed)
    .passes(endless, Pass::Malformed)
}

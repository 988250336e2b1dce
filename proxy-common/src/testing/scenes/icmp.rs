//! ICMP errors that quote translated packets.

use super::stage::{
    ICMP_ERROR, NEW_FLOW, PROTOCOLS, REVERSE, STAGES, Stage, V4, V6, host, port_unreachable,
};
use crate::abi::{Pass, Protocol};
use crate::testing::{Extension, Frame, Icmp, Scene};

pub(super) fn scenes() -> Vec<Scene> {
    let mut scenes = Vec::new();
    for stage in STAGES {
        for protocol in PROTOCOLS {
            scenes.extend([
                from_a_router(stage, protocol),
                from_the_backend(stage, protocol),
                from_the_client(stage, protocol),
                of_all_kinds(stage, protocol),
                about_a_first_piece(stage, protocol),
                unrelated(stage, protocol),
                cut(stage, protocol),
            ]);
        }
        scenes.extend([no_error(stage), zero_checksum(stage), in_pieces(stage)]);
    }
    for protocol in PROTOCOLS {
        scenes.extend([behind_options(protocol), behind_extensions(protocol)]);
    }
    scenes.push(without_checksum());
    scenes
}

/// A packet to the backend is under way; these are the packets as sent and as translated.
fn under_way(stage: Stage, protocol: Protocol, what: &str) -> (Scene, Frame, Frame) {
    let opening = stage.opening(protocol);
    let scene = Scene::new(
        format!("ICMP over {}: {what}, {protocol}", stage.family),
        stage.serving(protocol),
    )
    .from_client(&opening, NEW_FLOW, &stage.forward(&opening));
    let sent = stage.more(protocol);
    let translated = stage.forward(&sent);
    (scene, sent, translated)
}

/// The beginning of a packet: its IP header and `len` bytes.
fn beginning(frame: &Frame, len: usize) -> Vec<u8> {
    let packet = frame.packet();
    let end = packet.len().min(l4(frame) + len);
    packet[..end].to_vec()
}

fn l4(frame: &Frame) -> usize {
    let extensions: usize = frame
        .extensions
        .iter()
        .map(|each| each.content.len() + 2)
        .sum();
    let piece = if frame.piece.is_some() && !frame.src.is_ipv4() {
        8
    } else {
        0
    };
    let header = if frame.src.is_ipv4() { 20 } else { 40 };
    header + frame.options.len() + extensions + piece
}

/// What the client finds quoted of the packet that it sent: all as it was, but SCTP's checksum,
/// which covers what is not quoted, is that of the packet as `translated`.
fn as_sent(sent: &Frame, translated: &Frame, len: usize) -> Vec<u8> {
    let mut quote = beginning(sent, len);
    if sent.protocol == Protocol::Sctp && len >= 12 {
        let checksum = l4(sent) + 8..l4(sent) + 12;
        quote[checksum.clone()].copy_from_slice(&translated.packet()[checksum]);
    }
    quote
}

/// Bytes of the transport part that are quoted: the least that RFC 792 asks for, some that cut a
/// checksum off, a header, a good deal, all.
const QUOTED: [usize; 7] = [8, 12, 16, 18, 20, 24, 1_500];

/// Fragmentation needed, or packet too big.
fn too_big(stage: Stage, from: &str, to: &str, quote: Vec<u8>) -> Icmp {
    let kind = if stage.family == "IPv4" {
        [3, 4]
    } else {
        [2, 0]
    };
    Icmp {
        parameter: 1_280,
        ..Icmp::new(kind, from, to, quote)
    }
}

fn from_a_router(stage: Stage, protocol: Protocol) -> Scene {
    let (scene, sent, translated) = under_way(stage, protocol, "a router finds a packet too big");
    let error = |quote| too_big(stage, stage.router, &host(stage.client), quote);
    QUOTED.into_iter().fold(scene, |scene, len| {
        scene.to_client(
            &error(beginning(&translated, len)),
            ICMP_ERROR,
            &error(as_sent(&sent, &translated, len)),
        )
    })
}

/// What the backend says, the Service says to the client.
fn from_the_backend(stage: Stage, protocol: Protocol) -> Scene {
    let (scene, sent, translated) = under_way(stage, protocol, "the backend refuses a packet");
    let kind = port_unreachable(&sent);
    let error = |from, quote| Icmp::new(kind, &host(from), &host(stage.client), quote);
    let narrow = |from, quote| too_big(stage, &host(from), &host(stage.client), quote);
    QUOTED.into_iter().fold(scene, |scene, len| {
        let (quote, expected) = (
            beginning(&translated, len),
            as_sent(&sent, &translated, len),
        );
        scene
            .to_client(
                &error(stage.backend, quote.clone()),
                ICMP_ERROR,
                &error(stage.frontend, expected.clone()),
            )
            .to_client(
                &narrow(stage.backend, quote),
                ICMP_ERROR,
                &narrow(stage.frontend, expected),
            )
    })
}

/// What the client says to the Service, it says to the backend.
fn from_the_client(stage: Stage, protocol: Protocol) -> Scene {
    let (scene, ..) = under_way(stage, protocol, "the client refuses an answer");
    let answer = stage.answer(protocol);
    let got = stage.reverse(&answer);
    let kind = port_unreachable(&answer);
    let client = host(stage.client);
    let scene = scene.to_client(&answer, REVERSE, &got);
    QUOTED.into_iter().fold(scene, |scene, len| {
        let error = Icmp::new(kind, &client, &host(stage.frontend), beginning(&got, len));
        let quote = as_sent(&answer, &got, len);
        let expected = Icmp::new(kind, &client, &host(stage.backend), quote);
        scene.from_client(&error, ICMP_ERROR, &expected)
    })
}

fn of_all_kinds(stage: Stage, protocol: Protocol) -> Scene {
    let (scene, sent, translated) = under_way(stage, protocol, "errors of all kinds");
    let kinds = if stage.family == "IPv4" {
        [[3, 0], [3, 13], [4, 0], [11, 0], [12, 0]]
    } else {
        [[1, 0], [1, 1], [3, 0], [3, 1], [4, 2]]
    };
    kinds.into_iter().fold(scene, |scene, kind| {
        let error = |quote| Icmp::new(kind, stage.router, &host(stage.client), quote);
        scene.to_client(
            &error(beginning(&translated, 8)),
            ICMP_ERROR,
            &error(beginning(&sent, 8)),
        )
    })
}

/// Mostly it is a first piece that is too big.
fn about_a_first_piece(stage: Stage, protocol: Protocol) -> Scene {
    let (scene, sent, translated) = under_way(stage, protocol, "about the first of many pieces");
    let error = |quote| Icmp::new([3, 1], stage.router, &host(stage.client), quote);
    let sent = sent.with_payload(vec![1; 64]);
    let (first, later) = (sent.piece(9, 0, 32), sent.piece(9, 32, 48));
    let of = |piece: &Frame| piece.between(stage.client, stage.backend);
    assert_eq!(translated.dst, of(&first).dst);
    scene
        .to_client(
            &error(beginning(&of(&first), 8)),
            ICMP_ERROR,
            &error(beginning(&first, 8)),
        )
        .passes_to_client(&error(beginning(&of(&later), 8)), Pass::UnrelatedError)
}

/// About other flows, on the wrong side, about protocols that Services cannot use.
fn unrelated(stage: Stage, protocol: Protocol) -> Scene {
    let (scene, sent, translated) = under_way(stage, protocol, "errors about something else");
    let kind = port_unreachable(&sent);
    let client = &host(stage.client);
    let error = |quote| Icmp::new(kind, stage.router, client, quote);
    let other = translated.between(stage.other_client, stage.backend);
    let answer = translated.between(stage.backend, stage.client);
    let tunnel = translated.claiming(47)[14..].to_vec();
    scene
        .passes_to_client(&error(beginning(&other, 8)), Pass::UnrelatedError)
        .passes_to_client(&error(beginning(&answer, 8)), Pass::UnrelatedError)
        .passes_to_client(&error(beginning(&sent, 8)), Pass::UnrelatedError)
        .passes_to_client(&error(tunnel), Pass::UnrelatedError)
        .passes(&error(beginning(&translated, 8)), Pass::UnrelatedError)
}

/// Every quote without the eight bytes that RFC 792 promises.
fn cut(stage: Stage, protocol: Protocol) -> Scene {
    let (scene, sent, translated) = under_way(stage, protocol, "quotes that end too early");
    let quote = beginning(&translated, 8);
    let kind = port_unreachable(&sent);
    (0..l4(&sent) + 8).fold(scene, |scene, len| {
        let quote = quote[..len].to_vec();
        let error = Icmp::new(kind, stage.router, &host(stage.client), quote);
        scene.passes_to_client(&error, Pass::UnrelatedError)
    })
}

/// Type and code say that the rest is no quote, whatever it looks like.
fn no_error(stage: Stage) -> Scene {
    let (scene, _, translated) = under_way(stage, Protocol::Udp, "what only looks like an error");
    let quote = beginning(&translated, 8);
    let kinds = if stage.family == "IPv4" {
        [0, 5, 8, 13, 128]
    } else {
        [0, 5, 127, 128, 135]
    };
    kinds.into_iter().fold(scene, |scene, kind| {
        let message = Icmp::new([kind, 0], stage.router, &host(stage.client), quote.clone());
        scene.passes_to_client(&message, Pass::UnrelatedError)
    })
}

/// An error in pieces cannot be judged, and a later piece only looks like one.
fn in_pieces(stage: Stage) -> Scene {
    let (scene, sent, translated) = under_way(stage, Protocol::Udp, "errors in pieces");
    let error = Icmp::new(
        port_unreachable(&sent),
        stage.router,
        &host(stage.client),
        beginning(&translated, 8),
    );
    // More fragments, and eight bytes into the message.
    [[0x20, 0], [0, 1]]
        .into_iter()
        .fold(scene, |scene, [high, low]| {
            let piece = if stage.family == "IPv4" {
                let mut bytes = error.bytes();
                bytes[20..22].copy_from_slice(&[high, low]);
                bytes
            } else {
                let extension = Extension {
                    kind: 44,
                    content: vec![0, low << 3 | high >> 5, 0, 0, 0, 9],
                };
                Icmp {
                    extensions: vec![extension],
                    ..error.clone()
                }
                .bytes()
            };
            scene.passes_to_client(piece, Pass::OtherProtocol)
        })
}

/// The quoted packet and the error itself have options.
fn behind_options(protocol: Protocol) -> Scene {
    let (scene, sent, _) = under_way(V4, protocol, "IPv4 options inside and outside");
    let sent = Frame {
        options: vec![1; 24],
        ..sent
    };
    let translated = V4.forward(&sent);
    let error = |quote| Icmp {
        options: vec![1; 12],
        ..too_big(V4, V4.router, &host(V4.client), quote)
    };
    scene.to_client(
        &error(beginning(&translated, 20)),
        ICMP_ERROR,
        &error(as_sent(&sent, &translated, 20)),
    )
}

fn behind_extensions(protocol: Protocol) -> Scene {
    let (scene, sent, _) = under_way(V6, protocol, "extension headers inside and outside");
    let extension = |kind, len| Extension {
        kind,
        content: vec![0; len],
    };
    let sent = Frame {
        extensions: vec![extension(0, 6), extension(60, 14)],
        ..sent
    };
    let translated = V6.forward(&sent);
    let error = |quote| Icmp {
        extensions: vec![extension(60, 22)],
        ..too_big(V6, V6.router, &host(V6.client), quote)
    };
    scene.to_client(
        &error(beginning(&translated, 20)),
        ICMP_ERROR,
        &error(as_sent(&sent, &translated, 20)),
    )
}

fn without_checksum() -> Scene {
    let (scene, sent, _) = under_way(V4, Protocol::Udp, "about a datagram without checksum");
    let sent = Frame {
        no_checksum: true,
        ..sent
    };
    let error = |quote| too_big(V4, V4.router, &host(V4.client), quote);
    scene.to_client(
        &error(beginning(&V4.forward(&sent), 100)),
        ICMP_ERROR,
        &error(beginning(&sent, 100)),
    )
}

/// The client sent 0xffff for zero, and finds that quoted.
fn zero_checksum(stage: Stage) -> Scene {
    let (scene, sent, _) = under_way(stage, Protocol::Udp, "about a datagram whose sum is zero");
    let blank = sent.with_payload([0, 0]);
    let checksum = blank.packet()[l4(&sent) + 6..][..2].to_vec();
    let sent = blank.with_payload(checksum);
    let translated = stage.forward(&sent);
    let error = |quote| too_big(stage, stage.router, &host(stage.client), quote);
    scene.to_client(
        &error(beginning(&translated, 100)),
        ICMP_ERROR,
        &error(beginning(&sent, 100)),
    )
}

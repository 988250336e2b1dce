//! Datagrams in pieces.

use super::stage::{
    FORWARD, NEW_FLOW, NO_ENDPOINT_UNREACHABLE, NO_SERVICE, PROTOCOLS, REVERSE, SCTP_FRAGMENT,
    STAGES, Stage, unreachable,
};
use crate::abi::{Drop, Pass, Protocol};
use crate::testing::{Frame, Scene};

pub(super) fn scenes() -> Vec<Scene> {
    let mut scenes = Vec::new();
    for stage in STAGES {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            scenes.extend([in_order(stage, protocol), two_datagrams(stage, protocol)]);
        }
        for protocol in PROTOCOLS {
            scenes.extend([
                out_of_order(stage, protocol),
                last_pieces_swapped(stage, protocol),
                elsewhere(stage, protocol),
                too_short(stage, protocol),
                same_port(stage, protocol),
            ]);
        }
        scenes.extend([
            sctp_with_another_port(stage),
            refused(stage),
            of_an_extension(stage),
        ]);
    }
    scenes
}

/// Three pieces of a long packet.
fn pieces(frame: &Frame, id: u32) -> [Frame; 3] {
    [
        frame.piece(id, 0, 512),
        frame.piece(id, 512, 512),
        frame.piece(id, 1_024, 512),
    ]
}

fn long(frame: Frame) -> Frame {
    let more = (0..1_100_u16).map(|at| (at % 253) as u8);
    let payload: Vec<u8> = frame.payload.iter().copied().chain(more).collect();
    frame.with_payload(payload)
}

fn in_order(stage: Stage, protocol: Protocol) -> Scene {
    let packet = long(stage.opening(protocol));
    let [first, second, third] = pieces(&packet, 77);
    let [answer, answer2, answer3] = pieces(&long(stage.answer(protocol)), 78);
    Scene::new(
        format!(
            "{protocol} over {}: pieces follow the first, both ways",
            stage.family
        ),
        stage.serving(protocol),
    )
    .from_client(&first, NEW_FLOW, &stage.forward(&first))
    .from_client(&second, FORWARD, &stage.forward(&second))
    .from_client(&third, FORWARD, &stage.forward(&third))
    .to_client(&answer, REVERSE, &stage.reverse(&answer))
    .to_client(&answer2, REVERSE, &stage.reverse(&answer2))
    .to_client(&answer3, REVERSE, &stage.reverse(&answer3))
}

fn two_datagrams(stage: Stage, protocol: Protocol) -> Scene {
    let one = long(stage.opening(protocol));
    let other = one.between(stage.other_client, stage.frontend);
    let to_backend = |frame: &Frame| frame.between(stage.other_client, stage.backend);
    let [one1, one2, one3] = pieces(&one, 1);
    let [other1, other2, other3] = pieces(&other, 2);
    Scene::new(
        format!(
            "{protocol} over {}: pieces of two packets do not mix",
            stage.family
        ),
        stage.serving(protocol),
    )
    .from_client(&one1, NEW_FLOW, &stage.forward(&one1))
    .from_client(&other1, NEW_FLOW, &to_backend(&other1))
    .from_client(&other2, FORWARD, &to_backend(&other2))
    .from_client(&one2, FORWARD, &stage.forward(&one2))
    .from_client(&one3, FORWARD, &stage.forward(&one3))
    .from_client(&other3, FORWARD, &to_backend(&other3))
}

fn out_of_order(stage: Stage, protocol: Protocol) -> Scene {
    let [_, second, third] = pieces(&long(stage.opening(protocol)), 77);
    let [_, answer2, _] = pieces(&long(stage.answer(protocol)), 77);
    Scene::new(
        format!(
            "{protocol} over {}: pieces before the first pass",
            stage.family
        ),
        stage.serving(protocol),
    )
    .passes(&second, Pass::UnknownFragment)
    .passes(&third, Pass::UnknownFragment)
    .passes_to_client(&answer2, Pass::UnknownFragment)
}

fn last_pieces_swapped(stage: Stage, protocol: Protocol) -> Scene {
    let frontend = stage.frontend;
    let backend = stage.backend.replace("8080", "80");
    let [first, second, third] = pieces(&long(stage.opening(protocol)), 77);
    Scene::new(
        format!(
            "{protocol} over {}: later pieces come in any order",
            stage.family
        ),
        stage.serving_by(protocol, &[&backend]),
    )
    .passes(&third, Pass::UnknownFragment)
    .from_client(&first, NEW_FLOW, &first.between(stage.client, &backend))
    .from_client(&third, FORWARD, &third.between(stage.client, &backend))
    .from_client(&second, FORWARD, &second.between(stage.client, &backend))
    .passes_to_client(
        &third.between(frontend, stage.client),
        Pass::UnknownFragment,
    )
}

fn elsewhere(stage: Stage, protocol: Protocol) -> Scene {
    let [first, second, _] = pieces(&long(stage.opening(protocol)), 77)
        .map(|piece| piece.between(stage.client, stage.other_frontend));
    Scene::new(
        format!(
            "{protocol} over {}: pieces to no Service pass",
            stage.family
        ),
        stage.serving(protocol),
    )
    .passes(&first, NO_SERVICE)
    .passes(&second, Pass::UnknownFragment)
}

fn too_short(stage: Stage, protocol: Protocol) -> Scene {
    let packet = long(stage.opening(protocol));
    let scene = Scene::new(
        format!(
            "{protocol} over {}: a first piece without whole header passes",
            stage.family
        ),
        stage.serving(protocol),
    );
    match protocol {
        // Eight bytes are all of it.
        Protocol::Udp => {
            let first = packet.piece(77, 0, 8);
            scene.from_client(&first, NEW_FLOW, &stage.forward(&first))
        }
        Protocol::Tcp | Protocol::Sctp => scene.passes(&packet.piece(77, 0, 8), Pass::Malformed),
    }
}

fn same_port(stage: Stage, protocol: Protocol) -> Scene {
    let backend = &stage.backend.replace("8080", "80");
    let [first, second, third] = pieces(&long(stage.opening(protocol)), 77);
    let [answer1, answer2, _] = pieces(
        &long(stage.answer(protocol)).between(backend, stage.client),
        99,
    );
    Scene::new(
        format!(
            "{protocol} over {}: pieces to a backend with the same port",
            stage.family
        ),
        stage.serving_by(protocol, &[backend]),
    )
    .from_client(&first, NEW_FLOW, &first.between(stage.client, backend))
    .from_client(&second, FORWARD, &second.between(stage.client, backend))
    .from_client(&third, FORWARD, &third.between(stage.client, backend))
    .to_client(&answer1, REVERSE, &stage.reverse(&answer1))
    .to_client(&answer2, REVERSE, &stage.reverse(&answer2))
}

/// The checksum covers the whole packet, whose length the first piece does not tell.
fn sctp_with_another_port(stage: Stage) -> Scene {
    let init = stage.opening(Protocol::Sctp);
    let [first, ..] = pieces(&long(stage.more(Protocol::Sctp)), 77);
    let [answer, ..] = pieces(&long(stage.answer(Protocol::Sctp)), 78);
    Scene::new(
        format!(
            "SCTP over {}: pieces whose port would change are dropped",
            stage.family
        ),
        stage.serving(Protocol::Sctp),
    )
    .drops(&pieces(&long(init.clone()), 76)[0], Drop::SctpFragment)
    .from_client(&init, FORWARD, &stage.forward(&init))
    .drops(&first, Drop::SctpFragment)
    .to_client(&answer, SCTP_FRAGMENT, [])
}

/// The later pieces of a datagram that begins with a destination header: what they carry is
/// payload, although it may look like the rest of that header.
fn of_an_extension(stage: Stage) -> Scene {
    let packet = stage.opening(Protocol::Udp);
    let payload = [6, 0, 0, 0, 0, 0, 0, 0].repeat(4);
    let later = packet.with_payload(payload).piece(77, 8, 32);
    Scene::new(
        format!(
            "a later piece of an extension header over {} passes",
            stage.family
        ),
        stage.external(Protocol::Udp),
    )
    .passes(later.claiming(60), Pass::OtherProtocol)
}

fn refused(stage: Stage) -> Scene {
    let [first, second, _] = pieces(&long(stage.opening(Protocol::Udp)), 77);
    Scene::new(
        format!(
            "UDP over {}: the first of several pieces is refused",
            stage.family
        ),
        stage.serving_by(Protocol::Udp, &[]),
    )
    .from_client(&first, NO_ENDPOINT_UNREACHABLE, &unreachable(&first, 72))
    .passes(&second, Pass::UnknownFragment)
}

//! Packets that are too long for the device that they would leave by.

use super::{Arrives, outside};
use crate::abi::{Drop, Port, Protocol, Reply, Verdict};
use crate::datapath::Hook;
use crate::testing::scenes::site::{MTU, UPLINK};
use crate::testing::scenes::stage::{
    FORWARD, NEW_FLOW, PROTOCOLS, STAGES, Stage, at, host, unreachable, with_port,
};
use crate::testing::{Frame, Icmp, Scene, Sent};

const TOO_LONG: Verdict = Verdict::Reply(Reply::TooLong);

pub(super) fn scenes() -> Vec<Scene> {
    let mut scenes = Vec::new();
    for stage in STAGES {
        for protocol in PROTOCOLS {
            scenes.extend([
                too_long(stage, protocol),
                too_long_back(stage, protocol),
                too_long_in_pieces(stage, protocol),
                unknown_device(stage, protocol),
            ]);
        }
        scenes.extend([
            too_long_partial(stage, Protocol::Tcp),
            too_long_partial(stage, Protocol::Udp),
        ]);
    }
    scenes
}

/// The error that `frame` is answered with: it is too long for the uplink.
fn too_big(frame: &Frame) -> Icmp {
    let kind = if frame.src.is_ipv4() { [3, 4] } else { [2, 0] };
    Icmp {
        kind,
        parameter: MTU,
        ..unreachable(frame, 72)
    }
}

/// The packet with a payload that makes it so many bytes long, without the Ethernet header.
fn of_length(frame: &Frame, len: u32) -> Frame {
    let bare = frame.with_payload([]).packet().len();
    let len = usize::try_from(len).expect("a length") - bare;
    let first = frame.payload.first().copied().unwrap_or_default();
    frame.with_payload([vec![first], vec![0; len - 1]].concat())
}

fn too_long(stage: Stage, protocol: Protocol) -> Scene {
    let flow = outside(stage, protocol);
    let [fits, long, segments] = [MTU, MTU + 1, 2_800].map(|len| of_length(&flow.more(), len));
    flow.opened("the uplink takes so much and no more")
        .arrives(&fits, FORWARD, &flow.forward(&fits))
        .arrives(&long, TOO_LONG, &too_big(&long))
        .sent(Sent::Out(UPLINK))
        .arrives(&segments, FORWARD, &flow.forward(&segments))
        .segmented()
}

fn too_long_back(stage: Stage, protocol: Protocol) -> Scene {
    let flow = outside(stage, protocol);
    let long = of_length(&flow.answer(), MTU + 1);
    flow.opened("an answer is too long for the uplink")
        .arrives(&long, TOO_LONG, &too_big(&long))
        .sent(Sent::Out(UPLINK))
}

/// The first piece is answered for all, and none goes on, not even the last, which is short enough.
/// SCTP can have pieces where no port changes.
fn too_long_in_pieces(stage: Stage, protocol: Protocol) -> Scene {
    let mut flow = outside(stage, protocol);
    let port = at(&flow.dialled).port();
    flow.memory.backends[0].port = Port::new(port);
    flow.memory.settings.first_port = Port::new(40_000);
    flow.memory.settings.last_port = Port::new(40_000);
    let backend = with_port(&host(stage.backend), port);
    let source = with_port(stage.uplink, 40_000);
    let opening = flow.opening();
    let long = flow.more().with_payload(vec![1; 4_000]);
    let [first, later, last] = [0, 1_600, 3_200].map(|at| long.piece(4, at, 1_600));
    flow.scene("pieces that are too long")
        .arrives(&opening, NEW_FLOW, &opening.between(&source, &backend))
        .arrives(&first, TOO_LONG, &too_big(&first))
        .sent(Sent::Out(UPLINK))
        .vanishes(&later, Verdict::Drop(Drop::TooLong))
        .vanishes(&last, Verdict::Drop(Drop::TooLong))
}

/// The device would complete a checksum where the length stands.
fn too_long_partial(stage: Stage, protocol: Protocol) -> Scene {
    let flow = outside(stage, protocol);
    let long = of_length(&flow.more(), MTU + 1);
    flow.opened("a long packet whose checksum is left to the device")
        .partial(Hook::NodeIngress, &long, Verdict::Drop(Drop::TooLong), [])
        .by(UPLINK)
}

/// What is not known of a device is no reason to refuse a packet.
fn unknown_device(stage: Stage, protocol: Protocol) -> Scene {
    let mut flow = outside(stage, protocol);
    let _uplink = flow.memory.devices.remove(&UPLINK);
    let mapped = &stage.mapped_here();
    let long = of_length(&flow.opening(), 1_600);
    flow.scene("nothing is known of the device that it leaves by")
        .arrives(&long, NEW_FLOW, &long.between(mapped, stage.backend))
}

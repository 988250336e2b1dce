//! Checksums in their awkward states.

use super::stage::{FORWARD, NEW_FLOW, PROTOCOLS, REVERSE, STAGES, Stage, V4};
use crate::abi::Protocol;
use crate::datapath::Hook;
use crate::testing::{Frame, Scene};

pub(super) fn scenes() -> Vec<Scene> {
    let mut scenes = vec![without_checksum()];
    for stage in STAGES {
        for protocol in PROTOCOLS {
            scenes.push(left_to_the_device(stage, protocol));
        }
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            scenes.extend([
                becomes_zero(stage, protocol),
                was_zero(stage, protocol),
                addresses_cancel_out(stage, protocol),
            ]);
        }
        scenes.push(sctp_left_to_the_device(stage));
    }
    scenes
}

fn without_checksum() -> Scene {
    let question = Frame {
        no_checksum: true,
        ..V4.opening(Protocol::Udp)
    };
    let answer = Frame {
        no_checksum: true,
        ..V4.answer(Protocol::Udp)
    };
    Scene::new(
        "UDP without checksum stays without",
        V4.serving(Protocol::Udp),
    )
    .from_client(&question, NEW_FLOW, &V4.forward(&question))
    .from_client(&question, FORWARD, &V4.forward(&question))
    .to_client(&answer, REVERSE, &V4.reverse(&answer))
}

/// The device completes the checksum, so it covers the pseudo-header alone until then.
fn left_to_the_device(stage: Stage, protocol: Protocol) -> Scene {
    let (opening, more, answer) = (
        stage.opening(protocol),
        stage.more(protocol),
        stage.answer(protocol),
    );
    Scene::new(
        format!(
            "{protocol} over {}: a checksum left to the device",
            stage.family
        ),
        stage.serving(protocol),
    )
    .partial(
        Hook::PodIngress,
        &opening,
        NEW_FLOW,
        &stage.forward(&opening).partial(),
    )
    .partial(
        Hook::PodIngress,
        &more,
        FORWARD,
        &stage.forward(&more).partial(),
    )
    .partial(
        Hook::PodEgress,
        &answer,
        REVERSE,
        &stage.reverse(&answer).partial(),
    )
}

/// Unlike that of TCP and UDP this state shows in the packet.
fn sctp_left_to_the_device(stage: Stage) -> Scene {
    let init = stage.opening(Protocol::Sctp).partial();
    let answer = stage.answer(Protocol::Sctp).partial();
    Scene::new(
        format!("SCTP over {}: a checksum of 0 stays 0", stage.family),
        stage.serving(Protocol::Sctp),
    )
    .from_client(&init, NEW_FLOW, &stage.forward(&init))
    .to_client(&answer, REVERSE, &stage.reverse(&answer))
}

/// Translated, the sum is zero: TCP stores 0, UDP 0xffff, since 0 would mean no checksum.
fn becomes_zero(stage: Stage, protocol: Protocol) -> Scene {
    let more = with_sum_zero(&stage.forward(&stage.more(protocol)));
    let more = more.between(stage.client, stage.frontend);
    let answer = with_sum_zero(&stage.reverse(&stage.answer(protocol)));
    let answer = answer.between(stage.backend, stage.client);
    let opening = stage.opening(protocol);
    Scene::new(
        format!(
            "{protocol} over {}: the translated checksum is zero",
            stage.family
        ),
        stage.serving(protocol),
    )
    .from_client(&opening, NEW_FLOW, &stage.forward(&opening))
    .from_client(&more, FORWARD, &stage.forward(&more))
    .to_client(&answer, REVERSE, &stage.reverse(&answer))
}

fn was_zero(stage: Stage, protocol: Protocol) -> Scene {
    let opening = stage.opening(protocol);
    let more = with_sum_zero(&stage.more(protocol));
    let answer = with_sum_zero(&stage.answer(protocol));
    Scene::new(
        format!(
            "{protocol} over {}: the checksum was zero before",
            stage.family
        ),
        stage.serving(protocol),
    )
    .from_client(&opening, NEW_FLOW, &stage.forward(&opening))
    .from_client(&more, FORWARD, &stage.forward(&more))
    .to_client(&answer, REVERSE, &stage.reverse(&answer))
}

/// Service and backend have addresses of the same sum: the ports alone change the checksum.
fn addresses_cancel_out(stage: Stage, protocol: Protocol) -> Scene {
    let backend = if stage.family == "IPv4" {
        "10.0.0.106:8080"
    } else {
        "[fd00:a6::]:8080"
    };
    let opening = stage.opening(protocol);
    let more = stage.more(protocol);
    let answer = stage.answer(protocol).between(backend, stage.client);
    let forward = |frame: &Frame| frame.between(stage.client, backend);
    Scene::new(
        format!(
            "{protocol} over {}: the checksum does not notice the new address",
            stage.family
        ),
        stage.serving_by(protocol, &[backend]),
    )
    .from_client(&opening, NEW_FLOW, &forward(&opening))
    .from_client(&more, FORWARD, &forward(&more))
    .to_client(&answer, REVERSE, &stage.reverse(&answer))
    .partial(Hook::PodIngress, &more, FORWARD, &forward(&more).partial())
    .partial(
        Hook::PodEgress,
        &answer,
        REVERSE,
        &stage.reverse(&answer).partial(),
    )
}

/// The frame with a payload that makes its checksum come out as zero: a payload that is the
/// checksum of all the rest.
fn with_sum_zero(frame: &Frame) -> Frame {
    let at = if frame.protocol == Protocol::Tcp {
        16
    } else {
        6
    };
    let l4 = if frame.src.is_ipv4() { 34 } else { 54 };
    let blank = frame.with_payload([0, 0]).bytes();
    let frame = frame.with_payload(&blank[l4 + at..][..2]);
    let zero = if frame.protocol == Protocol::Tcp {
        [0, 0]
    } else {
        [0xff, 0xff]
    };
    assert_eq!(frame.bytes()[l4 + at..][..2], zero);
    frame
}

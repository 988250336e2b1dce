//! Packets in mid-flow without a record.

use super::stage::{
    ABORT, ACK, COOKIE_ECHO, DATA, FIN_ACK, FORWARD, NEW_FLOW, REVERSE, RST, SHUTDOWN, STAGES,
    SYN_ACK, Stage, all_in,
};
use crate::abi::{FlowRole, FlowState, Pass, Protocol, SettingsFlags};
use crate::testing::{Frame, Memory, Scene};

pub(super) fn scenes() -> Vec<Scene> {
    let mut scenes = Vec::new();
    for stage in STAGES {
        scenes.extend([tcp_passes(stage), sctp_passes(stage), rederived_udp(stage)]);
        for protocol in [Protocol::Tcp, Protocol::Sctp] {
            scenes.extend([adopted(stage, protocol), rederived(stage, protocol)]);
        }
    }
    scenes
}

fn tcp_passes(stage: Stage) -> Scene {
    [ACK, SYN_ACK, FIN_ACK, RST].into_iter().fold(
        Scene::new(
            format!(
                "TCP over {}: what belongs to no known flow passes",
                stage.family
            ),
            stage.serving(Protocol::Tcp),
        ),
        |scene, flags| {
            let segment = Frame::tcp(flags, stage.client, stage.frontend);
            scene.passes(&segment, Pass::MidFlow)
        },
    )
}

fn sctp_passes(stage: Stage) -> Scene {
    [DATA, ABORT, SHUTDOWN, COOKIE_ECHO].into_iter().fold(
        Scene::new(
            format!(
                "SCTP over {}: what belongs to no known flow passes",
                stage.family
            ),
            stage.serving(Protocol::Sctp),
        ),
        |scene, chunk| {
            let packet = Frame::sctp(chunk, stage.client, stage.frontend);
            scene.passes(&packet, Pass::MidFlow)
        },
    )
}

fn adopting(mut memory: Memory) -> Memory {
    memory.settings.flags = SettingsFlags::ADOPT_MID_FLOW;
    memory
}

const fn established(protocol: Protocol) -> FlowState {
    match protocol {
        Protocol::Tcp => FlowState::TcpEstablished,
        Protocol::Udp => FlowState::UdpReplied,
        Protocol::Sctp => FlowState::SctpEstablished,
    }
}

fn adopted(stage: Stage, protocol: Protocol) -> Scene {
    let (more, answer) = (stage.more(protocol), stage.answer(protocol));
    Scene::new(
        format!(
            "{protocol} over {}: told so, an unknown flow is adopted",
            stage.family
        ),
        adopting(stage.serving(protocol)),
    )
    .from_client(&more, NEW_FLOW, &stage.forward(&more))
    .check(all_in(established(protocol)))
    .to_client(&answer, REVERSE, &stage.reverse(&answer))
    .from_client(&more, FORWARD, &stage.forward(&more))
}

/// The record from client to backend is evicted; its twin is still there.
fn lose_forward(memory: &mut Memory) {
    let mut flows = memory.flows.borrow_mut();
    flows.retain(|_, flow| flow.role == FlowRole::Reverse as u8);
}

fn rederived(stage: Stage, protocol: Protocol) -> Scene {
    let (opening, more, answer) = (
        stage.opening(protocol),
        stage.more(protocol),
        stage.answer(protocol),
    );
    Scene::new(
        format!(
            "{protocol} over {}: a lost record is made anew beside its twin",
            stage.family
        ),
        adopting(stage.serving(protocol)),
    )
    .from_client(&opening, NEW_FLOW, &stage.forward(&opening))
    .change(lose_forward)
    .from_client(&more, NEW_FLOW, &stage.forward(&more))
    .to_client(&answer, REVERSE, &stage.reverse(&answer))
    .from_client(&more, FORWARD, &stage.forward(&more))
    .check(|memory| assert_eq!(memory.flows.borrow().len(), 2))
}

fn rederived_udp(stage: Stage) -> Scene {
    let (question, answer) = (stage.opening(Protocol::Udp), stage.answer(Protocol::Udp));
    Scene::new(
        format!(
            "UDP over {}: a lost record is made anew beside its twin",
            stage.family
        ),
        stage.serving(Protocol::Udp),
    )
    .from_client(&question, NEW_FLOW, &stage.forward(&question))
    .change(lose_forward)
    .from_client(&question, NEW_FLOW, &stage.forward(&question))
    .to_client(&answer, REVERSE, &stage.reverse(&answer))
    .check(|memory| assert_eq!(memory.flows.borrow().len(), 2))
}

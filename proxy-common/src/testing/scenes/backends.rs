//! Backends that leave, return, or are about to.

use super::stage::{
    ABORT, DATA, FIN_ACK, FORWARD, GONE_ABORT, GONE_RESET, NEW_FLOW, NO_ENDPOINT_UNREACHABLE,
    PROTOCOLS, REVERSE, RST, RST_ACK, SHUTDOWN, SHUTDOWN_COMPLETE, STAGES, Stage, V4, V6, at, ip,
    reply_to, unreachable,
};
use crate::abi::{BackendState, Drop, Port, Protocol};
use crate::datapath::Hook;
use crate::testing::{Extension, Frame, Memory, Scene};

pub(super) fn scenes() -> Vec<Scene> {
    let mut scenes = vec![reset_behind_options(), reset_behind_extensions()];
    for stage in STAGES {
        scenes.extend([
            tcp(stage),
            partial_tcp(stage),
            sctp(stage),
            partial_sctp(stage),
            udp(stage),
            udp_without_another(stage),
            pieces(stage),
        ]);
        for protocol in PROTOCOLS {
            scenes.extend([
                opens_anew(stage, protocol),
                last_answers(stage, protocol),
                terminating(stage, protocol),
                not_ready(stage, protocol),
            ]);
        }
        for protocol in [Protocol::Tcp, Protocol::Sctp] {
            scenes.push(id_in_use_again(stage, protocol));
        }
    }
    scenes
}

/// The Service moves from its backend to the other, and the first is gone.
fn replaced(stage: Stage, protocol: Protocol) -> impl Fn(&mut Memory) {
    move |memory| {
        memory.point(at(stage.frontend), protocol, &[at(stage.other_backend)]);
        memory.remove_backends_at(ip(stage.backend));
    }
}

/// A flow of the first backend, which is then replaced by the other.
fn after_replacement(stage: Stage, protocol: Protocol, what: &str) -> Scene {
    let opening = stage.opening(protocol);
    Scene::new(
        format!("{protocol} over {}: {what}", stage.family),
        stage.serving(protocol),
    )
    .from_client(&opening, NEW_FLOW, &stage.forward(&opening))
    .change(replaced(stage, protocol))
}

/// The reset to a segment with an acknowledgement: at the place where the client expects it.
fn reset_to(segment: &Frame) -> Frame {
    Frame {
        flags: RST,
        seq: segment.ack,
        ack: 0,
        ..reply_to(segment)
    }
}

fn abort_to(packet: &Frame) -> Frame {
    reply_to(packet).with_payload([ABORT, 1, 0, 4])
}

fn tcp(stage: Stage) -> Scene {
    let more = stage.more(Protocol::Tcp);
    let fin = Frame::tcp(FIN_ACK, stage.client, stage.frontend);
    after_replacement(
        stage,
        Protocol::Tcp,
        "a gone backend's flow is reset, as often as it asks",
    )
    .from_client(&more, GONE_RESET, &reset_to(&more))
    .from_client(&more, GONE_RESET, &reset_to(&more))
    .from_client(&fin, GONE_RESET, &reset_to(&fin))
    .drops(
        &Frame::tcp(RST, stage.client, stage.frontend),
        Drop::NoAnswer,
    )
    .drops(
        &Frame::tcp(RST_ACK, stage.client, stage.frontend),
        Drop::NoAnswer,
    )
}

fn partial_tcp(stage: Stage) -> Scene {
    let more = stage.more(Protocol::Tcp);
    after_replacement(
        stage,
        Protocol::Tcp,
        "a gone backend, the device completes the reset",
    )
    .partial(
        Hook::PodIngress,
        &more,
        GONE_RESET,
        &reset_to(&more).partial(),
    )
}

fn reset_behind_options() -> Scene {
    let more = Frame {
        options: vec![1; 12],
        ..V4.more(Protocol::Tcp)
    };
    after_replacement(
        V4,
        Protocol::Tcp,
        "a gone backend's flow is reset behind options",
    )
    .from_client(&more, GONE_RESET, &reset_to(&more))
}

fn reset_behind_extensions() -> Scene {
    let extensions = vec![Extension {
        kind: 60,
        content: vec![0; 14],
    }];
    let more = Frame {
        extensions,
        ..V6.more(Protocol::Tcp)
    };
    after_replacement(
        V6,
        Protocol::Tcp,
        "a gone backend's flow is reset behind extensions",
    )
    .from_client(&more, GONE_RESET, &reset_to(&more))
}

fn sctp(stage: Stage) -> Scene {
    let chunk = |chunk| Frame::sctp(chunk, stage.client, stage.frontend);
    let (data, shutdown) = (chunk(DATA), chunk(SHUTDOWN));
    after_replacement(
        stage,
        Protocol::Sctp,
        "a gone backend's flow is aborted, its tag reflected",
    )
    .from_client(&data, GONE_ABORT, &abort_to(&data))
    .from_client(&shutdown, GONE_ABORT, &abort_to(&shutdown))
    .drops(&chunk(ABORT), Drop::NoAnswer)
    .drops(&chunk(SHUTDOWN_COMPLETE), Drop::NoAnswer)
}

fn partial_sctp(stage: Stage) -> Scene {
    let data = stage.more(Protocol::Sctp);
    after_replacement(
        stage,
        Protocol::Sctp,
        "a gone backend, the device completes the ABORT",
    )
    .partial(
        Hook::PodIngress,
        &data,
        GONE_ABORT,
        &abort_to(&data).partial(),
    )
}

fn udp(stage: Stage) -> Scene {
    let (question, answer) = (stage.opening(Protocol::Udp), stage.answer(Protocol::Udp));
    let from_other = answer.between(stage.other_backend, stage.client);
    after_replacement(
        stage,
        Protocol::Udp,
        "a gone backend's flow moves to another",
    )
    .from_client(
        &question,
        NEW_FLOW,
        &question.between(stage.client, stage.other_backend),
    )
    .to_client(&from_other, REVERSE, &stage.reverse(&from_other))
    .from_client(
        &question,
        FORWARD,
        &question.between(stage.client, stage.other_backend),
    )
    .check(|memory| assert_eq!(memory.flows.borrow().len(), 2, "the old twins are gone"))
}

fn udp_without_another(stage: Stage) -> Scene {
    let question = stage.opening(Protocol::Udp);
    let quoted = question.packet().len();
    Scene::new(
        format!(
            "UDP over {}: the only backend goes, the flow is refused",
            stage.family
        ),
        stage.serving(Protocol::Udp),
    )
    .from_client(&question, NEW_FLOW, &stage.forward(&question))
    .change(move |memory| {
        memory.point(at(stage.frontend), Protocol::Udp, &[]);
        memory.remove_backends_at(ip(stage.backend));
    })
    .from_client(
        &question,
        NO_ENDPOINT_UNREACHABLE,
        &unreachable(&question, quoted),
    )
}

/// Errors are not sent about pieces, and a piece does not tell where the packet ends.
fn pieces(stage: Stage) -> Scene {
    let long = stage.more(Protocol::Tcp).with_payload(vec![1; 100]);
    after_replacement(
        stage,
        Protocol::Tcp,
        "a gone backend, pieces are not answered",
    )
    .drops(&long.piece(5, 0, 64), Drop::NoAnswer)
    .drops(&long.piece(5, 64, 64), Drop::NoAnswer)
}

fn opens_anew(stage: Stage, protocol: Protocol) -> Scene {
    let opening = stage.opening(protocol);
    let answer = stage
        .answer(protocol)
        .between(stage.other_backend, stage.client);
    after_replacement(
        stage,
        protocol,
        "a new flow from the same port goes to a live backend",
    )
    .from_client(
        &opening,
        NEW_FLOW,
        &opening.between(stage.client, stage.other_backend),
    )
    .to_client(&answer, REVERSE, &stage.reverse(&answer))
    .from_client(
        &opening,
        FORWARD,
        &opening.between(stage.client, stage.other_backend),
    )
}

fn last_answers(stage: Stage, protocol: Protocol) -> Scene {
    let answer = stage.answer(protocol);
    after_replacement(
        stage,
        protocol,
        "a gone backend's last answers are still translated",
    )
    .to_client(&answer, REVERSE, &stage.reverse(&answer))
}

/// The Service moves to the other backend, the first is still there in this state.
fn after_change_to(stage: Stage, protocol: Protocol, state: BackendState, what: &str) -> Scene {
    let (opening, more, answer) = (
        stage.opening(protocol),
        stage.more(protocol),
        stage.answer(protocol),
    );
    let other = opening.between(stage.other_client, stage.frontend);
    Scene::new(
        format!("{protocol} over {}: {what}", stage.family),
        stage.serving(protocol),
    )
    .from_client(&opening, NEW_FLOW, &stage.forward(&opening))
    .change(move |memory| {
        memory.point(at(stage.frontend), protocol, &[at(stage.other_backend)]);
        memory
            .backends_at(ip(stage.backend))
            .for_each(|backend| backend.state = state as u8);
    })
    .from_client(&more, FORWARD, &stage.forward(&more))
    .to_client(&answer, REVERSE, &stage.reverse(&answer))
    .from_client(
        &other,
        NEW_FLOW,
        &other.between(stage.other_client, stage.other_backend),
    )
}

fn terminating(stage: Stage, protocol: Protocol) -> Scene {
    let what = "a terminating backend keeps its flows, new ones go elsewhere";
    after_change_to(stage, protocol, BackendState::Terminating, what)
}

fn not_ready(stage: Stage, protocol: Protocol) -> Scene {
    let what = "a backend that is not ready keeps its flows, new ones go elsewhere";
    after_change_to(stage, protocol, BackendState::NotReady, what)
}

/// The id that the flow remembers stands for another endpoint now.
fn id_in_use_again(stage: Stage, protocol: Protocol) -> Scene {
    let (opening, more) = (stage.opening(protocol), stage.more(protocol));
    let reset = match protocol {
        Protocol::Tcp => (GONE_RESET, reset_to(&more)),
        Protocol::Udp | Protocol::Sctp => (GONE_ABORT, abort_to(&more)),
    };
    let other = opening.between(stage.other_client, stage.frontend);
    Scene::new(
        format!(
            "{protocol} over {}: a backend's id in use again is another backend",
            stage.family
        ),
        stage.serving(protocol),
    )
    .from_client(&opening, NEW_FLOW, &stage.forward(&opening))
    .change(move |memory| {
        let next = at(stage.other_backend);
        memory.remove_backends_at(ip(stage.backend));
        for backend in memory.backends_at(ip(stage.backend)) {
            backend.addr = next.ip().into();
            backend.port = Port::new(next.port());
            backend.state = BackendState::Active as u8;
        }
    })
    .from_client(&more, reset.0, &reset.1)
    .from_client(
        &other,
        NEW_FLOW,
        &other.between(stage.other_client, stage.other_backend),
    )
    .from_client(
        &opening,
        NEW_FLOW,
        &opening.between(stage.client, stage.other_backend),
    )
}

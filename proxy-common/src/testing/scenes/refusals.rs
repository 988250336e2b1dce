//! Services without endpoints.

use super::stage::{
    ACK, NO_ENDPOINT_RESET, NO_ENDPOINT_UNREACHABLE, PROTOCOLS, RST, RST_ACK, STAGES, SYN, Stage,
    V4, V6, at, reply_to, unreachable,
};
use crate::abi::{
    Drop, FrontendFlags, Pass, Protocol, RefusalReason, ServiceCounters, SettingsFlags,
};
use crate::datapath::Hook;
use crate::testing::{Extension, Frame, Icmp, Scene};

pub(super) fn scenes() -> Vec<Scene> {
    let mut scenes = vec![behind_options(), behind_extensions()];
    for stage in STAGES {
        scenes.extend([
            syn(stage),
            syn_with_data(stage),
            syn_with_options(stage),
            partial_syn(stage),
            quote_of_udp(stage),
            sctp(stage),
            partial_udp(stage),
            in_mid_flow(stage),
            adopting(stage),
        ]);
        for protocol in PROTOCOLS {
            scenes.extend([no_local_endpoint(stage, protocol), counted(stage, protocol)]);
        }
    }
    scenes
}

/// The reset to a SYN: nothing sent yet, all that it carries acknowledged.
fn reset_to(syn: &Frame, acknowledged: u32) -> Frame {
    Frame {
        flags: RST_ACK,
        seq: 0,
        ack: syn.seq + acknowledged,
        ..reply_to(syn)
    }
}

fn syn(stage: Stage) -> Scene {
    let syn = stage.opening(Protocol::Tcp);
    let last = Frame {
        seq: u32::MAX,
        ..syn.clone()
    };
    let reset = Frame {
        flags: RST_ACK,
        seq: 0,
        ack: 0,
        ..reply_to(&last)
    };
    Scene::new(
        format!("TCP over {}: no endpoints, a SYN is reset", stage.family),
        stage.serving_by(Protocol::Tcp, &[]),
    )
    .from_client(&syn, NO_ENDPOINT_RESET, &reset_to(&syn, 1))
    .from_client(&syn, NO_ENDPOINT_RESET, &reset_to(&syn, 1))
    .from_client(&last, NO_ENDPOINT_RESET, &reset)
    .check(|memory| assert!(memory.flows.borrow().is_empty()))
}

fn syn_with_data(stage: Stage) -> Scene {
    let syn = stage.opening(Protocol::Tcp).with_payload(*b"fast open");
    Scene::new(
        format!(
            "TCP over {}: no endpoints, the reset acknowledges a SYN's data",
            stage.family
        ),
        stage.serving_by(Protocol::Tcp, &[]),
    )
    .from_client(&syn, NO_ENDPOINT_RESET, &reset_to(&syn, 10))
}

fn syn_with_options(stage: Stage) -> Scene {
    let tcp_options = vec![1; 40];
    let syn = Frame {
        tcp_options,
        ..stage.opening(Protocol::Tcp)
    };
    let with_data = syn.with_payload(*b"odd");
    Scene::new(
        format!(
            "TCP over {}: no endpoints, a SYN's options are not data",
            stage.family
        ),
        stage.serving_by(Protocol::Tcp, &[]),
    )
    .from_client(&syn, NO_ENDPOINT_RESET, &reset_to(&syn, 1))
    .from_client(&with_data, NO_ENDPOINT_RESET, &reset_to(&with_data, 4))
}

/// The device goes on to complete the checksum, now that of the reset.
fn partial_syn(stage: Stage) -> Scene {
    let tcp_options = vec![1; 20];
    let syn = Frame {
        tcp_options,
        ..stage.opening(Protocol::Tcp)
    };
    Scene::new(
        format!(
            "TCP over {}: no endpoints, the device completes the reset",
            stage.family
        ),
        stage.serving_by(Protocol::Tcp, &[]),
    )
    .partial(
        Hook::PodIngress,
        &syn,
        NO_ENDPOINT_RESET,
        &reset_to(&syn, 1).partial(),
    )
}

/// As much as fits into 18 words.
fn quote_of_udp(stage: Stage) -> Scene {
    let question = |len| stage.opening(Protocol::Udp).with_payload(vec![b'?'; len]);
    let header = if stage.family == "IPv4" { 28 } else { 48 };
    let padded = [question(4).bytes(), vec![0; 20]].concat();
    let refused = |len, quoted| {
        let question = question(len);
        (question.bytes(), unreachable(&question, quoted).bytes())
    };
    [
        refused(0, header),
        refused(4, header + 4),
        refused(7, header + 4),
        refused(24, header + 24),
        refused(72 - header, 72),
        refused(100, 72),
        refused(1_400, 72),
        (padded, refused(4, header + 4).1),
    ]
    .into_iter()
    .fold(
        Scene::new(
            format!(
                "UDP over {}: no endpoints, port unreachable quotes it",
                stage.family
            ),
            stage.serving_by(Protocol::Udp, &[]),
        ),
        |scene, (question, answer)| scene.from_client(question, NO_ENDPOINT_UNREACHABLE, answer),
    )
}

fn sctp(stage: Stage) -> Scene {
    let init = stage.opening(Protocol::Sctp);
    Scene::new(
        format!(
            "SCTP over {}: no endpoints, port unreachable quotes it",
            stage.family
        ),
        stage.serving_by(Protocol::Sctp, &[]),
    )
    .from_client(
        &init,
        NO_ENDPOINT_UNREACHABLE,
        &unreachable(&init, init.packet().len()),
    )
}

/// The options are quoted, but not repeated in the answer's own header.
fn behind_options() -> Scene {
    let long = |frame: Frame| Frame {
        options: vec![1; 40],
        ..frame
    };
    let (syn, question) = (
        long(V4.opening(Protocol::Tcp)),
        long(V4.opening(Protocol::Udp)),
    );
    let mut memory = V4.serving_by(Protocol::Tcp, &[]);
    let _service = memory.serve(at(V4.frontend), Protocol::Udp, &[]);
    Scene::new("no endpoints behind IPv4 options", memory)
        .from_client(&syn, NO_ENDPOINT_RESET, &reset_to(&syn, 1))
        .from_client(
            &question,
            NO_ENDPOINT_UNREACHABLE,
            &unreachable(&question, 72),
        )
}

fn behind_extensions() -> Scene {
    let extension = || Extension {
        kind: 60,
        content: vec![0; 14],
    };
    let long = |frame: Frame| Frame {
        extensions: vec![extension(), extension()],
        ..frame
    };
    let (syn, question) = (
        long(V6.opening(Protocol::Tcp)),
        long(V6.opening(Protocol::Udp)),
    );
    let mut memory = V6.serving_by(Protocol::Tcp, &[]);
    let _service = memory.serve(at(V6.frontend), Protocol::Udp, &[]);
    Scene::new("no endpoints behind IPv6 extension headers", memory)
        .from_client(&syn, NO_ENDPOINT_RESET, &reset_to(&syn, 1))
        .from_client(
            &question,
            NO_ENDPOINT_UNREACHABLE,
            &unreachable(&question, 72),
        )
}

/// The device sums up the message and stores what it gets where UDP's checksum was. Where that
/// sum includes a pseudo-header, what it will get stands there already.
fn partial_udp(stage: Stage) -> Scene {
    let question = stage.opening(Protocol::Udp);
    let answer = unreachable(&question.partial(), question.packet().len());
    let answer = Icmp {
        parameter: answer.pseudo_sum().into(),
        ..answer
    };
    Scene::new(
        format!(
            "UDP over {}: no endpoints, the device may complete the answer",
            stage.family
        ),
        stage.serving_by(Protocol::Udp, &[]),
    )
    .partial(
        Hook::PodIngress,
        &question,
        NO_ENDPOINT_UNREACHABLE,
        &answer,
    )
}

fn in_mid_flow(stage: Stage) -> Scene {
    Scene::new(
        format!(
            "TCP over {}: no endpoints, what belongs to no known flow passes",
            stage.family
        ),
        stage.serving_by(Protocol::Tcp, &[]),
    )
    .passes(
        &Frame::tcp(ACK, stage.client, stage.frontend),
        Pass::MidFlow,
    )
    .passes(
        &Frame::tcp(RST, stage.client, stage.frontend),
        Pass::MidFlow,
    )
}

fn adopting(stage: Stage) -> Scene {
    let ack = Frame::tcp(ACK, stage.client, stage.frontend);
    let reset = Frame {
        flags: RST,
        seq: ack.ack,
        ack: 0,
        ..reply_to(&ack)
    };
    let mut memory = stage.serving_by(Protocol::Tcp, &[]);
    memory.settings.flags = SettingsFlags::ADOPT_MID_FLOW;
    Scene::new(
        format!(
            "TCP over {}: no endpoints, a reset is not answered",
            stage.family
        ),
        memory,
    )
    .from_client(&ack, NO_ENDPOINT_RESET, &reset)
    .drops(
        &Frame::tcp(RST, stage.client, stage.frontend),
        Drop::NoAnswer,
    )
    .drops(
        &Frame::tcp(RST_ACK, stage.client, stage.frontend),
        Drop::NoAnswer,
    )
    .from_client(
        &Frame::tcp(SYN, stage.client, stage.frontend),
        NO_ENDPOINT_RESET,
        &reset_to(&Frame::tcp(SYN, stage.client, stage.frontend), 1),
    )
}

fn no_local_endpoint(stage: Stage, protocol: Protocol) -> Scene {
    let mut memory = stage.serving(protocol);
    memory.frontend_mut(at(stage.frontend), protocol).flags = FrontendFlags::LOCAL_ONLY;
    let opening = stage.opening(protocol);
    Scene::new(
        format!(
            "{protocol} over {}: endpoints, but none here that a Local policy allows",
            stage.family
        ),
        memory,
    )
    .drops(&opening, Drop::NoLocalEndpoint)
    .check(|memory| assert!(memory.flows.borrow().is_empty()))
}

fn counted(stage: Stage, protocol: Protocol) -> Scene {
    let opening = stage.opening(protocol);
    let (verdict, answer) = match protocol {
        Protocol::Tcp => (NO_ENDPOINT_RESET, reset_to(&opening, 1).bytes()),
        Protocol::Udp | Protocol::Sctp => {
            let quoted = opening.packet().len();
            (
                NO_ENDPOINT_UNREACHABLE,
                unreachable(&opening, quoted).bytes(),
            )
        }
    };
    let mut expected = ServiceCounters::default();
    expected.refuse(RefusalReason::NoEndpoint);
    Scene::new(
        format!("{protocol} over {}: refusals are counted", stage.family),
        stage.serving_by(protocol, &[]),
    )
    .from_client(&opening, verdict, answer)
    .check(move |memory| assert_eq!(memory.counters.borrow()[&1], expected))
}

//! Flows that would look the same to their backend.

use super::stage::{
    FORWARD, ICMP_ERROR, NEW_FLOW, NO_SERVICE, PROTOCOLS, REVERSE, STAGES, Stage, at, host,
    port_unreachable,
};
use crate::abi::{Drop, Port, Protocol};
use crate::datapath::parse::TCP_RST;
use crate::testing::{Frame, Icmp, Memory, Scene};

pub(super) fn scenes() -> Vec<Scene> {
    let mut scenes = Vec::new();
    for stage in STAGES {
        for protocol in PROTOCOLS {
            scenes.extend([
                kept_apart(stage, protocol),
                exhausted(stage, protocol),
                straight_to_the_backend(stage, protocol),
                straight_after(stage, protocol),
                error_about(stage, protocol),
            ]);
        }
    }
    scenes
}

/// The only port that a client's port can be mapped to.
const MAPPED: u16 = 61_000;

/// Two Services with the same backend.
fn sharing(stage: Stage, protocol: Protocol) -> Memory {
    let mut memory = stage.serving(protocol);
    let _service = memory.serve(at(stage.other_frontend), protocol, &[at(stage.backend)]);
    memory.settings.first_port = Port::new(MAPPED);
    memory.settings.last_port = Port::new(MAPPED);
    memory
}

/// The client as it looks after its port is mapped.
fn mapped(client: &str) -> String {
    client.replace("40000", &MAPPED.to_string())
}

fn kept_apart(stage: Stage, protocol: Protocol) -> Scene {
    let Stage {
        client,
        backend,
        other_frontend,
        ..
    } = stage;
    let mapped = &mapped(client);
    let (one, more, answer) = (
        stage.opening(protocol),
        stage.more(protocol),
        stage.answer(protocol),
    );
    let other = one.between(client, other_frontend);
    let more_other = more.between(client, other_frontend);
    let answer_other = answer.between(backend, mapped);
    Scene::new(
        format!(
            "{protocol} over {}: one client port, two Services, one backend",
            stage.family
        ),
        sharing(stage, protocol),
    )
    .from_client(&one, NEW_FLOW, &stage.forward(&one))
    .from_client(&other, NEW_FLOW, &other.between(mapped, backend))
    .to_client(
        &answer_other,
        REVERSE,
        &answer_other.between(other_frontend, client),
    )
    .to_client(&answer, REVERSE, &stage.reverse(&answer))
    .from_client(&more_other, FORWARD, &more_other.between(mapped, backend))
    .from_client(&more, FORWARD, &stage.forward(&more))
}

fn exhausted(stage: Stage, protocol: Protocol) -> Scene {
    let Stage {
        client,
        backend,
        other_frontend,
        frontend,
        ..
    } = stage;
    let third_frontend = &frontend.replace(":80", ":81");
    let one = stage.opening(protocol);
    let other = one.between(client, other_frontend);
    let mut memory = sharing(stage, protocol);
    let _service = memory.serve(at(third_frontend), protocol, &[at(backend)]);
    Scene::new(
        format!(
            "{protocol} over {}: no port is left to keep two flows apart",
            stage.family
        ),
        memory,
    )
    .from_client(&one, NEW_FLOW, &stage.forward(&one))
    .from_client(&other, NEW_FLOW, &other.between(&mapped(client), backend))
    .drops(&one.between(client, third_frontend), Drop::PortsExhausted)
    .check(|memory| assert_eq!(memory.flows.borrow().len(), 4))
}

/// It is not seen by the datapath which flows a client has to the backend itself, but packets of
/// such a flow are no business of a Service's.
fn straight_to_the_backend(stage: Stage, protocol: Protocol) -> Scene {
    let opening = stage.opening(protocol).between(stage.client, stage.backend);
    Scene::new(
        format!(
            "{protocol} over {}: a flow to the backend itself is left alone",
            stage.family
        ),
        stage.serving(protocol),
    )
    .passes(&opening, NO_SERVICE)
    .passes_to_client(&stage.answer(protocol), NO_SERVICE)
}

/// The client's port is used again, for the backend itself.
fn straight_after(stage: Stage, protocol: Protocol) -> Scene {
    let (one, more) = (stage.opening(protocol), stage.more(protocol));
    let straight = one.between(stage.client, stage.backend);
    let end = match protocol {
        Protocol::Tcp => Frame {
            flags: TCP_RST,
            ..more.clone()
        },
        Protocol::Sctp => Frame::sctp(6, stage.client, stage.frontend),
        Protocol::Udp => more,
    };
    let scene = Scene::new(
        format!(
            "{protocol} over {}: a flow to the backend itself after one through a Service",
            stage.family
        ),
        stage.serving(protocol),
    )
    .from_client(&one, NEW_FLOW, &stage.forward(&one))
    .passes(&straight, NO_SERVICE)
    .check(|memory| assert_eq!(memory.flows.borrow().len(), 2))
    .from_client(&end, FORWARD, &stage.forward(&end))
    .passes(&straight, NO_SERVICE);
    match protocol {
        // Nothing tells when a flow of datagrams is over, but time.
        Protocol::Udp => scene,
        Protocol::Tcp | Protocol::Sctp => scene
            .passes_to_client(&stage.answer(protocol), NO_SERVICE)
            .check(|memory| assert!(memory.flows.borrow().is_empty())),
    }
}

fn error_about(stage: Stage, protocol: Protocol) -> Scene {
    let Stage {
        client,
        backend,
        other_frontend,
        ..
    } = stage;
    let one = stage.opening(protocol);
    let other = one.between(client, other_frontend);
    let header = if stage.family == "IPv4" { 20 } else { 40 };
    let quote = |frame: &Frame| frame.packet()[..header + 8].to_vec();
    let error = |from: &str, quoted: &Frame| {
        Icmp::new(port_unreachable(&one), from, &host(client), quote(quoted))
    };
    // UDP's checksum is among the eight bytes, TCP's and SCTP's are not.
    let sent = other.between(&mapped(client), backend);
    Scene::new(
        format!(
            "{protocol} over {}: an error about a flow with a mapped port",
            stage.family
        ),
        sharing(stage, protocol),
    )
    .from_client(&one, NEW_FLOW, &stage.forward(&one))
    .from_client(&other, NEW_FLOW, &sent)
    .to_client(
        &error(&host(backend), &sent),
        ICMP_ERROR,
        &error(&host(other_frontend), &other),
    )
    .to_client(
        &error(stage.router, &sent),
        ICMP_ERROR,
        &error(stage.router, &other),
    )
}

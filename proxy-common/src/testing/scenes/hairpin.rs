//! A pod that reaches itself through a Service.

use super::stage::{
    GONE_ABORT, GONE_RESET, HAIRPIN_FORWARD, HAIRPIN_REVERSE, ICMP_ERROR, NEW_FLOW, PROTOCOLS,
    REVERSE, RST, STAGES, Stage, at, header_of, host, ip, port_unreachable, reply_to, with_port,
};
use crate::abi::{Port, Protocol};
use crate::testing::{Frame, Icmp, Memory, Scene, Sent, Skb};

pub(super) fn scenes() -> Vec<Scene> {
    let mut scenes = Vec::new();
    for stage in STAGES {
        for protocol in PROTOCOLS {
            for has_node in [true, false] {
                scenes.extend([
                    there_and_back(stage, protocol, has_node),
                    error_from_the_backend(stage, protocol, has_node),
                    error_from_the_client(stage, protocol, has_node),
                    pieces(stage, protocol, has_node),
                ]);
            }
            scenes.extend([
                two_services(stage, protocol),
                beside_another_backend(stage, protocol),
            ]);
        }
        scenes.extend([gone(stage, Protocol::Tcp), gone(stage, Protocol::Sctp)]);
    }
    scenes
}

/// A Service whose only backend is the client, and whom the backend takes for the client: an
/// address of the node or, if none is known, the Service's.
fn alone(stage: Stage, protocol: Protocol, has_node: bool) -> (Memory, String) {
    let mut memory = stage.serving_by(protocol, &[stage.self_backend]);
    if !has_node {
        return (memory, stage.frontend.replace(":80", ":40000"));
    }
    let node = at(&with_port(stage.node, 40_000)).ip();
    if node.is_ipv4() {
        memory.settings.node_v4 = node.into();
    } else {
        memory.settings.node_v6 = node.into();
    }
    (memory, with_port(stage.node, 40_000))
}

fn title(stage: Stage, protocol: Protocol, has_node: bool, what: &str) -> String {
    let as_what = if has_node { "the node" } else { "the Service" };
    format!(
        "{protocol} over {}: a pod dials itself as {as_what}: {what}",
        stage.family
    )
}

fn there_and_back(stage: Stage, protocol: Protocol, has_node: bool) -> Scene {
    let (memory, source) = alone(stage, protocol, has_node);
    let (opening, more, answer) = (
        stage.opening(protocol),
        stage.more(protocol),
        stage.answer(protocol),
    );
    let answer = answer.between(stage.self_backend, &source);
    let forward = |frame: &Frame| frame.between(&source, stage.self_backend).turned();
    let reverse = |frame: &Frame| frame.between(stage.frontend, stage.client).turned();
    Scene::new(
        title(stage, protocol, has_node, "all is turned back"),
        memory,
    )
    .from_client(&opening, HAIRPIN_FORWARD, &forward(&opening))
    .from_client(&answer, HAIRPIN_REVERSE, &reverse(&answer))
    .from_client(&more, HAIRPIN_FORWARD, &forward(&more))
    .from_client(&answer, HAIRPIN_REVERSE, &reverse(&answer))
}

/// The pod as a backend complains about what it got from the pod as a client.
fn error_from_the_backend(stage: Stage, protocol: Protocol, has_node: bool) -> Scene {
    let (memory, source) = alone(stage, protocol, has_node);
    let opening = stage.opening(protocol);
    let got = opening.between(&source, stage.self_backend);
    let kind = port_unreachable(&opening);
    let error = Icmp::new(
        kind,
        &host(stage.self_backend),
        &host(&source),
        header_of(&got),
    );
    let client = host(stage.client);
    let expected = Icmp::new(kind, &host(stage.frontend), &client, header_of(&opening)).turned();
    Scene::new(
        title(stage, protocol, has_node, "errors reach the client"),
        memory,
    )
    .from_client(&opening, HAIRPIN_FORWARD, &got.turned())
    .from_client(&error, ICMP_ERROR, &expected)
    .sent(Sent::Out(Skb::DEVICE))
}

/// The pod as a client complains about an answer.
fn error_from_the_client(stage: Stage, protocol: Protocol, has_node: bool) -> Scene {
    let (memory, source) = alone(stage, protocol, has_node);
    let opening = stage.opening(protocol);
    let answer = stage.answer(protocol).between(stage.self_backend, &source);
    let got = answer.between(stage.frontend, stage.client);
    let kind = port_unreachable(&opening);
    let error = Icmp::new(
        kind,
        &host(stage.client),
        &host(stage.frontend),
        header_of(&got),
    );
    let backend = host(stage.self_backend);
    let expected = Icmp::new(kind, &host(&source), &backend, header_of(&answer)).turned();
    Scene::new(
        title(stage, protocol, has_node, "errors reach the backend"),
        memory,
    )
    .from_client(
        &opening,
        HAIRPIN_FORWARD,
        &opening.between(&source, stage.self_backend).turned(),
    )
    .from_client(&answer, HAIRPIN_REVERSE, &got.turned())
    .from_client(&error, ICMP_ERROR, &expected)
    .sent(Sent::Out(Skb::DEVICE))
}

fn pieces(stage: Stage, protocol: Protocol, has_node: bool) -> Scene {
    let port = &stage.self_backend.replace("8080", "80");
    let (mut memory, source) = alone(stage, protocol, has_node);
    memory.point(at(stage.frontend), protocol, &[at(port)]);
    let opening = stage.opening(protocol);
    let long = opening.with_payload([opening.payload.clone(), vec![7; 200]].concat());
    let (first, second) = (long.piece(3, 0, 128), long.piece(3, 128, 128));
    let forward = |frame: &Frame| frame.between(&source, port).turned();
    Scene::new(
        title(stage, protocol, has_node, "pieces are turned back"),
        memory,
    )
    .from_client(&first, HAIRPIN_FORWARD, &forward(&first))
    .from_client(&second, HAIRPIN_FORWARD, &forward(&second))
}

/// From the same port, to the same port of its own.
fn two_services(stage: Stage, protocol: Protocol) -> Scene {
    let Stage {
        client,
        self_backend,
        frontend,
        other_frontend,
        ..
    } = stage;
    let (mut memory, source) = alone(stage, protocol, true);
    let _service = memory.serve(at(other_frontend), protocol, &[at(self_backend)]);
    memory.settings.first_port = Port::new(61_000);
    memory.settings.last_port = Port::new(61_000);
    let mapped = &source.replace("40000", "61000");
    let one = stage.opening(protocol);
    let other = one.between(client, other_frontend);
    let answer = stage.answer(protocol).between(self_backend, &source);
    let answer_other = answer.between(self_backend, mapped);
    Scene::new(
        title(stage, protocol, true, "by two Services at once"),
        memory,
    )
    .from_client(
        &one,
        HAIRPIN_FORWARD,
        &one.between(&source, self_backend).turned(),
    )
    .from_client(
        &other,
        HAIRPIN_FORWARD,
        &other.between(mapped, self_backend).turned(),
    )
    .from_client(
        &answer_other,
        HAIRPIN_REVERSE,
        &answer.between(other_frontend, client).turned(),
    )
    .from_client(
        &answer,
        HAIRPIN_REVERSE,
        &answer.between(frontend, client).turned(),
    )
}

/// Whether a flow is a hairpin depends on the backend chosen, not on the Service (rule R77).
fn beside_another_backend(stage: Stage, protocol: Protocol) -> Scene {
    let (mut memory, source) = alone(stage, protocol, true);
    let Stage {
        client,
        self_backend,
        other_client,
        frontend,
        backend,
        ..
    } = stage;
    memory.point(at(frontend), protocol, &[at(self_backend)]);
    let (opening, answer) = (stage.opening(protocol), stage.answer(protocol));
    let other = opening.between(other_client, frontend);
    let answer_other = answer.between(backend, other_client);
    Scene::new(
        title(stage, protocol, true, "and another backend, too"),
        memory,
    )
    .from_client(
        &opening,
        HAIRPIN_FORWARD,
        &opening.between(&source, self_backend).turned(),
    )
    .change(move |memory| memory.point(at(frontend), protocol, &[at(backend)]))
    .from_client(&other, NEW_FLOW, &other.between(other_client, backend))
    .to_client(
        &answer_other,
        REVERSE,
        &answer_other.between(frontend, other_client),
    )
    .from_client(
        &answer.between(self_backend, &source),
        HAIRPIN_REVERSE,
        &answer.between(frontend, client).turned(),
    )
}

fn gone(stage: Stage, protocol: Protocol) -> Scene {
    let (memory, source) = alone(stage, protocol, true);
    let (opening, more) = (stage.opening(protocol), stage.more(protocol));
    let bare = reply_to(&more);
    let (verdict, reply) = match protocol {
        Protocol::Tcp => (
            GONE_RESET,
            Frame {
                flags: RST,
                seq: more.ack,
                ack: 0,
                ..bare
            },
        ),
        Protocol::Udp | Protocol::Sctp => (GONE_ABORT, bare.with_payload([6, 1, 0, 4])),
    };
    Scene::new(
        title(stage, protocol, true, "until it is no backend any more"),
        memory,
    )
    .from_client(
        &opening,
        HAIRPIN_FORWARD,
        &opening.between(&source, stage.self_backend).turned(),
    )
    .change(move |memory| memory.remove_backends_at(ip(stage.self_backend)))
    .from_client(&more, verdict, &reply)
}

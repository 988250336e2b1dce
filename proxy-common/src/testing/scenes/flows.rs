//! Flows as they usually are.

use super::stage::{FORWARD, NEW_FLOW, PROTOCOLS, REVERSE, STAGES, Stage, at};
use crate::abi::{Protocol, ServiceCounters};
use crate::testing::Scene;

pub(super) fn scenes() -> Vec<Scene> {
    let mut scenes = Vec::new();
    for stage in STAGES {
        for protocol in PROTOCOLS {
            scenes.extend([
                there_and_back(stage, protocol),
                same_port(stage, protocol),
                lengths(stage, protocol),
                large(stage, protocol),
                two_clients(stage, protocol),
                counted(stage, protocol),
            ]);
        }
    }
    scenes
}

fn there_and_back(stage: Stage, protocol: Protocol) -> Scene {
    let (opening, more, answer) = (
        stage.opening(protocol),
        stage.more(protocol),
        stage.answer(protocol),
    );
    Scene::new(
        format!(
            "{protocol} over {}: packets go to the backend and answers come back",
            stage.family
        ),
        stage.serving(protocol),
    )
    .from_client(&opening, NEW_FLOW, &stage.forward(&opening))
    .to_client(&answer, REVERSE, &stage.reverse(&answer))
    .from_client(&more, FORWARD, &stage.forward(&more))
    .from_client(&opening, FORWARD, &stage.forward(&opening))
    .to_client(&answer, REVERSE, &stage.reverse(&answer))
}

fn same_port(stage: Stage, protocol: Protocol) -> Scene {
    let backend = &at(stage.frontend).port().to_string();
    let backend = &stage.backend.replace("8080", backend);
    let (opening, answer) = (stage.opening(protocol), stage.answer(protocol));
    let answer = answer.between(backend, stage.client);
    Scene::new(
        format!(
            "{protocol} over {}: the backend's port is the Service's",
            stage.family
        ),
        stage.serving_by(protocol, &[backend]),
    )
    .from_client(&opening, NEW_FLOW, &opening.between(stage.client, backend))
    .to_client(&answer, REVERSE, &stage.reverse(&answer))
}

fn lengths(stage: Stage, protocol: Protocol) -> Scene {
    let opening = stage.opening(protocol);
    let mut scene = Scene::new(
        format!(
            "{protocol} over {}: payloads of any length, odd ones too",
            stage.family
        ),
        stage.serving(protocol),
    )
    .from_client(&opening, NEW_FLOW, &stage.forward(&opening));
    // Two bytes of a chunk are the least that an SCTP packet has.
    let shortest = if protocol == Protocol::Sctp { 2 } else { 0 };
    for len in [
        shortest,
        1 + shortest,
        2,
        3,
        4,
        5,
        7,
        8,
        9,
        333,
        1_024,
        1_447,
    ] {
        let payload: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
        let (more, answer) = (
            stage.more(protocol).with_payload(payload.clone()),
            stage.answer(protocol).with_payload(payload),
        );
        scene = scene
            .from_client(&more, FORWARD, &stage.forward(&more))
            .to_client(&answer, REVERSE, &stage.reverse(&answer));
    }
    scene
}

fn large(stage: Stage, protocol: Protocol) -> Scene {
    let opening = stage.opening(protocol);
    let more = stage.more(protocol).with_payload(vec![0xa5; 60_001]);
    Scene::new(
        format!("{protocol} over {}: many segments in one", stage.family),
        stage.serving(protocol),
    )
    .from_client(&opening, NEW_FLOW, &stage.forward(&opening))
    .from_client(&more, FORWARD, &stage.forward(&more))
}

fn two_clients(stage: Stage, protocol: Protocol) -> Scene {
    let one = stage.opening(protocol);
    let other = one.between(stage.other_client, stage.frontend);
    let (to_one, to_other) = (
        stage.answer(protocol),
        stage
            .answer(protocol)
            .between(stage.backend, stage.other_client),
    );
    Scene::new(
        format!("{protocol} over {}: two flows keep apart", stage.family),
        stage.serving(protocol),
    )
    .from_client(&one, NEW_FLOW, &stage.forward(&one))
    .from_client(
        &other,
        NEW_FLOW,
        &other.between(stage.other_client, stage.backend),
    )
    .to_client(
        &to_other,
        REVERSE,
        &to_other.between(stage.frontend, stage.other_client),
    )
    .to_client(&to_one, REVERSE, &stage.reverse(&to_one))
}

fn counted(stage: Stage, protocol: Protocol) -> Scene {
    let (opening, answer) = (stage.opening(protocol), stage.answer(protocol));
    let bytes = (opening.bytes().len() + answer.bytes().len() + opening.bytes().len()) as u64;
    let expected = ServiceCounters {
        packets: 3,
        bytes,
        flows: 1,
        refused: [0; 6],
    };
    Scene::new(
        format!(
            "{protocol} over {}: packets, bytes and flows are counted",
            stage.family
        ),
        stage.serving(protocol),
    )
    .from_client(&opening, NEW_FLOW, &stage.forward(&opening))
    .to_client(&answer, REVERSE, &stage.reverse(&answer))
    .from_client(&opening, FORWARD, &stage.forward(&opening))
    .check(move |memory| assert_eq!(memory.counters.borrow()[&1], expected))
}

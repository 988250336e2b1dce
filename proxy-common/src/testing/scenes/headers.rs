//! IP headers that are longer than usual.

use super::stage::{FORWARD, NEW_FLOW, PROTOCOLS, REVERSE, Stage, V4, V6};
use crate::abi::{Pass, Protocol};
use crate::testing::{Extension, Frame, Scene};

pub(super) fn scenes() -> Vec<Scene> {
    let mut scenes = Vec::new();
    for protocol in PROTOCOLS {
        scenes.extend([4, 24, 40].map(|len| options(protocol, len)));
        scenes.extend([
            extended(protocol, "a hop-by-hop header", vec![hop_by_hop()]),
            extended(protocol, "a routing header", vec![routing()]),
            extended(
                protocol,
                "a destination header of 64 bytes",
                vec![destination(62)],
            ),
            extended(protocol, "an authentication header", vec![authentication()]),
            extended(
                protocol,
                "four extension headers",
                vec![hop_by_hop(), destination(14), routing(), authentication()],
            ),
            extended(
                protocol,
                "the six headers of RFC 8200",
                vec![destination(6); 6],
            ),
            too_many(protocol),
        ]);
    }
    scenes
}

fn options(protocol: Protocol, len: usize) -> Scene {
    // No operation, up to the end.
    let lengthen = |frame: Frame| Frame {
        options: vec![1; len],
        ..frame
    };
    there_and_back(
        V4,
        protocol,
        &format!("{len} bytes of IPv4 options"),
        lengthen,
    )
}

fn extended(protocol: Protocol, what: &str, extensions: Vec<Extension>) -> Scene {
    let lengthen = |frame: Frame| Frame {
        extensions: extensions.clone(),
        ..frame
    };
    there_and_back(V6, protocol, what, lengthen)
}

fn there_and_back(
    stage: Stage,
    protocol: Protocol,
    what: &str,
    lengthen: impl Fn(Frame) -> Frame,
) -> Scene {
    let opening = lengthen(stage.opening(protocol));
    let more = lengthen(stage.more(protocol));
    let answer = lengthen(stage.answer(protocol));
    Scene::new(format!("{protocol} behind {what}"), stage.serving(protocol))
        .from_client(&opening, NEW_FLOW, &stage.forward(&opening))
        .to_client(&answer, REVERSE, &stage.reverse(&answer))
        .from_client(&more, FORWARD, &stage.forward(&more))
}

fn too_many(protocol: Protocol) -> Scene {
    let extensions = vec![destination(6); 7];
    let opening = Frame {
        extensions,
        ..V6.opening(protocol)
    };
    Scene::new(
        format!("{protocol} behind more extension headers than any honest packet has passes"),
        V6.serving(protocol),
    )
    .passes(&opening, Pass::Malformed)
}

/// Padding.
fn hop_by_hop() -> Extension {
    Extension {
        kind: 0,
        content: vec![1, 4, 0, 0, 0, 0],
    }
}

/// Of no known kind, no segments left.
fn routing() -> Extension {
    Extension {
        kind: 43,
        content: vec![253, 0, 0, 0, 0, 0],
    }
}

/// Padding.
fn destination(len: usize) -> Extension {
    Extension {
        kind: 60,
        content: vec![0; len],
    }
}

/// Its length counts words, not eights.
fn authentication() -> Extension {
    Extension {
        kind: 51,
        content: vec![0x5a; 22],
    }
}

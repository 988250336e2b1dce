//! ICMP errors about packets whose source is replaced.

use super::{Arrives, NO_ROUTE, outside};
use crate::abi::{Pass, Protocol, Verdict};
use crate::datapath::Hook;
use crate::testing::scenes::site::UPLINK;
use crate::testing::scenes::stage::{
    ICMP_ERROR, PROTOCOLS, REVERSE, STAGES, Stage, header_of, host, port_unreachable,
};
use crate::testing::{Frame, Icmp, Scene};

pub(super) fn scenes() -> Vec<Scene> {
    let mut scenes = Vec::new();
    for stage in STAGES {
        for protocol in PROTOCOLS {
            scenes.extend([
                error_from_a_router(stage, protocol),
                error_from_the_backend(stage, protocol),
                error_from_the_client(stage, protocol),
                error_without_route(stage, protocol),
                error_about_something_else(stage, protocol),
            ]);
        }
    }
    scenes
}

fn error_from_a_router(stage: Stage, protocol: Protocol) -> Scene {
    let flow = outside(stage, protocol);
    let opening = flow.opening();
    let kind = if stage.family == "IPv4" {
        [3, 4]
    } else {
        [2, 0]
    };
    let error = |from: &str, to: &str, about: &Frame| Icmp {
        parameter: 1_400,
        ..Icmp::new(kind, from, to, header_of(about))
    };
    flow.opened("a router's error reaches the client").arrives(
        &error(stage.router, stage.uplink, &flow.forward(&opening)),
        ICMP_ERROR,
        // In the frontend's name: the router itself may be the next hop.
        &error(&host(&flow.dialled), &host(stage.outside), &opening),
    )
}

fn error_from_the_backend(stage: Stage, protocol: Protocol) -> Scene {
    let flow = outside(stage, protocol);
    let opening = flow.opening();
    let error = |from: &str, to: &str, about: &Frame| {
        Icmp::new(
            port_unreachable(&opening),
            &host(from),
            to,
            header_of(about),
        )
    };
    flow.opened("the backend's error reaches the client")
        .arrives(
            &error(stage.backend, stage.uplink, &flow.forward(&opening)),
            ICMP_ERROR,
            &error(&flow.dialled, &host(stage.outside), &opening),
        )
}

fn error_from_the_client(stage: Stage, protocol: Protocol) -> Scene {
    let flow = outside(stage, protocol);
    let answer = flow.answer();
    let error = |from: &str, to: &str, about: &Frame| {
        Icmp::new(port_unreachable(&answer), from, &host(to), header_of(about))
    };
    flow.opened("the client's error reaches the backend")
        .arrives(&answer, REVERSE, &flow.reverse(&answer))
        .arrives(
            &error(&host(stage.outside), &flow.dialled, &flow.reverse(&answer)),
            ICMP_ERROR,
            &error(stage.uplink, stage.backend, &answer),
        )
}

fn error_without_route(stage: Stage, protocol: Protocol) -> Scene {
    let flow = outside(stage, protocol);
    let about = flow.forward(&flow.opening());
    let kind = port_unreachable(&about);
    let error = Icmp::new(kind, stage.router, stage.uplink, header_of(&about));
    flow.opened("an error to where no route leads")
        .change(|memory| memory.routes.clear())
        .vanishes(&error, NO_ROUTE)
}

/// What leaves is none of the flow's, and what quotes the packet before its translation neither.
fn error_about_something_else(stage: Stage, protocol: Protocol) -> Scene {
    let flow = outside(stage, protocol);
    let opening = flow.opening();
    let kind = port_unreachable(&opening);
    let error = |about: &Frame| Icmp::new(kind, stage.router, stage.uplink, header_of(about));
    let pass = Verdict::Pass(Pass::UnrelatedError);
    let (translated, not) = (error(&flow.forward(&opening)), error(&opening));
    flow.opened("errors about something else")
        .seen(Hook::NodeEgress, &translated, pass, &translated)
        .by(UPLINK)
        .seen(Hook::NodeIngress, &not, pass, &not)
        .by(UPLINK)
}

//! Which port takes the place of the client's.

use std::collections::BTreeSet;

use super::{Arrives, outside, outside_to, title};
use crate::abi::{Drop, FlowRole, Port, Protocol, Settings, Verdict};
use crate::datapath::{Hook, decide};
use crate::testing::scenes::site::{Kind, MAPPED};
use crate::testing::scenes::stage::{
    FIN_ACK, FORWARD, NEW_FLOW, PROTOCOLS, REVERSE, RST, SHUTDOWN_COMPLETE, STAGES, Stage, at,
    host, with_port,
};
use crate::testing::{Frame, Memory, Scene, Skb};

const EXHAUSTED: Verdict = Verdict::Drop(Drop::PortsExhausted);

pub(super) fn scenes() -> Vec<Scene> {
    let mut scenes = Vec::new();
    for stage in STAGES {
        for protocol in PROTOCOLS {
            scenes.extend([
                port_in_range(stage, protocol),
                two_services(stage, protocol),
                exhausted(stage, protocol),
                lost_record(stage, protocol),
            ]);
        }
        scenes.extend([
            takes_over(stage, Protocol::Tcp),
            takes_over(stage, Protocol::Sctp),
            stays(stage),
        ]);
    }
    scenes
}

/// A client's many ports are spread over the range, which is not that of the host's own
/// connections.
fn port_in_range(stage: Stage, protocol: Protocol) -> Scene {
    let mut flow = outside(stage, protocol);
    flow.memory.settings.first_port = Settings::DEFAULT.first_port;
    flow.memory.settings.last_port = Settings::DEFAULT.last_port;
    let name = title(
        stage,
        protocol,
        "ports are taken from their range, and differ",
    );
    Scene::new(name, flow.memory.clone()).check(move |memory| {
        let ports: BTreeSet<_> = (1..=200)
            .map(|port| {
                let client = with_port(&host(stage.outside), port * 300);
                source_port(memory, &flow.opening().between(&client, &flow.dialled))
            })
            .collect();
        assert_eq!(ports.len(), 200);
        assert!(ports.iter().all(|port| (10_000..30_000).contains(port)));
        assert!(ports.first().is_some_and(|&port| port < 12_000));
        assert!(ports.last().is_some_and(|&port| port > 28_000));
    })
}

/// The source port that a packet leaves with when it opens a flow.
fn source_port(memory: &Memory, opening: &Frame) -> u16 {
    let mut skb = Skb {
        routes: memory.routes.clone(),
        ..Skb::new(opening.bytes())
    };
    assert_eq!(decide(&mut skb, memory, Hook::NodeIngress), NEW_FLOW);
    let l4 = if opening.src.is_ipv4() { 34 } else { 54 };
    u16::from_be_bytes([skb.bytes[l4], skb.bytes[l4 + 1]])
}

/// Two Services with the same backend, one client port: answers tell them apart by the port that
/// they go to.
fn two_services(stage: Stage, protocol: Protocol) -> Scene {
    let mut flow = outside_to(stage, protocol, Kind::ClusterIp);
    let other_frontend = stage.other_frontend;
    let _service = flow
        .memory
        .serve(at(other_frontend), protocol, &[at(stage.backend)]);
    flow.memory.settings.last_port = Port::new(MAPPED + 1);
    let (opening, answer) = (flow.opening(), flow.answer());
    let other = opening.between(stage.outside, other_frontend);
    // Which port comes first is for the hash to say; the second flow gets the other one.
    let first = source_port(&flow.memory.clone(), &opening);
    flow.memory.flows.borrow_mut().clear();
    flow.memory.counters.borrow_mut().clear();
    let second = if first == MAPPED { MAPPED + 1 } else { MAPPED };
    let [first, second] = [first, second].map(|port| with_port(stage.uplink, port));
    let answers = [&first, &second].map(|to| answer.between(stage.backend, to));
    flow.scene("two Services share a backend and a client's port")
        .arrives(&opening, NEW_FLOW, &opening.between(&first, stage.backend))
        .arrives(&other, NEW_FLOW, &other.between(&second, stage.backend))
        .arrives(&answers[0], REVERSE, &flow.reverse(&answer))
        .arrives(
            &answers[1],
            REVERSE,
            &answer.between(other_frontend, stage.outside),
        )
}

fn exhausted(stage: Stage, protocol: Protocol) -> Scene {
    let flow = outside(stage, protocol);
    let other = with_port(&host(stage.outside), 40_001);
    let other = flow.opening().between(&other, &flow.dialled);
    flow.opened("no port is left")
        .vanishes(&other, EXHAUSTED)
        .check(|memory| assert_eq!(memory.flows.borrow().len(), 2))
}

/// A record may be evicted: the next packet that opens the flow makes it anew, with the same port.
fn lost_record(stage: Stage, protocol: Protocol) -> Scene {
    let flow = outside(stage, protocol);
    let (opening, answer) = (flow.opening(), flow.answer());
    flow.opened("a lost record is made anew")
        .change(|memory| {
            let mut flows = memory.flows.borrow_mut();
            flows.retain(|_, flow| flow.role == FlowRole::Reverse as u8);
        })
        .arrives(&opening, NEW_FLOW, &flow.forward(&opening))
        .arrives(&answer, REVERSE, &flow.reverse(&answer))
        .check(|memory| assert_eq!(memory.flows.borrow().len(), 2))
}

/// A connection of another client port that is over does not keep its port.
fn takes_over(stage: Stage, protocol: Protocol) -> Scene {
    let flow = outside(stage, protocol);
    let last = match protocol {
        Protocol::Tcp => Frame::tcp(RST, stage.outside, &flow.dialled),
        Protocol::Udp | Protocol::Sctp => {
            Frame::sctp(SHUTDOWN_COMPLETE, stage.outside, &flow.dialled)
        }
    };
    let other = with_port(&host(stage.outside), 40_001);
    let opening = flow.opening().between(&other, &flow.dialled);
    let answer = flow.answer();
    flow.opened("the port of a flow that is over is free")
        .arrives(&last, FORWARD, &flow.forward(&last))
        .arrives(&opening, NEW_FLOW, &flow.forward(&opening))
        .arrives(&answer, REVERSE, &answer.between(&flow.dialled, &other))
        .check(|memory| assert_eq!(memory.flows.borrow().len(), 2))
}

/// A connection that is about to close still has its port.
fn stays(stage: Stage) -> Scene {
    let flow = outside(stage, Protocol::Tcp);
    let fin = Frame::tcp(FIN_ACK, stage.outside, &flow.dialled);
    let other = with_port(&host(stage.outside), 40_001);
    flow.opened("the port of a flow that is closing is not free")
        .arrives(&fin, FORWARD, &flow.forward(&fin))
        .vanishes(&flow.opening().between(&other, &flow.dialled), EXHAUSTED)
}

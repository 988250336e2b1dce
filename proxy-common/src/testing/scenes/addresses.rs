//! Which address and port leads to a Service (rules R85 to R94).

mod ranges;
mod unused;

use super::site::{KINDS, Kind, POD, UPLINK, site};
use super::stage::{
    FORWARD, NEW_FLOW, NO_SERVICE, PROTOCOLS, REVERSE, RST_ACK, STAGES, Stage, at, host, reply_to,
    unreachable, with_port,
};
use crate::abi::{Addr, AddressFlags, BackendFlags, FrontendKey, Pass, Port, Protocol, Verdict};
use crate::datapath::Hook;
use crate::testing::{Frame, Scene};

const PASS: Verdict = Verdict::Pass(NO_SERVICE);

pub(super) fn scenes() -> Vec<Scene> {
    let mut scenes = unused::scenes();
    scenes.extend(ranges::scenes());
    for stage in STAGES {
        for protocol in PROTOCOLS {
            for kind in KINDS {
                scenes.extend([reached(stage, protocol, kind)]);
            }
            scenes.extend([
                exact_match_first(stage, protocol),
                node_port_elsewhere(stage, protocol),
                other_protocol(stage, protocol),
                external_other_port(stage, protocol),
            ]);
        }
    }
    scenes
}

fn title(stage: Stage, what: &str) -> String {
    format!("addresses over {}: {what}", stage.family)
}

trait Comes: Sized {
    /// Somebody outside sends this.
    fn comes(
        self,
        packet: impl Into<Vec<u8>>,
        verdict: Verdict,
        expected: impl Into<Vec<u8>>,
    ) -> Self;

    /// Somebody outside sends this, and it stays as it is.
    fn ignored(self, packet: impl Into<Vec<u8>>, reason: Pass) -> Self;
}

impl Comes for Scene {
    fn comes(
        self,
        packet: impl Into<Vec<u8>>,
        verdict: Verdict,
        expected: impl Into<Vec<u8>>,
    ) -> Self {
        self.seen(Hook::NodeIngress, packet, verdict, expected)
            .by(UPLINK)
    }

    fn ignored(self, packet: impl Into<Vec<u8>>, reason: Pass) -> Self {
        let packet = packet.into();
        self.comes(packet.clone(), Verdict::Pass(reason), packet)
    }
}

/// From a pod and from outside, with a backend here that sees who it is.
fn reached(stage: Stage, protocol: Protocol, kind: Kind) -> Scene {
    let memory = site(stage, protocol, kind, &[stage.local_backend]);
    let dialled = &kind.dialled(stage);
    let clients = [
        (Hook::PodIngress, Hook::PodEgress, POD, stage.client),
        (Hook::NodeIngress, Hook::NodeEgress, UPLINK, stage.outside),
    ];
    let scene = Scene::new(
        title(stage, &format!("{protocol}, {kind:?} is reached")),
        memory,
    );
    clients
        .into_iter()
        .fold(scene, |scene, (there, back, device, client)| {
            let opening = stage.opening(protocol).between(client, dialled);
            let more = stage.more(protocol).between(client, dialled);
            let answer = stage.answer(protocol).between(stage.local_backend, client);
            let forward = |frame: &Frame| frame.between(client, stage.local_backend);
            scene
                .seen(there, &opening, NEW_FLOW, &forward(&opening))
                .by(device)
                .seen(back, &answer, REVERSE, &answer.between(dialled, client))
                .by(device)
                .seen(there, &more, FORWARD, &forward(&more))
                .by(device)
        })
}

/// An external IP that is the node's own address, with the number of a NodePort (rule R94).
fn exact_match_first(stage: Stage, protocol: Protocol) -> Scene {
    let kind = Kind::NodePort;
    let mut memory = site(stage, protocol, kind, &[stage.local_backend]);
    let dialled = &kind.dialled(stage);
    let flags = memory.addresses[&Addr::from(at(dialled).ip())];
    let _service = memory.serve(at(dialled), protocol, &[at(stage.self_backend)]);
    let both = flags.union(AddressFlags::EXTERNAL);
    let _flags = memory.addresses.insert(at(dialled).ip().into(), both);
    let opening = stage.opening(protocol).between(stage.outside, dialled);
    for backend in &mut memory.backends {
        backend.flags = backend.flags.union(BackendFlags::IS_LOCAL);
    }
    let exact = FrontendKey::exact(
        at(dialled).ip().into(),
        Port::new(at(dialled).port()),
        protocol,
    );
    let what = format!("{protocol}, an exact match comes before a NodePort");
    Scene::new(title(stage, &what), memory)
        .comes(
            &opening,
            NEW_FLOW,
            &opening.between(stage.outside, stage.self_backend),
        )
        .change(move |memory| {
            memory.flows.borrow_mut().clear();
            let _external = memory.frontends.remove(&exact);
        })
        .comes(
            &opening,
            NEW_FLOW,
            &opening.between(stage.outside, stage.local_backend),
        )
}

/// At an address of the node that does not take them, at another node's (rules R85, R91).
fn node_port_elsewhere(stage: Stage, protocol: Protocol) -> Scene {
    let memory = site(stage, protocol, Kind::NodePort, &[stage.local_backend]);
    let to = |host: &str| {
        stage
            .opening(protocol)
            .between(stage.outside, &with_port(host, 30_080))
    };
    let what = format!("{protocol}, NodePorts where they are not taken");
    Scene::new(title(stage, &what), memory)
        .ignored(&to(stage.uplink), NO_SERVICE)
        .ignored(&to(stage.router), NO_SERVICE)
        .ignored(
            &stage
                .opening(protocol)
                .between(stage.outside, &with_port(stage.node, 30_081)),
            NO_SERVICE,
        )
}

fn other_protocol(stage: Stage, protocol: Protocol) -> Scene {
    let memory = site(stage, protocol, Kind::NodePort, &[stage.local_backend]);
    let dialled = &Kind::NodePort.dialled(stage);
    let what = format!("a NodePort for {protocol} is none for others");
    let others = PROTOCOLS.into_iter().filter(|other| *other != protocol);
    others.fold(Scene::new(title(stage, &what), memory), |scene, other| {
        let opening = stage.opening(other).between(stage.outside, dialled);
        scene.ignored(&opening, NO_SERVICE)
    })
}

/// The address may have another use (rule R15).
fn external_other_port(stage: Stage, protocol: Protocol) -> Scene {
    let memory = site(stage, protocol, Kind::External, &[stage.local_backend]);
    let other = with_port(&host(stage.frontend), 81);
    let what = format!("{protocol}, another port of an external address");
    Scene::new(title(stage, &what), memory).ignored(
        &stage.opening(protocol).between(stage.outside, &other),
        NO_SERVICE,
    )
}

/// The refusal of a packet that opens a flow.
fn refusal(opening: &Frame, reset: Verdict, other: Verdict) -> (Verdict, Vec<u8>) {
    if opening.protocol == Protocol::Tcp {
        let answer = Frame {
            flags: RST_ACK,
            seq: 0,
            ack: opening.seq + 1,
            ..reply_to(opening)
        };
        (reset, answer.bytes())
    } else {
        let quoted = opening.packet().len();
        (other, unreachable(opening, quoted).bytes())
    }
}

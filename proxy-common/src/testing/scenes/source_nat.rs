//! Flows whose client's address is replaced: their packets go past the stack, both ways.

mod errors;
mod lengths;
mod ports;

use super::site::{KINDS, Kind, POD, UPLINK, frontend, place, site};
use super::stage::{
    ACK, FIN_ACK, FORWARD, HAIRPIN_FORWARD, NEW_FLOW, NO_SERVICE, PROTOCOLS, REVERSE,
    SCTP_FRAGMENT, SECOND, STAGES, SYN, SYN_ACK, Stage, V4, V6, all_in, host, ip, with_port,
};
use crate::abi::{
    Addr, Drop, FlowState, FrontendFlags, Pass, Protocol, RefusalReason, SettingsFlags, Verdict,
};
use crate::datapath::Hook;
use crate::testing::{Extension, Frame, Memory, Scene, Sent};

const NO_ROUTE: Verdict = Verdict::Drop(Drop::NoRoute);
const TO_UPLINK: Sent = Sent::Neighbour(UPLINK);
const TO_POD: Sent = Sent::Neighbour(POD);

pub(super) fn scenes() -> Vec<Scene> {
    let mut scenes = vec![behind_options(), behind_extensions()];
    scenes.extend(errors::scenes());
    scenes.extend(lengths::scenes());
    scenes.extend(ports::scenes());
    for stage in STAGES {
        for protocol in PROTOCOLS {
            for kind in KINDS {
                scenes.push(there_and_back(stage, protocol, kind));
            }
            scenes.extend([
                by_a_local_pod(stage, protocol),
                from_pod_to_pod(stage, protocol),
                address_of_settings(stage, protocol),
                no_address(stage, protocol),
                no_route_there(stage, protocol),
                no_route_back(stage, protocol),
                pieces(stage, protocol),
                hairpin(stage, protocol),
                hairpin_at_the_pod(stage, protocol),
                partial(stage, protocol),
            ]);
        }
        scenes.extend([conversation(stage), ages(stage)]);
    }
    scenes
}

fn title(stage: Stage, protocol: Protocol, what: &str) -> String {
    format!("{protocol} over {}, source NAT: {what}", stage.family)
}

/// A Service whose backend is elsewhere, and what somebody outside sends to it.
struct Outside {
    stage: Stage,
    protocol: Protocol,
    dialled: String,
    memory: Memory,
}

fn outside(stage: Stage, protocol: Protocol) -> Outside {
    outside_to(stage, protocol, Kind::NodePort)
}

fn outside_to(stage: Stage, protocol: Protocol, kind: Kind) -> Outside {
    Outside {
        stage,
        protocol,
        dialled: kind.dialled(stage),
        memory: site(stage, protocol, kind, &[stage.backend]),
    }
}

impl Outside {
    fn opening(&self) -> Frame {
        let opening = self.stage.opening(self.protocol);
        opening.between(self.stage.outside, &self.dialled)
    }

    fn more(&self) -> Frame {
        let more = self.stage.more(self.protocol);
        more.between(self.stage.outside, &self.dialled)
    }

    fn answer(&self) -> Frame {
        let answer = self.stage.answer(self.protocol);
        answer.between(self.stage.backend, &self.stage.mapped())
    }

    /// What the client sends as the backend gets it.
    fn forward(&self, frame: &Frame) -> Frame {
        frame.between(&self.stage.mapped(), self.stage.backend)
    }

    /// What the backend sends as the client gets it.
    fn reverse(&self, frame: &Frame) -> Frame {
        frame.between(&self.dialled, self.stage.outside)
    }

    fn scene(&self, what: &str) -> Scene {
        let name = title(self.stage, self.protocol, what);
        Scene::new(name, self.memory.clone())
    }

    /// The flow has begun.
    fn opened(&self, what: &str) -> Scene {
        let opening = self.opening();
        self.scene(what)
            .arrives(&opening, NEW_FLOW, &self.forward(&opening))
    }
}

trait Arrives: Sized {
    /// A packet comes in by the uplink and leaves by it past the stack.
    fn arrives(
        self,
        packet: impl Into<Vec<u8>>,
        verdict: Verdict,
        expected: impl Into<Vec<u8>>,
    ) -> Self;

    /// A packet comes in by the uplink and goes no further.
    fn vanishes(self, packet: impl Into<Vec<u8>>, verdict: Verdict) -> Self;
}

impl Arrives for Scene {
    fn arrives(
        self,
        packet: impl Into<Vec<u8>>,
        verdict: Verdict,
        expected: impl Into<Vec<u8>>,
    ) -> Self {
        self.seen(Hook::NodeIngress, packet, verdict, expected)
            .by(UPLINK)
            .sent(TO_UPLINK)
    }

    fn vanishes(self, packet: impl Into<Vec<u8>>, verdict: Verdict) -> Self {
        self.seen(Hook::NodeIngress, packet, verdict, []).by(UPLINK)
    }
}

fn there_and_back(stage: Stage, protocol: Protocol, kind: Kind) -> Scene {
    let flow = outside_to(stage, protocol, kind);
    let (more, answer) = (flow.more(), flow.answer());
    flow.opened(&format!("{kind:?}, there and back"))
        .arrives(&answer, REVERSE, &flow.reverse(&answer))
        .arrives(&more, FORWARD, &flow.forward(&more))
        .arrives(&answer, REVERSE, &flow.reverse(&answer))
        .check(|memory| {
            assert_eq!(memory.flows.borrow().len(), 2);
            let counters = memory.counters.borrow()[&1];
            assert_eq!(
                (counters.packets, counters.flows, counters.n_refused()),
                (4, 1, 0)
            );
        })
}

/// As kube-proxy does it, where it is not needed: the answer comes in from the pod.
fn by_a_local_pod(stage: Stage, protocol: Protocol) -> Scene {
    let kind = Kind::External;
    let mut memory = site(stage, protocol, kind, &[stage.local_backend]);
    memory.settings.flags = SettingsFlags::SOURCE_NAT_LIKE_KUBE_PROXY;
    let (dialled, mapped) = (&kind.dialled(stage), &stage.mapped_here());
    let opening = stage.opening(protocol).between(stage.outside, dialled);
    let answer = stage.answer(protocol).between(stage.local_backend, mapped);
    Scene::new(
        title(stage, protocol, "a pod here answers to this node"),
        memory,
    )
    .arrives(
        &opening,
        NEW_FLOW,
        &opening.between(mapped, stage.local_backend),
    )
    .sent(TO_POD)
    .seen(
        Hook::PodIngress,
        &answer,
        REVERSE,
        &answer.between(dialled, stage.outside),
    )
    .by(POD)
    .sent(TO_UPLINK)
}

fn from_pod_to_pod(stage: Stage, protocol: Protocol) -> Scene {
    let mut memory = site(stage, protocol, Kind::ClusterIp, &[stage.local_backend]);
    memory.settings.flags = SettingsFlags::MASQUERADE_ALL;
    let mapped = &stage.mapped_here();
    let (opening, more) = (stage.opening(protocol), stage.more(protocol));
    let answer = stage.answer(protocol).between(stage.local_backend, mapped);
    let forward = |frame: &Frame| frame.between(mapped, stage.local_backend);
    Scene::new(title(stage, protocol, "from pod to pod"), memory)
        .seen(Hook::PodIngress, &opening, NEW_FLOW, &forward(&opening))
        .by(POD)
        .sent(TO_POD)
        .seen(Hook::PodIngress, &answer, REVERSE, &stage.reverse(&answer))
        .by(POD)
        .sent(TO_POD)
        .seen(Hook::PodIngress, &more, FORWARD, &forward(&more))
        .by(POD)
        .sent(TO_POD)
        .passes_to_client(&stage.reverse(&answer), NO_SERVICE)
        .by(POD)
}

/// The uplink has no address of this family.
fn address_of_settings(stage: Stage, protocol: Protocol) -> Scene {
    let mut flow = outside(stage, protocol);
    let uplink = flow.memory.devices.get_mut(&UPLINK).expect("the uplink");
    (uplink.v4, uplink.v6) = (Addr::UNSPECIFIED, Addr::UNSPECIFIED);
    let mapped = &stage.mapped_here();
    let opening = flow.opening();
    let answer = flow.answer().between(stage.backend, mapped);
    flow.scene("the device has no address, that of the settings serves")
        .arrives(&opening, NEW_FLOW, &opening.between(mapped, stage.backend))
        .arrives(&answer, REVERSE, &flow.reverse(&answer))
}

/// Nor has this node one; those of the other family do not help.
fn no_address(stage: Stage, protocol: Protocol) -> Scene {
    let mut flow = outside(stage, protocol);
    let uplink = flow.memory.devices.get_mut(&UPLINK).expect("the uplink");
    let settings = &mut flow.memory.settings;
    if stage.family == "IPv4" {
        let other = Addr::from(ip("[2001:db8::1]:0"));
        (uplink.v4, uplink.v6) = (Addr::UNSPECIFIED, other);
        (settings.node_v4, settings.node_v6) = (Addr::UNSPECIFIED, other);
    } else {
        let other = Addr::from(ip("192.0.2.1:0"));
        (uplink.v4, uplink.v6) = (other, Addr::UNSPECIFIED);
        (settings.node_v4, settings.node_v6) = (other, Addr::UNSPECIFIED);
    }
    flow.scene("this node has no address of the family")
        .vanishes(&flow.opening(), NO_ROUTE)
        .check(|memory| {
            assert!(memory.flows.borrow().is_empty());
            let refused = memory.counters.borrow()[&1].refused;
            assert_eq!(refused[RefusalReason::Other as usize], 1);
        })
}

fn no_route_there(stage: Stage, protocol: Protocol) -> Scene {
    let mut flow = outside(stage, protocol);
    flow.memory.routes.clear();
    let opening = flow.opening();
    flow.scene("no route to the backend")
        .vanishes(&opening, NO_ROUTE)
        .check(|memory| assert!(memory.flows.borrow().is_empty()))
        .change(move |memory| place(stage, memory))
        .arrives(&opening, NEW_FLOW, &flow.forward(&opening))
        .change(|memory| memory.routes.clear())
        .vanishes(&flow.more(), NO_ROUTE)
}

fn no_route_back(stage: Stage, protocol: Protocol) -> Scene {
    let flow = outside(stage, protocol);
    flow.opened("no route back to the client")
        .change(|memory| memory.routes.clear())
        .vanishes(&flow.answer(), NO_ROUTE)
}

/// Both records go through all states together.
fn conversation(stage: Stage) -> Scene {
    let flow = outside(stage, Protocol::Tcp);
    let client = |flags| Frame::tcp(flags, stage.outside, &flow.dialled);
    let backend = |flags| Frame::tcp(flags, stage.backend, &stage.mapped());
    let (syn, ack, fin) = (client(SYN), client(ACK), client(FIN_ACK));
    let (syn_ack, backend_fin) = (backend(SYN_ACK), backend(FIN_ACK));
    flow.opened("a connection from SYN to FIN")
        .check(all_in(FlowState::TcpSynSent))
        .arrives(&syn_ack, REVERSE, &flow.reverse(&syn_ack))
        .check(all_in(FlowState::TcpSynRecv))
        .arrives(&ack, FORWARD, &flow.forward(&ack))
        .check(all_in(FlowState::TcpEstablished))
        .arrives(&fin, FORWARD, &flow.forward(&fin))
        .check(all_in(FlowState::TcpFinWait))
        .arrives(&backend_fin, REVERSE, &flow.reverse(&backend_fin))
        .check(all_in(FlowState::TcpTimeWait))
        .arrives(&syn, NEW_FLOW, &flow.forward(&syn))
        .check(all_in(FlowState::TcpSynSent))
}

fn ages(stage: Stage) -> Scene {
    let flow = outside(stage, Protocol::Udp);
    let (more, answer) = (flow.more(), flow.answer());
    let all_seen_now = |memory: &Memory| {
        let flows = memory.flows.borrow();
        let now = memory.now.get();
        assert!(flows.values().all(|flow| flow.last_seen == now));
    };
    flow.opened("either direction keeps both records young")
        .advance(5 * SECOND)
        .arrives(&answer, REVERSE, &flow.reverse(&answer))
        .check(all_seen_now)
        .advance(5 * SECOND)
        .arrives(&more, FORWARD, &flow.forward(&more))
        .check(all_seen_now)
}

/// Both ways; an SCTP packet in pieces cannot get another port.
fn pieces(stage: Stage, protocol: Protocol) -> Scene {
    let flow = outside(stage, protocol);
    let long = flow.more().with_payload(vec![7; 400]);
    let answer = flow.answer().with_payload(vec![8; 400]);
    let cut = |frame: &Frame, id| {
        [(0, 128), (128, 128), (256, 400)].map(|(offset, len)| frame.piece(id, offset, len))
    };
    let scene = flow.opened("datagrams in pieces");
    if protocol == Protocol::Sctp {
        return scene.vanishes(&cut(&long, 5)[0], SCTP_FRAGMENT);
    }
    let scene = cut(&long, 5).iter().fold(scene, |scene, piece| {
        scene.arrives(piece, FORWARD, &flow.forward(piece))
    });
    let unknown = &cut(&answer, 7)[1];
    cut(&answer, 6)
        .iter()
        .fold(scene, |scene, piece| {
            scene.arrives(piece, REVERSE, &flow.reverse(piece))
        })
        .seen(
            Hook::NodeIngress,
            unknown,
            Verdict::Pass(Pass::UnknownFragment),
            unknown,
        )
        .by(UPLINK)
}

/// A pod of another node gets itself as backend: it sees this node, and so its answer comes back
/// here (rule R77), under a policy that keeps everybody else's address.
fn hairpin(stage: Stage, protocol: Protocol) -> Scene {
    let kind = Kind::External;
    let mut memory = site(stage, protocol, kind, &[stage.backend]);
    memory.settings.flags = SettingsFlags::SOURCE_NAT_LIKE_KUBE_PROXY;
    let frontend = frontend(&mut memory, stage, protocol, kind);
    frontend.flags = frontend.flags.union(FrontendFlags::LOCAL_ONLY);
    frontend.n_local = 1;
    let client = &with_port(&host(stage.backend), 40_000);
    let dialled = &kind.dialled(stage);
    let mapped = &stage.mapped();
    let opening = stage.opening(protocol).between(client, dialled);
    let answer = stage.answer(protocol).between(stage.backend, mapped);
    let name = title(stage, protocol, "a pod elsewhere that reaches itself");
    Scene::new(name, memory)
        .arrives(&opening, NEW_FLOW, &opening.between(mapped, stage.backend))
        .arrives(&answer, REVERSE, &answer.between(dialled, client))
}

/// Whatever else would replace its source, a pod that reaches itself is turned back.
fn hairpin_at_the_pod(stage: Stage, protocol: Protocol) -> Scene {
    let mut memory = site(stage, protocol, Kind::ClusterIp, &[stage.self_backend]);
    memory.settings.flags =
        SettingsFlags::SOURCE_NAT_LIKE_KUBE_PROXY.union(SettingsFlags::MASQUERADE_ALL);
    let opening = stage.opening(protocol);
    let node = with_port(stage.node, 40_000);
    let name = title(stage, protocol, "a pod that reaches itself");
    Scene::new(name, memory)
        .from_client(
            &opening,
            HAIRPIN_FORWARD,
            &opening.between(&node, stage.self_backend).turned(),
        )
        .by(POD)
}

/// Of a pod on this node, say.
fn partial(stage: Stage, protocol: Protocol) -> Scene {
    let flow = outside(stage, protocol);
    let (more, answer) = (flow.more(), flow.answer());
    flow.opened("checksums that are left to the device")
        .partial(
            Hook::NodeIngress,
            &more,
            FORWARD,
            &flow.forward(&more).partial(),
        )
        .by(UPLINK)
        .sent(TO_UPLINK)
        .partial(
            Hook::NodeIngress,
            &answer,
            REVERSE,
            &flow.reverse(&answer).partial(),
        )
        .by(UPLINK)
        .sent(TO_UPLINK)
}

fn behind_options() -> Scene {
    let flow = outside(V4, Protocol::Udp);
    let bare = Frame {
        no_checksum: true,
        options: vec![1; 12],
        ..flow.more()
    };
    flow.opened("a datagram without checksum, behind options")
        .arrives(&bare, FORWARD, &flow.forward(&bare))
}

fn behind_extensions() -> Scene {
    let flow = outside(V6, Protocol::Udp);
    let extension = Extension {
        kind: 60,
        content: vec![0; 6],
    };
    let behind = Frame {
        extensions: vec![extension],
        ..flow.more()
    };
    flow.opened("behind extension headers")
        .arrives(&behind, FORWARD, &flow.forward(&behind))
}

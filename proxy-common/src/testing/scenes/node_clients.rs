//! What this node's own processes send to Services, and what they get back.

mod refusals;

use super::site::{HOST, KINDS, Kind, LOOPBACK, MAPPED, POD, UPLINK, entering, mac, place, site};
use super::stage::{
    FORWARD, ICMP_ERROR, NEW_FLOW, NO_SERVICE, PROTOCOLS, REVERSE, STAGES, Stage, at, header_of,
    host, port_unreachable, with_port,
};
use crate::abi::{Drop, Pass, Port, Protocol, SettingsFlags, Side, Verdict};
use crate::datapath::Hook;
use crate::testing::{Frame, Icmp, Memory, Scene, Sent};

const DELIVERED: Verdict = Verdict::Pass(Pass::Delivered);
const PASS: Verdict = Verdict::Pass(NO_SERVICE);
const NO_ROUTE: Verdict = Verdict::Drop(Drop::NoRoute);

pub(super) fn scenes() -> Vec<Scene> {
    let mut scenes = refusals::scenes();
    for stage in STAGES {
        for protocol in PROTOCOLS {
            for kind in KINDS {
                for device in [UPLINK, HOST, LOOPBACK] {
                    scenes.push(there_and_back(stage, protocol, kind, device));
                }
                scenes.extend([
                    to_the_node_itself(stage, protocol, kind),
                    to_a_pod_here(stage, protocol, kind),
                    from_loopback(stage, protocol, kind),
                    only_its_own(stage, protocol, kind),
                ]);
            }
            scenes.extend([
                same_source(stage, protocol),
                source_in_use(stage, protocol),
                pretender(stage, protocol),
                delivered(stage, protocol),
                no_host_device(stage, protocol),
                unknown_device(stage, protocol),
                answers_of_pods(stage, protocol),
            ]);
        }
    }
    scenes
}

fn title(stage: Stage, protocol: Protocol, what: &str) -> String {
    format!(
        "{protocol} over {}, the node as client: {what}",
        stage.family
    )
}

/// A process of this node dials a Service whose backend is elsewhere.
struct Process {
    stage: Stage,
    protocol: Protocol,
    client: String,
    dialled: String,
    memory: Memory,
}

fn process(stage: Stage, protocol: Protocol, kind: Kind) -> Process {
    Process {
        stage,
        protocol,
        client: stage.process(),
        dialled: kind.dialled(stage),
        memory: site(stage, protocol, kind, &[stage.backend]),
    }
}

impl Process {
    fn opening(&self) -> Frame {
        let opening = self.stage.opening(self.protocol);
        opening.between(&self.client, &self.dialled)
    }

    fn more(&self) -> Frame {
        let more = self.stage.more(self.protocol);
        more.between(&self.client, &self.dialled)
    }

    fn answer(&self) -> Frame {
        let answer = self.stage.answer(self.protocol);
        answer.between(self.stage.backend, &self.stage.mapped())
    }

    fn forward(&self, frame: &Frame) -> Frame {
        frame.between(&self.stage.mapped(), self.stage.backend)
    }

    fn reverse(&self, frame: &Frame, device: u32) -> Frame {
        entering(&frame.between(&self.dialled, &self.client), device)
    }

    fn opened(&self, what: &str) -> Scene {
        let opening = self.opening();
        Scene::new(title(self.stage, self.protocol, what), self.memory.clone()).leaves(
            UPLINK,
            &opening,
            NEW_FLOW,
            &self.forward(&opening),
        )
    }
}

trait Leaves: Sized {
    /// A packet leaves by a device, and is sent to the uplink's neighbour instead.
    fn leaves(
        self,
        device: u32,
        packet: impl Into<Vec<u8>>,
        verdict: Verdict,
        expected: impl Into<Vec<u8>>,
    ) -> Self;

    /// A packet leaves by the uplink as it is.
    fn left_alone(self, packet: impl Into<Vec<u8>>, reason: Pass) -> Self;
}

impl Leaves for Scene {
    fn leaves(
        self,
        device: u32,
        packet: impl Into<Vec<u8>>,
        verdict: Verdict,
        expected: impl Into<Vec<u8>>,
    ) -> Self {
        self.seen(Hook::NodeEgress, packet, verdict, expected)
            .by(device)
            .sent(Sent::Neighbour(UPLINK))
    }

    fn left_alone(self, packet: impl Into<Vec<u8>>, reason: Pass) -> Self {
        let packet = packet.into();
        self.seen(
            Hook::NodeEgress,
            packet.clone(),
            Verdict::Pass(reason),
            packet,
        )
        .by(UPLINK)
    }
}

/// By an uplink, by `beeline0` or by `lo`, as the routes say: the answer comes in where the packet
/// would have left.
fn there_and_back(stage: Stage, protocol: Protocol, kind: Kind, device: u32) -> Scene {
    let flow = process(stage, protocol, kind);
    let (opening, more, answer) = (flow.opening(), flow.more(), flow.answer());
    let what = format!("{kind:?} by device {device}");
    Scene::new(title(stage, protocol, &what), flow.memory.clone())
        .leaves(device, &opening, NEW_FLOW, &flow.forward(&opening))
        .seen(
            Hook::NodeIngress,
            &answer,
            REVERSE,
            &flow.reverse(&answer, device),
        )
        .by(UPLINK)
        .sent(Sent::In(device))
        .leaves(device, &more, FORWARD, &flow.forward(&more))
}

/// A backend in this node's own network namespace: all goes by `lo`.
fn to_the_node_itself(stage: Stage, protocol: Protocol, kind: Kind) -> Scene {
    let server = &stage.server();
    let memory = site(stage, protocol, kind, &[server]);
    let (client, dialled) = (&stage.process(), &kind.dialled(stage));
    let opening = stage.opening(protocol).between(client, dialled);
    let answer = stage.answer(protocol).between(server, client);
    let forward = |frame: &Frame| entering(&frame.between(client, server), LOOPBACK);
    let what = format!("{kind:?}, a backend in the node itself");
    Scene::new(title(stage, protocol, &what), memory)
        .seen(Hook::NodeEgress, &opening, NEW_FLOW, &forward(&opening))
        .by(UPLINK)
        .sent(Sent::In(LOOPBACK))
        .seen(
            Hook::NodeEgress,
            &answer,
            REVERSE,
            &entering(&answer.between(dialled, client), UPLINK),
        )
        .by(LOOPBACK)
        .sent(Sent::In(UPLINK))
        .seen(Hook::NodeEgress, &opening, FORWARD, &forward(&opening))
        .by(UPLINK)
        .sent(Sent::In(LOOPBACK))
        .check(|memory| {
            let flows = memory.flows.borrow();
            assert!(flows.keys().all(|key| key.side == Side::Egress as u8));
        })
}

/// Its answer comes in by the pod's device.
fn to_a_pod_here(stage: Stage, protocol: Protocol, kind: Kind) -> Scene {
    let memory = site(stage, protocol, kind, &[stage.local_backend]);
    let (client, dialled) = (&stage.process(), &kind.dialled(stage));
    let opening = stage.opening(protocol).between(client, dialled);
    let answer = stage.answer(protocol).between(stage.local_backend, client);
    let what = format!("{kind:?}, a pod here");
    Scene::new(title(stage, protocol, &what), memory)
        .leaves(
            HOST,
            &opening,
            NEW_FLOW,
            &opening.between(client, stage.local_backend),
        )
        .sent(Sent::Neighbour(POD))
        .seen(
            Hook::PodIngress,
            &answer,
            REVERSE,
            &entering(&answer.between(dialled, client), HOST),
        )
        .by(POD)
        .sent(Sent::In(HOST))
}

/// A source that nobody elsewhere could answer is replaced.
fn from_loopback(stage: Stage, protocol: Protocol, kind: Kind) -> Scene {
    let mut flow = process(stage, protocol, kind);
    flow.client = loopback(stage);
    // As it is seen on lo: both link-layer addresses are zero, and yet it has not been delivered.
    let (opening, answer) = (entering(&flow.opening(), LOOPBACK), flow.answer());
    let what = format!("{kind:?} from a loopback address");
    Scene::new(title(stage, protocol, &what), flow.memory.clone())
        .leaves(LOOPBACK, &opening, NEW_FLOW, &flow.forward(&opening))
        .seen(
            Hook::NodeIngress,
            &answer,
            REVERSE,
            &flow.reverse(&answer, LOOPBACK),
        )
        .by(UPLINK)
        .sent(Sent::In(LOOPBACK))
}

fn loopback(stage: Stage) -> String {
    let host = if stage.family == "IPv4" {
        "127.0.0.1"
    } else {
        "::1"
    };
    with_port(host, 40_000)
}

/// What others send through this node is none of its processes' (rule R17), and has been looked at
/// where it came in.
fn only_its_own(stage: Stage, protocol: Protocol, kind: Kind) -> Scene {
    let mut flow = process(stage, protocol, kind);
    let what = format!("{kind:?}, what it forwards is not its own");
    let [pod, outside] =
        [stage.client, stage.outside].map(|client| flow.opening().between(client, &flow.dialled));
    let unused = outside.between(stage.outside, &with_port(&host(&flow.dialled), 9));
    flow.memory.settings.flags = SettingsFlags::SERVICE_CIDRS;
    Scene::new(title(stage, protocol, &what), flow.memory.clone())
        .left_alone(&pod, NO_SERVICE)
        .left_alone(&outside, NO_SERVICE)
        .left_alone(&unused, NO_SERVICE)
        .check(|memory| {
            assert!(memory.flows.borrow().is_empty());
            assert!(memory.counters.borrow().is_empty());
        })
}

/// From the uplink's own address the port can stay.
fn same_source(stage: Stage, protocol: Protocol) -> Scene {
    let mut flow = process(stage, protocol, Kind::ClusterIp);
    flow.client = with_port(stage.uplink, 40_000);
    let opening = flow.opening();
    let answer = flow.answer().between(stage.backend, &flow.client);
    let name = title(stage, protocol, "the source is as it should be");
    Scene::new(name, flow.memory.clone())
        .leaves(
            UPLINK,
            &opening,
            NEW_FLOW,
            &opening.between(&flow.client, stage.backend),
        )
        .seen(
            Hook::NodeIngress,
            &answer,
            REVERSE,
            &flow.reverse(&answer, UPLINK),
        )
        .by(UPLINK)
        .sent(Sent::In(UPLINK))
}

/// Unless another flow of this port has the same backend.
fn source_in_use(stage: Stage, protocol: Protocol) -> Scene {
    let mut flow = process(stage, protocol, Kind::ClusterIp);
    flow.client = with_port(stage.uplink, 40_000);
    let other = stage.other_frontend;
    let _service = flow.memory.serve(at(other), protocol, &[at(stage.backend)]);
    let opening = flow.opening();
    let opening_other = opening.between(&flow.client, other);
    let answer = flow.answer();
    let name = title(stage, protocol, "two Services, one backend, one port");
    Scene::new(name, flow.memory.clone())
        .leaves(
            UPLINK,
            &opening,
            NEW_FLOW,
            &opening.between(&flow.client, stage.backend),
        )
        .leaves(
            UPLINK,
            &opening_other,
            NEW_FLOW,
            &flow.forward(&opening_other),
        )
        .seen(
            Hook::NodeIngress,
            &answer,
            REVERSE,
            &entering(&answer.between(other, &flow.client), UPLINK),
        )
        .by(UPLINK)
        .sent(Sent::In(UPLINK))
}

/// Who sends from the node's own address and port does not get its flow.
fn pretender(stage: Stage, protocol: Protocol) -> Scene {
    let mut flow = process(stage, protocol, Kind::ClusterIp);
    flow.client = with_port(stage.uplink, 40_000);
    flow.memory.settings.first_port = Port::new(40_000);
    flow.memory.settings.last_port = Port::new(40_000);
    let (opening, more) = (flow.opening(), flow.more());
    let forward = |frame: &Frame| frame.between(&flow.client, stage.backend);
    let answer = flow.answer().between(stage.backend, &flow.client);
    let name = title(stage, protocol, "somebody pretends to be the node");
    Scene::new(name, flow.memory.clone())
        .leaves(UPLINK, &opening, NEW_FLOW, &forward(&opening))
        .seen(
            Hook::NodeIngress,
            &opening,
            Verdict::Drop(Drop::PortsExhausted),
            [],
        )
        .by(UPLINK)
        .leaves(UPLINK, &more, FORWARD, &forward(&more))
        .seen(
            Hook::NodeIngress,
            &answer,
            REVERSE,
            &flow.reverse(&answer, UPLINK),
        )
        .by(UPLINK)
        .sent(Sent::In(UPLINK))
}

/// A packet that Beeline lets in goes past the same program once more. It may look like one that
/// opens a flow to a NodePort; from anybody else, or a pod, it does open one.
fn delivered(stage: Stage, protocol: Protocol) -> Scene {
    let kind = Kind::NodePort;
    let memory = site(stage, protocol, kind, &[stage.local_backend]);
    let opening = stage
        .opening(protocol)
        .between(stage.outside, &kind.dialled(stage));
    let delivered = entering(&opening, UPLINK);
    let almost = Frame {
        from_mac: mac(HOST),
        ..delivered.clone()
    };
    let name = title(stage, protocol, "what is delivered is let through");
    Scene::new(name, memory)
        .seen(Hook::NodeIngress, &delivered, DELIVERED, &delivered)
        .by(UPLINK)
        .check(|memory| assert!(memory.flows.borrow().is_empty()))
        .seen(
            Hook::NodeIngress,
            &almost,
            NEW_FLOW,
            &almost.between(stage.outside, stage.local_backend),
        )
        .by(UPLINK)
        .seen(
            Hook::PodIngress,
            &delivered.between(stage.client, &kind.dialled(stage)),
            NEW_FLOW,
            &delivered.between(stage.client, stage.local_backend),
        )
        .by(POD)
}

/// Its packets are routed as if they came in by `beeline0`.
fn no_host_device(stage: Stage, protocol: Protocol) -> Scene {
    let mut flow = process(stage, protocol, Kind::External);
    flow.memory.settings.host_device = 0;
    let opening = flow.opening();
    let from_outside = opening.between(stage.outside, &flow.dialled);
    let name = title(stage, protocol, "no device to route its packets by");
    Scene::new(name, flow.memory.clone())
        .seen(Hook::NodeEgress, &opening, NO_ROUTE, [])
        .by(UPLINK)
        .seen(
            Hook::NodeIngress,
            &from_outside,
            NEW_FLOW,
            &flow.forward(&from_outside),
        )
        .by(UPLINK)
        .sent(Sent::Neighbour(UPLINK))
        .change(move |memory| place(stage, memory))
        .change(|memory| memory.flows.borrow_mut().clear())
        .leaves(UPLINK, &opening, NEW_FLOW, &flow.forward(&opening))
        .change(|memory| memory.routes.clear())
        .seen(Hook::NodeEgress, &opening, NO_ROUTE, [])
        .by(UPLINK)
}

/// Nothing can come in by a device whose link-layer address is not known.
fn unknown_device(stage: Stage, protocol: Protocol) -> Scene {
    let flow = process(stage, protocol, Kind::External);
    flow.opened("the device where an answer should come in is not known")
        .change(|memory| {
            let _uplink = memory.devices.remove(&UPLINK);
        })
        .seen(Hook::NodeIngress, &flow.answer(), NO_ROUTE, [])
        .by(UPLINK)
}

/// An outside client that keeps its address: the answer of the pod here leaves by the uplink, from
/// the address that was dialled, by the stack.
fn answers_of_pods(stage: Stage, protocol: Protocol) -> Scene {
    let kind = Kind::NodePort;
    let memory = site(stage, protocol, kind, &[stage.local_backend]);
    let dialled = &kind.dialled(stage);
    let opening = stage.opening(protocol).between(stage.outside, dialled);
    let answer = stage
        .answer(protocol)
        .between(stage.local_backend, stage.outside);
    let other = Frame {
        src_port: 9,
        ..answer.clone()
    };
    let reversed = answer.between(dialled, stage.outside);
    let client = host(stage.outside);
    let error = |from: &str, about: &Frame| {
        Icmp::new(port_unreachable(&opening), from, &client, header_of(about))
    };
    let forward = opening.between(stage.outside, stage.local_backend);
    let name = title(stage, protocol, "answers to others leave through it");
    Scene::new(name, memory)
        .seen(Hook::NodeIngress, &opening, NEW_FLOW, &forward)
        .by(UPLINK)
        .seen(Hook::PodIngress, &answer, PASS, &answer)
        .by(POD)
        .seen(Hook::NodeEgress, &answer, REVERSE, &reversed)
        .by(UPLINK)
        .left_alone(&other, NO_SERVICE)
        .seen(
            Hook::NodeEgress,
            &error(&host(stage.local_backend), &forward),
            ICMP_ERROR,
            &error(&host(dialled), &opening),
        )
        .by(UPLINK)
        .check(|memory| {
            let mapped = Port::new(MAPPED);
            let flows = memory.flows.borrow();
            assert!(flows.keys().all(|key| key.tuple.dst_port != mapped));
        })
}

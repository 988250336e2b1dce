//! Flows whose client's address is replaced: their packets go past the stack, both ways.

use std::collections::BTreeSet;

use super::site::{KINDS, Kind, MAPPED, MTU, POD, UPLINK, frontend, place, site};
use super::stage::{
    ACK, FIN_ACK, FORWARD, HAIRPIN_FORWARD, ICMP_ERROR, NEW_FLOW, NO_SERVICE, PROTOCOLS, REVERSE,
    RST, SCTP_FRAGMENT, SECOND, SHUTDOWN_COMPLETE, STAGES, SYN, SYN_ACK, Stage, V4, V6, all_in, at,
    host, ip, port_unreachable, unreachable, with_port,
};
use crate::abi::{
    Addr, Drop, FlowRole, FlowState, FrontendFlags, Pass, Port, Protocol, Reply, Settings,
    SettingsFlags, Verdict,
};
use crate::datapath::{Hook, decide};
use crate::testing::{Extension, Frame, Icmp, Memory, Scene, Sent, Skb};

const TOO_LONG: Verdict = Verdict::Reply(Reply::TooLong);
const NO_ROUTE: Verdict = Verdict::Drop(Drop::NoRoute);
const EXHAUSTED: Verdict = Verdict::Drop(Drop::PortsExhausted);
const TO_UPLINK: Sent = Sent::Neighbour(UPLINK);
const TO_POD: Sent = Sent::Neighbour(POD);

pub(super) fn scenes() -> Vec<Scene> {
    let mut scenes = vec![behind_options(), behind_extensions()];
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
                port_in_range(stage, protocol),
                two_services(stage, protocol),
                exhausted(stage, protocol),
                lost_record(stage, protocol),
                error_from_a_router(stage, protocol),
                error_from_the_backend(stage, protocol),
                error_from_the_client(stage, protocol),
                error_without_route(stage, protocol),
                error_about_something_else(stage, protocol),
                pieces(stage, protocol),
                hairpin(stage, protocol),
                hairpin_at_the_pod(stage, protocol),
                too_long(stage, protocol),
                too_long_back(stage, protocol),
                too_long_in_pieces(stage, protocol),
                unknown_device(stage, protocol),
                partial(stage, protocol),
            ]);
        }
        scenes.extend([
            too_long_partial(stage, Protocol::Tcp),
            too_long_partial(stage, Protocol::Udp),
            takes_over(stage, Protocol::Tcp),
            takes_over(stage, Protocol::Sctp),
            stays(stage),
            conversation(stage),
            ages(stage),
        ]);
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
                (counters.packets, counters.flows, counters.refused),
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
            assert_eq!(memory.counters.borrow()[&1].refused, 1);
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

/// The IP header and eight bytes.
fn quote(frame: &Frame) -> Vec<u8> {
    let header = if frame.src.is_ipv4() { 20 } else { 40 };
    frame.packet()[..header + 8].to_vec()
}

fn error_from_a_router(stage: Stage, protocol: Protocol) -> Scene {
    let flow = outside(stage, protocol);
    let opening = flow.opening();
    let kind = if stage.family == "IPv4" {
        [3, 4]
    } else {
        [2, 0]
    };
    let error = |to: &str, about: &Frame| Icmp {
        parameter: 1_400,
        ..Icmp::new(kind, stage.router, to, quote(about))
    };
    flow.opened("a router's error reaches the client").arrives(
        &error(stage.uplink, &flow.forward(&opening)),
        ICMP_ERROR,
        &error(&host(stage.outside), &opening),
    )
}

fn error_from_the_backend(stage: Stage, protocol: Protocol) -> Scene {
    let flow = outside(stage, protocol);
    let opening = flow.opening();
    let error = |from: &str, to: &str, about: &Frame| {
        Icmp::new(port_unreachable(&opening), &host(from), to, quote(about))
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
        Icmp::new(port_unreachable(&answer), from, &host(to), quote(about))
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
    let error = Icmp::new(kind, stage.router, stage.uplink, quote(&about));
    flow.opened("an error to where no route leads")
        .change(|memory| memory.routes.clear())
        .vanishes(&error, NO_ROUTE)
}

/// What leaves is none of the flow's, and what quotes the packet before its translation neither.
fn error_about_something_else(stage: Stage, protocol: Protocol) -> Scene {
    let flow = outside(stage, protocol);
    let opening = flow.opening();
    let kind = port_unreachable(&opening);
    let error = |about: &Frame| Icmp::new(kind, stage.router, stage.uplink, quote(about));
    let pass = Verdict::Pass(Pass::UnrelatedError);
    let (translated, not) = (error(&flow.forward(&opening)), error(&opening));
    flow.opened("errors about something else")
        .seen(Hook::NodeEgress, &translated, pass, &translated)
        .by(UPLINK)
        .seen(Hook::NodeIngress, &not, pass, &not)
        .by(UPLINK)
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

/// The error that `frame` is answered with: it is too long for the uplink.
fn too_big(frame: &Frame) -> Icmp {
    let kind = if frame.src.is_ipv4() { [3, 4] } else { [2, 0] };
    Icmp {
        kind,
        parameter: MTU,
        ..unreachable(frame, 72)
    }
}

/// The packet with a payload that makes it so many bytes long, without the Ethernet header.
fn of_length(frame: &Frame, len: u32) -> Frame {
    let bare = frame.with_payload([]).packet().len();
    let len = usize::try_from(len).expect("a length") - bare;
    let first = frame.payload.first().copied().unwrap_or_default();
    frame.with_payload([vec![first], vec![0; len - 1]].concat())
}

fn too_long(stage: Stage, protocol: Protocol) -> Scene {
    let flow = outside(stage, protocol);
    let [fits, long, segments] = [MTU, MTU + 1, 2_800].map(|len| of_length(&flow.more(), len));
    flow.opened("the uplink takes so much and no more")
        .arrives(&fits, FORWARD, &flow.forward(&fits))
        .arrives(&long, TOO_LONG, &too_big(&long))
        .sent(Sent::Out(UPLINK))
        .arrives(&segments, FORWARD, &flow.forward(&segments))
        .segmented()
}

fn too_long_back(stage: Stage, protocol: Protocol) -> Scene {
    let flow = outside(stage, protocol);
    let long = of_length(&flow.answer(), MTU + 1);
    flow.opened("an answer is too long for the uplink")
        .arrives(&long, TOO_LONG, &too_big(&long))
        .sent(Sent::Out(UPLINK))
}

/// Nobody is told about a piece. SCTP can have pieces where no port changes.
fn too_long_in_pieces(stage: Stage, protocol: Protocol) -> Scene {
    let mut flow = outside(stage, protocol);
    let port = at(&flow.dialled).port();
    flow.memory.backends[0].port = Port::new(port);
    flow.memory.settings.first_port = Port::new(40_000);
    flow.memory.settings.last_port = Port::new(40_000);
    let backend = with_port(&host(stage.backend), port);
    let source = with_port(stage.uplink, 40_000);
    let opening = flow.opening();
    let long = flow.more().with_payload(vec![1; 4_000]);
    let too_long = Verdict::Drop(Drop::TooLong);
    flow.scene("pieces that are too long")
        .arrives(&opening, NEW_FLOW, &opening.between(&source, &backend))
        .vanishes(&long.piece(4, 0, 1_600), too_long)
        .vanishes(&long.piece(4, 1_600, 1_600), too_long)
}

/// The device would complete a checksum where the length stands.
fn too_long_partial(stage: Stage, protocol: Protocol) -> Scene {
    let flow = outside(stage, protocol);
    let long = of_length(&flow.more(), MTU + 1);
    flow.opened("a long packet whose checksum is left to the device")
        .partial(Hook::NodeIngress, &long, Verdict::Drop(Drop::TooLong), [])
        .by(UPLINK)
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

/// What is not known of a device is no reason to refuse a packet.
fn unknown_device(stage: Stage, protocol: Protocol) -> Scene {
    let mut flow = outside(stage, protocol);
    let _uplink = flow.memory.devices.remove(&UPLINK);
    let mapped = &stage.mapped_here();
    let long = of_length(&flow.opening(), 1_600);
    flow.scene("nothing is known of the device that it leaves by")
        .arrives(&long, NEW_FLOW, &long.between(mapped, stage.backend))
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

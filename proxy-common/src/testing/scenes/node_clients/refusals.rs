//! What a process of this node is told.

use super::{Leaves, NO_ROUTE, Process, process, title};
use crate::abi::{Protocol, Reply, Verdict};
use crate::datapath::Hook;
use crate::testing::scenes::site::{HOST, Kind, LOOPBACK, MTU, UPLINK, entering, mac, site};
use crate::testing::scenes::stage::{
    GONE_ABORT, GONE_RESET, ICMP_ERROR, NEW_FLOW, NO_ENDPOINT_RESET, NO_ENDPOINT_UNREACHABLE,
    PROTOCOLS, RST, RST_ACK, STAGES, Stage, header_of, host, ip, port_unreachable, reply_to,
    unreachable,
};
use crate::testing::{Frame, Icmp, Scene, Sent};

const TOO_LONG: Verdict = Verdict::Reply(Reply::TooLong);

pub(super) fn scenes() -> Vec<Scene> {
    let mut scenes = Vec::new();
    for stage in STAGES {
        for protocol in PROTOCOLS {
            scenes.extend([
                refused(stage, protocol),
                errors(stage, protocol),
                errors_within_the_node(stage, protocol),
                too_long(stage, protocol),
            ]);
        }
        scenes.extend([
            too_long_partial(stage, Protocol::Tcp),
            too_long_partial(stage, Protocol::Udp),
        ]);
        scenes.extend([gone(stage, Protocol::Tcp), gone(stage, Protocol::Sctp)]);
    }
    scenes
}

fn refused(stage: Stage, protocol: Protocol) -> Scene {
    let mut flow = process(stage, protocol, Kind::External);
    flow.memory = site(stage, protocol, Kind::External, &[]);
    let opening = flow.opening();
    let (verdict, answer) = match protocol {
        Protocol::Tcp => {
            let reset = Frame {
                flags: RST_ACK,
                seq: 0,
                ack: opening.seq + 1,
                ..reply_to(&opening)
            };
            (NO_ENDPOINT_RESET, entering(&reset, HOST).bytes())
        }
        Protocol::Udp | Protocol::Sctp => {
            let error = unreachable(&opening, opening.packet().len());
            let error = Icmp {
                from_mac: mac(HOST),
                to_mac: mac(HOST),
                ..error
            };
            (NO_ENDPOINT_UNREACHABLE, error.bytes())
        }
    };
    let name = title(stage, protocol, "a Service without endpoints");
    Scene::new(name, flow.memory.clone())
        .seen(Hook::NodeEgress, &opening, verdict, answer)
        .by(HOST)
        .sent(Sent::In(HOST))
        .change(|memory| {
            let _beeline0 = memory.devices.remove(&HOST);
        })
        .seen(Hook::NodeEgress, &opening, NO_ROUTE, [])
        .by(HOST)
}

fn gone(stage: Stage, protocol: Protocol) -> Scene {
    let flow = process(stage, protocol, Kind::ClusterIp);
    let more = flow.more();
    let bare = reply_to(&more);
    let (verdict, answer) = if protocol == Protocol::Tcp {
        let reset = Frame {
            flags: RST,
            seq: more.ack,
            ack: 0,
            ..bare
        };
        (GONE_RESET, reset)
    } else {
        (GONE_ABORT, bare.with_payload([6, 1, 0, 4]))
    };
    flow.opened("a backend that is gone")
        .change(move |memory| memory.remove_backends_at(ip(stage.backend)))
        .seen(Hook::NodeEgress, &more, verdict, &entering(&answer, UPLINK))
        .by(UPLINK)
        .sent(Sent::In(UPLINK))
}

/// A router's reaches the process, as if it were the frontend's, and the process' the backend.
fn errors(stage: Stage, protocol: Protocol) -> Scene {
    let flow = process(stage, protocol, Kind::ClusterIp);
    let (opening, answer) = (flow.opening(), flow.answer());
    let kind = port_unreachable(&opening);
    let error = |from: &str, to: &str, about: &Frame| Icmp::new(kind, from, to, header_of(about));
    let in_by_uplink = |error: Icmp| Icmp {
        from_mac: mac(UPLINK),
        to_mac: mac(UPLINK),
        ..error
    };
    let got = answer.between(&flow.dialled, &flow.client);
    flow.opened("errors go both ways")
        .seen(
            Hook::NodeIngress,
            &error(stage.router, stage.uplink, &flow.forward(&opening)),
            ICMP_ERROR,
            &in_by_uplink(error(&host(&flow.dialled), stage.node, &opening)),
        )
        .by(UPLINK)
        .sent(Sent::In(UPLINK))
        .leaves(
            UPLINK,
            &error(stage.node, &host(&flow.dialled), &got),
            ICMP_ERROR,
            &error(stage.uplink, &host(stage.backend), &answer),
        )
        .change(|memory| memory.devices.clear())
        .seen(
            Hook::NodeIngress,
            &error(stage.router, stage.uplink, &flow.forward(&opening)),
            NO_ROUTE,
            [],
        )
        .by(UPLINK)
}

/// Nobody listens in the node itself.
fn errors_within_the_node(stage: Stage, protocol: Protocol) -> Scene {
    let kind = Kind::ClusterIp;
    let server = &stage.server();
    let memory = site(stage, protocol, kind, &[server]);
    let (client, dialled) = (&stage.process(), &kind.dialled(stage));
    let opening = stage.opening(protocol).between(client, dialled);
    let forward = entering(&opening.between(client, server), LOOPBACK);
    let what = port_unreachable(&opening);
    let error = Icmp::new(what, stage.uplink, stage.node, header_of(&forward));
    let expected = Icmp {
        from_mac: mac(UPLINK),
        to_mac: mac(UPLINK),
        ..Icmp::new(what, &host(dialled), stage.node, header_of(&opening))
    };
    let name = title(stage, protocol, "an error from the node itself");
    Scene::new(name, memory)
        .seen(Hook::NodeEgress, &opening, NEW_FLOW, &forward)
        .by(UPLINK)
        .sent(Sent::In(LOOPBACK))
        .seen(Hook::NodeEgress, &error, ICMP_ERROR, &expected)
        .by(LOOPBACK)
        .sent(Sent::In(UPLINK))
}

/// `lo` takes longer packets than the uplink does.
fn too_long(stage: Stage, protocol: Protocol) -> Scene {
    let flow = process(stage, protocol, Kind::NodePort);
    let long = flow.long();
    flow.opened("a packet for lo is too long for the uplink")
        .seen(Hook::NodeEgress, &long, TOO_LONG, &too_big(&long))
        .by(LOOPBACK)
        .sent(Sent::In(LOOPBACK))
}

/// No device completes an answer to the node itself: the length stays where a checksum would go.
fn too_long_partial(stage: Stage, protocol: Protocol) -> Scene {
    let flow = process(stage, protocol, Kind::NodePort);
    let long = flow.long().partial();
    flow.opened("too long, and its checksum is left to the device")
        .partial(Hook::NodeEgress, &long, TOO_LONG, &too_big(&long))
        .by(LOOPBACK)
        .sent(Sent::In(LOOPBACK))
}

/// The error that `frame` is answered with by `lo`.
fn too_big(frame: &Frame) -> Icmp {
    Icmp {
        kind: if frame.src.is_ipv4() { [3, 4] } else { [2, 0] },
        parameter: MTU,
        from_mac: mac(LOOPBACK),
        to_mac: mac(LOOPBACK),
        ..unreachable(frame, 72)
    }
}

impl Process {
    /// A later packet, longer than the uplink takes.
    fn long(&self) -> Frame {
        let more = self.more();
        let first = more.payload.first().copied().unwrap_or_default();
        more.with_payload([vec![first], vec![0; 2_000]].concat())
    }
}

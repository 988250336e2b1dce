//! Traffic that is handed back: what has a record goes on, and nothing else is touched.

use super::site::{KINDS, Kind, POD, UPLINK, frontend, site};
use super::stage::{
    FORWARD, ICMP_ERROR, NEW_FLOW, PROTOCOLS, REVERSE, RST, SECOND, STAGES, Stage, at, host, ip,
    with_port,
};
use crate::abi::{
    FrontendFlags, NetworkFlags, Pass, Protocol, SettingsFlags, SourceRangeKey, Verdict,
};
use crate::datapath::Hook;
use crate::testing::{Frame, Icmp, Memory, Scene, network};

const HANDED_BACK: Verdict = Verdict::Pass(Pass::HandedBack);

pub(super) fn scenes() -> Vec<Scene> {
    let mut scenes = Vec::new();
    for stage in STAGES {
        for protocol in PROTOCOLS {
            scenes.extend([
                goes_on(stage, protocol),
                opens_nothing(stage, protocol),
                refuses_nothing(stage, protocol),
                unused_port(stage, protocol),
                ranges(stage, protocol),
                nothing_local(stage, protocol),
                unallocated(stage, protocol),
                taken_again(stage, protocol),
            ]);
            scenes.extend(KINDS.map(|kind| of_everybody(stage, protocol, kind)));
        }
        scenes.extend([
            error_goes_on(stage),
            over(stage),
            moved(stage),
            mid_flow(stage),
            without_ports(stage),
        ]);
    }
    scenes
}

fn hand_back(memory: &mut Memory) {
    memory.settings.flags = memory.settings.flags.union(SettingsFlags::HANDED_BACK);
}

fn handed_back(mut memory: Memory) -> Memory {
    hand_back(&mut memory);
    memory
}

fn title(stage: Stage, what: &str) -> String {
    format!("handed back over {}: {what}", stage.family)
}

fn goes_on(stage: Stage, protocol: Protocol) -> Scene {
    let opening = stage.opening(protocol);
    let (more, answer) = (stage.more(protocol), stage.answer(protocol));
    let what = format!("{protocol}, a flow goes on");
    Scene::new(title(stage, &what), stage.serving(protocol))
        .from_client(&opening, NEW_FLOW, &stage.forward(&opening))
        .change(hand_back)
        .to_client(&answer, REVERSE, &stage.reverse(&answer))
        .from_client(&more, FORWARD, &stage.forward(&more))
        .from_client(&opening, FORWARD, &stage.forward(&opening))
}

fn opens_nothing(stage: Stage, protocol: Protocol) -> Scene {
    let what = format!("{protocol}, no flow is opened");
    let memory = handed_back(stage.serving(protocol));
    Scene::new(title(stage, &what), memory)
        .passes(&stage.opening(protocol), Pass::HandedBack)
        .check(untouched)
}

fn untouched(memory: &Memory) {
    assert!(memory.flows.borrow().is_empty());
    assert!(memory.affinity.borrow().is_empty());
    assert!(memory.counters.borrow().is_empty());
}

/// A pod, somebody outside and the node, at every kind of address.
fn of_everybody(stage: Stage, protocol: Protocol, kind: Kind) -> Scene {
    let memory = handed_back(site(stage, protocol, kind, &[stage.backend]));
    let from = |client: &str| {
        let opening = stage.opening(protocol);
        opening.between(client, &kind.dialled(stage))
    };
    let [pod, outside, node] = [stage.client, stage.outside, &stage.process()].map(from);
    let what = format!("{protocol}, everybody's packets to {kind:?} are left");
    Scene::new(title(stage, &what), memory)
        .seen(Hook::PodIngress, &pod, HANDED_BACK, &pod)
        .by(POD)
        .seen(Hook::NodeIngress, &outside, HANDED_BACK, &outside)
        .by(UPLINK)
        .seen(Hook::NodeEgress, &node, HANDED_BACK, &node)
        .by(UPLINK)
        .check(untouched)
}

fn refuses_nothing(stage: Stage, protocol: Protocol) -> Scene {
    let what = format!("{protocol}, no endpoints is no refusal");
    let memory = handed_back(stage.serving_by(protocol, &[]));
    Scene::new(title(stage, &what), memory)
        .passes(&stage.opening(protocol), Pass::HandedBack)
        .check(untouched)
}

fn unused_port(stage: Stage, protocol: Protocol) -> Scene {
    let unused = &with_port(&host(stage.frontend), 81);
    let opening = stage.opening(protocol).between(stage.client, unused);
    let what = format!("{protocol}, a port that a cluster IP does not have is no refusal");
    let memory = handed_back(stage.serving(protocol));
    Scene::new(title(stage, &what), memory).passes(&opening, Pass::HandedBack)
}

fn ranges(stage: Stage, protocol: Protocol) -> Scene {
    let mut memory = handed_back(site(stage, protocol, Kind::External, &[stage.backend]));
    let guarded = frontend(&mut memory, stage, protocol, Kind::External);
    guarded.flags = guarded.flags.union(FrontendFlags::SOURCE_RANGES);
    let service = guarded.service;
    let _new = memory.source_ranges.insert(SourceRangeKey {
        prefix_len: 32 + 128,
        service,
        addr: ip(stage.client).into(),
    });
    let opening = stage.opening(protocol);
    let opening = opening.between(stage.outside, stage.frontend);
    let what = format!("{protocol}, source ranges drop nothing");
    Scene::new(title(stage, &what), memory)
        .seen(Hook::NodeIngress, &opening, HANDED_BACK, &opening)
        .by(UPLINK)
}

fn nothing_local(stage: Stage, protocol: Protocol) -> Scene {
    let mut memory = handed_back(site(stage, protocol, Kind::External, &[stage.backend]));
    let local = frontend(&mut memory, stage, protocol, Kind::External);
    local.flags = local.flags.union(FrontendFlags::LOCAL_ONLY);
    let opening = stage.opening(protocol);
    let opening = opening.between(stage.outside, stage.frontend);
    let what = format!("{protocol}, the policy Local drops nothing");
    Scene::new(title(stage, &what), memory)
        .seen(Hook::NodeIngress, &opening, HANDED_BACK, &opening)
        .by(UPLINK)
}

fn with_services(stage: Stage, protocol: Protocol) -> Memory {
    let mut memory = stage.serving(protocol);
    let services = if stage.family == "IPv4" {
        "10.96.0.0/16"
    } else {
        "fd00:96::/64"
    };
    let _services = memory
        .networks
        .insert(network(services), NetworkFlags::SERVICES);
    memory.settings.flags = SettingsFlags::SERVICE_CIDRS;
    handed_back(memory)
}

fn unallocated(stage: Stage, protocol: Protocol) -> Scene {
    let opening = stage.opening(protocol);
    let opening = opening.between(stage.client, stage.other_frontend);
    let what = format!("{protocol}, an address that no Service has is not dropped");
    Scene::new(title(stage, &what), with_services(stage, protocol))
        .passes(&opening, Pass::HandedBack)
}

/// ICMP echoes at cluster IPs, of a Service and of none.
fn without_ports(stage: Stage) -> Scene {
    let kind = if stage.family == "IPv4" { 8 } else { 128 };
    let echo = |to: &str| Icmp::new([kind, 0], &host(stage.client), &host(to), vec![7; 8]);
    let memory = with_services(stage, Protocol::Tcp);
    Scene::new(
        title(stage, "an echo is neither refused nor dropped"),
        memory,
    )
    .passes(&echo(stage.frontend), Pass::HandedBack)
    .passes(&echo(stage.other_frontend), Pass::HandedBack)
    .passes(&echo(stage.backend), Pass::UnrelatedError)
}

/// A daemon has started again.
fn taken_again(stage: Stage, protocol: Protocol) -> Scene {
    let opening = stage.opening(protocol);
    let what = format!("{protocol}, and taken again");
    Scene::new(title(stage, &what), handed_back(stage.serving(protocol)))
        .passes(&opening, Pass::HandedBack)
        .change(|memory| memory.settings.flags = SettingsFlags::NONE)
        .from_client(&opening, NEW_FLOW, &stage.forward(&opening))
}

fn error_goes_on(stage: Stage) -> Scene {
    let opening = stage.opening(Protocol::Udp);
    let translated = stage.forward(&opening);
    let kind = if stage.family == "IPv4" {
        [3, 1]
    } else {
        [1, 0]
    };
    let error = |about: &Frame| {
        let (from, to) = (stage.router, host(stage.client));
        Icmp::new(kind, from, &to, about.packet())
    };
    let what = "an ICMP error about a flow is translated";
    Scene::new(title(stage, what), stage.serving(Protocol::Udp))
        .from_client(&opening, NEW_FLOW, &translated)
        .change(hand_back)
        .to_client(&error(&translated), ICMP_ERROR, &error(&opening))
}

/// The next connection from the same port is somebody else's.
fn over(stage: Stage) -> Scene {
    let opening = stage.opening(Protocol::Tcp);
    let reset = Frame::tcp(RST, stage.client, stage.frontend);
    Scene::new(
        title(stage, "a flow that is over makes way"),
        stage.serving(Protocol::Tcp),
    )
    .from_client(&opening, NEW_FLOW, &stage.forward(&opening))
    .from_client(&reset, FORWARD, &stage.forward(&reset))
    .change(hand_back)
    .passes(&opening, Pass::HandedBack)
    .check(|memory| assert!(memory.flows.borrow().is_empty()))
}

/// So is the next datagram of a flow whose backend has gone.
fn moved(stage: Stage) -> Scene {
    let (backend, frontend) = (ip(stage.backend), at(stage.frontend));
    let datagram = stage.opening(Protocol::Udp);
    Scene::new(
        title(stage, "datagrams to a backend that is gone are left"),
        stage.serving_by(Protocol::Udp, &[stage.backend]),
    )
    .from_client(&datagram, NEW_FLOW, &stage.forward(&datagram))
    .change(move |memory| {
        memory.point(frontend, Protocol::Udp, &[]);
        memory.remove_backends_at(backend);
        hand_back(memory);
    })
    .passes(&datagram, Pass::HandedBack)
    .check(|memory| assert!(memory.flows.borrow().is_empty()))
    .advance(SECOND)
    .passes(&datagram, Pass::HandedBack)
}

fn mid_flow(stage: Stage) -> Scene {
    let more = stage.more(Protocol::Tcp);
    let memory = handed_back(stage.serving(Protocol::Tcp));
    Scene::new(title(stage, "what netfilter knows stays its own"), memory)
        .passes(&more, Pass::MidFlow)
        .change(|memory| {
            memory.settings.flags = memory.settings.flags.union(SettingsFlags::ADOPT_MID_FLOW);
        })
        .passes(&more, Pass::HandedBack)
}

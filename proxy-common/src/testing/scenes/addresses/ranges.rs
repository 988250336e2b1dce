//! Source ranges (rules R70, R102 to R104).

use super::{Comes, refusal, title};
use crate::abi::{Drop, FrontendFlags, Protocol, RefusalReason, SourceRangeKey, Verdict};
use crate::datapath::Hook;
use crate::testing::scenes::site::{KINDS, Kind, POD, UPLINK, frontend, site};
use crate::testing::scenes::stage::{
    FORWARD, NEW_FLOW, NO_ENDPOINT_RESET, NO_ENDPOINT_UNREACHABLE, PROTOCOLS, STAGES, Stage,
};
use crate::testing::{Frame, Memory, Scene, network};

const SOURCE_RANGE: Verdict = Verdict::Drop(Drop::SourceRange);

pub(super) fn scenes() -> Vec<Scene> {
    let mut scenes = Vec::new();
    for stage in STAGES {
        for protocol in PROTOCOLS {
            for kind in KINDS {
                scenes.extend([
                    source_ranges(stage, protocol, kind),
                    refused_outside(stage, protocol, kind),
                ]);
            }
        }
    }
    scenes
}

/// The range of this network for a Service.
fn range(service: u32, net: &str) -> SourceRangeKey {
    let net = network(net);
    SourceRangeKey {
        prefix_len: net.prefix_len + 32,
        service,
        addr: net.addr,
    }
}

/// A frontend that is guarded, and the networks of pods and of outside clients.
fn guarded(
    stage: Stage,
    protocol: Protocol,
    kind: Kind,
    backends: &[&str],
) -> (Memory, [&'static str; 2]) {
    let mut memory = site(stage, protocol, kind, backends);
    let frontend = frontend(&mut memory, stage, protocol, kind);
    frontend.flags = frontend.flags.union(FrontendFlags::SOURCE_RANGES);
    let nets = if stage.family == "IPv4" {
        ["10.0.1.0/24", "198.51.100.0/24"]
    } else {
        ["fd00:1::/64", "2001:db8:51::/64"]
    };
    (memory, nets)
}

/// Nobody is exempt (rule R104), and what is open stays so (rule R68).
fn source_ranges(stage: Stage, protocol: Protocol, kind: Kind) -> Scene {
    let backends = [stage.local_backend];
    let (mut memory, [pods, outside]) = guarded(stage, protocol, kind, &backends);
    // Another Service's range does not count.
    let _pods = memory.source_ranges.insert(range(1, pods));
    let _other = memory.source_ranges.insert(range(2, outside));
    let dialled = &kind.dialled(stage);
    let from = |client: &str| stage.opening(protocol).between(client, dialled);
    let [pod, out, node] = [stage.client, stage.outside, &stage.process()].map(from);
    let more = stage.more(protocol).between(stage.client, dialled);
    let forward = |frame: &Frame| frame.between(stage.client, stage.local_backend);
    let what = format!("{protocol}, {kind:?}, source ranges");
    Scene::new(title(stage, &what), memory)
        .seen(Hook::PodIngress, &pod, NEW_FLOW, &forward(&pod))
        .by(POD)
        .comes(&out, SOURCE_RANGE, [])
        .seen(Hook::NodeEgress, &node, SOURCE_RANGE, [])
        .by(UPLINK)
        .check(|memory| {
            let refused = memory.counters.borrow()[&1].refused;
            assert_eq!(refused[RefusalReason::SourceRange as usize], 2);
        })
        .change(move |memory| {
            memory.source_ranges.clear();
            let _outside = memory.source_ranges.insert(range(1, outside));
        })
        .seen(Hook::PodIngress, &more, FORWARD, &forward(&more))
        .by(POD)
        .comes(
            &out,
            NEW_FLOW,
            &out.between(stage.outside, stage.local_backend),
        )
        .change(|memory| memory.source_ranges.clear())
        .change(|memory| memory.flows.borrow_mut().clear())
        .seen(Hook::PodIngress, &pod, SOURCE_RANGE, [])
        .by(POD)
        .change(move |memory| {
            let frontend = frontend(memory, stage, protocol, kind);
            frontend.flags = FrontendFlags::NONE;
        })
        .seen(Hook::PodIngress, &pod, NEW_FLOW, &forward(&pod))
        .by(POD)
}

/// They are judged before it is known whether there are endpoints (rule R70), or local ones.
fn refused_outside(stage: Stage, protocol: Protocol, kind: Kind) -> Scene {
    let (mut memory, [pods, _]) = guarded(stage, protocol, kind, &[]);
    let _pods = memory.source_ranges.insert(range(1, pods));
    let dialled = &kind.dialled(stage);
    let from = |client: &str| stage.opening(protocol).between(client, dialled);
    let (pod, outside) = (from(stage.client), from(stage.outside));
    let (verdict, answer) = refusal(&pod, NO_ENDPOINT_RESET, NO_ENDPOINT_UNREACHABLE);
    let what = format!("{protocol}, {kind:?}, source ranges without endpoints");
    Scene::new(title(stage, &what), memory)
        .comes(&outside, SOURCE_RANGE, [])
        .seen(Hook::PodIngress, &pod, verdict, answer)
        .by(POD)
        .change(move |memory| {
            let frontend = frontend(memory, stage, protocol, kind);
            frontend.flags = FrontendFlags::SOURCE_RANGES.union(FrontendFlags::LOCAL_ONLY);
        })
        .comes(&outside, SOURCE_RANGE, [])
        .seen(
            Hook::PodIngress,
            &pod,
            Verdict::Drop(Drop::NoLocalEndpoint),
            [],
        )
        .by(POD)
}

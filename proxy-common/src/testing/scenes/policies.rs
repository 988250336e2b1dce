//! Which backends a client gets, and as whom it comes, by policy and kind of client (rules R50 to
//! R62, R75 to R80).

use super::site::{KINDS, Kind, MAPPED, POD, UPLINK, frontend, site};
use super::stage::{NEW_FLOW, PROTOCOLS, REVERSE, STAGES, Stage, at, ip, with_port};
use crate::abi::{BackendFlags, DeviceFlags, FrontendFlags, NetworkFlags, Protocol, SettingsFlags};
use crate::datapath::Hook;
use crate::testing::{Memory, Scene, Sent, network};

/// How local pods are known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Detection {
    None,
    /// By address, in the other family only.
    OtherFamily,
    Address,
    Device,
}

use Detection::{Address, Device, OtherFamily};

const DEFAULT: SettingsFlags = SettingsFlags::NONE;
const LIKE: SettingsFlags = SettingsFlags::SOURCE_NAT_LIKE_KUBE_PROXY;
const ALL: SettingsFlags = SettingsFlags::MASQUERADE_ALL;
const BOTH: SettingsFlags = LIKE.union(ALL);

/// A pod of this node, one of another node, somebody outside, this node: each gets a backend of the
/// cluster set (C), which is elsewhere, or of the local set (L), and its source is replaced (S) or
/// not.
type Outcome = [&'static str; 4];

/// A cluster IP with policy Cluster and Local, an external address with Cluster and Local.
const TABLE: [(Detection, SettingsFlags, [Outcome; 4]); 12] = [
    (
        Address,
        LIKE,
        [
            ["C", "C", "CS", "CS"],
            ["L", "L", "LS", "LS"],
            ["CS", "CS", "CS", "CS"],
            ["C", "C", "L", "CS"],
        ],
    ),
    (
        Device,
        LIKE,
        [
            ["C", "CS", "CS", "CS"],
            ["L", "LS", "LS", "LS"],
            ["CS", "CS", "CS", "CS"],
            ["C", "L", "L", "CS"],
        ],
    ),
    (Detection::None, LIKE, UNDETECTED),
    (OtherFamily, LIKE, UNDETECTED),
    (
        Address,
        BOTH,
        [
            ["CS", "CS", "CS", "CS"],
            ["LS", "LS", "LS", "LS"],
            ["CS", "CS", "CS", "CS"],
            ["C", "C", "L", "CS"],
        ],
    ),
    (
        Detection::None,
        BOTH,
        [
            ["CS", "CS", "CS", "CS"],
            ["LS", "LS", "LS", "LS"],
            ["CS", "CS", "CS", "CS"],
            ["L", "L", "L", "CS"],
        ],
    ),
    (
        Address,
        DEFAULT,
        [
            ["C", "CS", "CS", "CS"],
            ["L", "L", "L", "LS"],
            ["C", "CS", "CS", "CS"],
            ["C", "CS", "L", "CS"],
        ],
    ),
    (
        Device,
        DEFAULT,
        [
            ["C", "CS", "CS", "CS"],
            ["L", "L", "L", "LS"],
            ["C", "CS", "CS", "CS"],
            ["C", "L", "L", "CS"],
        ],
    ),
    (Detection::None, DEFAULT, UNDETECTED_BY_DEFAULT),
    (OtherFamily, DEFAULT, UNDETECTED_BY_DEFAULT),
    (
        Address,
        ALL,
        [
            ["CS", "CS", "CS", "CS"],
            ["LS", "LS", "LS", "LS"],
            ["C", "CS", "CS", "CS"],
            ["C", "CS", "L", "CS"],
        ],
    ),
    (
        Detection::None,
        ALL,
        [
            ["CS", "CS", "CS", "CS"],
            ["LS", "LS", "LS", "LS"],
            ["C", "CS", "CS", "CS"],
            ["L", "L", "L", "CS"],
        ],
    ),
];

/// Rule R56.
const UNDETECTED: [Outcome; 4] = [
    ["C", "C", "C", "CS"],
    ["L", "L", "L", "LS"],
    ["CS", "CS", "CS", "CS"],
    ["L", "L", "L", "CS"],
];

const UNDETECTED_BY_DEFAULT: [Outcome; 4] = [
    ["C", "CS", "CS", "CS"],
    ["L", "L", "L", "LS"],
    ["C", "CS", "CS", "CS"],
    ["L", "L", "L", "CS"],
];

pub(super) fn scenes() -> Vec<Scene> {
    let mut scenes = Vec::new();
    for stage in STAGES {
        for protocol in PROTOCOLS {
            for (detection, flags, outcomes) in TABLE {
                let setting = (detection, flags);
                let [cluster, cluster_local, external, external_local] = outcomes;
                scenes.extend([
                    clients(stage, protocol, setting, (Kind::ClusterIp, false), cluster),
                    clients(
                        stage,
                        protocol,
                        setting,
                        (Kind::ClusterIp, true),
                        cluster_local,
                    ),
                    clients(stage, protocol, setting, (Kind::External, false), external),
                    clients(
                        stage,
                        protocol,
                        setting,
                        (Kind::External, true),
                        external_local,
                    ),
                    clients(
                        stage,
                        protocol,
                        setting,
                        (Kind::NodePort, true),
                        external_local,
                    ),
                ]);
            }
            for kind in KINDS {
                scenes.push(in_the_node_itself(stage, protocol, kind));
            }
        }
    }
    scenes
}

/// A Service with one backend here and another elsewhere, each in one set.
fn two_sets(
    stage: Stage,
    protocol: Protocol,
    (detection, flags): (Detection, SettingsFlags),
    (kind, local_only): (Kind, bool),
) -> Memory {
    let backends = [stage.local_backend, stage.backend];
    let mut memory = site(stage, protocol, kind, &backends);
    for (address, set) in [
        (stage.local_backend, BackendFlags::IN_LOCAL_SET),
        (stage.backend, BackendFlags::IN_CLUSTER_SET),
    ] {
        let is_local = if address == stage.local_backend {
            BackendFlags::IS_LOCAL
        } else {
            BackendFlags::NONE
        };
        memory
            .backends_at(ip(address))
            .for_each(|backend| backend.flags = set.union(is_local));
    }
    let frontend = frontend(&mut memory, stage, protocol, kind);
    frontend.n_local = 1;
    frontend.cluster_offset = 1;
    frontend.n_cluster = 1;
    if local_only {
        frontend.flags = frontend.flags.union(FrontendFlags::LOCAL_ONLY);
    }
    memory.settings.flags = flags.union(detect(stage, detection, &mut memory));
    memory
}

fn detect(stage: Stage, detection: Detection, memory: &mut Memory) -> SettingsFlags {
    let is_v4 = ip(stage.client).is_ipv4();
    let nets = if is_v4 {
        ["10.0.1.0/24", "10.0.2.0/24"]
    } else {
        ["fd00:1::/64", "fd00:2::/64"]
    };
    let pods = nets.map(|net| (network(net), NetworkFlags::LOCAL_PODS));
    match detection {
        Detection::None => {
            // Nobody asks the tables.
            memory.networks.extend(pods);
            memory.devices.get_mut(&POD).expect("pods").flags = DeviceFlags::LOCAL_PODS;
            SettingsFlags::NONE
        }
        OtherFamily | Address => {
            memory.networks.extend(pods);
            if is_v4 == (detection == Address) {
                SettingsFlags::DETECT_V4
            } else {
                SettingsFlags::DETECT_V6
            }
        }
        Device => {
            memory.devices.get_mut(&POD).expect("pods").flags = DeviceFlags::LOCAL_PODS;
            SettingsFlags::DETECT_DEVICE
        }
    }
}

fn clients(
    stage: Stage,
    protocol: Protocol,
    setting: (Detection, SettingsFlags),
    (kind, local_only): (Kind, bool),
    outcomes: Outcome,
) -> Scene {
    let policy = if local_only { "Local" } else { "Cluster" };
    let scene = Scene::new(
        format!(
            "{protocol} over {}: {kind:?}, policy {policy}, {setting:?}: clients of all kinds",
            stage.family
        ),
        two_sets(stage, protocol, setting, (kind, local_only)),
    );
    let elsewhere = with_port(&ip(stage.other_backend).to_string(), 40_000);
    let clients = [
        (Hook::PodIngress, POD, stage.client.to_owned()),
        (Hook::NodeIngress, UPLINK, elsewhere),
        (Hook::NodeIngress, UPLINK, stage.outside.to_owned()),
        (Hook::NodeEgress, UPLINK, stage.process()),
    ];
    clients
        .into_iter()
        .zip(outcomes)
        .fold(scene, |scene, ((hook, device, client), outcome)| {
            let opening = stage
                .opening(protocol)
                .between(&client, &kind.dialled(stage));
            let (backend, source, out) = if outcome.starts_with('C') {
                (stage.backend, stage.uplink, UPLINK)
            } else {
                (stage.local_backend, stage.node, POD)
            };
            let is_hidden = outcome.ends_with('S');
            let seen_as = if !is_hidden || source == at(&client).ip().to_string() {
                client
            } else {
                with_port(source, MAPPED)
            };
            let sent = if is_hidden {
                Sent::Neighbour(out)
            } else {
                Sent::Stack
            };
            scene
                .seen(
                    hook,
                    &opening,
                    NEW_FLOW,
                    &opening.between(&seen_as, backend),
                )
                .by(device)
                .sent(sent)
                .change(|memory| memory.flows.borrow_mut().clear())
        })
}

/// A host-network pod on this node sees its client's address, whatever the settings (rule R80), and
/// its answers leave by the stack.
fn in_the_node_itself(stage: Stage, protocol: Protocol, kind: Kind) -> Scene {
    let server = &stage.server();
    let mut memory = site(stage, protocol, kind, &[server]);
    memory.settings.flags = BOTH.union(detect(stage, Address, &mut memory));
    let dialled = &kind.dialled(stage);
    let clients = [
        (Hook::PodIngress, Hook::PodEgress, POD, stage.client),
        (Hook::NodeIngress, Hook::NodeEgress, UPLINK, stage.outside),
    ];
    let scene = Scene::new(
        format!(
            "{protocol} over {}: {kind:?}, a backend in the node itself sees who it is",
            stage.family
        ),
        memory,
    );
    clients
        .into_iter()
        .fold(scene, |scene, (there, back, device, client)| {
            let opening = stage.opening(protocol).between(client, dialled);
            let answer = stage.answer(protocol).between(server, client);
            scene
                .seen(there, &opening, NEW_FLOW, &opening.between(client, server))
                .by(device)
                .seen(back, &answer, REVERSE, &answer.between(dialled, client))
                .by(device)
        })
}

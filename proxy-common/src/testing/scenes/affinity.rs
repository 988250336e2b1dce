//! Session affinity (rules R111 to R117).

use std::net::SocketAddr;

use super::stage::{NEW_FLOW, PROTOCOLS, SECOND, STAGES, Stage, at, ip};
use crate::abi::{Affinity, AffinityKey, BackendFlags, BackendState, FrontendFlags, Protocol};
use crate::testing::{Memory, Scene};

pub(super) fn scenes() -> Vec<Scene> {
    let mut scenes = Vec::new();
    for stage in STAGES {
        for protocol in PROTOCOLS {
            scenes.extend([
                sticks(stage, protocol),
                renews(stage, protocol),
                expires(stage, protocol),
                backend_gone(stage, protocol),
                backend_returned(stage, protocol),
                backend_not_ready(stage, protocol),
                backend_terminating(stage, protocol),
                only_terminating(stage, protocol),
                not_local(stage, protocol),
                other_service(stage, protocol),
                switched_off(stage, protocol),
                rejoined(stage, protocol),
                two_sets(stage, protocol),
            ]);
        }
    }
    scenes
}

/// Seconds.
const TIMEOUT: u32 = 10;

/// One Service with affinity and one backend.
fn affine(stage: Stage, protocol: Protocol) -> Memory {
    let mut memory = stage.serving(protocol);
    memory
        .frontend_mut(at(stage.frontend), protocol)
        .affinity_seconds = TIMEOUT;
    memory
}

/// Fifty other backends: what goes to one of them by chance does not do so twenty times.
fn crowd(stage: Stage) -> impl Iterator<Item = SocketAddr> {
    (1..=50).map(move |last: u16| {
        let mut crowd = at(stage.other_backend);
        crowd.set_port(9_000 + last);
        crowd
    })
}

/// The crowd joins the Service.
fn joined(stage: Stage, protocol: Protocol) -> impl Fn(&mut Memory) {
    move |memory| {
        let backends: Vec<_> = [at(stage.backend)]
            .into_iter()
            .chain(crowd(stage))
            .collect();
        memory.point(at(stage.frontend), protocol, &backends);
    }
}

/// The other backend takes the place of the first, which stays in this state.
fn moved(stage: Stage, protocol: Protocol, state: BackendState) -> impl Fn(&mut Memory) {
    move |memory| {
        memory.point(at(stage.frontend), protocol, &[at(stage.other_backend)]);
        memory.retire_backends_at(ip(stage.backend), state);
    }
}

trait Flows {
    /// The client opens a flow from this port to the Service and gets this backend.
    fn flow(self, stage: Stage, protocol: Protocol, port: u16, backend: &str) -> Self;

    /// Twenty flows that all get this backend.
    fn flows(self, stage: Stage, protocol: Protocol, backend: &str) -> Self;
}

impl Flows for Scene {
    fn flow(self, stage: Stage, protocol: Protocol, port: u16, backend: &str) -> Self {
        let client = stage.client.replace("40000", &port.to_string());
        let opening = stage.opening(protocol).between(&client, stage.frontend);
        self.from_client(&opening, NEW_FLOW, &opening.between(&client, backend))
    }

    fn flows(self, stage: Stage, protocol: Protocol, backend: &str) -> Self {
        (1..=20).fold(self, |scene, port| {
            scene.flow(stage, protocol, port, backend)
        })
    }
}

fn sticks(stage: Stage, protocol: Protocol) -> Scene {
    Scene::new(
        format!(
            "{protocol} over {}: affinity keeps a client at its backend",
            stage.family
        ),
        affine(stage, protocol),
    )
    .flow(stage, protocol, 2_000, stage.backend)
    .change(joined(stage, protocol))
    .flows(stage, protocol, stage.backend)
}

fn renews(stage: Stage, protocol: Protocol) -> Scene {
    let scene = Scene::new(
        format!(
            "{protocol} over {}: every new flow renews the affinity",
            stage.family
        ),
        affine(stage, protocol),
    )
    .flow(stage, protocol, 2_000, stage.backend)
    .change(joined(stage, protocol));
    (1..=20).fold(scene, |scene, port| {
        scene
            .advance(9 * SECOND)
            .flow(stage, protocol, port, stage.backend)
    })
}

/// The memory of another backend, which the Service's slots do not name, is too old.
fn expires(stage: Stage, protocol: Protocol) -> Scene {
    let mut memory = affine(stage, protocol);
    memory.point(
        at(stage.frontend),
        protocol,
        &[at(stage.backend), at(stage.other_backend)],
    );
    memory.point(at(stage.frontend), protocol, &[at(stage.backend)]);
    let client = AffinityKey {
        client: ip(stage.client).into(),
        service: 1,
    };
    let other = Affinity {
        backend: 1,
        joined: 1,
        last_used: 0,
    };
    let _none = memory.affinity.borrow_mut().insert(client, other);
    Scene::new(
        format!("{protocol} over {}: affinity expires", stage.family),
        memory,
    )
    .advance(11 * SECOND)
    .flow(stage, protocol, 2_000, stage.backend)
    .check(move |memory| {
        let now = memory.now.get();
        let expected = Affinity {
            backend: 0,
            joined: 1,
            last_used: now,
        };
        assert_eq!(memory.affinity.borrow()[&client], expected);
    })
}

fn backend_gone(stage: Stage, protocol: Protocol) -> Scene {
    Scene::new(
        format!(
            "{protocol} over {}: affinity to a gone backend is forgotten",
            stage.family
        ),
        affine(stage, protocol),
    )
    .flow(stage, protocol, 2_000, stage.backend)
    .change(moved(stage, protocol, BackendState::Active))
    .change(move |memory| memory.remove_backends_at(ip(stage.backend)))
    .flow(stage, protocol, 2_001, stage.other_backend)
}

/// The same id, another life.
fn backend_returned(stage: Stage, protocol: Protocol) -> Scene {
    let returned = move |memory: &mut Memory| {
        memory.remove_backends_at(ip(stage.backend));
        let backends = memory.backends_at(ip(stage.backend));
        backends.for_each(|backend| backend.state = BackendState::Active as u8);
    };
    Scene::new(
        format!(
            "{protocol} over {}: affinity does not outlast a backend's life",
            stage.family
        ),
        affine(stage, protocol),
    )
    .flow(stage, protocol, 2_000, stage.backend)
    .change(moved(stage, protocol, BackendState::Active))
    .change(returned)
    .flow(stage, protocol, 2_001, stage.other_backend)
}

fn backend_not_ready(stage: Stage, protocol: Protocol) -> Scene {
    Scene::new(
        format!(
            "{protocol} over {}: affinity passes over a backend that is not ready",
            stage.family
        ),
        affine(stage, protocol),
    )
    .flow(stage, protocol, 2_000, stage.backend)
    .change(moved(stage, protocol, BackendState::NotReady))
    .flow(stage, protocol, 2_001, stage.other_backend)
}

fn backend_terminating(stage: Stage, protocol: Protocol) -> Scene {
    Scene::new(
        format!(
            "{protocol} over {}: affinity passes over a terminating backend",
            stage.family
        ),
        affine(stage, protocol),
    )
    .flow(stage, protocol, 2_000, stage.backend)
    .change(moved(stage, protocol, BackendState::Terminating))
    .flow(stage, protocol, 2_001, stage.other_backend)
}

/// Then terminating ones are the set (rule R31), and affinity holds within it (rule R115).
fn only_terminating(stage: Stage, protocol: Protocol) -> Scene {
    Scene::new(
        format!(
            "{protocol} over {}: affinity holds while all backends terminate",
            stage.family
        ),
        affine(stage, protocol),
    )
    .flow(stage, protocol, 2_000, stage.backend)
    .change(joined(stage, protocol))
    .change(|memory| {
        let backends = memory.backends.iter_mut();
        backends.for_each(|backend| backend.state = BackendState::Terminating as u8);
    })
    .flows(stage, protocol, stage.backend)
}

/// Under a Local policy a remote backend is outside the set.
fn not_local(stage: Stage, protocol: Protocol) -> Scene {
    Scene::new(
        format!(
            "{protocol} over {}: affinity stays within the local set",
            stage.family
        ),
        affine(stage, protocol),
    )
    .flow(stage, protocol, 2_000, stage.backend)
    .change(moved(stage, protocol, BackendState::Active))
    .change(move |memory| {
        memory
            .backends_at(ip(stage.other_backend))
            .for_each(|backend| {
                backend.flags = BackendFlags::IS_LOCAL.union(BackendFlags::IN_LOCAL_SET);
            });
        let frontend = memory.frontend_mut(at(stage.frontend), protocol);
        frontend.flags = FrontendFlags::LOCAL_ONLY;
        frontend.n_local = 1;
    })
    .flow(stage, protocol, 2_001, stage.other_backend)
}

fn other_service(stage: Stage, protocol: Protocol) -> Scene {
    let mut memory = affine(stage, protocol);
    let _service = memory.serve(
        at(stage.other_frontend),
        protocol,
        &[at(stage.other_backend)],
    );
    memory
        .frontend_mut(at(stage.other_frontend), protocol)
        .affinity_seconds = TIMEOUT;
    let opening = stage
        .opening(protocol)
        .between(stage.client, stage.other_frontend);
    Scene::new(
        format!(
            "{protocol} over {}: affinity is a matter of each Service's own",
            stage.family
        ),
        memory,
    )
    .flow(stage, protocol, 2_000, stage.backend)
    .from_client(
        &opening,
        NEW_FLOW,
        &opening.between(stage.client, stage.other_backend),
    )
    .flow(stage, protocol, 2_001, stage.backend)
}

fn switched_off(stage: Stage, protocol: Protocol) -> Scene {
    Scene::new(
        format!(
            "{protocol} over {}: affinity switched off acts at once",
            stage.family
        ),
        affine(stage, protocol),
    )
    .flow(stage, protocol, 2_000, stage.backend)
    .change(moved(stage, protocol, BackendState::Active))
    .change(move |memory| {
        memory
            .frontend_mut(at(stage.frontend), protocol)
            .affinity_seconds = 0;
    })
    .flow(stage, protocol, 2_001, stage.other_backend)
}

/// The backend was away for a moment (rule R114), or affinity was switched off (rule R116).
fn rejoined(stage: Stage, protocol: Protocol) -> Scene {
    Scene::new(
        format!(
            "{protocol} over {}: affinity is forgotten when the backend leaves the sets",
            stage.family
        ),
        affine(stage, protocol),
    )
    .flow(stage, protocol, 2_000, stage.backend)
    .change(move |memory| {
        memory.point(at(stage.frontend), protocol, &[at(stage.other_backend)]);
    })
    .flow(stage, protocol, 2_001, stage.backend)
    .change(move |memory| {
        let backends = memory.backends_at(ip(stage.backend));
        backends.for_each(|backend| backend.joined += 1);
    })
    .flow(stage, protocol, 2_002, stage.other_backend)
}

/// One memory for all addresses of a Service (rule R113); each passes over a backend that its own
/// policy does not allow, and remembers another (rule R115).
fn two_sets(stage: Stage, protocol: Protocol) -> Scene {
    let (near, far) = (stage.local_backend, stage.backend);
    let mut memory = stage.serving_by(protocol, &[near, far]);
    let service = at(stage.frontend);
    let cluster = memory.frontend_mut(service, protocol);
    cluster.affinity_seconds = TIMEOUT;
    (cluster.n_local, cluster.cluster_offset, cluster.n_cluster) = (1, 1, 1);
    let mut local = *cluster;
    local.flags = FrontendFlags::LOCAL_ONLY.union(FrontendFlags::EXTERNAL);
    let vip = at(stage.other_frontend);
    let _id = memory.serve(vip, protocol, &[]);
    *memory.frontend_mut(vip, protocol) = local;
    let set = |memory: &mut Memory, backend: &str, flags: BackendFlags| {
        memory
            .backends_at(ip(backend))
            .for_each(|backend| backend.flags = flags);
    };
    set(&mut memory, near, BackendFlags::IN_LOCAL_SET);
    set(&mut memory, far, BackendFlags::IN_CLUSTER_SET);
    let dial = |scene: Scene, port: u16, to: &str, backend: &str| {
        let client = stage.client.replace("40000", &port.to_string());
        let opening = stage.opening(protocol).between(&client, to);
        scene.from_client(&opening, NEW_FLOW, &opening.between(&client, backend))
    };
    let name = format!(
        "{protocol} over {}: affinity stays within what each policy allows",
        stage.family
    );
    let scene = dial(Scene::new(name, memory), 1, stage.frontend, far);
    let scene = dial(scene, 2, stage.other_frontend, near);
    let scene = dial(scene, 3, stage.frontend, far);
    let both = BackendFlags::IN_LOCAL_SET.union(BackendFlags::IN_CLUSTER_SET);
    let scene = dial(scene, 4, stage.other_frontend, near);
    let scene = scene.change(move |memory| set(memory, near, both));
    let scene = dial(scene, 5, stage.frontend, near);
    let scene = scene.change(move |memory| set(memory, near, BackendFlags::IN_LOCAL_SET));
    let scene = dial(scene, 6, stage.frontend, far);
    let scene = scene.change(move |memory| set(memory, far, both));
    dial(scene, 7, stage.other_frontend, far)
}

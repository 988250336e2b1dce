//! Backends that leave while flows use them: by state, setting and protocol, at every hook (rules
//! R140 to R147).

use std::net::SocketAddr;

use super::site::{KINDS, Kind, UPLINK, frontend, site};
use super::stage::{
    FORWARD, GONE_ABORT, GONE_RESET, NEW_FLOW, NO_ENDPOINT_UNREACHABLE, PROTOCOLS, REVERSE, RST,
    STAGES, Stage, at, ip, reply_to, unreachable,
};
use crate::abi::{
    BackendFlags, BackendState, FlowRole, FrontendFlags, FrontendKey, Port, Protocol,
    SettingsFlags, Verdict,
};
use crate::datapath::Hook;
use crate::testing::{Frame, Memory, Scene, Sent};

pub(super) fn scenes() -> Vec<Scene> {
    let mut scenes = Vec::new();
    for stage in STAGES {
        for protocol in PROTOCOLS {
            for kind in KINDS {
                for at_node in [false, true] {
                    let flow = Flow {
                        stage,
                        protocol,
                        kind,
                        at_node,
                    };
                    scenes.extend([
                        flow.not_serving(),
                        flow.not_serving_without_another(),
                        flow.detached(),
                        flow.kept(),
                        flow.kept_without_another(),
                        flow.by_the_service(true),
                        flow.by_the_service(false),
                        flow.gone(),
                        flow.only_local(),
                    ]);
                    if at_node {
                        scenes.push(flow.last_answers());
                    }
                }
            }
        }
    }
    scenes
}

/// A flow to a backend elsewhere, of a pod or, with source NAT, of somebody outside.
#[derive(Clone, Copy)]
struct Flow {
    stage: Stage,
    protocol: Protocol,
    kind: Kind,
    at_node: bool,
}

impl Flow {
    fn client(self) -> &'static str {
        if self.at_node {
            self.stage.outside
        } else {
            self.stage.client
        }
    }

    fn seen_as(self) -> String {
        if self.at_node {
            self.stage.mapped()
        } else {
            self.stage.client.to_owned()
        }
    }

    fn opening(self) -> Frame {
        let opening = self.stage.opening(self.protocol);
        opening.between(self.client(), &self.kind.dialled(self.stage))
    }

    fn more(self) -> Frame {
        let more = self.stage.more(self.protocol);
        more.between(self.client(), &self.kind.dialled(self.stage))
    }

    /// The flow has begun.
    fn opened(self, flags: SettingsFlags, what: &str) -> Scene {
        let Self {
            stage,
            protocol,
            kind,
            ..
        } = self;
        let mut memory = site(stage, protocol, kind, &[stage.backend]);
        memory.settings.flags = flags;
        let whose = if self.at_node { "outside" } else { "pod" };
        let title = format!(
            "{protocol} over {}, {kind:?}, {whose}: {what}",
            stage.family
        );
        self.goes(
            Scene::new(title, memory),
            &self.opening(),
            NEW_FLOW,
            stage.backend,
        )
    }

    /// A packet of the client goes to this backend.
    fn goes(self, scene: Scene, packet: &Frame, verdict: Verdict, backend: &str) -> Scene {
        let expected = packet.between(&self.seen_as(), backend);
        if self.at_node {
            scene
                .seen(Hook::NodeIngress, packet, verdict, &expected)
                .by(UPLINK)
                .sent(Sent::Neighbour(UPLINK))
        } else {
            scene.seen(Hook::PodIngress, packet, verdict, &expected)
        }
    }

    /// UDP moves to the other backend, and leaves nothing behind; all else stays.
    fn moves_if_udp(self, scene: Scene) -> Scene {
        let stage = self.stage;
        if self.protocol != Protocol::Udp {
            return self.goes(scene, &self.more(), FORWARD, stage.backend);
        }
        let moved = self.goes(scene, &self.more(), NEW_FLOW, stage.other_backend);
        let moved = moved.check(|memory| {
            let flows = memory.flows.borrow();
            assert_eq!(flows.len(), 2);
            let roles: u8 = flows.values().map(|flow| flow.role).sum();
            assert_eq!(roles, FlowRole::Reverse as u8, "one of each");
        });
        self.goes(moved, &self.more(), FORWARD, stage.other_backend)
    }

    /// The Service has these backends instead.
    fn points(self, backends: &[&'static str]) -> impl Fn(&mut Memory) + use<> {
        let backends: Vec<_> = backends.iter().map(|backend| at(backend)).collect();
        move |memory| self.point(memory, &backends)
    }

    fn point(self, memory: &mut Memory, backends: &[SocketAddr]) {
        // Blocks belong to frontends at exact addresses here.
        let key = self.kind.key(self.stage, self.protocol);
        let frontend = memory.frontends.remove(&key).expect("the Service");
        let exact = FrontendKey::exact(
            ip(self.stage.frontend).into(),
            Port::new(at(self.stage.frontend).port()),
            self.protocol,
        );
        let _none = memory.frontends.insert(exact, frontend);
        memory.point(at(self.stage.frontend), self.protocol, backends);
        let mut frontend = memory.frontends.remove(&exact).expect("the Service");
        frontend.flags = frontend.flags.union(if self.kind == Kind::ClusterIp {
            FrontendFlags::NONE
        } else {
            FrontendFlags::EXTERNAL
        });
        let _none = memory.frontends.insert(key, frontend);
    }

    fn retired(self, state: BackendState) -> impl Fn(&mut Memory) {
        move |memory| memory.retire_backends_at(ip(self.stage.backend), state)
    }

    fn not_serving(self) -> Scene {
        let scene = self
            .opened(SettingsFlags::NONE, "a backend that serves no more")
            .change(self.points(&[self.stage.other_backend]))
            .change(self.retired(BackendState::NotServing));
        self.moves_if_udp(scene)
    }

    /// Rule R143.
    fn not_serving_without_another(self) -> Scene {
        let what = "nothing serves any more";
        let scene = self
            .opened(SettingsFlags::NONE, what)
            .change(self.points(&[]))
            .change(self.retired(BackendState::NotServing));
        let scene = self.goes(scene, &self.more(), FORWARD, self.stage.backend);
        self.moves_if_udp(scene.change(self.points(&[self.stage.other_backend])))
    }

    /// Rule R147: the service port is deleted, and comes back.
    fn detached(self) -> Scene {
        let key = self.kind.key(self.stage, self.protocol);
        let scene = self
            .opened(SettingsFlags::NONE, "a deleted Service's flows go on")
            .change(self.retired(BackendState::Detached))
            .change(move |memory| {
                let _frontend = memory.frontends.remove(&key);
            });
        let scene = self.goes(scene, &self.more(), FORWARD, self.stage.backend);
        let before = site(self.stage, self.protocol, self.kind, &[self.stage.backend]);
        let frontend = before.frontends[&key];
        let scene = scene.change(move |memory| {
            let _none = memory.frontends.insert(key, frontend);
            self.point(memory, &[at(self.stage.other_backend)]);
        });
        self.moves_if_udp(scene)
    }

    /// As kube-proxy does it.
    fn kept(self) -> Scene {
        let stage = self.stage;
        let what = "a backend that is gone keeps what it has";
        let scene = self
            .opened(SettingsFlags::KEEP_GONE, what)
            .change(self.points(&[stage.other_backend]))
            .change(move |memory| memory.remove_backends_at(ip(stage.backend)));
        let scene = self.moves_if_udp(scene);
        if self.protocol == Protocol::Udp {
            return scene;
        }
        let scene = self.goes(scene, &self.opening(), NEW_FLOW, stage.other_backend);
        self.goes(scene, &self.more(), FORWARD, stage.other_backend)
    }

    /// The Service has the last word on what the node does.
    fn by_the_service(self, keeps: bool) -> Scene {
        let stage = self.stage;
        let (usual, flag, what) = if keeps {
            let flag = BackendFlags::KEEP_WHEN_GONE;
            (SettingsFlags::NONE, flag, "the Service keeps what it has")
        } else {
            let flag = BackendFlags::RESET_WHEN_GONE;
            (
                SettingsFlags::KEEP_GONE,
                flag,
                "the Service ends what it has",
            )
        };
        let scene = self
            .opened(usual, what)
            .change(self.points(&[stage.other_backend]))
            .change(move |memory| {
                for backend in memory.backends_at(ip(stage.backend)) {
                    backend.flags = backend.flags.union(flag);
                }
                memory.remove_backends_at(ip(stage.backend));
            });
        if keeps || self.protocol == Protocol::Udp {
            self.moves_if_udp(scene)
        } else {
            self.ends(scene)
        }
    }

    fn kept_without_another(self) -> Scene {
        let stage = self.stage;
        let what = "the last backend is gone and keeps what it has";
        let scene = self
            .opened(SettingsFlags::KEEP_GONE, what)
            .change(self.points(&[]))
            .change(move |memory| memory.remove_backends_at(ip(stage.backend)));
        self.goes(scene, &self.more(), FORWARD, stage.backend)
    }

    fn gone(self) -> Scene {
        let stage = self.stage;
        let what = "the last backend is gone, its flows are told";
        let scene = self
            .opened(SettingsFlags::NONE, what)
            .change(self.points(&[]))
            .change(move |memory| memory.remove_backends_at(ip(stage.backend)));
        self.ends(scene)
    }

    /// The client is told that its flow is over.
    fn ends(self, scene: Scene) -> Scene {
        let more = self.more();
        let bare = reply_to(&more);
        let (verdict, answer) = match self.protocol {
            Protocol::Tcp => {
                let reset = Frame {
                    flags: RST,
                    seq: more.ack,
                    ack: 0,
                    ..bare
                };
                (GONE_RESET, reset.bytes())
            }
            Protocol::Sctp => (GONE_ABORT, bare.with_payload([6, 1, 0, 4]).bytes()),
            Protocol::Udp => {
                let quoted = (more.packet().len() / 4 * 4).min(72);
                (NO_ENDPOINT_UNREACHABLE, unreachable(&more, quoted).bytes())
            }
        };
        let hook = if self.at_node {
            Hook::NodeIngress
        } else {
            Hook::PodIngress
        };
        scene
            .seen(hook, &more, verdict, answer)
            .by(UPLINK)
            .check(move |memory| {
                let is_forgotten = memory.flows.borrow().is_empty();
                assert_eq!(is_forgotten, self.protocol == Protocol::Udp);
            })
    }

    /// A Service may have backends in its local set only (rule R33).
    fn only_local(self) -> Scene {
        let Self {
            stage,
            protocol,
            kind,
            ..
        } = self;
        let scene = self
            .opened(SettingsFlags::NONE, "only the local set has others")
            .change(self.points(&[stage.other_backend]))
            .change(self.retired(BackendState::NotServing))
            .change(move |memory| {
                let frontend = frontend(memory, stage, protocol, kind);
                frontend.n_local = frontend.n_cluster;
                frontend.n_cluster = 0;
                frontend.flags = frontend.flags.union(FrontendFlags::LOCAL_ONLY);
                for backend in memory.backends_at(ip(stage.other_backend)) {
                    backend.flags = BackendFlags::IN_LOCAL_SET;
                }
            });
        self.moves_if_udp(scene)
    }

    /// What a backend sent before it went.
    fn last_answers(self) -> Scene {
        let stage = self.stage;
        let answer = stage
            .answer(self.protocol)
            .between(stage.backend, &self.seen_as());
        let reversed = answer.between(&self.kind.dialled(stage), self.client());
        self.opened(SettingsFlags::NONE, "a gone backend's last answers")
            .change(self.points(&[]))
            .change(move |memory| memory.remove_backends_at(ip(stage.backend)))
            .seen(Hook::NodeIngress, &answer, REVERSE, &reversed)
            .by(UPLINK)
            .sent(Sent::Neighbour(UPLINK))
    }
}

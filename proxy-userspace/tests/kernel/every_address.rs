//! Every kind of client at every kind of address, over every protocol, to backends everywhere:
//! real sockets, strict reverse-path filters.

use std::net::IpAddr;
use std::time::Duration;

use proxy_common::abi::Family;
use xtask::testbed::{Layout, Namespace, in_namespace};

use crate::world::{Answer, Kind, Service, Speak, World, ask, is_nodes};

/// Before a lost SYN would be sent again.
const AT_ONCE: Duration = Duration::from_millis(950);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Client {
    Node,
    Pod,
    Outside,
}

impl Client {
    const ALL: [Self; 3] = [Self::Node, Self::Pod, Self::Outside];
}

struct Check<'a> {
    world: &'a World,
    like_kube_proxy: bool,
    /// Nobody knows any neighbour when a client begins.
    neighbours_forgotten: bool,
    failures: Vec<String>,
}

impl Check<'_> {
    fn all(mut self) {
        for service in self.world.services() {
            for client in Client::ALL {
                for kind in Kind::ALL {
                    for family in Family::ALL {
                        self.one(&service, client, kind, family);
                    }
                }
            }
        }
        let failures = self.failures;
        assert!(
            failures.is_empty(),
            "{} failures:\n{}",
            failures.len(),
            failures.join("\n")
        );
    }

    fn one(&mut self, service: &Service, client: Client, kind: Kind, family: Family) {
        for speak in Speak::ALL {
            if self.neighbours_forgotten {
                self.forget_neighbours();
            }
            let server = service.at(kind, family);
            let answer = in_namespace(self.namespace(client), || ask(speak, server, AT_ONCE));
            let is_right = |answer: &Answer| {
                answer.backend == service.name && self.may_see(service, client, kind, answer.client)
            };
            if !answer.as_ref().is_ok_and(is_right) {
                let backend = service.name;
                self.failures.push(format!(
                    "{client:?} → {kind:?} {server} {speak:?} → {backend}: {answer:?}"
                ));
            }
        }
    }

    fn namespace(&self, client: Client) -> &Namespace {
        match client {
            Client::Node => self.world.node(),
            Client::Pod => &self.world.pod.namespace,
            Client::Outside => &self.world.client.namespace,
        }
    }

    /// Whether the backend may see this address (rules R75 to R80, or only where it must be).
    fn may_see(&self, service: &Service, client: Client, kind: Kind, seen: IpAddr) -> bool {
        let own = match client {
            Client::Node => return is_nodes(seen),
            Client::Pod => &self.world.pod,
            Client::Outside => &self.world.client,
        };
        let keeps_own = match (client, service.name) {
            (_, "host") => true,
            (Client::Pod, _) if kind == Kind::ClusterIp => true,
            _ if self.like_kube_proxy => false,
            (Client::Outside, "far") => false,
            _ => true,
        };
        if keeps_own {
            Family::ALL
                .into_iter()
                .any(|family| own.address(family) == seen)
        } else {
            is_nodes(seen)
        }
    }

    fn forget_neighbours(&self) {
        let testbed = &self.world.testbed;
        let remote = &testbed.remote().unwrap().namespace;
        let pods = [&self.world.pod, &self.world.local, &self.world.far];
        let nodes = [self.world.node(), testbed.outside(), remote];
        let all = pods.into_iter().map(|pod| &pod.namespace).chain(nodes);
        for namespace in all {
            for family in ["-4", "-6"] {
                namespace
                    .ask_ip(&format!("{family} neigh flush all"))
                    .unwrap();
            }
        }
    }
}

fn every_address_answers_everybody_on(layout: Layout) {
    let mut world = World::new(layout, 1500, &[]);
    check(&world, false, false);
    check(&world, false, true);
    world.start_again_with(&["--source-nat", "like-kube-proxy"]);
    check(&world, true, false);
}

fn check(world: &World, like_kube_proxy: bool, neighbours_forgotten: bool) {
    let check = Check {
        world,
        like_kube_proxy,
        neighbours_forgotten,
        failures: Vec::new(),
    };
    check.all();
}

#[test]
fn every_address_answers_everybody() {
    every_address_answers_everybody_on(Layout::Routed);
}

#[test]
fn every_address_answers_everybody_behind_a_bridge() {
    every_address_answers_everybody_on(Layout::Bridge);
}

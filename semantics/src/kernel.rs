//! Packets on the devices of a node made of network namespaces.
//!
//! Each case has a node of its own, with the case's own addresses and the real `beeline run`.
//! Packets are put on real devices, or come from real sockets of the node, and it is looked what
//! comes out where; then the backend's reply is sent back.

mod checks;
mod clients;
mod conn;
mod edge;
mod flows;
mod host;
mod kits;
mod memory;
mod packet;
mod plan;
mod pods;
mod process;
mod proxy;
mod stuck;
mod talk;
mod way;
mod wire;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::Result;
use beeline::node::SocketLb;

use self::edge::EDGE;
use self::flows::Flows;
use self::kits::Kit;
use self::plan::Plan;
use self::proxy::Proxy;
use self::way::Way;
use self::world::World;
use crate::case::{Case, Check, Flow, Step};
use crate::outcome::{Failure, Item, Outcome, Place};
use crate::pure::left_out;

/// How this level has time pass.
pub const NOTE: &str = "time passes by making the records of affinity and of flows in the \
    kernel's maps older; where updates of the kernel hang, by the clock of a control plane in \
    memory for which the daemon's servers answer";

/// What is different with real sockets.
pub const SOCKETS_NOTE: &str = "TCP and UDP clients on the node and its pods are sockets; cases \
    with UDP among them are run again with sockets that are not connected; cases that say what \
    kube-proxy's iptables mode does at localhost are run again with NodePorts there";

/// Runs a case.
pub fn run(case: &Case, socket_lb: Option<SocketLb>) -> Outcome {
    if let Some(outcome) = left_out(case) {
        return outcome;
    }
    let is_stuck = is_stuck(case);
    if is_stuck && plan::flows(case).next().is_some() {
        let reason = "the real daemon's updates of the kernel can't be made to hang";
        return Outcome::NotOnTheWire(reason.into());
    }
    let play = || match is_stuck {
        true => stuck::failures(case),
        false => {
            let ways = Way::all(case, socket_lb).into_iter();
            ways.flat_map(|way| failures(case, way)).collect()
        }
    };
    match catch_unwind(AssertUnwindSafe(play)) {
        Ok(failures) => Outcome::of(failures),
        // What it has said is on the screen already.
        Err(_) => Outcome::Failed(vec![START.fails("the runner panicked")]),
    }
}

/// What the socket edge did, in a line.
pub fn socket_edge() -> String {
    EDGE.to_string()
}

/// Whether the socket edge has done anything.
pub fn is_edge_used() -> bool {
    EDGE.n_pointed() > 0
}

/// How many cases may run at a time. Most of their time is the kernel's, for the verifier.
pub const fn n_workers() -> usize {
    3
}

/// Removes what cases have left for others. To be called after the last.
pub fn tear_down() {
    kits::remove();
}

const START: Place = Place {
    step: None,
    item: Item::Change,
};

/// Whether updates of the kernel hang at some time.
fn is_stuck(case: &Case) -> bool {
    let simulated = case.steps.iter().filter_map(|step| step.simulate.as_ref());
    let blocked = simulated.filter_map(|simulate| simulate.block_sync.as_ref());
    blocked.flatten().next().is_some()
}

fn failures(case: &Case, way: Way) -> Vec<Failure> {
    let failed = |error: anyhow::Error| vec![START.fails(format!("{error:#}"))];
    let kit = match Kit::take() {
        Ok(kit) => kit,
        Err(error) => return failed(error),
    };
    let mut failures = match Node::start(case, &kit, way) {
        Ok(node) => play(case, node),
        Err(error) => failed(error),
    };
    // Nothing of the case is left now but what is pinned.
    kit.hand_on();
    let note = way.to_string();
    failures
        .iter_mut()
        .for_each(|failure| failure.reason += &note);
    failures
}

fn play(case: &Case, mut node: Node) -> Vec<Failure> {
    let mut failures = node.observe(None, &case.flows, &case.checks);
    for (index, step) in case.steps.iter().enumerate() {
        if let Err(error) = node.change(step) {
            let place = Place {
                step: Some(index),
                item: Item::Change,
            };
            failures.push(place.fails(format!("{error:#}")));
            break;
        }
        failures.extend(node.observe(Some(index), &step.flows, &step.checks));
    }
    failures
}

/// A node that runs a case.
struct Node {
    // Dropped in this order: the daemon ends before its world does.
    proxy: Proxy,
    world: World,
    flows: Flows,
    way: Way,
}

impl Node {
    fn start(case: &Case, kit: &Kit, way: Way) -> Result<Self> {
        let world = World::build(Plan::new(case), kit.testbed()?, way.has_sockets())?;
        let proxy = Proxy::start(&world.testbed, &world.plan, case, way)?;
        Ok(Self {
            proxy,
            world,
            flows: Flows::new(has_affinity(case), way),
            way,
        })
    }

    /// Makes a step's change, and waits until it is in force.
    fn change(&mut self, step: &Step) -> Result<()> {
        let testbed = &self.world.testbed;
        if step.advance_seconds > 0 {
            memory::pass(testbed, step.advance_seconds)?;
        }
        let is_restart = step
            .simulate
            .as_ref()
            .is_some_and(|simulate| simulate.restart);
        if is_restart {
            self.proxy.stop();
        }
        self.proxy.change(&step.delete, &step.apply);
        if is_restart {
            self.proxy.restart(testbed)
        } else {
            self.proxy.settle(testbed)
        }
    }

    fn observe(&mut self, step: Option<usize>, flows: &[Flow], checks: &[Check]) -> Vec<Failure> {
        let mut failures = Vec::new();
        for (index, flow) in flows.iter().enumerate() {
            let Some(flow) = self.way.flow(flow) else {
                continue;
            };
            if let Err(error) = self.flows.send(&mut self.world, &flow) {
                let item = Item::Flow(index, flow.name.clone());
                failures.push(Place { step, item }.fails(format!("{error:#}")));
            }
        }
        failures.extend(checks::failures(&self.world.testbed, step, checks));
        failures
    }
}

/// Whether clients may be remembered at some time.
fn has_affinity(case: &Case) -> bool {
    let applied = case.steps.iter().flat_map(|step| &step.apply);
    let mut objects = case.objects.services.iter().chain(applied);
    objects.any(|object| {
        let spec = object.get("spec");
        spec.and_then(|spec| spec.get("sessionAffinity"))
            .is_some_and(|affinity| affinity == "ClientIP")
    })
}

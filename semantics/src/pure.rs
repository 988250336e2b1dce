//! The compiler and the shared packet decisions, on the host.
//!
//! Objects go through the sources' parsers into the daemon's model, compiler and sync, and from
//! there into the maps in memory. Packets cross the hooks of the devices that they would cross on
//! a node, where the very functions of the kernel programs decide. Each case is run twice, with the
//! events of each batch in both orders, since that must not matter (rule R168).

mod answers;
mod flows;
mod maps;
mod network;
mod objects;
mod parcel;
mod probe;
mod proxy;
mod speech;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use beeline::health::State;

use crate::case::{Case, Check, Flow, Step};
use crate::outcome::{Failure, Item, Outcome, Place};
use flows::Flows;
use objects::Order;
use proxy::Proxy;

/// What a runner may have to be able to do, and both are.
const ABILITIES: [&str; 2] = ["legacy-ip-syntax", "per-family-sync"];

/// The case left out, if it asks for what no level can do.
pub(crate) fn left_out(case: &Case) -> Option<Outcome> {
    let mut required = case.requires.iter();
    let ability = required.find(|it| !ABILITIES.contains(&it.as_str()))?;
    let reason = format!("requires `{ability}`, which is unknown here");
    Some(Outcome::NotOnTheWire(reason))
}

/// Runs a case.
pub fn run(case: &Case) -> Outcome {
    if let Some(outcome) = left_out(case) {
        return outcome;
    }
    for order in Order::ALL {
        let played = catch_unwind(AssertUnwindSafe(|| play(case, order)));
        let mut failures = played.unwrap_or_else(|panic| {
            let place = Place {
                step: None,
                item: Item::Change,
            };
            vec![place.fails(format_args!("a panic: {}", words(&*panic)))]
        });
        if failures.is_empty() {
            continue;
        }
        if order == Order::Reversed {
            for failure in &mut failures {
                failure
                    .reason
                    .push_str(" (with the events of each batch in reverse order)");
            }
        }
        return Outcome::Failed(failures);
    }
    Outcome::Passed
}

fn words(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without words")
}

fn play(case: &Case, order: Order) -> Vec<Failure> {
    let mut proxy = Proxy::start(case, order);
    let mut flows = Flows::new(order);
    let mut failures = observe(&mut proxy, &mut flows, None, (&case.flows, &case.checks));
    for (index, step) in case.steps.iter().enumerate() {
        proxy.step(step);
        let observed = (&step.flows[..], &step.checks[..]);
        failures.extend(observe(&mut proxy, &mut flows, Some(index), observed));
    }
    failures
}

fn observe(
    proxy: &mut Proxy,
    flows: &mut Flows,
    step: Option<usize>,
    (sent, checks): (&[Flow], &[Check]),
) -> Vec<Failure> {
    let mut failures = Vec::new();
    let mut note = |item, result: Result<(), String>| {
        if let Err(reason) = result {
            failures.push(Place { step, item }.fails(reason));
        }
    };
    for (index, flow) in sent.iter().enumerate() {
        note(
            Item::Flow(index, flow.name.clone()),
            flows.send(proxy, flow),
        );
    }
    for (index, check) in checks.iter().enumerate() {
        note(
            Item::Check(index, check.name().to_owned()),
            answers::check(proxy, check),
        );
    }
    failures
}

/// The health of a control plane in memory, for servers elsewhere.
pub(crate) struct HealthOf(Proxy);

impl HealthOf {
    /// That of a case's control plane, started with what the API server holds at first.
    pub(crate) fn start(case: &Case) -> Self {
        Self(Proxy::start(case, Order::AsGiven))
    }

    /// Carries out what a step says.
    pub(crate) fn step(&mut self, step: &Step) {
        self.0.step(step);
    }

    /// Its state, and what time it is.
    pub(crate) fn now(&self) -> (State, Instant) {
        (self.0.health.clone(), self.0.now())
    }
}

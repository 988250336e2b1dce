//! Takes over from kube-proxy: its flows of UDP stay where they are, what keeps its connections
//! alive goes when none is left, and its rules are removed if that is wanted.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use proxy_common::abi::{Flow, FlowKey};

use crate::causes;
use crate::health::Problems;
use crate::kube_proxy::{self, UdpError, UdpFlows};
use crate::loader::pins::Pins;
use crate::maps::{Maps, Table};

/// What it has trouble with is told under this name.
const SUBJECT: &str = "kube-proxy";
/// From the end of one look at kube-proxy's rules to the next, at least.
const INTERVAL: Duration = Duration::from_secs(5);
/// So many times as long as a look takes is between two.
const REST: u32 = 50;

/// What the daemon's loop tells.
enum Message {
    /// Everything is in force.
    InForce,
}

/// The part of it in the daemon's loop.
pub(super) struct TakeOver {
    pins: Pins,
    problems: Problems,
    /// Whether kube-proxy's rules are to be removed, once.
    replaces: bool,
    watcher: Option<mpsc::Sender<Message>>,
    is_told: bool,
}

impl TakeOver {
    pub(super) const fn new(pins: Pins, replaces: bool, problems: Problems) -> Self {
        Self {
            pins,
            problems,
            replaces,
            watcher: None,
            is_told: false,
        }
    }

    /// Once the maps have been filled for the first time, before they count.
    pub(super) fn begin(&mut self, maps: &mut Maps) {
        let held = noted(hold(maps));
        let (messages, told) = mpsc::channel();
        let watcher = Watcher {
            flows: noted(Table::open(&self.pins, "FLOWS").map_err(UdpError::from)),
            held,
            problems: self.problems.clone(),
            replaces: self.replaces,
            is_in_force: false,
        };
        let thread = std::thread::Builder::new()
            .name(SUBJECT.to_owned())
            .spawn(move || watcher.run(&told));
        match thread {
            Ok(thread) => drop(thread),
            Err(error) => {
                tracing::warn!("cannot start a thread that looks for kube-proxy: {error}")
            }
        }
        self.watcher = Some(messages);
    }

    /// When everything is in force, on all devices.
    pub(super) fn is_in_force(&mut self) {
        if let Some(watcher) = &self.watcher
            && !std::mem::replace(&mut self.is_told, true)
            && watcher.send(Message::InForce).is_err()
        {
            tracing::debug!("nobody looks for kube-proxy");
        }
    }
}

fn hold(maps: &mut Maps) -> Result<UdpFlows, UdpError> {
    let contents = maps.contents()?;
    let (held, n_moved) = UdpFlows::hold(&mut maps.flows, &mut maps.pod_flows, &contents)?;
    if held.len() + n_moved > 0 {
        tracing::info!(
            "{} flows of UDP stay with the backends that kube-proxy chose, {n_moved} move",
            held.len()
        );
    }
    Ok(held)
}

/// Says what went wrong with flows of UDP, which move then.
fn noted<T>(done: Result<T, UdpError>) -> Option<T> {
    done.inspect_err(|error| {
        let error = causes::line(error);
        tracing::warn!("flows of UDP that kube-proxy opened may move: {error}");
    })
    .ok()
}

/// The part of it in a thread of its own.
struct Watcher {
    flows: Option<Table<FlowKey, Flow>>,
    held: Option<UdpFlows>,
    problems: Problems,
    replaces: bool,
    is_in_force: bool,
}

impl Watcher {
    /// Looks now and then, until the daemon's loop ends.
    fn run(mut self, messages: &Receiver<Message>) {
        if let (Some(held), Some(flows)) = (&mut self.held, &self.flows) {
            let _done = noted(held.inherit(flows));
        }
        let mut rules_due = Instant::now();
        loop {
            let due = match self.held.as_ref().filter(|held| !held.is_empty()) {
                Some(held) => rules_due.min(Instant::now() + held.interval()),
                None => rules_due,
            };
            match messages.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(Message::InForce) => {
                    self.is_in_force = true;
                    rules_due = Instant::now();
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.look_at_flows();
            if rules_due <= Instant::now() {
                rules_due = self.look_at_rules();
            }
        }
    }

    fn look_at_flows(&mut self) {
        if let (Some(held), Some(flows)) = (&mut self.held, &mut self.flows)
            && !held.is_empty()
        {
            let _done = noted(held.look(flows));
        }
    }

    /// Returns when to look again.
    fn look_at_rules(&mut self) -> Instant {
        let start = Instant::now();
        let problem = match self.look() {
            Ok(problem) => problem,
            Err(error) => Some(causes::line(&error)),
        };
        self.problems.set(SUBJECT, problem);
        Instant::now() + INTERVAL.max(start.elapsed() * REST)
    }

    /// Removes rules if they are to be, and what keeps connections if none needs it. Says what is
    /// wrong then.
    fn look(&mut self) -> Result<Option<String>, kube_proxy::KubeProxyError> {
        if self.replaces && self.is_in_force {
            let running = kube_proxy::processes();
            if !running.is_empty() {
                let pids: Vec<_> = running.iter().map(|it| it.pid.to_string()).collect();
                return Ok(Some(format!(
                    "it runs (process {}) and would write its rules again, so they are left: stop \
                     it",
                    pids.join(", ")
                )));
            }
            for table in kube_proxy::remove()?.tables {
                tracing::info!("removed kube-proxy's rules: {table}");
            }
            self.replaces = false;
        }
        let serving = kube_proxy::serving()?;
        if serving.is_empty() {
            kube_proxy::remove_keeper(false)?;
            return Ok(None);
        }
        Ok(Some(format!(
            "its rules are here ({}), and serve this node's own processes before Beeline does: stop \
             it, then run `beeline migrate`",
            serving.join("; ")
        )))
    }
}

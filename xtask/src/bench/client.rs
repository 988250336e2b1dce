//! Clients: threads that take turns at measuring, each with a place of its own.

use std::cell::RefCell;
use std::fs;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use xtask::figures::Measure;
use xtask::testbed::{Namespace, in_namespace, on_network};

use super::measure::{self, Arrivals, Sample, Targets, Turn};
use super::processor::{self, Meter};

/// How much longer than asked a turn may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A client. It waits for its turns until it is dropped.
pub(super) struct Client {
    place: Namespace,
    group: Group,
    arrivals: Arc<Arrivals>,
    line: RefCell<Line>,
}

/// To a client's thread, and back.
struct Line {
    tasks: Sender<Task>,
    samples: Receiver<Result<Sample>>,
}

struct Task {
    measure: Measure,
    targets: Targets,
    duration: Duration,
}

/// The control group of a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Group {
    /// The one of its pod or node.
    Own,
    /// One outside of the node's: programs for the node's sockets do not see it.
    Outside,
}

impl Group {
    /// From which ports its clients dial, first and last. A port that has dialled a pod by the
    /// packet edge, or by kube-proxy's rules, has a flow's record for a while, which would be in
    /// the way of the same port's connection to the same pod by another way.
    fn ports(self) -> (u16, u16) {
        match self {
            Self::Own => (32_768, 60_999),
            Self::Outside => (10_000, 29_999),
        }
    }
}

impl Client {
    /// Starts a client on the network of a pod or node.
    pub(super) fn start(place: &Namespace, group: Group, arrivals: &Arc<Arrivals>) -> Result<Self> {
        Ok(Self {
            place: place.clone(),
            group,
            arrivals: Arc::clone(arrivals),
            line: RefCell::new(Line::start(place, group, arrivals)?),
        })
    }

    /// Has the client measure for about as long as `duration`.
    ///
    /// # Errors
    /// An operation fails, or does not end.
    pub(super) fn take(
        &self,
        measure: Measure,
        targets: &Targets,
        duration: Duration,
    ) -> Result<Sample> {
        let task = Task {
            measure,
            targets: targets.clone(),
            duration,
        };
        let sample = self.line.borrow().take(task);
        let Ok(sample) = sample else {
            // Its thread waits for an answer that does not come. Another one goes on.
            *self.line.borrow_mut() = Line::start(&self.place, self.group, &self.arrivals)?;
            bail!("{}: no answer", measure::name(measure));
        };
        sample
    }
}

impl Line {
    fn start(place: &Namespace, group: Group, arrivals: &Arc<Arrivals>) -> Result<Self> {
        let (tasks, to_do) = mpsc::channel();
        let (done, samples) = mpsc::channel();
        let (place, arrivals) = (place.clone(), Arc::clone(arrivals));
        let serve = move || serve(group, &arrivals, &to_do, &done);
        let work = move || match group {
            Group::Own => in_namespace(&place, serve),
            Group::Outside => on_network(&place, serve),
        };
        let thread = thread::Builder::new().name("client".to_owned()).spawn(work);
        drop(thread.context("start a thread")?);
        Ok(Self { tasks, samples })
    }

    /// What the thread says, if it does in time.
    fn take(&self, task: Task) -> Result<Result<Sample>> {
        let patience = task.duration + PATIENCE;
        self.tasks
            .send(task)
            .map_err(|_| anyhow!("a client's thread died"))?;
        Ok(self.samples.recv_timeout(patience)?)
    }
}

fn serve(group: Group, arrivals: &Arrivals, tasks: &Receiver<Task>, done: &Sender<Result<Sample>>) {
    let (first, last) = group.ports();
    let mut ports = (first..=last).cycle();
    let mut meter = None;
    for task in tasks {
        let port = ports.next().unwrap_or_default();
        let sample = meter_of_own(&mut meter).and_then(|meter| {
            dial_from(group.ports())?;
            let turn = Turn {
                duration: task.duration,
                meter,
                arrivals,
                port,
            };
            turn.take(task.measure, &task.targets)
        });
        if done.send(sample).is_err() {
            return;
        }
    }
}

/// The meter of the calling thread, which is pinned when it asks for the first time.
fn meter_of_own(meter: &mut Option<Meter>) -> Result<&Meter> {
    if meter.is_none() {
        *meter = Some(Meter::on(processor::pin()?)?);
    }
    meter.as_ref().context("no meter")
}

/// Has the network that the calling thread is on dial from these ports, of both families.
fn dial_from((first, last): (u16, u16)) -> Result<()> {
    let sysctl = "/proc/sys/net/ipv4/ip_local_port_range";
    fs::write(sysctl, format!("{first} {last}")).with_context(|| format!("set {sysctl}"))
}

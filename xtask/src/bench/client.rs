//! Clients: threads that take turns at measuring, each with a place of its own.

use std::fs;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use xtask::testbed::{Namespace, in_namespace, on_network};

use super::measure::{Measure, Sample, Targets};
use super::processor;

/// How much longer than asked a turn may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A client. It waits for its turns until it is dropped.
pub(super) struct Client {
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
    /// packet edge has a flow's record for a while, which would take the same port's connection to
    /// the same pod by another way for its own.
    fn ports(self) -> (u16, u16) {
        match self {
            Self::Own => (32_768, 60_999),
            Self::Outside => (10_000, 29_999),
        }
    }
}

impl Client {
    /// Starts a client on the network of a pod or node.
    pub(super) fn start(place: &Namespace, group: Group) -> Result<Self> {
        let (tasks, to_do) = mpsc::channel();
        let (done, samples) = mpsc::channel();
        let place = place.clone();
        let work = move || match group {
            Group::Own => in_namespace(&place, move || serve(group, &to_do, &done)),
            Group::Outside => on_network(&place, move || serve(group, &to_do, &done)),
        };
        let thread = thread::Builder::new().name("client".to_owned()).spawn(work);
        drop(thread.context("start a thread")?);
        Ok(Self { tasks, samples })
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
        self.tasks
            .send(task)
            .map_err(|_| anyhow!("a client's thread died"))?;
        self.samples
            .recv_timeout(duration + PATIENCE)
            .with_context(|| format!("{}: no answer", measure.name()))?
    }
}

fn serve(group: Group, tasks: &Receiver<Task>, done: &Sender<Result<Sample>>) {
    let mut ready = processor::pin();
    for task in tasks {
        let sample = std::mem::replace(&mut ready, Ok(()))
            .and_then(|()| dial_from(group.ports()))
            .and_then(|()| task.measure.take(&task.targets, task.duration));
        if done.send(sample).is_err() {
            return;
        }
    }
}

/// Has the network that the calling thread is on dial from these ports, of both families.
fn dial_from((first, last): (u16, u16)) -> Result<()> {
    let sysctl = "/proc/sys/net/ipv4/ip_local_port_range";
    fs::write(sysctl, format!("{first} {last}")).with_context(|| format!("set {sysctl}"))
}

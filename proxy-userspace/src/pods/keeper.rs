//! Keeps the map `PODS`, in a thread of its own: folders are read there, and waited for.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use proxy_common::abi::{PodFlags, SocketSettings};
use tokio::sync::watch;

use super::tree::Tree;
use super::wanted::{Pods, Wanted};
use super::{Skip, View};
use crate::causes;
use crate::loader::pins::Pins;
use crate::maps::{Held, List, MapFailure, Table};
use crate::model::{Event, ObjectName};
use crate::setting::Setting;

/// Until a cgroup that was not found is looked for again, at first and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How often cgroups are looked at when nothing is known to have changed: the kubelet may have
/// made one anew.
const REVIEW: Duration = Duration::from_secs(60);

/// The pods' cgroups can't be kept track of.
#[derive(Debug, thiserror::Error)]
pub enum PodsError {
    /// There is no such tree.
    #[error("cannot read the cgroup {}", path.display())]
    Tree {
        /// Where it should be.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel refuses a map.
    #[error(transparent)]
    Map(#[from] MapFailure),
    /// The kernel refuses the thread.
    #[error("cannot start the thread that looks for pods' cgroups")]
    Thread(#[source] io::Error),
}

/// Brings `PODS` in line with the Pods that it is told of.
pub struct Keeper {
    pods: Pods,
    tree: Tree,
    map: Table<u64, PodFlags>,
    /// The levels of entries that a predecessor left.
    inherited: u32,
    pause: Duration,
    view: watch::Sender<View>,
}

/// By which a running [`Keeper`] is told and asked. Dropped, it ends the keeper.
pub struct Handle {
    events: mpsc::Sender<Event>,
    view: watch::Receiver<View>,
}

impl Keeper {
    /// Starts to keep the pinned map. Pods' cgroups are looked for at and below `cgroup`.
    ///
    /// # Errors
    /// If there is no such cgroup, or no such map.
    pub fn start(pins: &Pins, skip: Skip, cgroup: &Path) -> Result<Handle, PodsError> {
        let tree = Tree::new(cgroup).map_err(|source| PodsError::Tree {
            path: cgroup.to_owned(),
            source,
        })?;
        let settings: List<SocketSettings> = List::open(pins, "SOCKET_SETTINGS")?;
        let inherited = settings.get(0)?.pod_levels;
        let levels = View {
            levels: inherited,
            ..View::default()
        };
        let (view, seen) = watch::channel(levels);
        let keeper = Self {
            pods: Pods::new(skip),
            tree,
            map: Table::open(pins, "PODS")?,
            inherited,
            pause: REVIEW,
            view,
        };
        let (events, told) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("pods".to_owned())
            .spawn(move || keeper.run(&told));
        drop(thread.map_err(PodsError::Thread)?);
        Ok(Handle { events, view: seen })
    }

    fn run(mut self, told: &mpsc::Receiver<Event>) {
        loop {
            match told.recv_timeout(self.pause) {
                Ok(event) => {
                    self.pods.apply(&event);
                    told.try_iter().for_each(|event| self.pods.apply(&event));
                    self.pause = REVIEW;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.look();
        }
    }

    /// Looks for cgroups and writes what has changed.
    fn look(&mut self) {
        let pods = &self.pods;
        let found = self.tree.look(|found| pods.are_all_in(found));
        let Wanted { entries, mut view } = pods.wanted(&found);
        let written = self.write(&entries);
        let is_done = view.n_not_found == 0 && written.is_ok();
        view.problem = match written {
            Ok((inherited, left_out)) => {
                self.inherited = inherited;
                let names = self.pods.names_of(&found, &left_out);
                self.crowd(&names).or_else(|| self.nowhere(&view))
            }
            Err(error) => Some(causes::line(&error)),
        };
        view.levels |= self.inherited;
        self.pause = next_pause(self.pause, is_done);
        let _is_other = self.view.send_if_modified(|before| {
            let before = std::mem::replace(before, view.clone());
            before != view
        });
    }

    /// That no cgroup is found for a while although there are pods: this is not their tree.
    fn nowhere(&self, view: &View) -> Option<String> {
        let none_found = view.n_served + view.n_left_out == 0 && view.n_not_found > 0;
        (none_found && self.pause == BACKOFF.1).then(|| {
            format!(
                "no cgroup of {} pods is in {}: all are left to their devices",
                view.n_not_found,
                self.tree.root().display()
            )
        })
    }

    /// That there is no room for these pods.
    fn crowd(&self, names: &[&ObjectName]) -> Option<String> {
        let (first, others) = names.split_first()?;
        let more = match others.len() {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        Some(format!(
            "pod {first}{more}: map PODS is full with {} entries: left to its device; raise {}",
            self.map.size(),
            Setting("--max-pods")
        ))
    }

    /// Writes what differs. Yields the levels of a predecessor's entries that are left, and for
    /// which cgroups there is no room.
    fn write(
        &mut self,
        wanted: &BTreeMap<u64, PodFlags>,
    ) -> Result<(u32, BTreeSet<u64>), MapFailure> {
        let held: BTreeMap<u64, PodFlags> = self.map.entries().collect::<Result<_, _>>()?;
        let outdated = self.pods.outdated(&held, wanted);
        let Held { left_out, .. } = self.map.hold(wanted, |id| !outdated.contains(id))?;
        let is_ours = |id: &u64| wanted.contains_key(id) || outdated.contains(id);
        let are_ours = held.keys().all(is_ours);
        let inherited = if are_ours { 0 } else { self.inherited };
        Ok((inherited, left_out.into_iter().collect()))
    }
}

/// How long to wait for news after a look that took place after `pause`.
fn next_pause(pause: Duration, is_done: bool) -> Duration {
    if is_done {
        REVIEW
    } else if pause == REVIEW {
        BACKOFF.0
    } else {
        (pause * 2).min(BACKOFF.1)
    }
}

impl Handle {
    /// Passes on what a source says; never waits.
    pub fn tell(&self, event: &Event) {
        if matches!(event, Event::Pod(_) | Event::PodGone(_) | Event::PodsKnown) {
            // The keeper ends with its handle only, so it is there.
            let _sent = self.events.send(event.clone());
        }
    }

    /// What has become of the pods.
    pub fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// Waits until that is something else.
    ///
    /// # Errors
    /// If the keeper has failed.
    pub async fn changed(&mut self) -> Result<(), watch::error::RecvError> {
        self.view.changed().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lacking_is_looked_for_soon_and_then_less_and_less_often() {
        let mut pause = REVIEW;
        let mut pauses = Vec::new();
        for _ in 0..8 {
            pause = next_pause(pause, false);
            pauses.push(pause.as_millis());
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(next_pause(pause, true), REVIEW);
    }
}

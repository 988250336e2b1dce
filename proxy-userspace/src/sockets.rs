//! The sockets that Beeline pointed at backends, as user space looks after them.
//!
//! A [`Keeper`] sees to it that they leave backends that are gone, tells the kernel what it has to
//! know of the pods' network namespaces, and removes what is left of correspondences that are
//! over.

mod clients;
mod diag;
mod fate;
mod holder;
mod idle;
mod namespaces;
mod netlink;
mod sweep;

use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use proxy_common::abi::Protocol;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use self::clients::Clients;
use self::holder::Parted;
use self::idle::Idle;
use self::sweep::{Sweeper, Swept};
use crate::conntrack_gc::Timeouts;
use crate::loader::pins::Pins;
use crate::maps::MapFailure;
use crate::node::GoneBackends;

/// From the end of one sweep to the start of the next, at least.
const BETWEEN_SWEEPS: Duration = Duration::from_millis(250);
/// Until sockets are looked at again that may be about to connect.
const SETTLING: Duration = Duration::from_secs(1);
/// A device comes before its namespace has addresses: so long after it is there, that is read …
const DEVICES_AT_FIRST: Duration = Duration::from_millis(200);
/// … and once more.
const DEVICES_AGAIN: Duration = Duration::from_secs(2);
/// From one look at everything to the next.
const PERIOD: Duration = Duration::from_secs(30);

/// How sockets are looked after.
#[derive(Clone, Debug)]
pub struct KeeperConfig {
    /// What becomes of TCP sockets to a backend that is gone, if its Service does not say.
    pub gone_backends: GoneBackends,
    /// How long correspondences may be silent.
    pub timeouts: Timeouts,
    /// Where the `proc` of this machine is mounted, with the processes of all pods.
    pub proc: PathBuf,
}

/// How many sockets left backends that were gone.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Counts {
    /// UDP sockets whose users were told.
    pub udp_closed: u64,
    /// UDP sockets that were connected to another backend.
    pub udp_moved: u64,
    /// TCP sockets whose users were told.
    pub tcp_closed: u64,
}

impl Counts {
    fn add(&mut self, protocol: Protocol, parted: Parted) {
        let count = match (protocol, parted) {
            (Protocol::Udp, Parted::Closed) => &mut self.udp_closed,
            (Protocol::Udp, Parted::Moved) => &mut self.udp_moved,
            (Protocol::Tcp | Protocol::Sctp, Parted::Closed | Parted::Moved) => {
                &mut self.tcp_closed
            }
        };
        *count += 1;
    }
}

/// Sockets cannot be looked after.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// A map refuses.
    #[error(transparent)]
    Map(#[from] MapFailure),
    /// Not even the own namespace is to be found.
    #[error("cannot tell the network namespaces of this machine")]
    Namespaces(#[source] io::Error),
    /// No thread.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

/// What may have changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Change {
    Backends,
    Devices,
}

/// Looks after sockets, on a thread of its own in the network namespace of who starts it.
pub struct Keeper {
    config: KeeperConfig,
    /// Does not ask the kernel to destroy sockets.
    by_holder: bool,
    counts: watch::Sender<Counts>,
    sweeper: Sweeper,
    clients: Clients,
    idle: Idle,
}

/// Tells a [`Keeper`] what happens. It ends with its last handle.
#[derive(Clone, Debug)]
pub struct KeeperHandle {
    changes: Sender<Change>,
    counts: watch::Receiver<Counts>,
}

impl KeeperHandle {
    /// `BACKENDS` may say something else now. Never waits.
    pub fn backends_changed(&self) {
        self.tell(Change::Backends);
    }

    /// Devices came, went or changed. Never waits.
    pub fn devices_changed(&self) {
        self.tell(Change::Devices);
    }

    fn tell(&self, change: Change) {
        if self.changes.send(change).is_err() {
            tracing::debug!("nobody looks after sockets any more");
        }
    }

    /// How many sockets left backends that were gone, since the keeper was started.
    pub fn counts(&self) -> watch::Receiver<Counts> {
        self.counts.clone()
    }
}

impl Keeper {
    /// Opens the pinned maps and begins with a look at everything.
    ///
    /// # Errors
    /// If a map is not there.
    pub fn start(pins: &Pins, config: KeeperConfig) -> Result<KeeperHandle, KeeperError> {
        Self::open(pins, config, false)?.spawn()
    }

    /// The same as if the kernel could not destroy sockets: for tests of the next best way.
    ///
    /// # Errors
    /// If a map is not there.
    #[doc(hidden)]
    pub fn start_without_destroy(
        pins: &Pins,
        config: KeeperConfig,
    ) -> Result<KeeperHandle, KeeperError> {
        Self::open(pins, config, true)?.spawn()
    }

    fn open(pins: &Pins, config: KeeperConfig, by_holder: bool) -> Result<Self, MapFailure> {
        Ok(Self {
            config,
            by_holder,
            counts: watch::Sender::default(),
            sweeper: Sweeper::open(pins)?,
            clients: Clients::open(pins)?,
            idle: Idle::open(pins)?,
        })
    }

    fn spawn(self) -> Result<KeeperHandle, KeeperError> {
        let (changes, heard) = channel();
        let handle = KeeperHandle {
            changes,
            counts: self.counts.subscribe(),
        };
        let thread = std::thread::Builder::new().name("sockets".to_owned());
        let run = move || self.run(&heard);
        // It ends with the last handle.
        drop(thread.spawn(run).map_err(KeeperError::Thread)?);
        Ok(handle)
    }

    fn run(mut self, changes: &Receiver<Change>) {
        let mut agenda = Agenda::new(Instant::now());
        loop {
            let wait = agenda.next().saturating_duration_since(Instant::now());
            match changes.recv_timeout(wait) {
                Ok(change) => {
                    agenda.note(change, Instant::now());
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            // A sweep comes first: sockets wait for it.
            if agenda.take_sweep(Instant::now()) {
                let swept = self.sweep();
                agenda.swept(swept, Instant::now());
            } else if agenda.take_look(Instant::now()) {
                self.look();
            } else if agenda.take_tidying(Instant::now()) {
                self.tidy();
            }
        }
    }

    fn sweep(&mut self) -> Swept {
        let start = Instant::now();
        let swept = self
            .sweeper
            .sweep(&self.config, self.by_holder, &self.counts);
        match swept {
            Ok(swept) => {
                tracing::debug!(
                    "looked for sockets to part: {swept:?} in {:?}",
                    start.elapsed()
                );
                if swept.n_stuck > 0 {
                    tracing::warn!(
                        "{} sockets to backends that are gone can be neither closed nor moved",
                        swept.n_stuck
                    );
                }
                swept
            }
            Err(error) => {
                warn("parting sockets from backends that are gone", error);
                Swept::default()
            }
        }
    }

    fn look(&mut self) {
        match self.clients.update(&self.config.proc) {
            Ok(0) => {}
            Ok(n_writes) => tracing::debug!("wrote {n_writes} entries of CLIENTS"),
            Err(error) => warn("reading the pods' network namespaces", error),
        }
    }

    fn tidy(&mut self) {
        match self.idle.remove(&self.config.timeouts) {
            Ok(0) => {}
            Ok(n_removed) => tracing::debug!("removed {n_removed} idle entries of DATAGRAMS"),
            Err(error) => warn("removing idle entries of DATAGRAMS", error.into()),
        }
    }
}

fn warn(action: &str, error: KeeperError) {
    tracing::warn!("{action}: {:#}", anyhow::Error::from(error));
}

/// What is to be done when.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Agenda {
    /// When to look for sockets to part.
    sweep: Instant,
    /// Before this there is no sweep.
    rest: Instant,
    /// When to look at the namespaces, and when once more.
    look: Instant,
    look_again: Option<Instant>,
    /// When to look at idle records.
    tidy: Instant,
}

impl Agenda {
    fn new(now: Instant) -> Self {
        Self {
            sweep: now,
            rest: now,
            look: now,
            look_again: None,
            tidy: now + PERIOD,
        }
    }

    fn next(&self) -> Instant {
        self.sweep.min(self.look).min(self.tidy)
    }

    fn note(&mut self, change: Change, now: Instant) {
        match change {
            Change::Backends => self.sweep = self.sweep.min(now.max(self.rest)),
            Change::Devices => {
                self.look = self.look.min(now + DEVICES_AT_FIRST);
                self.look_again = Some(now + DEVICES_AGAIN);
            }
        }
    }

    fn take_sweep(&mut self, now: Instant) -> bool {
        let is_due = self.sweep <= now;
        if is_due {
            self.sweep = now + PERIOD;
        }
        is_due
    }

    /// A sweep is over; what it could not see yet is looked for again soon.
    fn swept(&mut self, swept: Swept, now: Instant) {
        self.rest = now + BETWEEN_SWEEPS;
        if swept.n_settling > 0 {
            self.sweep = self.sweep.min(now + SETTLING);
        }
    }

    fn take_look(&mut self, now: Instant) -> bool {
        let is_due = self.look <= now;
        if is_due {
            let again = self.look_again.filter(|again| *again > now);
            self.look = again.unwrap_or(now + PERIOD);
            self.look_again = None;
        }
        is_due
    }

    fn take_tidying(&mut self, now: Instant) -> bool {
        let is_due = self.tidy <= now;
        if is_due {
            self.tidy = now + PERIOD;
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: Duration = Duration::from_millis(1);

    /// An agenda after its first round.
    fn quiet(now: Instant) -> Agenda {
        let mut agenda = Agenda::new(now);
        assert!(agenda.take_sweep(now) && agenda.take_look(now));
        agenda.swept(Swept::default(), now);
        assert_eq!(agenda.next(), now + PERIOD);
        agenda
    }

    #[test]
    fn the_first_change_counts_at_once_and_more_are_gathered() {
        let start = Instant::now();
        let mut agenda = quiet(start);
        let now = start + PERIOD / 2;
        agenda.note(Change::Backends, now);
        assert!(agenda.take_sweep(now));
        agenda.swept(Swept::default(), now);
        agenda.note(Change::Backends, now + MOMENT);
        agenda.note(Change::Backends, now + 2 * MOMENT);
        assert!(!agenda.take_sweep(now + 2 * MOMENT));
        assert!(agenda.take_sweep(now + BETWEEN_SWEEPS));
        assert!(!agenda.take_sweep(now + BETWEEN_SWEEPS + MOMENT));
    }

    #[test]
    fn who_is_about_to_connect_is_looked_for_again() {
        let start = Instant::now();
        let mut agenda = quiet(start);
        let settling = Swept {
            n_settling: 1,
            n_stuck: 0,
        };
        agenda.swept(settling, start);
        assert!(agenda.take_sweep(start + SETTLING));
    }

    #[test]
    fn a_new_device_is_looked_at_twice() {
        let start = Instant::now();
        let mut agenda = quiet(start);
        agenda.note(Change::Devices, start);
        assert!(agenda.take_look(start + DEVICES_AT_FIRST));
        assert!(!agenda.take_look(start + DEVICES_AT_FIRST + MOMENT));
        assert!(agenda.take_look(start + DEVICES_AGAIN));
        assert!(!agenda.take_look(start + DEVICES_AGAIN + MOMENT));
    }
}

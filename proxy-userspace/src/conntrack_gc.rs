//! Collects flow records and affinities whose time is over.
//!
//! The kernel evicts the least recently used when a map is full; this keeps it from getting full
//! of what nobody needs.

mod timeouts;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use bytemuck::Pod;
use nix::time::{ClockId, clock_gettime};
use proxy_common::abi::{
    Affinity, AffinityKey, DatagramKey, Flow, FlowKey, FlowRole, FlowState, Frontend, FrontendKey,
    SocketRecord,
};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;

pub(crate) use self::timeouts::parse_seconds;
pub use self::timeouts::{Timeouts, TimeoutsError};
use crate::loader::pins::Pins;
use crate::maps::{MapFailure, Table, wait_for_programs};

/// From the start of one pass to that of the next, at least.
const INTERVAL: Duration = Duration::from_secs(10);
/// So many entries are looked at …
const BATCH: usize = 1024;
/// … before a pause, so that a pass costs less than a tenth of one CPU.
const PAUSE: Duration = Duration::from_millis(15);
/// Most records that one pass removes; they are remembered until its end.
const MAX_EXPIRED: usize = 65_536;

const SECOND: u64 = 1_000_000_000;

/// How far behind the last packet a record's time may be: see [`Flow::last_seen`].
const LAG: u64 = 3 * SECOND;

/// Nanoseconds of `CLOCK_MONOTONIC`, the clock of the datapath.
pub fn now() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| Duration::from(time).as_nanos() as u64)
}

/// When the time of a flow is over: nanoseconds of `CLOCK_MONOTONIC`. `None`: its state is none.
///
/// The twin counts too: either may be behind, and one alone must not go.
pub fn expires_at(flow: &Flow, twin: Option<&Flow>, timeouts: &Timeouts) -> Option<u64> {
    let latest = match twin {
        Some(twin) if twin.last_seen > flow.last_seen => twin,
        _ => flow,
    };
    let timeout = u64::from(timeouts.seconds(FlowState::from_number(latest.state)?));
    Some(latest.last_seen.saturating_add(timeout * SECOND + LAG))
}

/// Whether the time of a flow is over at `now`, nanoseconds of `CLOCK_MONOTONIC`.
pub fn is_expired(flow: &Flow, twin: Option<&Flow>, now: u64, timeouts: &Timeouts) -> bool {
    expires_at(flow, twin, timeouts).is_none_or(|end| end < now)
}

/// Whether an affinity is over at `now`; `seconds` is what its service port says, 0 or `None` if
/// that wants none any more (rule R116).
pub fn is_affinity_expired(affinity: &Affinity, seconds: Option<u32>, now: u64) -> bool {
    let lifetime = u64::from(seconds.unwrap_or(0)) * SECOND;
    affinity.last_used.saturating_add(lifetime) < now
}

/// The key of the other of two records.
pub const fn twin_key(key: &FlowKey, flow: &Flow) -> FlowKey {
    FlowKey {
        tuple: flow.to.swapped(),
        side: flow.twin_side,
        ..*key
    }
}

/// Asks which of these backends are in use.
pub struct Inquiry {
    /// Ids of backends.
    pub backends: BTreeSet<u32>,
    /// Gets those that records of flows and sockets name, once all records have been looked at.
    pub answer: UnboundedSender<BTreeSet<u32>>,
}

/// What one pass did.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Collected {
    /// Flow records that are gone, twins included.
    pub flows: usize,
    /// Affinities that are gone.
    pub affinities: usize,
    /// Entries that were looked at.
    pub seen: usize,
    /// Flow records among them that stay.
    pub n_records: usize,
    /// The conversations that these are of, by state, in the order of [`FlowState::ALL`].
    pub by_state: [u64; FlowState::ALL.len()],
    /// The pass ended early, since so much was to be removed.
    pub is_partial: bool,
    /// Backends that were asked for and that the record of a flow or a socket names; `None`: not
    /// every record was looked at.
    pub in_use: Option<BTreeSet<u32>>,
}

/// What a whole pass saw.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Passed {
    /// When it ended.
    pub at: Instant,
    /// Flow records that there were.
    pub n_records: u64,
    /// How many there may be.
    pub capacity: u32,
    /// Conversations by state, in the order of [`FlowState::ALL`].
    pub by_state: [u64; FlowState::ALL.len()],
    /// Flow records that were removed since the start.
    pub n_expired_flows: u64,
    /// Affinities that were removed since the start.
    pub n_expired_affinities: u64,
}

/// The maps that are collected from, apart from those of others: walking one borrows it.
pub struct Collector {
    timeouts: Timeouts,
    flows: Table<FlowKey, Flow>,
    affinity: Table<AffinityKey, Affinity>,
    frontends: Table<FrontendKey, Frontend>,
    sockets: Table<u64, SocketRecord>,
    datagrams: Table<DatagramKey, SocketRecord>,
    passed: watch::Sender<Option<Passed>>,
    /// Flow records and affinities that were removed so far.
    n_expired: (u64, u64),
}

impl Collector {
    /// Opens the pinned maps.
    ///
    /// # Errors
    /// If one is not there.
    pub fn open(pins: &Pins, timeouts: Timeouts) -> Result<Self, MapFailure> {
        Ok(Self {
            timeouts,
            flows: Table::open(pins, "FLOWS")?,
            affinity: Table::open(pins, "AFFINITY")?,
            frontends: Table::open(pins, "FRONTENDS")?,
            sockets: Table::open(pins, "SOCKETS")?,
            datagrams: Table::open(pins, "DATAGRAMS")?,
            passed: watch::Sender::default(),
            n_expired: (0, 0),
        })
    }

    /// What the latest whole pass saw; `None` before the first.
    pub fn passed(&self) -> watch::Receiver<Option<Passed>> {
        self.passed.subscribe()
    }

    /// Makes one pass after the other until the sender of inquiries is gone. Each pass answers the
    /// last inquiry that came before it, if there is one.
    pub fn run(mut self, inquiries: &Receiver<Inquiry>) {
        let mut due = Instant::now() + INTERVAL;
        let mut inquiry = None;
        loop {
            match inquiries.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(new) => {
                    inquiry = Some(new);
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let start = Instant::now();
            let is_partial = self.run_pass(&mut inquiry);
            due = if is_partial {
                Instant::now() + PAUSE
            } else {
                start + INTERVAL
            };
        }
    }

    /// Makes one pass; says whether the next one is due at once.
    fn run_pass(&mut self, inquiry: &mut Option<Inquiry>) -> bool {
        let start = Instant::now();
        let none = BTreeSet::new();
        let asked = inquiry.as_ref().map_or(&none, |inquiry| &inquiry.backends);
        if !asked.is_empty() {
            // A program that chose one of them before it was taken away may just be recording that.
            wait_for_programs();
        }
        let collected = match self.pass(&|| std::thread::sleep(PAUSE), asked) {
            Ok(collected) => collected,
            Err(error) => {
                tracing::warn!("collecting flow records: {error:#}");
                return false;
            }
        };
        tracing::debug!(
            "collected {} flow records and {} affinities, seen {} in {:?}",
            collected.flows,
            collected.affinities,
            collected.seen,
            start.elapsed()
        );
        self.tell(&collected);
        if let Some(in_use) = collected.in_use
            && let Some(inquiry) = inquiry.take()
            && inquiry.answer.send(in_use).is_err()
        {
            tracing::debug!("nobody waits for the backends in use");
        }
        collected.is_partial
    }

    /// Publishes what a pass saw. One that ended early says nothing of what there is.
    fn tell(&mut self, collected: &Collected) {
        let (flows, affinities) = &mut self.n_expired;
        *flows += collected.flows as u64;
        *affinities += collected.affinities as u64;
        if collected.is_partial {
            return;
        }
        let passed = Passed {
            at: Instant::now(),
            n_records: collected.n_records as u64,
            capacity: self.flows.size(),
            by_state: collected.by_state,
            n_expired_flows: *flows,
            n_expired_affinities: *affinities,
        };
        let _before = self.passed.send_replace(Some(passed));
    }

    /// Looks at every entry once; calls `pause` now and then. Tells which of the backends `asked`
    /// for are in use.
    ///
    /// # Errors
    /// If a map refuses; what was collected by then is gone.
    pub fn pass(
        &mut self,
        pause: &dyn Fn(),
        asked: &BTreeSet<u32>,
    ) -> Result<Collected, MapFailure> {
        let mut collected = Collected::default();
        let mut in_use = BTreeSet::new();
        let (mut n_records, mut by_state) = (0, [0; FlowState::ALL.len()]);
        let mut note = |flow: &Flow, stays: bool| {
            if stays {
                n_records += 1;
                // One of the two records of a conversation.
                let count = by_state.get_mut(usize::from(flow.state));
                if let Some(count) = count.filter(|_| flow.role == FlowRole::Forward as u8) {
                    *count += 1;
                }
            }
            if asked.contains(&flow.backend) {
                in_use.insert(flow.backend);
            }
        };
        // Nothing is removed while walking: the kernel starts over if the key it stands at goes.
        let expired = self.expired_flows(pause, &mut note, &mut collected.seen)?;
        collected.is_partial = expired.len() == MAX_EXPIRED;
        (collected.n_records, collected.by_state) = (n_records, by_state);
        // A walk that was stopped after as many records as there may be may have missed some.
        let is_whole = !collected.is_partial && collected.seen < self.flows.size() as usize;
        let is_whole = is_whole
            && note_sockets(&self.sockets, asked, &mut in_use, pause)?
            && note_sockets(&self.datagrams, asked, &mut in_use, pause)?;
        collected.in_use = is_whole.then_some(in_use);
        for batch in expired.chunks(BATCH) {
            for key in batch {
                collected.flows += self.collect_flow(key)?;
            }
            pause();
        }
        let expired = self.expired_affinities(pause, &mut collected.seen)?;
        for key in &expired {
            collected.affinities += usize::from(self.affinity.remove(key)?);
        }
        Ok(collected)
    }

    fn expired_flows(
        &self,
        pause: &dyn Fn(),
        note: &mut dyn FnMut(&Flow, bool),
        seen: &mut usize,
    ) -> Result<Vec<FlowKey>, MapFailure> {
        let mut expired = Vec::new();
        let mut now = now();
        for entry in self.flows.entries() {
            let (key, flow) = entry?;
            *seen += 1;
            if seen.is_multiple_of(BATCH) {
                pause();
                now = self::now();
            }
            // The twin is only asked for if this record alone says that the time is over.
            let may_go = is_expired(&flow, None, now, &self.timeouts);
            note(&flow, !may_go);
            if may_go {
                expired.push(key);
                if expired.len() == MAX_EXPIRED {
                    break;
                }
            }
        }
        Ok(expired)
    }

    /// Removes the record and its twin, if their time is still over. Returns how many went.
    fn collect_flow(&mut self, key: &FlowKey) -> Result<usize, MapFailure> {
        let Some(flow) = self.flows.get(key)? else {
            return Ok(0);
        };
        let twin_key = twin_key(key, &flow);
        let twin = self
            .flows
            .get(&twin_key)?
            .filter(|twin| self::twin_key(&twin_key, twin) == *key);
        if !is_expired(&flow, twin.as_ref(), now(), &self.timeouts) {
            return Ok(0);
        }
        let mut n_removed = usize::from(self.flows.remove(key)?);
        if twin.is_some() {
            n_removed += usize::from(self.flows.remove(&twin_key)?);
        }
        Ok(n_removed)
    }

    fn expired_affinities(
        &self,
        pause: &dyn Fn(),
        seen: &mut usize,
    ) -> Result<Vec<AffinityKey>, MapFailure> {
        if self.affinity.keys().next().is_none() {
            return Ok(Vec::new());
        }
        let lifetimes = self.affinity_lifetimes()?;
        let now = now();
        let mut expired = Vec::new();
        for entry in self.affinity.entries() {
            let (key, affinity) = entry?;
            *seen += 1;
            if seen.is_multiple_of(BATCH) {
                pause();
            }
            if is_affinity_expired(&affinity, lifetimes.get(&key.service).copied(), now) {
                expired.push(key);
            }
        }
        Ok(expired)
    }

    /// Seconds by service id.
    fn affinity_lifetimes(&self) -> Result<BTreeMap<u32, u32>, MapFailure> {
        let mut lifetimes = BTreeMap::new();
        for entry in self.frontends.entries() {
            let (_, frontend) = entry?;
            if frontend.affinity_seconds > 0 {
                let _old = lifetimes.insert(frontend.service, frontend.affinity_seconds);
            }
        }
        Ok(lifetimes)
    }
}

/// Notes which of the backends `asked` for sockets are pointed at; says whether all were looked at.
fn note_sockets<K: Pod>(
    records: &Table<K, SocketRecord>,
    asked: &BTreeSet<u32>,
    in_use: &mut BTreeSet<u32>,
    pause: &dyn Fn(),
) -> Result<bool, MapFailure> {
    if asked.is_empty() {
        return Ok(true);
    }
    let mut n_seen = 0;
    for entry in records.entries() {
        let (_, record) = entry?;
        if asked.contains(&record.id) {
            in_use.insert(record.id);
        }
        n_seen += 1;
        if n_seen % BATCH == 0 {
            pause();
        }
    }
    Ok(n_seen < records.size() as usize)
}

#[cfg(test)]
mod tests {
    use proxy_common::abi::{Addr, Port, Side, Tuple};

    use super::*;

    fn flow(state: FlowState, last_seen: u64) -> Flow {
        let tuple = Tuple {
            src: Addr::UNSPECIFIED,
            dst: Addr::UNSPECIFIED,
            src_port: Port::ZERO,
            dst_port: Port::ZERO,
        };
        Flow {
            to: tuple,
            backend: 0,
            generation: 0,
            service: 0,
            state: state as u8,
            role: 0,
            twin_side: 0,
            device: 0,
            exit: 0,
            _pad: 0,
            tick: 0,
            created: 0,
            last_seen,
        }
    }

    #[test]
    fn a_flow_lives_as_long_as_its_state_allows() {
        let timeouts = Timeouts::default();
        for state in FlowState::ALL {
            let end = u64::from(timeouts.seconds(state)) * SECOND + LAG;
            let flow = flow(state, 0);
            assert!(!is_expired(&flow, None, end, &timeouts), "{state:?}");
            assert!(is_expired(&flow, None, end + 1, &timeouts), "{state:?}");
        }
    }

    #[test]
    fn the_record_that_was_seen_last_counts_for_both() {
        let timeouts = Timeouts::default();
        let (old, new) = (
            flow(FlowState::TcpSynSent, 0),
            flow(FlowState::TcpEstablished, SECOND),
        );
        let now = 1000 * SECOND;
        assert!(is_expired(&old, None, now, &timeouts));
        assert!(!is_expired(&old, Some(&new), now, &timeouts));
        assert!(!is_expired(&new, Some(&old), now, &timeouts));
    }

    #[test]
    fn a_record_in_no_known_state_is_expired() {
        let mut unknown = flow(FlowState::UdpStream, u64::MAX);
        unknown.state = 200;
        assert!(is_expired(&unknown, None, 0, &Timeouts::default()));
    }

    #[test]
    fn twins_name_each_other() {
        let tuple = |src: u16, dst: u16| Tuple {
            src: Addr::from_v4_word(1),
            dst: Addr::from_v4_word(2),
            src_port: Port::new(src),
            dst_port: Port::new(dst),
        };
        let key = FlowKey {
            tuple: tuple(1000, 80),
            protocol: 6,
            side: 0,
            _pad: 0,
        };
        let mut forward = flow(FlowState::TcpEstablished, 0);
        forward.to = tuple(1000, 8080);
        forward.twin_side = Side::Egress as u8;
        let reverse_key = twin_key(&key, &forward);
        assert_eq!(reverse_key.tuple, tuple(1000, 8080).swapped());
        let mut reverse = flow(FlowState::TcpEstablished, 0);
        reverse.to = tuple(1000, 80).swapped();
        reverse.twin_side = Side::Ingress as u8;
        assert_eq!(twin_key(&reverse_key, &reverse), key);
    }

    #[test]
    fn an_affinity_lasts_from_its_last_connection() {
        let affinity = Affinity {
            backend: 1,
            joined: 1,
            last_used: 5 * SECOND,
        };
        assert!(!is_affinity_expired(&affinity, Some(10), 15 * SECOND));
        assert!(is_affinity_expired(&affinity, Some(10), 15 * SECOND + 1));
        assert!(is_affinity_expired(&affinity, None, 6 * SECOND));
    }
}

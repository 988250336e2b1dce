//! One sweep: finds the sockets that have to leave their backends, and sees to it that they do.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::ControlFlow;
use std::path::Path;

use proxy_common::abi::{
    Addr, AddressFlags, Backend, Family, Frontend, FrontendKey, Port, Protocol, SocketRecord,
};
use tokio::sync::watch;

use super::diag::{Found, Sockets};
use super::fate::{Fate, fate, has_backend};
use super::holder::{self, Parted};
use super::namespaces::{self, Namespace};
use super::{Counts, KeeperConfig, KeeperError};
use crate::conntrack_gc::now;
use crate::loader::pins::Pins;
use crate::maps::{List, MapFailure, Table, wait_for_programs};

/// How long a socket may take from its record to its connection: nanoseconds.
const SETTLING: u64 = 2_000_000_000;

/// The maps that tell which sockets are pointed where, and what is there.
pub(super) struct Sweeper {
    sockets: Table<u64, SocketRecord>,
    backends: List<Backend>,
    frontends: Table<FrontendKey, Frontend>,
    addresses: Table<Addr, AddressFlags>,
}

/// How a sweep ended.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Swept {
    /// Sockets that were not to be seen, but may be about to connect: look again soon.
    pub(super) n_settling: usize,
    /// Sockets that nothing could be done about.
    pub(super) n_stuck: usize,
}

/// A socket that has to leave.
#[derive(Clone, Copy, Debug)]
struct Leaver {
    record: SocketRecord,
    fate: Fate,
}

/// What became of a leaver.
enum Outcome {
    /// It left.
    Left,
    /// It goes on, with good reason.
    Stays,
    /// It is connected to something else.
    Elsewhere,
    /// The kernel does not destroy it.
    Stuck(Found, io::Error),
}

/// A walk through the namespaces.
struct Walk<'a> {
    leavers: &'a BTreeMap<u64, Leaver>,
    by_holder: bool,
    counts: &'a watch::Sender<Counts>,
    outcomes: BTreeMap<u64, Outcome>,
    /// Namespaces in which every socket was seen.
    namespaces: BTreeSet<Option<u64>>,
}

impl Sweeper {
    /// Opens the pinned maps.
    ///
    /// # Errors
    /// If one is not there.
    pub(super) fn open(pins: &Pins) -> Result<Self, MapFailure> {
        Ok(Self {
            sockets: Table::open(pins, "SOCKETS")?,
            backends: List::open(pins, "BACKENDS")?,
            frontends: Table::open(pins, "FRONTENDS")?,
            addresses: Table::open(pins, "ADDRESSES")?,
        })
    }

    /// Makes one sweep. `by_holder`: does not ask the kernel to destroy sockets.
    ///
    /// # Errors
    /// If a map refuses, or there are no namespaces to be found.
    pub(super) fn sweep(
        &mut self,
        config: &KeeperConfig,
        by_holder: bool,
        counts: &watch::Sender<Counts>,
    ) -> Result<Swept, KeeperError> {
        // A program that chose a backend before it went may just be recording that.
        wait_for_programs();
        let leavers = self.leavers(config)?;
        if leavers.is_empty() {
            return Ok(Swept::default());
        }
        let mut walk = Walk {
            leavers: &leavers,
            by_holder,
            counts,
            outcomes: BTreeMap::new(),
            namespaces: BTreeSet::new(),
        };
        namespaces::each(&config.proc, |namespace| walk.visit(namespace))
            .map_err(KeeperError::Namespaces)?;
        walk.part_the_stuck(&config.proc);
        let Walk {
            outcomes,
            namespaces,
            ..
        } = walk;
        Ok(self.conclude(&leavers, &outcomes, &namespaces)?)
    }

    /// The sockets that have to leave, by cookie.
    fn leavers(&self, config: &KeeperConfig) -> Result<BTreeMap<u64, Leaver>, MapFailure> {
        let now = now();
        let mut leavers = BTreeMap::new();
        for entry in self.sockets.entries() {
            let (cookie, record) = entry?;
            let Ok(backend) = self.backends.get(record.id) else {
                continue;
            };
            let mut failure = None;
            let may_move = || {
                self.is_served(&record).unwrap_or_else(|error| {
                    failure = Some(error);
                    false
                })
            };
            let fate = fate(&record, &backend, config.gone_backends, now, may_move);
            if let Some(error) = failure {
                return Err(error);
            }
            if fate != Fate::Stays {
                let _seen_twice = leavers.insert(cookie, Leaver { record, fate });
            }
        }
        Ok(leavers)
    }

    /// Whether who dials the frontend of this socket now finds a backend.
    fn is_served(&self, record: &SocketRecord) -> Result<bool, MapFailure> {
        let dialled = &record.frontend;
        let Some(protocol) = Protocol::from_number(record.protocol) else {
            return Ok(false);
        };
        let exact = FrontendKey::exact(dialled.addr, dialled.port, protocol);
        if let Some(frontend) = self.frontends.get(&exact)? {
            return Ok(has_backend(&frontend));
        }
        let flags = self.addresses.get(&dialled.addr)?;
        let takes_node_ports = dialled.addr.is_loopback()
            || flags.is_some_and(|flags| flags.contains(AddressFlags::NODE_PORTS));
        if !takes_node_ports {
            return Ok(false);
        }
        let family = dialled.addr.family();
        let node_port = FrontendKey::node_port(family, dialled.port, protocol);
        let frontend = self.frontends.get(&node_port)?;
        Ok(frontend.is_some_and(|frontend| has_backend(&frontend)))
    }

    /// Removes the records of sockets that left, or are gone.
    fn conclude(
        &mut self,
        leavers: &BTreeMap<u64, Leaver>,
        outcomes: &BTreeMap<u64, Outcome>,
        namespaces: &BTreeSet<Option<u64>>,
    ) -> Result<Swept, MapFailure> {
        let now = now();
        let mut swept = Swept::default();
        for (cookie, Leaver { record, .. }) in leavers {
            match outcomes.get(cookie) {
                Some(Outcome::Left) => self.forget(*cookie, record)?,
                Some(Outcome::Stays) => {}
                Some(Outcome::Stuck(_, why)) => {
                    tracing::debug!("socket {cookie} of a backend that is gone: {why}");
                    swept.n_stuck += 1;
                }
                Some(Outcome::Elsewhere) | None => {
                    let is_seen =
                        namespaces.contains(&Some(record.netns)) || namespaces.contains(&None);
                    if now.saturating_sub(record.last_seen) < SETTLING {
                        swept.n_settling += 1;
                    } else if is_seen {
                        self.forget(*cookie, record)?;
                    }
                }
            }
        }
        Ok(swept)
    }

    /// Removes a record, unless the socket has dialled again.
    fn forget(&mut self, cookie: u64, record: &SocketRecord) -> Result<(), MapFailure> {
        if self.sockets.get(&cookie)?.as_ref() == Some(record) {
            let _was_there = self.sockets.remove(&cookie)?;
        }
        Ok(())
    }
}

impl Walk<'_> {
    fn visit(&mut self, namespace: &Namespace) -> ControlFlow<()> {
        if !self.has_leavers(namespace.cookie) {
            return ControlFlow::Continue(());
        }
        match self.part_here(namespace.cookie) {
            Ok(()) => {
                let _is_new = self.namespaces.insert(namespace.cookie);
            }
            Err(error) => tracing::debug!("cannot see the sockets of a namespace: {error}"),
        }
        if self.outcomes.len() == self.leavers.len() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    /// Whether some of the leavers may be in the namespace with this cookie.
    fn has_leavers(&self, cookie: Option<u64>) -> bool {
        cookie.is_none_or(|cookie| self.leavers_in(Some(cookie)).next().is_some())
    }

    fn leavers_in(&self, cookie: Option<u64>) -> impl Iterator<Item = &SocketRecord> {
        let is_here = move |record: &&SocketRecord| cookie.is_none_or(|it| it == record.netns);
        self.leavers
            .values()
            .map(|leaver| &leaver.record)
            .filter(is_here)
    }

    /// Parts the leavers of the namespace that the calling thread is in from their backends.
    fn part_here(&mut self, cookie: Option<u64>) -> io::Result<()> {
        let sockets = Sockets::open()?;
        for dump in dumps(self.leavers_in(cookie)) {
            let mut seen = Vec::new();
            sockets.dump(dump.protocol, dump.family, dump.port, |found| {
                if self.leavers.contains_key(&found.cookie) {
                    seen.push(found);
                }
            })?;
            for found in seen {
                if let Some(leaver) = self.leavers.get(&found.cookie) {
                    let cookie = found.cookie;
                    let outcome = self.part(&sockets, leaver, found);
                    let _earlier = self.outcomes.insert(cookie, outcome);
                }
            }
        }
        Ok(())
    }

    fn part(&self, sockets: &Sockets, leaver: &Leaver, found: Found) -> Outcome {
        if found.peer != leaver.record.backend {
            return Outcome::Elsewhere;
        }
        if leaver.fate == Fate::LeavesIfConnecting && !found.is_connecting {
            return Outcome::Stays;
        }
        if self.by_holder {
            return Outcome::Stuck(found, io::ErrorKind::Unsupported.into());
        }
        match sockets.destroy(&found) {
            Ok(()) => {
                self.counts
                    .send_modify(|counts| counts.add(found.protocol, Parted::Closed));
                Outcome::Left
            }
            Err(error) => Outcome::Stuck(found, error),
        }
    }

    /// The next best way for those that the kernel does not destroy.
    fn part_the_stuck(&mut self, proc: &Path) {
        let stuck = self.outcomes.values().filter_map(|outcome| match outcome {
            Outcome::Stuck(found, _) => Some(found.inode),
            Outcome::Left | Outcome::Stays | Outcome::Elsewhere => None,
        });
        let inodes: BTreeSet<u32> = stuck.collect();
        if inodes.is_empty() {
            return;
        }
        let holders = holder::find(proc, &inodes);
        for (cookie, outcome) in &mut self.outcomes {
            let (Outcome::Stuck(found, why), Some(leaver)) = (&outcome, self.leavers.get(cookie))
            else {
                continue;
            };
            let parted = match holders.get(&found.inode) {
                Some(holder) => holder.socket(*cookie).and_then(|socket| {
                    holder::part(
                        &socket,
                        found.protocol,
                        found.family,
                        &leaver.record.frontend,
                    )
                }),
                None => continue,
            };
            match parted {
                Ok(parted) => {
                    self.counts
                        .send_modify(|counts| counts.add(found.protocol, parted));
                    *outcome = Outcome::Left;
                }
                Err(error) => {
                    tracing::debug!("socket {cookie}: {why}, and by its process: {error}");
                }
            }
        }
    }
}

/// A question for sockets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Dump {
    protocol: Protocol,
    family: Family,
    /// The one port that all of them are connected to, if it is one.
    port: Option<Port>,
}

/// The questions whose answers name all of these sockets.
fn dumps<'a>(records: impl Iterator<Item = &'a SocketRecord>) -> Vec<Dump> {
    let mut ports = BTreeMap::<(u8, Family), BTreeSet<Port>>::new();
    for record in records {
        let port = record.backend.port;
        // An IPv6 socket may be connected to a v4-mapped address.
        for family in [record.backend.addr.family(), Family::Ipv6] {
            let of_kind = ports.entry((record.protocol, family)).or_default();
            let _is_new = of_kind.insert(port);
        }
    }
    let dump = |((protocol, family), ports): ((u8, Family), BTreeSet<Port>)| {
        Some(Dump {
            protocol: Protocol::from_number(protocol)?,
            family,
            port: ports.first().copied().filter(|_| ports.len() == 1),
        })
    };
    ports.into_iter().filter_map(dump).collect()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proxy_common::abi::Peer;

    use super::*;

    fn record(protocol: Protocol, backend: &str, port: u16) -> SocketRecord {
        let backend = Peer::new(backend.parse::<IpAddr>().unwrap().into(), Port::new(port));
        SocketRecord {
            frontend: backend,
            backend,
            id: 1,
            generation: 1,
            service: 1,
            protocol: protocol.number(),
            _pad: [0; 3],
            netns: 1,
            last_seen: 0,
        }
    }

    #[test]
    fn ipv4_is_looked_for_among_the_sockets_of_both_families() {
        let dump = |protocol, family, port: Option<u16>| Dump {
            protocol,
            family,
            port: port.map(Port::new),
        };
        let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
        let v4 = [record(udp, "10.0.0.1", 53)];
        let both = [
            dump(udp, Family::Ipv4, Some(53)),
            dump(udp, Family::Ipv6, Some(53)),
        ];
        assert_eq!(dumps(v4.iter()), both);
        let v6 = [record(tcp, "fd00::1", 80), record(tcp, "fd00::2", 81)];
        assert_eq!(dumps(v6.iter()), [dump(tcp, Family::Ipv6, None)]);
    }
}

//! The maps, in memory, as the sync's target.

use std::collections::BTreeMap;

use beeline::sync::{Capacity, Contents, Target, Write, source_range, source_range_key};
use proxy_common::abi::{Addr, Family, ServiceName};
use proxy_common::testing::Memory;

/// Room for everything.
pub(super) const CAPACITY: Capacity = Capacity {
    frontends: 1 << 14,
    slots: 1 << 16,
    backends: 1 << 16,
    services: 1 << 14,
    addresses: 1 << 14,
    source_ranges: 1 << 14,
};

/// What the programs read, and what only the sync does.
#[derive(Default)]
pub(super) struct Maps {
    pub(super) memory: Memory,
    services: BTreeMap<u32, ServiceName>,
    /// Families whose writes fail.
    blocked: Vec<Family>,
}

/// A write to a family that hangs.
#[derive(Debug, thiserror::Error)]
#[error("updates of {0} hang")]
pub(super) struct Blocked(Family);

impl Maps {
    /// From now on writes of these families fail.
    pub(super) fn block(&mut self, families: Vec<Family>) {
        self.blocked = families;
    }

    pub(super) fn is_blocked(&self, family: Family) -> bool {
        self.blocked.contains(&family)
    }

    /// What a daemon finds that starts.
    pub(super) fn contents(&self) -> Contents {
        let frontends = self.memory.frontends.iter();
        let addresses = self.memory.addresses.iter();
        Contents {
            services: self
                .services
                .iter()
                .map(|(id, name)| (*id, *name))
                .collect(),
            frontends: frontends.map(|(key, value)| (*key, *value)).collect(),
            slots: self.memory.slots.clone(),
            backends: self.memory.backends.clone(),
            addresses: addresses.map(|(addr, flags)| (*addr, *flags)).collect(),
            source_ranges: self
                .memory
                .source_ranges
                .iter()
                .filter_map(source_range)
                .collect(),
        }
    }

    fn put_slots(&mut self, first: u32, ids: &[u32]) {
        let (first, end) = (first as usize, first as usize + ids.len());
        let slots = &mut self.memory.slots;
        slots.resize(slots.len().max(end), 0);
        slots[first..end].copy_from_slice(ids);
    }

    fn put_backend(&mut self, id: u32, backend: proxy_common::abi::Backend) {
        let id = id as usize;
        let backends = &mut self.memory.backends;
        if backends.len() <= id {
            backends.resize(id + 1, bytemuck::Zeroable::zeroed());
        }
        backends[id] = backend;
    }
}

/// The family that a write is for; slots and service names are of none.
fn family_of(write: &Write) -> Option<Family> {
    let addr: Addr = match write {
        Write::Service { .. } | Write::RemoveService { .. } | Write::Slots { .. } => return None,
        Write::Backend { backend, .. } => backend.addr,
        Write::Frontend { key, .. } | Write::RemoveFrontend { key } => key.addr,
        Write::Address { addr, .. } | Write::RemoveAddress { addr } => *addr,
        Write::SourceRange { net, .. } | Write::RemoveSourceRange { net, .. } => net.addr().into(),
    };
    Some(addr.family())
}

impl Target for Maps {
    type Error = Blocked;

    fn write(&mut self, write: &Write) -> Result<(), Blocked> {
        if let Some(family) = family_of(write).filter(|family| self.is_blocked(*family)) {
            return Err(Blocked(family));
        }
        match write {
            Write::Service { id, name } => {
                let _before = self.services.insert(*id, *name);
            }
            Write::Backend { id, backend } => self.put_backend(*id, *backend),
            Write::Slots { first, ids } => self.put_slots(*first, ids),
            Write::Frontend { key, value } => {
                let _before = self.memory.frontends.insert(*key, *value);
            }
            Write::RemoveFrontend { key } => {
                let _before = self.memory.frontends.remove(key);
            }
            Write::RemoveService { id } => {
                let _before = self.services.remove(id);
            }
            Write::Address { addr, flags } => {
                let _before = self.memory.addresses.insert(*addr, *flags);
            }
            Write::RemoveAddress { addr } => {
                let _before = self.memory.addresses.remove(addr);
            }
            Write::SourceRange { service, net } => {
                let _new = self
                    .memory
                    .source_ranges
                    .insert(source_range_key(*service, *net));
            }
            Write::RemoveSourceRange { service, net } => {
                let _known = self
                    .memory
                    .source_ranges
                    .remove(&source_range_key(*service, *net));
            }
        }
        Ok(())
    }

    fn grace_period(&mut self) {}
}

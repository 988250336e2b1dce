//! The maps that describe Services: what they hold, and writing them.

use bytemuck::Zeroable as _;
use ipnet::IpNet;
use proxy_common::abi::{Addr, Backend, Frontend, SourceRangeKey};

use super::{MapFailure, Maps, wait_for_programs};
use crate::sync::{Capacity, Contents, Target, Write, source_range, source_range_key};

impl Maps {
    /// Everything that describes Services, for the sync to go on from.
    ///
    /// # Errors
    /// If a map refuses.
    pub fn contents(&self) -> Result<Contents, MapFailure> {
        let frontends: Vec<_> = self.frontends.entries().collect::<Result<_, _>>()?;
        let end = |frontend: &Frontend| {
            let n_slots = frontend
                .n_local
                .max(frontend.cluster_offset + frontend.n_cluster);
            frontend.first_slot.saturating_add(n_slots)
        };
        let n_slots = frontends
            .iter()
            .map(|(_, frontend)| end(frontend))
            .max()
            .unwrap_or(0);
        let n_slots = n_slots.min(self.slots.size());
        Ok(Contents {
            services: self.services.entries().collect::<Result<_, _>>()?,
            frontends,
            slots: (0..n_slots)
                .map(|index| self.slots.get(index))
                .collect::<Result<_, _>>()?,
            backends: self.used_backends()?,
            addresses: self.addresses.entries().collect::<Result<_, _>>()?,
            source_ranges: self.source_ranges()?,
        })
    }

    fn source_ranges(&self) -> Result<Vec<(u32, IpNet)>, MapFailure> {
        let mut ranges = Vec::new();
        for entry in self.source_ranges.keys() {
            let (prefix_len, [service, words @ ..]) = entry?;
            let key = SourceRangeKey {
                prefix_len,
                service,
                addr: Addr::from_words(words),
            };
            ranges.extend(source_range(&key));
        }
        Ok(ranges)
    }

    /// The backends by id. Ids are given out from 0 up and every entry that was ever used has a
    /// generation, so a long run of untouched ones is the end.
    fn used_backends(&self) -> Result<Vec<Backend>, MapFailure> {
        const UNTOUCHED: usize = 1024;
        let mut backends: Vec<Backend> = Vec::new();
        let mut n_used = 0;
        for id in 0..self.backends.size() {
            let backend = self.backends.get(id)?;
            backends.push(backend);
            if backend != Backend::zeroed() {
                n_used = backends.len();
            } else if backends.len() > n_used + UNTOUCHED {
                break;
            }
        }
        backends.truncate(n_used);
        Ok(backends)
    }

    /// How much the maps that describe Services can hold.
    pub fn capacity(&self) -> Capacity {
        Capacity {
            frontends: self.frontends.size(),
            slots: self.slots.size(),
            backends: self.backends.size(),
            services: self.services.size().min(self.service_counters.size()),
            addresses: self.addresses.size(),
            source_ranges: self.source_ranges.size(),
        }
    }
}

/// A key of `SOURCE_RANGES` in the two parts that aya asks for.
fn prefix(service: u32, net: IpNet) -> (u32, [u32; 5]) {
    let key = source_range_key(service, net);
    let [a, b, c, d] = key.addr.words();
    (key.prefix_len, [service, a, b, c, d])
}

impl Target for Maps {
    type Error = MapFailure;

    fn write(&mut self, write: &Write) -> Result<(), MapFailure> {
        match write {
            Write::Service { id, name } => {
                self.service_counters.clear(*id)?;
                self.services.insert(id, name)
            }
            Write::Backend { id, backend } => self.backends.set(*id, backend),
            Write::Slots { first, ids } => self.slots.set_all(*first, ids),
            Write::Frontend { key, value } => self.frontends.insert(key, value),
            Write::RemoveFrontend { key } => self.frontends.remove(key).map(drop),
            Write::RemoveService { id } => self.services.remove(id).map(drop),
            Write::Address { addr, flags } => self.addresses.insert(addr, flags),
            Write::RemoveAddress { addr } => self.addresses.remove(addr).map(drop),
            Write::SourceRange { service, net } => {
                let (length, data) = prefix(*service, *net);
                self.source_ranges.insert(length, &data, &1)
            }
            Write::RemoveSourceRange { service, net } => {
                let (length, data) = prefix(*service, *net);
                self.source_ranges.remove(length, &data)
            }
        }
    }

    fn grace_period(&mut self) {
        wait_for_programs();
    }
}

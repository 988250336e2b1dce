//! Backends whose service port is gone, but not their flows (rule R147).
//!
//! They keep address and generation, so that flows go on, and their ids, and that of the service
//! port which the flows name, until nobody uses them any more. If ids run out, those that have
//! waited longest go first.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proxy_common::abi::{Backend, BackendFlags, BackendState};

use super::actual::Actual;
use super::adopt::gone;
use super::publish::Writer;
use super::refusal::Refusal;
use super::target::{Target, Write};
use super::{Report, Sync};

/// The backends that wait for the end of their flows.
#[derive(Default, Debug)]
pub(super) struct Detached {
    /// Their ids, those that wait longest first.
    ids: VecDeque<u32>,
    /// How many of them each service id has.
    by_service: BTreeMap<u32, u32>,
}

/// What the maps say of a backend whose service port is gone.
pub(super) fn detached(backend: Backend) -> Backend {
    let flags = if backend.flags.contains(BackendFlags::IS_LOCAL) {
        BackendFlags::IS_LOCAL
    } else {
        BackendFlags::NONE
    };
    Backend {
        state: BackendState::Detached as u8,
        flags: flags.union(backend.flags.when_gone()),
        ..backend
    }
}

impl Detached {
    /// Those that a predecessor left; who waits longest is not known.
    pub(super) fn adopt(actual: &Actual) -> Self {
        let mut all = Self::default();
        for (id, backend) in (0..).zip(&actual.backends) {
            if backend.state == BackendState::Detached as u8 {
                all.push(id, backend.service);
            }
        }
        all
    }

    pub(super) fn push(&mut self, id: u32, service: u32) {
        self.ids.push_back(id);
        *self.by_service.entry(service).or_default() += 1;
    }

    /// Whether a service id is still named by one of them.
    pub(super) fn names(&self, service: u32) -> bool {
        self.by_service.contains_key(&service)
    }

    /// The service ids that they name.
    pub(super) fn services(&self) -> impl Iterator<Item = u32> {
        self.by_service.keys().copied()
    }

    /// How many backends and how many service ids wait.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.ids.len(), self.by_service.len())
    }

    fn forget(&mut self, service: u32) {
        if let Some(count) = self.by_service.get_mut(&service) {
            *count -= 1;
            if *count == 0 {
                self.by_service.remove(&service);
            }
        }
    }
}

impl Sync {
    /// Ids of the backends whose service port is gone and whose flows may not be.
    pub fn detached(&self) -> BTreeSet<u32> {
        self.detached.ids.iter().copied().collect()
    }

    /// Whether there is any such.
    pub fn has_detached(&self) -> bool {
        !self.detached.ids.is_empty()
    }

    /// Ends the lives of the detached backends that no flow uses: those not in `in_use`, which
    /// must hold all that have become detached since the flows were looked at, too.
    pub fn release_detached<T: Target>(
        &mut self,
        in_use: &BTreeSet<u32>,
        target: &mut T,
    ) -> Report {
        let mut writer = Writer {
            target,
            n_writes: 0,
        };
        let waiting = std::mem::take(&mut self.detached.ids);
        for id in waiting {
            // What can't be written stays; the next one who looks at the flows tries again.
            if in_use.contains(&id) || self.release(id, &mut writer).is_err() {
                self.detached.ids.push_back(id);
            }
        }
        self.let_in(&mut writer);
        self.settle_addresses(&mut writer);
        self.report(&writer)
    }

    /// Makes room for what `refusal` lacks, if all who wait would make enough. Says whether it
    /// did; a grace period must pass before the room can be used.
    pub(super) fn release_for<T: Target>(
        &mut self,
        refusal: &Refusal,
        writer: &mut Writer<'_, T>,
    ) -> Result<bool, Refusal> {
        let Refusal::Full(shortage) = refusal else {
            return Ok(false);
        };
        let (backends, services) = shortage.lacking_ids();
        let (n_ids, n_services) = self.detached.counts();
        let lacks_ids = backends > 0 || services > 0;
        if !lacks_ids || !shortage.is_of_ids() || backends > n_ids || services > n_services {
            return Ok(false);
        }
        let is_enough = |(ids_left, services_left): (usize, usize)| {
            n_ids - ids_left >= backends && n_services - services_left >= services
        };
        while !is_enough(self.detached.counts())
            && let Some(&id) = self.detached.ids.front()
        {
            self.release(id, writer)?;
            self.detached.ids.pop_front();
        }
        Ok(true)
    }

    /// Ends the life of a backend; the caller takes its id from those who wait.
    fn release<T: Target>(&mut self, id: u32, writer: &mut Writer<'_, T>) -> Result<(), Refusal> {
        let backend = gone(self.actual.backend(id));
        self.write(Write::Backend { id, backend }, writer)?;
        self.backend_ids.rest(id);
        self.detached.forget(backend.service);
        self.rest_service(backend.service);
        Ok(())
    }

    /// Frees a service id that nothing names any more.
    pub(super) fn rest_service(&mut self, id: u32) {
        if self.actual.port(id).is_none() && !self.detached.names(id) {
            self.service_ids.rest(id);
        }
    }
}

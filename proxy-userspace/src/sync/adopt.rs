//! What a predecessor left in the maps.
//!
//! The order of writes sees to it that whatever moment it ended at, every frontend names a whole
//! block of backends of its own service port. Contents for which that does not hold were damaged
//! by somebody else; such entries are not adopted but removed.

use ipnet::IpNet;
use proxy_common::abi::{Backend, BackendState, Frontend, FrontendKey};

use super::actual::{Actual, HeldPort, is_live};
use super::blocks::Block;
use super::target::{Capacity, Contents, Write};

/// Contents that make sense, and what to do about the rest.
pub(super) struct Adopted {
    pub(super) actual: Actual,
    /// The blocks in use, in order.
    pub(super) blocks: Vec<Block>,
    /// Removals of entries that make no sense.
    pub(super) repairs: Vec<Write>,
}

/// Takes over what the maps hold.
pub(super) fn adopt(contents: Contents, capacity: &Capacity) -> Adopted {
    let mut adopted = Adopted {
        actual: Actual::default(),
        blocks: vec![],
        repairs: vec![],
    };
    let Contents {
        mut services,
        mut frontends,
        slots,
        backends,
        addresses,
        source_ranges,
    } = contents;
    services.sort_unstable_by_key(|&(id, _)| id);
    for (id, name) in &services {
        adopted.actual.add_port(*id, HeldPort::parse(name));
    }
    adopted.actual.slots = slots;
    adopted.actual.slots.truncate(capacity.slots as usize);
    adopted.actual.backends = backends;
    adopted.sort_backends();
    adopted.actual.addresses = addresses.into_iter().collect();
    for (service, net) in source_ranges {
        adopted.place_source_range(service, net);
    }
    frontends.sort_unstable_by_key(|&(key, value)| (value.first_slot, key));
    for (key, value) in frontends {
        adopted.place_frontend(key, value);
    }
    // Frontends go before the backends that they lead to.
    adopted
        .repairs
        .sort_by_key(|write| matches!(write, Write::Backend { .. }));
    adopted.trim();
    adopted
}

/// The entry that says that a backend is no more. Its address stays, for those who wonder.
pub(super) fn gone(backend: Backend) -> Backend {
    // 0 is kept for ids that were never used.
    let generation = backend.generation.wrapping_add(1).max(1);
    Backend {
        generation,
        state: BackendState::Gone as u8,
        flags: backend.flags.when_gone(),
        ..backend
    }
}

impl Adopted {
    fn sort_backends(&mut self) {
        let Self {
            actual, repairs, ..
        } = self;
        for (id, backend) in (0..)
            .zip(&actual.backends)
            .filter(|(_, backend)| is_live(backend))
        {
            match actual.ports.get_mut(&backend.service) {
                Some(port) => port.backends.push(id),
                None => repairs.push(Write::Backend {
                    id,
                    backend: gone(*backend),
                }),
            }
        }
        for port in actual.ports.values_mut() {
            port.backends.sort_by_key(|&id| {
                let backend = &actual.backends[id as usize];
                (backend.addr, backend.port)
            });
        }
    }

    fn place_frontend(&mut self, key: FrontendKey, value: Frontend) {
        let block = Block::of(&value);
        if !self.is_whole(&value, block) || !self.claim_block(&value, block) {
            self.repairs.push(Write::RemoveFrontend { key });
            return;
        }
        if let Some(port) = self.actual.ports.get_mut(&value.service) {
            port.frontends.reserve_exact(1);
            port.frontends.push(key);
        }
        self.actual.count_use(&key, &value, 1);
        self.actual.frontends.insert(key, value);
    }

    fn place_source_range(&mut self, service: u32, net: IpNet) {
        if self.actual.ports.contains_key(&service) {
            self.actual.source_ranges.insert((service, net));
        } else {
            self.repairs.push(Write::RemoveSourceRange { service, net });
        }
    }

    /// Whether the block consists of live backends of the frontend's service port.
    fn is_whole(&self, value: &Frontend, block: Block) -> bool {
        let is_own = |&id: &u32| {
            let backend = self.actual.backend(id);
            is_live(&backend) && backend.service == value.service
        };
        self.actual.ports.contains_key(&value.service)
            && block
                .of_slots(&self.actual.slots)
                .is_some_and(|ids| ids.iter().all(is_own))
    }

    /// Notes that a block is in use; false if it overlaps with another. Frontends of one service
    /// port may share a block.
    fn claim_block(&mut self, value: &Frontend, block: Block) -> bool {
        match self.blocks.last() {
            _ if block.len == 0 => true,
            Some(last) if *last == block => self.actual.names_block(value.service, block.first),
            Some(last) if block.first < last.end() => false,
            Some(_) | None => {
                self.blocks.push(block);
                true
            }
        }
    }

    /// Forgets the tails of the maps that say nothing.
    fn trim(&mut self) {
        let actual = &mut self.actual;
        actual
            .slots
            .truncate(self.blocks.last().map_or(0, |block| block.end() as usize));
        actual.slots.shrink_to_fit();
        let is_used = |backend: &Backend| is_live(backend) || backend.generation != 0;
        let n_used = actual
            .backends
            .iter()
            .rposition(is_used)
            .map_or(0, |last| last + 1);
        actual.backends.truncate(n_used);
        actual.backends.shrink_to_fit();
    }
}

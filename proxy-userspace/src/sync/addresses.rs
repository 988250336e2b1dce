//! The map `ADDRESSES`: what frontends and this node make of an address.
//!
//! An entry is written before the first frontend that needs it, and shrinks or goes only at the
//! end of an update, when every Service of the batch has been published and withdrawn.

use std::collections::{BTreeMap, BTreeSet};

use proxy_common::abi::{Addr, AddressFlags};

use super::publish::Writer;
use super::refusal::Refusal;
use super::target::{Target, Write};
use super::{Report, Sync};

impl Sync {
    /// Makes these the addresses of this node, in place of those before: `NODE` and `NODE_PORTS`
    /// only. Until the first call those that a predecessor left count.
    pub fn set_node_addresses<T: Target>(
        &mut self,
        addresses: BTreeMap<Addr, AddressFlags>,
        target: &mut T,
    ) -> Report {
        let old = std::mem::replace(&mut self.node_addresses, addresses);
        let all = old.keys().chain(self.node_addresses.keys());
        let changed = all.filter(|addr| old.get(addr) != self.node_addresses.get(addr));
        self.loose.extend(changed.copied());
        self.run(Vec::new(), target)
    }

    /// What an address should be said to be.
    fn wanted_address(&self, addr: Addr) -> AddressFlags {
        let node = self.node_addresses.get(&addr).copied().unwrap_or_default();
        self.actual.used_as(addr).union(node)
    }

    /// What a predecessor said of this node's addresses.
    pub(super) fn adopted_node_addresses(
        addresses: &BTreeMap<Addr, AddressFlags>,
    ) -> BTreeMap<Addr, AddressFlags> {
        let of_node = |(addr, flags): (&Addr, &AddressFlags)| {
            let bits = [AddressFlags::NODE, AddressFlags::NODE_PORTS].into_iter();
            let flags = bits
                .filter(|bit| flags.contains(*bit))
                .fold(AddressFlags::NONE, AddressFlags::union);
            (!flags.is_empty()).then_some((*addr, flags))
        };
        addresses.iter().filter_map(of_node).collect()
    }

    /// The addresses that a predecessor has not brought up to date.
    pub(super) fn unsettled_addresses(&self) -> BTreeSet<Addr> {
        let known = self.actual.addresses.keys().copied();
        let used = self.actual.frontends.keys().map(|key| key.addr);
        known
            .chain(used)
            .filter(|addr| !self.is_settled(*addr))
            .collect()
    }

    fn is_settled(&self, addr: Addr) -> bool {
        self.actual.address(addr) == self.wanted_address(addr)
    }

    /// Sees to it that a frontend of this kind at this address is found.
    pub(super) fn admit_address<T: Target>(
        &mut self,
        addr: Addr,
        kind: AddressFlags,
        writer: &mut Writer<'_, T>,
    ) -> Result<(), Refusal> {
        let flags = self.actual.address(addr);
        if flags.contains(kind) {
            return Ok(());
        }
        let flags = flags.union(kind);
        self.write(Write::Address { addr, flags }, writer)?;
        // Should the frontend not follow, the entry is one too many.
        self.loose.insert(addr);
        Ok(())
    }

    /// Brings the addresses up to date that may say too much or too little; what fails stays for
    /// the next time.
    pub(super) fn settle_addresses<T: Target>(&mut self, writer: &mut Writer<'_, T>) {
        self.address_refusal = None;
        for addr in std::mem::take(&mut self.loose) {
            if self.is_settled(addr) {
                continue;
            }
            if let Err(refusal) = self.settle_address(addr, writer) {
                self.address_refusal = Some(refusal);
                self.loose.insert(addr);
            }
        }
    }

    fn settle_address<T: Target>(
        &mut self,
        addr: Addr,
        writer: &mut Writer<'_, T>,
    ) -> Result<(), Refusal> {
        let flags = self.wanted_address(addr);
        if flags.is_empty() {
            return self.write(Write::RemoveAddress { addr }, writer);
        }
        let is_new = self.actual.address(addr).is_empty();
        if is_new && self.free_addresses() == 0 {
            return Err(Refusal::ADDRESSES_FULL);
        }
        self.write(Write::Address { addr, flags }, writer)
    }

    /// How many more addresses fit.
    pub(super) fn free_addresses(&self) -> usize {
        (self.capacity.addresses as usize).saturating_sub(self.actual.addresses.len())
    }
}

//! The map `ADDRESSES`: what frontends and this node make of an address.
//!
//! An entry is written before the first frontend that needs it, and shrinks or goes only at the
//! end of an update, when every Service of the batch has been published and withdrawn.

use std::collections::{BTreeMap, BTreeSet};

use proxy_common::abi::{Addr, AddressFlags};

use super::publish::Writer;
use super::refusal::Refusal;
use super::room::Room;
use super::target::{Target, Write};
use super::{Report, Sync};
use crate::model::Problem;

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
    /// the next time. What becomes free goes before what is new.
    pub(super) fn settle_addresses<T: Target>(&mut self, writer: &mut Writer<'_, T>) {
        self.address_refusals.clear();
        let loose = std::mem::take(&mut self.loose);
        let is_wanted = |addr: &Addr| !self.wanted_address(*addr).is_empty();
        let (kept, freed) = loose.into_iter().partition::<Vec<_>, _>(is_wanted);
        for addr in freed.into_iter().chain(kept) {
            if self.is_settled(addr) {
                continue;
            }
            if let Err(refusal) = self.settle_address(addr, writer) {
                self.address_refusals.insert(addr, refusal);
                self.loose.insert(addr);
            }
        }
    }

    /// This node's addresses that are not in force as they should be, and why.
    pub(super) fn address_problem(&self) -> Option<Problem> {
        /// More are only counted.
        const NAMED: usize = 4;
        let (first, refusal) = self.address_refusals.first_key_value()?;
        let n_all = self.address_refusals.len();
        let noun = if n_all == 1 {
            "node address"
        } else {
            "node addresses"
        };
        let mut subject = format!("{noun} {first}");
        let others = self.address_refusals.keys().skip(1);
        others
            .take(NAMED - 1)
            .for_each(|addr| subject.push_str(&format!(", {addr}")));
        if let Some(more @ 1..) = n_all.checked_sub(NAMED) {
            subject.push_str(&format!(" and {more} more"));
        }
        Some(Problem {
            subject,
            message: refusal.to_string(),
        })
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
            let addresses = self.unsettled_new_addresses();
            return Err(self.shortage(Room {
                addresses,
                ..Room::default()
            }));
        }
        self.write(Write::Address { addr, flags }, writer)
    }

    /// How many of this node's addresses have no entry yet.
    fn unsettled_new_addresses(&self) -> usize {
        let node = self.node_addresses.keys();
        node.filter(|addr| self.actual.address(**addr).is_empty())
            .count()
    }

    /// How many more addresses fit.
    pub(super) fn free_addresses(&self) -> usize {
        (self.capacity.addresses as usize).saturating_sub(self.actual.addresses.len())
    }
}

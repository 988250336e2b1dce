//! The writes themselves, in an order that shows no packet half a change.
//!
//! [`Sync::publish`] makes the new version reachable: names, backends, slots, and only then the
//! frontends, one write each, which also take over what another Service gives up.
//! [`Sync::withdraw`], after all Services of a batch were published, takes away what is left of
//! the old: frontends, then backends, then names.

use std::collections::BTreeSet;

use proxy_common::abi::{Backend, BackendFlags, Family, Frontend, FrontendKey};

use super::actual::{HeldPort, address_kind, is_live, service_name};
use super::adopt::gone;
use super::detached::detached;
use super::plan::{Plan, PortPlan};
use super::refusal::Refusal;
use super::room::Room;
use super::target::{Target, Write};
use super::{Sync, undo};
use crate::desired::{DesiredBackend, DesiredFrontend, DesiredPort};
use crate::model::ObjectName;

/// What a backend id's entry should be, if it is `old` now.
fn next(
    old: Backend,
    service: u32,
    desired: &DesiredBackend,
    flags: BackendFlags,
    begins_affinity: bool,
) -> Backend {
    // Affinity records of an earlier membership are void when the next one begins; it is too
    // early at the end of the last one, when packets still come by the old frontend.
    let joins = is_member(flags) && (begins_affinity || !is_member(old.flags));
    let joined = if !is_live(&old) || joins {
        old.joined.wrapping_add(1)
    } else {
        old.joined
    };
    Backend {
        addr: desired.addr,
        service,
        // A new life goes on with the number that the end of the last one left.
        generation: old.generation.max(1),
        joined: joined.max(1),
        port: desired.port,
        state: desired.state as u8,
        flags,
    }
}

/// Whether a backend with these flags gets new flows.
fn is_member(flags: BackendFlags) -> bool {
    flags.contains(BackendFlags::IN_LOCAL_SET) || flags.contains(BackendFlags::IN_CLUSTER_SET)
}

/// A target and how often it was written to.
pub(super) struct Writer<'a, T> {
    pub(super) target: &'a mut T,
    pub(super) n_writes: usize,
}

impl Sync {
    /// Brings the desired version of a Service into force: of each family as a whole or not at all
    /// if a write fails, of neither if room lacks.
    ///
    /// A family goes on without the other, as if each had a proxy of its own (rule R150).
    pub(super) fn publish<T: Target>(
        &mut self,
        owner: &ObjectName,
        writer: &mut Writer<'_, T>,
    ) -> Result<Plan, Refusal> {
        let mut plan = self.plan_with_room(owner, writer)?;
        for family in Family::ALL {
            self.journal = Some(vec![]);
            let result = self.publish_family(owner, family, &mut plan, writer);
            let journal = self.journal.take().unwrap_or_default();
            if let Err(refusal) = result {
                plan.failed.push((family, refusal));
                if let Err(refusal) = self.undo(journal, writer) {
                    tracing::debug!("Service {owner}: a failed update stays in part: {refusal}");
                }
            }
        }
        self.return_unused_blocks(&plan.ports);
        Ok(plan)
    }

    /// First what no packet sees yet, then the frontends: new ones before those that are replaced,
    /// for which there is room in any case.
    fn publish_family<T: Target>(
        &mut self,
        owner: &ObjectName,
        family: Family,
        plan: &mut Plan,
        writer: &mut Writer<'_, T>,
    ) -> Result<(), Refusal> {
        let Plan { desired, ports, .. } = plan;
        let mut frontends = Vec::new();
        for port in ports {
            let desired = &desired[port.index];
            if desired.family != family {
                continue;
            }
            let service = self.prepare_port(owner, desired, port, writer)?;
            let value = |it: &DesiredFrontend| (it.key, port.value(service, desired, it));
            frontends.extend(port.frontends.iter().map(value));
        }
        let is_there = |(key, _): &(FrontendKey, Frontend)| self.actual.frontends.contains_key(key);
        let (replaced, new): (Vec<_>, Vec<_>) = frontends.into_iter().partition(is_there);
        for (key, value) in new.into_iter().chain(replaced) {
            self.write_frontend(key, value, writer)?;
        }
        Ok(())
    }

    fn plan_with_room<T: Target>(
        &mut self,
        owner: &ObjectName,
        writer: &mut Writer<'_, T>,
    ) -> Result<Plan, Refusal> {
        let desired = self
            .pending
            .get(owner)
            .map(|it| it.desired.clone())
            .unwrap_or_default();
        let mut planned = self.plan(owner, desired.clone());
        if let Err(refusal) = &planned
            && refusal.is_curable()
            && self.is_resting()
        {
            self.pass_grace_period(writer);
            planned = self.plan(owner, desired.clone());
        }
        while let Err(refusal) = &planned
            && self.release_for(refusal, writer)?
        {
            self.pass_grace_period(writer);
            planned = self.plan(owner, desired.clone());
        }
        // What rests lacks nobody, though nobody has waited for it.
        if let Err(Refusal::Full(shortage)) = &mut planned {
            let free = self.free_and_resting();
            if self.is_resting() && !shortage.needed.fits(&free) {
                shortage.free = free;
            }
        }
        planned
    }

    /// Waits until what rests can be used.
    pub(super) fn pass_grace_period<T: Target>(&mut self, writer: &mut Writer<'_, T>) {
        writer.target.grace_period();
        self.settle();
    }

    fn is_resting(&self) -> bool {
        self.blocks.is_resting() || self.backend_ids.is_resting() || self.service_ids.is_resting()
    }

    fn settle(&mut self) {
        self.blocks.settle();
        self.backend_ids.settle();
        self.service_ids.settle();
    }

    /// Writes all of a port but its frontends.
    fn prepare_port<T: Target>(
        &mut self,
        owner: &ObjectName,
        desired: &DesiredPort,
        plan: &mut PortPlan,
        writer: &mut Writer<'_, T>,
    ) -> Result<u32, Refusal> {
        let service = match plan.service {
            Some(id) => id,
            None => self.write_service(owner, desired, writer)?,
        };
        plan.service = Some(service);
        let begins_affinity = desired.affinity_seconds > 0
            && !self.has_frontend(service, |it| it.affinity_seconds > 0);
        for (index, (backend, id)) in desired.backends.iter().zip(&mut plan.ids).enumerate() {
            let flags = desired.backend_flags(index);
            let next = |old| next(old, service, backend, flags, begins_affinity);
            *id = Some(self.write_backend(*id, next, writer)?);
        }
        self.write_ranges(service, &desired.source_ranges, writer)?;
        if plan.is_new_block && plan.block.len > 0 {
            let in_slots = plan.ids.iter().take(plan.block.len as usize);
            let ids = in_slots.copied().flatten().collect();
            let first = plan.block.first;
            self.write(Write::Slots { first, ids }, writer)?;
        }
        Ok(service)
    }

    fn write_frontend<T: Target>(
        &mut self,
        key: FrontendKey,
        value: Frontend,
        writer: &mut Writer<'_, T>,
    ) -> Result<(), Refusal> {
        let old = self.actual.frontends.get(&key).copied();
        if old == Some(value) {
            return Ok(());
        }
        let kind = address_kind(&key, value.flags);
        if let Some(kind) = kind {
            self.admit_address(key.addr, kind, writer)?;
        }
        if old.is_some_and(|old| address_kind(&key, old.flags) != kind) {
            self.loose.insert(key.addr);
        }
        self.write(Write::Frontend { key, value }, writer)
    }

    fn write_service<T: Target>(
        &mut self,
        owner: &ObjectName,
        desired: &DesiredPort,
        writer: &mut Writer<'_, T>,
    ) -> Result<u32, Refusal> {
        let name = service_name(owner, desired)?;
        let id = self.service_ids.take().ok_or_else(|| {
            let services = 1;
            self.shortage(Room {
                services,
                ..Room::default()
            })
        })?;
        if let Err(refusal) = self.write(Write::Service { id, name }, writer) {
            self.service_ids.put_back(id);
            return Err(refusal);
        }
        self.actual
            .add_port(id, HeldPort::new(owner.clone(), desired));
        Ok(id)
    }

    /// Whether such a frontend of a service port is in force.
    pub(super) fn has_frontend(&self, service: u32, is_such: impl Fn(&Frontend) -> bool) -> bool {
        let port = self.actual.port(service);
        let mut frontends = port
            .into_iter()
            .flat_map(|port| self.actual.frontends_of(port));
        frontends.any(is_such)
    }

    fn write_backend<T: Target>(
        &mut self,
        known: Option<u32>,
        next: impl FnOnce(Backend) -> Backend,
        writer: &mut Writer<'_, T>,
    ) -> Result<u32, Refusal> {
        let id = match known {
            Some(id) => id,
            None => self.backend_ids.take().ok_or_else(|| {
                let backends = 1;
                self.shortage(Room {
                    backends,
                    ..Room::default()
                })
            })?,
        };
        let old = self.actual.backend(id);
        let backend = next(old);
        if backend == old {
            return Ok(id);
        }
        let result = self.write(Write::Backend { id, backend }, writer);
        if result.is_err() && known.is_none() {
            self.backend_ids.put_back(id);
        }
        result.map(|()| id)
    }

    /// Blocks that were set aside for frontends that were not written in the end.
    fn return_unused_blocks(&mut self, ports: &[PortPlan]) {
        for port in ports.iter().filter(|port| port.is_new_block) {
            let first = port.block.first;
            let names = |service| self.actual.names_block(service, first);
            // One that a frontend named for a moment has to rest.
            let was_named = self.left.iter().any(|(_, block)| *block == port.block);
            if !was_named && !port.service.is_some_and(names) {
                self.blocks.put_back(port.block);
            }
        }
    }

    /// Takes away what a Service has beyond its desired version in the families in which that was
    /// published: of all its ports the frontends first, so that what fails later is seen by no
    /// packet.
    pub(super) fn withdraw<T: Target>(
        &mut self,
        owner: &ObjectName,
        plan: &Plan,
        writer: &mut Writer<'_, T>,
    ) -> Result<(), Refusal> {
        let has_failed = |id: &u32| {
            let port = self.actual.port(*id);
            port.is_some_and(|port| plan.failed.iter().any(|(family, _)| port.is_of(*family)))
        };
        let ids = self.actual.ids_of(owner).iter().copied();
        let ids: Vec<_> = ids.filter(|id| !has_failed(id)).collect();
        let of_plan = |id| plan.ports.iter().find(|port| port.service == Some(id));
        let mut removed = Ok(());
        for &id in &ids {
            removed = removed.and(self.remove_frontends(id, of_plan(id), writer));
        }
        removed?;
        for id in ids {
            let port = of_plan(id);
            self.remove_backends(id, port, writer)?;
            for net in self.shed_ranges(id, port, &plan.desired) {
                self.write(Write::RemoveSourceRange { service: id, net }, writer)?;
            }
            if port.is_none() {
                self.write(Write::RemoveService { id }, writer)?;
                self.rest_service(id);
            }
        }
        Ok(())
    }

    fn remove_frontends<T: Target>(
        &mut self,
        service: u32,
        plan: Option<&PortPlan>,
        writer: &mut Writer<'_, T>,
    ) -> Result<(), Refusal> {
        let Some(port) = self.actual.port(service) else {
            return Ok(());
        };
        let keep: BTreeSet<_> = plan
            .into_iter()
            .flat_map(|plan| &plan.frontends)
            .map(|it| it.key)
            .collect();
        let old: Vec<_> = port
            .frontends
            .iter()
            .copied()
            .filter(|it| !keep.contains(it))
            .collect();
        let mut removed = Ok(());
        for key in old {
            // What stays because of one failure must not keep the others.
            let result = self.write(Write::RemoveFrontend { key }, writer);
            self.loose.insert(key.addr);
            removed = removed.and(result);
        }
        removed
    }

    fn remove_backends<T: Target>(
        &mut self,
        service: u32,
        plan: Option<&PortPlan>,
        writer: &mut Writer<'_, T>,
    ) -> Result<(), Refusal> {
        let Some(port) = self.actual.port(service) else {
            return Ok(());
        };
        // All that is planned is held by now, so equal numbers mean equal sets.
        if plan.is_some_and(|plan| plan.ids.len() == port.backends.len()) {
            return Ok(());
        }
        let keep: BTreeSet<_> = plan
            .into_iter()
            .flat_map(|plan| plan.ids.iter().copied().flatten())
            .collect();
        let old: Vec<_> = port
            .backends
            .iter()
            .copied()
            .filter(|it| !keep.contains(it))
            .collect();
        for id in old {
            let backend = self.actual.backend(id);
            if plan.is_some() {
                let backend = gone(backend);
                self.write(Write::Backend { id, backend }, writer)?;
                self.backend_ids.rest(id);
            } else {
                let backend = detached(backend);
                self.write(Write::Backend { id, backend }, writer)?;
                self.detached.push(id, service);
            }
        }
        Ok(())
    }

    /// Removes damaged entries that were found at the start; what fails stays for the next time.
    pub(super) fn repair<T: Target>(&mut self, writer: &mut Writer<'_, T>) {
        for write in std::mem::take(&mut self.repairs) {
            if self.is_overtaken(&write) {
                continue;
            }
            if self.write(write.clone(), writer).is_err() {
                self.repairs.push(write);
            } else if let Write::Backend { id, .. } = write {
                self.backend_ids.rest(id);
            }
        }
    }

    /// Whether a Service has put something good in the place of what should be removed.
    fn is_overtaken(&self, repair: &Write) -> bool {
        matches!(repair, Write::RemoveFrontend { key } if self.actual.frontends.contains_key(key))
    }

    /// Carries out one write, in the map and in the copy.
    pub(super) fn write<T: Target>(
        &mut self,
        write: Write,
        writer: &mut Writer<'_, T>,
    ) -> Result<(), Refusal> {
        writer
            .target
            .write(&write)
            .map_err(|error| Refusal::write(&write, &error))?;
        writer.n_writes += 1;
        if self.journal.is_some() {
            let inverse = undo::inverse(self, &write);
            self.journal.get_or_insert_default().extend(inverse);
        }
        self.left.extend(self.actual.apply(write));
        Ok(())
    }

    /// Frees the blocks that frontends have left and no other names. Not at each write: one port
    /// may take a frontend over from another that goes on to use the block elsewhere.
    pub(super) fn rest_left_blocks(&mut self) {
        for (service, block) in std::mem::take(&mut self.left) {
            if !self.actual.names_block(service, block.first) {
                self.blocks.rest(block);
            }
        }
    }
}

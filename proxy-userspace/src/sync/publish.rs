//! The writes themselves, in an order that shows no packet half a change.
//!
//! [`Sync::publish`] makes the new version reachable: names, backends, slots, and only then the
//! frontends, one write each, which also take over what another Service gives up.
//! [`Sync::withdraw`], after all Services of a batch were published, takes away what is left of
//! the old: frontends, then backends, then names.

use std::collections::BTreeSet;

use proxy_common::abi::{Backend, BackendFlags, Frontend, FrontendKey};

use super::Sync;
use super::actual::{HeldPort, address_kind, service_name};
use super::adopt::gone;
use super::plan::{Plan, PortPlan};
use super::refusal::Refusal;
use super::target::{Target, Write};
use crate::desired::{DesiredBackend, DesiredPort};
use crate::model::ObjectName;

/// A target and how often it was written to.
pub(super) struct Writer<'a, T> {
    pub(super) target: &'a mut T,
    pub(super) n_writes: usize,
}

impl Sync {
    /// Brings the desired version of a Service into force, as a whole or not at all if room lacks.
    pub(super) fn publish<T: Target>(
        &mut self,
        owner: &ObjectName,
        writer: &mut Writer<'_, T>,
    ) -> Result<Plan, Refusal> {
        let mut plan = self.plan_with_room(owner, writer)?;
        let Plan { desired, ports, .. } = &mut plan;
        let result = ports
            .iter_mut()
            .try_for_each(|port| self.publish_port(owner, &desired[port.index], port, writer));
        self.return_unused_blocks(&plan.ports);
        result.map(|()| plan)
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
        match self.plan(owner, desired.clone()) {
            Err(refusal) if refusal.is_curable() && self.is_resting() => {
                writer.target.grace_period();
                self.settle();
                self.plan(owner, desired)
            }
            other => other,
        }
    }

    fn is_resting(&self) -> bool {
        self.blocks.is_resting() || self.backend_ids.is_resting() || self.service_ids.is_resting()
    }

    fn settle(&mut self) {
        self.blocks.settle();
        self.backend_ids.settle();
        self.service_ids.settle();
    }

    fn publish_port<T: Target>(
        &mut self,
        owner: &ObjectName,
        desired: &DesiredPort,
        plan: &mut PortPlan,
        writer: &mut Writer<'_, T>,
    ) -> Result<(), Refusal> {
        let service = match plan.service {
            Some(id) => id,
            None => self.write_service(owner, desired, writer)?,
        };
        plan.service = Some(service);
        for (backend, id) in desired.backends.iter().zip(&mut plan.ids) {
            *id = Some(self.write_backend(service, backend, *id, writer)?);
        }
        if plan.is_new_block {
            let in_slots = plan.ids.iter().take(plan.block.len as usize);
            let ids = in_slots.copied().flatten().collect();
            self.write(
                Write::Slots {
                    first: plan.block.first,
                    ids,
                },
                writer,
            )?;
        }
        for frontend in &plan.frontends {
            let value = plan.value(service, desired, frontend);
            self.write_frontend(frontend.key, value, writer)?;
        }
        Ok(())
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
        let id = self.service_ids.take().ok_or(Refusal::SERVICES_FULL)?;
        if let Err(refusal) = self.write(Write::Service { id, name }, writer) {
            self.service_ids.put_back(id);
            return Err(refusal);
        }
        self.actual
            .add_port(id, HeldPort::new(owner.clone(), desired));
        Ok(id)
    }

    fn write_backend<T: Target>(
        &mut self,
        service: u32,
        desired: &DesiredBackend,
        known: Option<u32>,
        writer: &mut Writer<'_, T>,
    ) -> Result<u32, Refusal> {
        let id = match known {
            Some(id) => id,
            None => self.backend_ids.take().ok_or(Refusal::BACKENDS_FULL)?,
        };
        let old = self.actual.backend(id);
        let backend = Backend {
            addr: desired.addr,
            service,
            // A new life goes on with the number that the end of the last one left.
            generation: old.generation.max(1),
            port: desired.port,
            state: desired.state as u8,
            joined: old.joined.max(1),
            flags: if desired.is_local {
                BackendFlags::IS_LOCAL
            } else {
                BackendFlags::NONE
            },
        };
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
            let names = |service| self.actual.names_block(service, port.block.first);
            if !port.service.is_some_and(names) {
                self.blocks.put_back(port.block);
            }
        }
    }

    /// Takes away what a published Service has beyond its desired version.
    pub(super) fn withdraw<T: Target>(
        &mut self,
        owner: &ObjectName,
        plan: &Plan,
        writer: &mut Writer<'_, T>,
    ) -> Result<(), Refusal> {
        for id in self.actual.ids_of(owner).to_vec() {
            let port = plan.ports.iter().find(|port| port.service == Some(id));
            self.remove_frontends(id, port, writer)?;
            self.remove_backends(id, port, writer)?;
            if port.is_none() {
                self.write(Write::RemoveService { id }, writer)?;
                self.service_ids.rest(id);
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
        for key in old {
            self.write(Write::RemoveFrontend { key }, writer)?;
            self.loose.insert(key.addr);
        }
        Ok(())
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
            let backend = gone(self.actual.backend(id));
            self.write(Write::Backend { id, backend }, writer)?;
            self.backend_ids.rest(id);
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

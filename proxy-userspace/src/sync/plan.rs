//! What it takes to bring one Service from what is in force to what is desired.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::IpNet;
use proxy_common::abi::{Family, Frontend, FrontendKey};

use super::Sync;
use super::actual::{HeldPort, address_kind, service_name};
use super::blocks::Block;
use super::refusal::{Clash, Refusal};
use super::room::{Room, Shortage};
use crate::desired::{DesiredFrontend, DesiredPort};
use crate::model::ObjectName;

/// A Service's ports with all that was found or set aside for them.
pub(super) struct Plan {
    pub(super) desired: Arc<[DesiredPort]>,
    pub(super) ports: Vec<PortPlan>,
    /// Frontends that the Service can't have.
    pub(super) clashes: Vec<Clash>,
    /// Families in which it was not published, and why.
    pub(super) failed: Vec<(Family, Refusal)>,
}

/// One service port.
pub(super) struct PortPlan {
    /// Index into [`Plan::desired`].
    pub(super) index: usize,
    /// Its id, if it has one.
    pub(super) service: Option<u32>,
    /// The frontends that it can have.
    pub(super) frontends: Vec<DesiredFrontend>,
    /// The id of each desired backend, if it has one.
    pub(super) ids: Vec<Option<u32>>,
    /// Where its slots are or will be.
    pub(super) block: Block,
    /// Whether the block was set aside by this plan.
    pub(super) is_new_block: bool,
}

impl PortPlan {
    /// The entry of a frontend once all of the port has its ids.
    pub(super) fn value(
        &self,
        service: u32,
        desired: &DesiredPort,
        of: &DesiredFrontend,
    ) -> Frontend {
        Frontend {
            service,
            flags: of.flags,
            first_slot: self.block.first,
            n_local: desired.n_local,
            cluster_offset: desired.cluster_offset,
            n_cluster: desired.n_cluster,
            affinity_seconds: desired.affinity_seconds,
        }
    }
}

impl Sync {
    /// Plans a Service as a whole: if one of its ports does not fit, nothing is set aside.
    pub(super) fn plan(
        &mut self,
        owner: &ObjectName,
        desired: Arc<[DesiredPort]>,
    ) -> Result<Plan, Refusal> {
        let mut plan = Plan {
            desired: Arc::clone(&desired),
            ports: vec![],
            clashes: vec![],
            failed: Vec::new(),
        };
        let mut granted = BTreeSet::new();
        for (index, port) in desired.iter().enumerate() {
            let service = self.actual.find_port(owner, port);
            if service.is_none() {
                service_name(owner, port)?;
            }
            let (frontends, clashes) = self.grant(owner, service, port, &mut granted);
            plan.clashes.extend(clashes);
            if !frontends.is_empty() {
                plan.ports
                    .push(self.plan_port(index, service, port, frontends));
            }
        }
        let needed = self.needed(&plan.ports, &desired);
        if !needed.fits(&self.free()) {
            return Err(self.shortage(needed));
        }
        self.set_blocks_aside(&mut plan.ports, needed)?;
        Ok(plan)
    }

    /// The frontends that a port can have, those that nobody else has and keeps, and the others.
    fn grant(
        &self,
        owner: &ObjectName,
        service: Option<u32>,
        port: &DesiredPort,
        granted: &mut BTreeSet<FrontendKey>,
    ) -> (Vec<DesiredFrontend>, Vec<Clash>) {
        let (mut frontends, mut clashes) = (Vec::with_capacity(port.frontends.len()), vec![]);
        for &frontend in &port.frontends {
            let key = frontend.key;
            match self.rival(service, &key) {
                Some(rival) => clashes.push(Clash {
                    key,
                    rival: rival.owner.clone(),
                }),
                None if granted.insert(key) => frontends.push(frontend),
                None => clashes.push(Clash {
                    key,
                    rival: owner.clone(),
                }),
            }
        }
        (frontends, clashes)
    }

    /// The port of another name that has a frontend and keeps it: whoever has it in force goes
    /// first, so that no newcomer can take what others use.
    fn rival(&self, service: Option<u32>, key: &FrontendKey) -> Option<&HeldPort> {
        let holder = self.actual.frontends.get(key)?.service;
        if Some(holder) == service {
            return None;
        }
        self.actual
            .port(holder)
            .filter(|port| self.keeps(port, key))
    }

    /// Whether a port that has a frontend wants it in the latest desired version, too.
    pub(super) fn keeps(&self, port: &HeldPort, key: &FrontendKey) -> bool {
        let Some(pending) = self.pending.get(&port.owner) else {
            return !self.has_started || !self.unclaimed.contains(&port.owner);
        };
        let same_port = pending.desired.iter().filter(|desired| port.is(desired));
        same_port
            .flat_map(|desired| &desired.frontends)
            .any(|frontend| frontend.key == *key)
    }

    fn plan_port(
        &self,
        index: usize,
        service: Option<u32>,
        desired: &DesiredPort,
        frontends: Vec<DesiredFrontend>,
    ) -> PortPlan {
        let held = service.and_then(|id| self.actual.port(id));
        let find = |socket| held.and_then(|port| self.actual.find_backend(port, socket));
        let ids: Vec<Option<u32>> = desired
            .backends
            .iter()
            .map(|backend| find((backend.addr, backend.port)))
            .collect();
        let len = desired.n_slots();
        let in_slots: Option<Vec<u32>> = ids.iter().take(len as usize).copied().collect();
        let in_force = match (held, in_slots) {
            _ if len == 0 => Some(0),
            (Some(port), Some(ids)) => self.actual.find_block(port, &ids),
            (None, _) | (_, None) => None,
        };
        let block = Block {
            first: in_force.unwrap_or(0),
            len,
        };
        PortPlan {
            index,
            service,
            frontends,
            ids,
            block,
            is_new_block: in_force.is_none(),
        }
    }

    /// What these ports need beyond what they have.
    fn needed(&self, ports: &[PortPlan], desired: &[DesiredPort]) -> Room {
        let ids = ports.iter().flat_map(|port| &port.ids);
        let frontends = ports.iter().flat_map(|port| &port.frontends);
        let blocks = || {
            let new = ports.iter().filter(|port| port.is_new_block);
            new.map(|port| port.block.len)
        };
        let ranges = ports
            .iter()
            .map(|port| self.new_ranges(port, &desired[port.index]));
        Room {
            services: ports.iter().filter(|port| port.service.is_none()).count(),
            backends: ids.filter(|id| id.is_none()).count(),
            frontends: frontends
                .filter(|it| !self.actual.frontends.contains_key(&it.key))
                .count(),
            addresses: self.new_addresses(ports),
            source_ranges: ranges.sum(),
            slots: blocks().map(|len| len as usize).sum(),
            block: blocks().max().unwrap_or(0),
        }
    }

    pub(super) fn shortage(&self, needed: Room) -> Refusal {
        Refusal::Full(Box::new(Shortage {
            needed,
            free: self.free(),
            capacity: self.capacity,
        }))
    }

    /// How many addresses get an entry.
    fn new_addresses(&self, ports: &[PortPlan]) -> usize {
        let frontends = ports.iter().flat_map(|port| &port.frontends);
        let exact = frontends.filter(|it| address_kind(&it.key, it.flags).is_some());
        let new = exact.filter(|it| self.actual.address(it.key.addr).is_empty());
        new.map(|it| it.key.addr).collect::<BTreeSet<_>>().len()
    }

    /// How many source ranges a port gets.
    fn new_ranges(&self, port: &PortPlan, desired: &DesiredPort) -> usize {
        let is_there = |net: &IpNet| {
            let key = port.service.map(|service| (service, *net));
            key.is_some_and(|key| self.actual.source_ranges.contains(&key))
        };
        desired
            .source_ranges
            .iter()
            .filter(|net| !is_there(net))
            .count()
    }

    /// Takes blocks, the longest first: the free pieces may be too short all the same.
    fn set_blocks_aside(&mut self, ports: &mut [PortPlan], needed: Room) -> Result<(), Refusal> {
        let mut new: Vec<_> = ports.iter_mut().filter(|port| port.is_new_block).collect();
        new.sort_by_key(|port| Reverse(port.block.len));
        for index in 0..new.len() {
            let len = new[index].block.len;
            match self.blocks.take(len) {
                Some(first) => new[index].block.first = first,
                None => {
                    let refusal = self.shortage(Room {
                        block: len,
                        ..needed
                    });
                    let aside = new[..index].iter();
                    aside.for_each(|port| self.blocks.put_back(port.block));
                    return Err(refusal);
                }
            }
        }
        Ok(())
    }
}

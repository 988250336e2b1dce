//! The map `SOURCE_RANGES`: from where connections to guarded frontends are taken.

use ipnet::IpNet;
use proxy_common::abi::FrontendFlags;

use super::Sync;
use super::plan::{Plan, PortPlan};
use super::publish::Writer;
use super::refusal::Refusal;
use super::target::{Target, Write};
use crate::desired::DesiredPort;

impl Sync {
    /// Lets in who is to be let in; the others are shut out when no frontend needs them any more.
    pub(super) fn write_ranges<T: Target>(
        &mut self,
        service: u32,
        ranges: &[IpNet],
        writer: &mut Writer<'_, T>,
    ) -> Result<(), Refusal> {
        // What an earlier attempt could not remove must not let anybody in.
        if !self.has_frontend(service, |it| {
            it.flags.contains(FrontendFlags::SOURCE_RANGES)
        }) {
            for net in self.surplus_ranges(service, ranges) {
                self.write(Write::RemoveSourceRange { service, net }, writer)?;
            }
        }
        for &net in ranges {
            if !self.actual.source_ranges.contains(&(service, net)) {
                self.write(Write::SourceRange { service, net }, writer)?;
            }
        }
        Ok(())
    }

    fn surplus_ranges(&self, service: u32, keep: &[IpNet]) -> Vec<IpNet> {
        let old = self.actual.ranges_of(service);
        old.filter(|net| !keep.contains(net)).collect()
    }

    /// The source ranges that a service port has beyond its desired version.
    pub(super) fn shed_ranges(
        &self,
        service: u32,
        plan: Option<&PortPlan>,
        desired: &[DesiredPort],
    ) -> Vec<IpNet> {
        let keep = plan.map_or(&[][..], |plan| &desired[plan.index].source_ranges);
        self.surplus_ranges(service, keep)
    }

    /// Whether a port that lives on loses source ranges. A program that has read its frontend
    /// before that was replaced must not miss them.
    pub(super) fn sheds_ranges(&self, plan: &Plan) -> bool {
        plan.ports.iter().any(|port| {
            let shed = |service| self.shed_ranges(service, Some(port), &plan.desired);
            port.service
                .is_some_and(|service| !shed(service).is_empty())
        })
    }
}

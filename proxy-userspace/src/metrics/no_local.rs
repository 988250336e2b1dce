//! Service ports whose policy Local leaves them without endpoints (rule R176). Pure.

use std::collections::BTreeMap;
use std::ops::{AddAssign, SubAssign};

use proxy_common::abi::{Family, FrontendFlags};

use crate::desired::DesiredPort;
use crate::model::ObjectName;

/// How many service ports have endpoints, but none for their policy Local on this node.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct NoLocal {
    v4: PerPolicy,
    v6: PerPolicy,
}

/// How many of one family, by the policy that is Local.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct PerPolicy {
    /// `internalTrafficPolicy`.
    pub internal: u32,
    /// `externalTrafficPolicy`.
    pub external: u32,
}

impl NoLocal {
    /// The counts of a family.
    pub const fn of(&self, family: Family) -> PerPolicy {
        match family {
            Family::Ipv4 => self.v4,
            Family::Ipv6 => self.v6,
        }
    }

    const fn of_mut(&mut self, family: Family) -> &mut PerPolicy {
        match family {
            Family::Ipv4 => &mut self.v4,
            Family::Ipv6 => &mut self.v6,
        }
    }
}

impl AddAssign for NoLocal {
    fn add_assign(&mut self, other: Self) {
        for family in Family::ALL {
            let (own, other) = (self.of_mut(family), other.of(family));
            own.internal += other.internal;
            own.external += other.external;
        }
    }
}

impl SubAssign for NoLocal {
    fn sub_assign(&mut self, other: Self) {
        for family in Family::ALL {
            let (own, other) = (self.of_mut(family), other.of(family));
            own.internal -= other.internal;
            own.external -= other.external;
        }
    }
}

/// Counts the ports of one Service. Those without endpoints anywhere do not count.
pub fn no_local(ports: &[DesiredPort]) -> NoLocal {
    let mut counts = NoLocal::default();
    for port in ports
        .iter()
        .filter(|port| port.n_cluster > 0 && port.n_local == 0)
    {
        let local = port.frontends.iter().map(|frontend| frontend.flags);
        let local = local.filter(|flags| flags.contains(FrontendFlags::LOCAL_ONLY));
        let (external, internal): (Vec<_>, Vec<_>) =
            local.partition(|flags| flags.contains(FrontendFlags::EXTERNAL));
        let count = counts.of_mut(port.family);
        count.internal += u32::from(!internal.is_empty());
        count.external += u32::from(!external.is_empty());
    }
    counts
}

/// The sum over all Services, kept up one by one.
#[derive(Clone, Default, Debug)]
pub struct NoLocalTotals {
    total: NoLocal,
    /// Those that count at all.
    services: BTreeMap<ObjectName, NoLocal>,
}

impl NoLocalTotals {
    /// A Service's counts are these now; those of one that is gone are all 0.
    pub fn set(&mut self, service: &ObjectName, counts: NoLocal) {
        let before = if counts == NoLocal::default() {
            self.services.remove(service)
        } else {
            self.services.insert(service.clone(), counts)
        };
        self.total -= before.unwrap_or_default();
        self.total += counts;
    }

    /// The sum.
    pub const fn total(&self) -> NoLocal {
        self.total
    }
}

//! How long changes of endpoints take until they are in force. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use proxy_common::abi::Family;

use crate::model::ObjectName;

/// Most changes of one Service that are remembered while it can't be brought into force.
const MAX_CHANGES: usize = 100;

/// When the changes were made that are not in force yet.
pub(super) struct Programming {
    /// Earlier changes are not measured: nobody was here to bring them into force.
    started: SystemTime,
    changes: BTreeMap<ObjectName, Vec<(Family, SystemTime)>>,
}

impl Programming {
    pub(super) const fn new(started: SystemTime) -> Self {
        Self {
            started,
            changes: BTreeMap::new(),
        }
    }

    /// Endpoints of a Service were changed at this time.
    pub(super) fn note(&mut self, service: &ObjectName, family: Family, at: SystemTime) {
        if at <= self.started {
            return;
        }
        let changes = self.changes.entry(service.clone()).or_default();
        if changes.len() < MAX_CHANGES {
            changes.push((family, at));
        }
    }

    /// What was noted of these Services is of no use.
    pub(super) fn forget(&mut self, services: &[ObjectName]) {
        for service in services {
            self.changes.remove(service);
        }
    }

    /// How long the changes took that are in force now: those of Services that are not behind. A
    /// clock that is ahead of this node's makes it no time, not less.
    pub(super) fn take(
        &mut self,
        now: SystemTime,
        is_behind: impl Fn(&ObjectName) -> bool,
    ) -> Vec<(Family, Duration)> {
        let (behind, in_force) = std::mem::take(&mut self.changes)
            .into_iter()
            .partition::<BTreeMap<_, _>, _>(|(name, _)| is_behind(name));
        self.changes = behind;
        let changes = in_force.into_values().flatten();
        let took = |at| now.duration_since(at).unwrap_or_default();
        changes.map(|(family, at)| (family, took(at))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> ObjectName {
        ObjectName {
            namespace: "shop".into(),
            name: name.into(),
        }
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn r175_changes_since_the_start_are_measured_when_they_are_in_force() {
        let mut programming = Programming::new(at(100));
        let (web, api) = (service("web"), service("api"));
        for seconds in [99, 100, 101, 103] {
            programming.note(&web, Family::Ipv4, at(seconds));
        }
        programming.note(&api, Family::Ipv6, at(102));
        // By a clock that is ahead.
        programming.note(&web, Family::Ipv4, at(200));
        let seconds = Duration::from_secs;
        assert_eq!(
            programming.take(at(105), |name| *name == api),
            [4, 2, 0].map(|s| (Family::Ipv4, seconds(s)))
        );
        assert_eq!(
            programming.take(at(110), |_| false),
            [(Family::Ipv6, seconds(8))]
        );
        assert_eq!(programming.take(at(110), |_| false), []);
    }

    #[test]
    fn what_is_gone_and_what_is_too_much_is_not_remembered() {
        let mut programming = Programming::new(at(0));
        let web = service("web");
        programming.note(&web, Family::Ipv4, at(1));
        programming.forget(std::slice::from_ref(&web));
        assert_eq!(programming.take(at(2), |_| false), []);
        for _ in 0..2 * MAX_CHANGES {
            programming.note(&web, Family::Ipv4, at(1));
        }
        assert_eq!(programming.take(at(2), |_| false).len(), MAX_CHANGES);
    }
}

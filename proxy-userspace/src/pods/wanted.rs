//! From Pods and the cgroups that are there to what the map `PODS` should hold. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proxy_common::abi::PodFlags;

use super::tree::Cgroup;
use super::{Skip, View};
use crate::model::{Event, ObjectName};

/// This node's Pods.
pub(super) struct Pods {
    skip: Skip,
    pods: BTreeMap<ObjectName, Pod>,
    /// Whether these are all.
    is_complete: bool,
}

struct Pod {
    uid: Arc<str>,
    is_left_out: bool,
}

/// What should be so in the kernel.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Wanted {
    /// Pods' cgroups by id.
    pub(super) entries: BTreeMap<u64, PodFlags>,
    /// What comes of it.
    pub(super) view: View,
}

impl Pods {
    /// None are known.
    pub(super) fn new(skip: Skip) -> Self {
        Self {
            skip,
            pods: BTreeMap::new(),
            is_complete: false,
        }
    }

    /// Takes in what a source says of Pods.
    pub(super) fn apply(&mut self, event: &Event) {
        match event {
            Event::Pod(pod) => {
                let known = Pod {
                    uid: Arc::clone(&pod.uid),
                    is_left_out: self.skip.leaves_out(pod),
                };
                let _before = self.pods.insert(pod.name.clone(), known);
            }
            Event::PodGone(name) => {
                let _gone = self.pods.remove(name);
            }
            Event::PodsKnown => self.is_complete = true,
            Event::Service(_)
            | Event::ServiceGone(_)
            | Event::Slice(_)
            | Event::SliceGone(_)
            | Event::Node(_)
            | Event::ServiceCidrs(_)
            | Event::Synced
            | Event::Problem(_)
            | Event::Solved(_) => {}
        }
    }

    /// Whether the cgroups of all Pods are among these.
    pub(super) fn are_all_in(&self, cgroups: &BTreeMap<String, Cgroup>) -> bool {
        self.pods
            .values()
            .all(|pod| cgroups.contains_key(&*pod.uid))
    }

    /// What should be so with these cgroups, by the Pods' uids.
    pub(super) fn wanted(&self, cgroups: &BTreeMap<String, Cgroup>) -> Wanted {
        let (mut entries, mut view) = (BTreeMap::new(), View::default());
        for pod in self.pods.values() {
            let counter = match cgroups.get(&*pod.uid) {
                Some(cgroup) => {
                    let flags = entries.entry(cgroup.id).or_insert(PodFlags::NONE);
                    view.levels |= cgroup.levels;
                    if pod.is_left_out {
                        // Of two that claim one cgroup, this one is right not to be served.
                        *flags = PodFlags::SKIP;
                        &mut view.n_left_out
                    } else {
                        &mut view.n_served
                    }
                }
                None => &mut view.n_not_found,
            };
            *counter += 1;
        }
        Wanted { entries, view }
    }

    /// The Pods whose cgroups have these ids.
    pub(super) fn names_of(
        &self,
        cgroups: &BTreeMap<String, Cgroup>,
        ids: &BTreeSet<u64>,
    ) -> Vec<&ObjectName> {
        let has_one = |pod: &Pod| {
            let cgroup = cgroups.get(&*pod.uid);
            cgroup.is_some_and(|cgroup| ids.contains(&cgroup.id))
        };
        let pods = self.pods.iter().filter(|(_, pod)| has_one(pod));
        pods.map(|(name, _)| name).collect()
    }

    /// Entries that must go from those that are `held`: none that a predecessor wrote before all
    /// Pods are known.
    pub(super) fn outdated(
        &self,
        held: &BTreeMap<u64, PodFlags>,
        wanted: &BTreeMap<u64, PodFlags>,
    ) -> BTreeSet<u64> {
        let ids = held.keys().filter(|id| !wanted.contains_key(id));
        ids.filter(|_| self.is_complete).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model;

    fn name(namespace: &str, name: &str) -> ObjectName {
        ObjectName {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    fn pod(namespace: &str, at: &str, uid: &str, app: &str) -> Event {
        Event::Pod(model::Pod {
            name: name(namespace, at),
            uid: uid.into(),
            labels: [("app".to_owned(), app.to_owned())].into(),
        })
    }

    fn pods(events: &[Event]) -> Pods {
        let mut pods = Pods::new(Skip {
            namespaces: "mesh".parse().unwrap(),
            selectors: vec!["app=proxied".parse().unwrap()],
        });
        for event in events {
            pods.apply(event);
        }
        pods
    }

    fn cgroups(all: &[(&str, u64, u32)]) -> BTreeMap<String, Cgroup> {
        let cgroup = |(uid, id, levels): &(&str, u64, u32)| {
            let (id, levels) = (*id, *levels);
            ((*uid).to_owned(), Cgroup { id, levels })
        };
        all.iter().map(cgroup).collect()
    }

    /// Entries, then pods served, left out and not found, then levels.
    fn line(pods: &Pods, all: &[(&str, u64, u32)]) -> String {
        let Wanted { entries, view } = pods.wanted(&cgroups(all));
        let entry = |(id, flags): (&u64, &PodFlags)| match *flags {
            PodFlags::SKIP => format!("{id}:skip"),
            _ => id.to_string(),
        };
        let entries: Vec<_> = entries.iter().map(entry).collect();
        let (served, left_out) = (view.n_served, view.n_left_out);
        let (not_found, levels) = (view.n_not_found, view.levels);
        format!(
            "{} {served} {left_out} {not_found} {levels:b}",
            entries.join(",")
        )
    }

    #[test]
    fn each_pod_that_is_found_has_an_entry() {
        let pods = pods(&[
            pod("shop", "a", "1", "web"),
            pod("shop", "b", "2", "proxied"),
            pod("mesh", "c", "3", "web"),
            pod("shop", "d", "4", "web"),
        ]);
        let all = [
            ("1", 11, 0b100),
            ("2", 12, 0b100),
            ("3", 13, 0b1000),
            ("9", 19, 0b1_0000),
        ];
        assert_eq!(line(&pods, &all), "11,12:skip,13:skip 1 2 1 1100");
        assert!(!pods.are_all_in(&cgroups(&all)));
        assert!(pods.are_all_in(&cgroups(&[all[0], all[1], all[2], ("4", 14, 0)])));
        assert_eq!(line(&pods, &[]), " 0 0 4 0");
    }

    #[test]
    fn labels_of_a_running_pod_may_change() {
        let all = [("1", 11, 1)];
        let mut pods = pods(&[pod("shop", "a", "1", "web")]);
        assert_eq!(line(&pods, &all), "11 1 0 0 1");
        pods.apply(&pod("shop", "a", "1", "proxied"));
        assert_eq!(line(&pods, &all), "11:skip 0 1 0 1");
        // Another one of the same name, as a StatefulSet makes them.
        pods.apply(&pod("shop", "a", "2", "web"));
        assert_eq!(line(&pods, &[("1", 11, 1), ("2", 12, 1)]), "12 1 0 0 1");
        pods.apply(&Event::PodGone(name("shop", "a")));
        assert_eq!(line(&pods, &all), " 0 0 0 0");
    }

    #[test]
    fn of_two_pods_that_claim_one_cgroup_the_one_left_out_counts() {
        for order in [["web", "proxied"], ["proxied", "web"]] {
            let [a, b] = order;
            let pods = pods(&[pod("shop", "a", "1", a), pod("shop", "b", "1", b)]);
            assert_eq!(line(&pods, &[("1", 11, 1)]), "11:skip 1 1 0 1");
        }
    }

    #[test]
    fn what_a_predecessor_wrote_stays_until_all_pods_are_known() {
        let mut pods = pods(&[pod("shop", "a", "1", "web")]);
        let held = BTreeMap::from([(11, PodFlags::NONE), (12, PodFlags::SKIP)]);
        let wanted = pods.wanted(&cgroups(&[("1", 11, 1)])).entries;
        assert_eq!(pods.outdated(&held, &wanted), [].into());
        pods.apply(&Event::PodsKnown);
        assert_eq!(pods.outdated(&held, &wanted), [12].into());
    }

    #[test]
    fn pods_are_found_by_the_ids_of_their_cgroups() {
        let pods = pods(&[
            pod("shop", "web", "1", "web"),
            pod("shop", "api", "2", "api"),
            pod("shop", "late", "3", "web"),
        ]);
        let cgroups = cgroups(&[("1", 10, 1), ("2", 20, 1)]);
        let named = |ids: &[u64]| {
            let ids = ids.iter().copied().collect();
            let names = pods.names_of(&cgroups, &ids);
            names
                .into_iter()
                .map(ObjectName::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(named(&[10, 30]), ["shop/web"]);
        assert_eq!(named(&[10, 20]), ["shop/api", "shop/web"]);
    }
}

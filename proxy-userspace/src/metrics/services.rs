//! Which service ports have rows of their own. Pure.

use std::collections::BTreeMap;

use proxy_common::abi::{RefusalReason, ServiceCounters, ServiceName};

/// A service port of one family.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Key {
    /// The Service's namespace.
    pub namespace: Box<str>,
    /// The Service's name.
    pub service: Box<str>,
    /// The port's name, "" if it has none.
    pub port: Box<str>,
    /// IANA protocol number.
    pub protocol: u8,
    /// 4 or 6.
    pub family: u8,
}

impl Key {
    /// The service port that an entry of `SERVICES` names.
    pub fn new(name: &ServiceName) -> Self {
        let (namespace, rest) = name.text().split_once('/').unwrap_or(("", name.text()));
        let (service, port) = rest.split_once(':').unwrap_or((rest, ""));
        Self {
            namespace: namespace.into(),
            service: service.into(),
            port: port.into(),
            protocol: name.protocol,
            family: name.family,
        }
    }

    /// A number that has nothing to do with the order of names, and is the same on every node and
    /// in every version: FNV-1a, mixed by the finaliser of MurmurHash3.
    fn rank(&self) -> u64 {
        const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
        const PRIME: u64 = 0x0100_0000_01b3;
        let texts = [&self.namespace, &self.service, &self.port];
        let bytes = texts.iter().flat_map(|it| it.bytes().chain([0]));
        let bytes = bytes.chain([self.protocol, self.family]);
        let hash = bytes.fold(OFFSET, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(PRIME)
        });
        let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        let hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        hash ^ (hash >> 33)
    }
}

/// What was counted.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Totals {
    /// Packets translated, both directions.
    pub packets: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// New flows sent to a backend.
    pub connections: u64,
    /// New flows refused, by [`RefusalReason`].
    pub refused: [u64; RefusalReason::ALL.len()],
}

impl From<ServiceCounters> for Totals {
    fn from(counters: ServiceCounters) -> Self {
        Self {
            packets: counters.packets,
            bytes: counters.bytes,
            connections: counters.flows,
            refused: counters.refused.map(u64::from),
        }
    }
}

impl Totals {
    /// Adds what was counted between `before` and `now`; what is less than it was began anew.
    fn add_growth(&mut self, before: &Self, now: &Self) {
        let growth = |before: u64, now: u64| now.checked_sub(before).unwrap_or(now);
        self.packets += growth(before.packets, now.packets);
        self.bytes += growth(before.bytes, now.bytes);
        self.connections += growth(before.connections, now.connections);
        let both = before.refused.iter().zip(now.refused);
        for (sum, (&before, now)) in self.refused.iter_mut().zip(both) {
            *sum += growth(before, now);
        }
    }
}

/// The service ports with a row of their own, and all others together.
///
/// Those with the lowest [`Key::rank`] have one. So neither time nor traffic decides, nodes agree,
/// and a new service port takes the row of one other at most. What the others count is added up as
/// it grows, so that their sum never falls when one of them is deleted.
#[derive(Clone, Default, Debug)]
pub struct Rows {
    limit: usize,
    rows: BTreeMap<Key, Totals>,
    /// The others, as they were last.
    others: BTreeMap<Key, Totals>,
    other: Totals,
}

impl Rows {
    /// At most `limit` rows besides that of the others.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            ..Self::default()
        }
    }

    /// Takes in what all service ports have counted by now.
    pub fn update(&mut self, mut ports: Vec<(Key, Totals)>) {
        let others = if ports.len() > self.limit {
            ports.sort_by_cached_key(|(key, _)| (key.rank(), key.clone()));
            ports.split_off(self.limit)
        } else {
            Vec::new()
        };
        for (key, now) in &others {
            let known = self.others.get(key).or_else(|| self.rows.get(key));
            let before = known.copied().unwrap_or_default();
            self.other.add_growth(&before, now);
        }
        self.rows = ports.into_iter().collect();
        self.others = others.into_iter().collect();
    }

    /// The rows, ordered by name.
    pub fn own(&self) -> impl Iterator<Item = (&Key, &Totals)> {
        self.rows.iter()
    }

    /// The sum of the others, since there were any.
    pub const fn other(&self) -> &Totals {
        &self.other
    }

    /// How many have a row, and how many have none.
    pub fn counts(&self) -> (usize, usize) {
        (self.rows.len(), self.others.len())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn key(n: u32) -> Key {
        Key::new(&ServiceName::new(&format!("shop/web-{n}:http"), 6, 4).unwrap())
    }

    fn totals(n: u64) -> Totals {
        Totals {
            packets: n,
            bytes: 100 * n,
            connections: n,
            refused: [n, 0, 0, 0, 0, n],
        }
    }

    fn ports(numbers: impl IntoIterator<Item = u32>, count: u64) -> Vec<(Key, Totals)> {
        let port = |n| (key(n), totals(count));
        numbers.into_iter().map(port).collect()
    }

    fn names(rows: &Rows) -> BTreeSet<Key> {
        rows.own().map(|(key, _)| key.clone()).collect()
    }

    #[test]
    fn a_name_is_taken_apart() {
        let of = |text| Key::new(&ServiceName::new(text, 17, 6).unwrap());
        let (named, plain) = (of("shop/web:http"), of("shop/web"));
        assert_eq!(
            (&*named.namespace, &*named.service, &*named.port),
            ("shop", "web", "http")
        );
        assert_eq!(
            (&*plain.service, &*plain.port, plain.protocol),
            ("web", "", 17)
        );
    }

    #[test]
    fn ranks_stay_what_they_are() {
        assert_eq!(key(1).rank(), 15_528_348_921_278_765_308);
    }

    #[test]
    fn as_long_as_there_is_room_each_has_a_row() {
        let mut rows = Rows::new(10);
        rows.update(ports(0..10, 3));
        assert_eq!((rows.counts(), *rows.other()), ((10, 0), Totals::default()));
        assert!(rows.own().all(|(_, it)| *it == totals(3)));
    }

    #[test]
    fn one_more_takes_the_row_of_one_other_at_most() {
        let mut rows = Rows::new(10);
        rows.update(ports(0..100, 1));
        let before = names(&rows);
        for n in 100..200 {
            rows.update(ports(0..=n, 1));
        }
        let after = names(&rows);
        assert_eq!(after.len(), 10);
        assert!(!before.is_disjoint(&after));
        let mut again = Rows::new(10);
        again.update(ports((0..200).rev(), 1));
        assert_eq!(names(&again), after);
        for n in 200..300 {
            let mut more = again.clone();
            more.update(ports((0..200).chain([n]), 1));
            assert!(names(&more).difference(&after).count() <= 1);
        }
    }

    #[test]
    fn the_sum_of_the_others_only_grows() {
        let mut rows = Rows::new(1);
        rows.update(ports(0..3, 5));
        assert_eq!(*rows.other(), totals(10));
        rows.update(ports(0..3, 7));
        assert_eq!(*rows.other(), totals(14));
        let shown = names(&rows);
        let gone = (0..3).find(|n| !shown.contains(&key(*n))).unwrap();
        rows.update(ports((0..3).filter(|n| *n != gone), 7));
        assert_eq!(*rows.other(), totals(14));
        // It is there again, and its counters began anew.
        rows.update(ports((0..3).filter(|n| *n != gone), 7));
        let mut back = ports((0..3).filter(|n| *n != gone), 7);
        back.extend(ports([gone], 2));
        rows.update(back);
        assert_eq!(*rows.other(), totals(16));
    }

    #[test]
    fn one_that_loses_its_row_brings_only_what_is_new() {
        let mut rows = Rows::new(1);
        let in_order = |rows: &mut Rows, numbers: &[u32], count| {
            rows.update(ports(numbers.iter().copied(), count));
        };
        // Of two, the one that is kept out.
        in_order(&mut rows, &[0, 1], 0);
        let kept = names(&rows);
        let (first, second) = if kept.contains(&key(0)) {
            (1, 0)
        } else {
            (0, 1)
        };
        let mut rows = Rows::new(1);
        in_order(&mut rows, &[first], 50);
        in_order(&mut rows, &[first, second], 60);
        assert_eq!((names(&rows), *rows.other()), (kept, totals(10)));
    }

    #[test]
    fn without_rows_there_is_the_sum() {
        let mut rows = Rows::new(0);
        rows.update(ports(0..4, 2));
        assert_eq!((rows.counts(), *rows.other()), ((0, 4), totals(8)));
    }
}

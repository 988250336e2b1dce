//! A table of `iptables-legacy` as the kernel hands it out (`struct ipt_entry`, `ip6t_entry`):
//! entries one behind the other, base chains first, that name each other by offset.
//!
//! ```text
//! base chain     rule … rule, policy
//! other chain    ERROR with the chain's name, rule … rule, RETURN
//! end            ERROR
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use proxy_common::abi::Family;

use super::super::plan::{Chain, Jump, Plan, Table};

/// The hooks of netfilter, and what the base chains there are called.
const HOOKS: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

/// A table is not what it should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("entry at {0}: not as expected")]
pub struct Garbled(usize);

/// What belongs to a table beside its entries.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Shape {
    /// The hooks that have a base chain, a bit set.
    pub(super) valid_hooks: u32,
    /// Where the base chains begin, by hook.
    pub(super) hook_entry: [u32; 5],
    /// Where their policies are, by hook.
    pub(super) underflow: [u32; 5],
    /// How many entries there are.
    pub(super) n_entries: u32,
}

/// A table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Blob {
    family: Family,
    /// What belongs to it beside its entries.
    pub(super) shape: Shape,
    /// Its entries.
    pub(super) bytes: Vec<u8>,
    entries: Vec<Entry>,
}

/// An entry.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Entry {
    range: Range<usize>,
    /// Its chain: an index of the chains, in order.
    chain: usize,
    kind: Kind,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Kind {
    /// Begins a chain, or ends the table.
    Head(String),
    /// Leads to another entry: the offset of the verdict, and what it says.
    Standard(usize, i32),
    /// Anything else.
    Other,
}

/// Offset of `target_offset` in an entry; that of the next one stands behind it.
const fn target_offset(family: Family) -> usize {
    match family {
        Family::Ipv4 => 88,
        Family::Ipv6 => 140,
    }
}

/// Bytes before a target's own.
const TARGET: usize = 32;
/// What marks heads.
const HEAD: &str = "ERROR";

fn word(bytes: &[u8], at: usize) -> Option<i32> {
    let bytes = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(i32::from_ne_bytes(bytes))
}

fn half(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..at + 2)?.try_into().ok()?;
    Some(u16::from_ne_bytes(bytes).into())
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes.split(|byte| *byte == 0).next()?).ok()
}

impl Blob {
    /// Reads a table.
    ///
    /// # Errors
    /// If an entry is not as the kernel makes them.
    pub(super) fn new(family: Family, shape: Shape, bytes: Vec<u8>) -> Result<Self, Garbled> {
        let mut entries = Vec::new();
        let mut at = 0;
        let mut chain = 0;
        while at < bytes.len() {
            let (range, kind) = entry(family, &bytes, at).ok_or(Garbled(at))?;
            let begins_base = base_chains(&shape).any(|(_, start)| start == at);
            if at > 0 && (begins_base || matches!(kind, Kind::Head(_))) {
                chain += 1;
            }
            at = range.end;
            entries.push(Entry { range, chain, kind });
        }
        Ok(Self {
            family,
            shape,
            bytes,
            entries,
        })
    }

    /// How many entries it has.
    pub(super) fn n_entries(&self) -> usize {
        self.entries.len()
    }

    /// Chains, in order: names, and whether the kernel calls them. The last one is the end.
    fn chains(&self) -> Vec<(String, bool)> {
        let mut chains = Vec::new();
        for entry in &self.entries {
            if entry.chain < chains.len() {
                continue;
            }
            let start = entry.range.start;
            let base = base_chains(&self.shape).find(|(_, its)| *its == start);
            chains.push(match (&entry.kind, base) {
                (Kind::Head(name), _) => (name.clone(), false),
                (_, Some((hook, _))) => (HOOKS[hook].to_owned(), true),
                (Kind::Standard(..) | Kind::Other, None) => (String::new(), true),
            });
        }
        chains
    }

    /// The table's chains, with rules by their place.
    ///
    /// # Errors
    /// If a rule leads to where no chain begins.
    pub(super) fn table(&self) -> Result<Table, Garbled> {
        let chains = self.chains();
        let heads: BTreeMap<usize, usize> = self
            .entries
            .iter()
            .filter(|entry| matches!(entry.kind, Kind::Head(_)))
            .map(|entry| (entry.range.end, entry.chain))
            .collect();
        let mut table = Table::default();
        // The end of the table is no chain.
        for (name, is_base) in chains.iter().rev().skip(1).rev() {
            let chain = table.chains.entry(name.clone()).or_default();
            chain.is_base |= *is_base;
        }
        for (place, entry) in self.entries.iter().enumerate() {
            let Kind::Standard(_, verdict) = entry.kind else {
                continue;
            };
            let Ok(to) = usize::try_from(verdict) else {
                continue;
            };
            // A rule without a target leads to the next one.
            if to == entry.range.end {
                continue;
            }
            let to = heads.get(&to).ok_or(Garbled(entry.range.start))?;
            let chain: &mut Chain = table
                .chains
                .get_mut(&chains[entry.chain].0)
                .ok_or(Garbled(entry.range.start))?;
            chain.jumps.push(Jump {
                rule: place as u64,
                to: chains[*to].0.clone(),
            });
        }
        Ok(table)
    }

    /// The table without what goes, and the places that its entries had.
    ///
    /// # Errors
    /// If an entry is not as expected.
    pub(super) fn without(&self, plan: &Plan) -> Result<(Self, Vec<usize>), Garbled> {
        let chains = self.chains();
        let rules: BTreeSet<usize> = plan.jumps.iter().map(|(_, at)| *at as usize).collect();
        let stays = |place: usize| {
            let chain = self.entries.get(place).map(|entry| &chains[entry.chain].0);
            !rules.contains(&place) && chain.is_none_or(|chain| !plan.chains.contains(chain))
        };
        let mut bytes = Vec::new();
        let mut kept = Vec::new();
        // Where each entry is now, or if it goes what comes behind it.
        let mut moved = BTreeMap::new();
        for (place, entry) in self.entries.iter().enumerate() {
            moved.insert(entry.range.start, bytes.len());
            if stays(place) {
                kept.push(place);
                bytes.extend(&self.bytes[entry.range.clone()]);
            }
        }
        for place in &kept {
            let entry = &self.entries[*place];
            let Kind::Standard(at, verdict) = entry.kind else {
                continue;
            };
            if let Ok(to) = usize::try_from(verdict) {
                let garbled = Garbled(entry.range.start);
                let new = i32::try_from(*moved.get(&to).ok_or(garbled)?).map_err(|_| garbled)?;
                let at = moved[&entry.range.start] + (at - entry.range.start);
                bytes[at..at + 4].copy_from_slice(&new.to_ne_bytes());
            }
        }
        let shape = self.reshaped(&moved, kept.len());
        Ok((Self::new(self.family, shape, bytes)?, kept))
    }

    fn reshaped(&self, moved: &BTreeMap<usize, usize>, n_entries: usize) -> Shape {
        let mut shape = self.shape;
        for hook in hooks(&self.shape) {
            for offset in [&mut shape.hook_entry[hook], &mut shape.underflow[hook]] {
                let old = *offset as usize;
                *offset = moved.get(&old).map_or(0, |new| *new as u32);
            }
        }
        shape.n_entries = n_entries as u32;
        shape
    }
}

fn hooks(shape: &Shape) -> impl Iterator<Item = usize> {
    let valid = shape.valid_hooks;
    (0..HOOKS.len()).filter(move |hook| valid & 1 << hook != 0)
}

/// The hooks, and where their chains begin.
fn base_chains(shape: &Shape) -> impl Iterator<Item = (usize, usize)> {
    let starts = shape.hook_entry;
    hooks(shape).map(move |hook| (hook, starts[hook] as usize))
}

fn entry(family: Family, bytes: &[u8], at: usize) -> Option<(Range<usize>, Kind)> {
    let offsets = at + target_offset(family);
    let target = at + half(bytes, offsets)?;
    let end = at + half(bytes, offsets + 2)?;
    if target + TARGET > end || end > bytes.len() {
        return None;
    }
    let name = text(bytes.get(target + 2..target + TARGET - 1)?)?;
    let kind = match name {
        "" => Kind::Standard(target + TARGET, word(bytes, target + TARGET)?),
        HEAD => Kind::Head(text(bytes.get(target + TARGET..end)?)?.to_owned()),
        _ => Kind::Other,
    };
    Some((at..end, kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table that is being written down.
    struct Draft {
        family: Family,
        bytes: Vec<u8>,
        shape: Shape,
        n_entries: u32,
    }

    impl Draft {
        fn new(family: Family) -> Self {
            Self {
                family,
                bytes: Vec::new(),
                shape: Shape::default(),
                n_entries: 0,
            }
        }

        /// Adds an entry of which the first byte is `mark`; returns where it is.
        fn entry(&mut self, mark: u8, target: &str, data: &[u8]) -> usize {
            let at = self.bytes.len();
            let head = target_offset(self.family) + 24 + target_offset(self.family) % 8;
            let mut entry = vec![0; head + TARGET + data.len().next_multiple_of(8)];
            entry[0] = mark;
            let end = entry.len() as u16;
            let offsets = target_offset(self.family);
            entry[offsets..offsets + 2].copy_from_slice(&(head as u16).to_ne_bytes());
            entry[offsets + 2..offsets + 4].copy_from_slice(&end.to_ne_bytes());
            entry[head + 2..head + 2 + target.len()].copy_from_slice(target.as_bytes());
            entry[head + TARGET..head + TARGET + data.len()].copy_from_slice(data);
            self.bytes.extend(entry);
            self.n_entries += 1;
            at
        }

        fn verdict(&mut self, mark: u8, verdict: i32) -> usize {
            self.entry(mark, "", &verdict.to_ne_bytes())
        }

        /// Adds a head; returns where the chain's first rule will be.
        fn head(&mut self, name: &str) -> i32 {
            self.entry(0, HEAD, name.as_bytes());
            self.bytes.len() as i32
        }

        /// Has a rule lead somewhere.
        fn lead(&mut self, rule: usize, to: i32) {
            let (_, kind) = entry(self.family, &self.bytes, rule).unwrap();
            let Kind::Standard(at, _) = kind else {
                panic!("no verdict");
            };
            self.bytes[at..at + 4].copy_from_slice(&to.to_ne_bytes());
        }

        fn blob(mut self) -> Blob {
            self.shape.n_entries = self.n_entries;
            Blob::new(self.family, self.shape, self.bytes).unwrap()
        }
    }

    const RETURN: i32 = -5;
    const ACCEPT: i32 = -2;

    /// Base chains at two hooks; of four other chains, two are kube-proxy's.
    fn table(family: Family) -> Blob {
        let mut draft = Draft::new(family);
        draft.shape.valid_hooks = 0b1001;
        let to_services = draft.verdict(1, 0);
        let to_own = draft.verdict(2, 0);
        let no_target = draft.verdict(3, 0);
        let next = draft.bytes.len() as i32;
        draft.lead(no_target, next);
        let output_to_services = draft.verdict(4, 0);
        draft.shape.underflow[0] = draft.verdict(5, ACCEPT) as u32;
        draft.shape.hook_entry[3] = draft.bytes.len() as u32;
        let of_output = draft.verdict(6, 0);
        draft.shape.underflow[3] = draft.verdict(7, ACCEPT) as u32;
        let first = draft.head("FIRST");
        draft.entry(8, "DNAT", &[1; 24]);
        draft.verdict(9, RETURN);
        let services = draft.head("KUBE-SERVICES");
        let to_endpoint = draft.verdict(10, 0);
        draft.verdict(11, RETURN);
        let endpoint = draft.head("KUBE-SEP-A");
        draft.entry(12, "DNAT", &[2; 24]);
        draft.verdict(13, RETURN);
        let own = draft.head("OWN");
        let own_to_first = draft.verdict(14, 0);
        draft.verdict(15, RETURN);
        draft.head(HEAD);
        for (rule, to) in [
            (to_services, services),
            (to_own, own),
            (output_to_services, services),
            (of_output, services),
            (to_endpoint, endpoint),
            (own_to_first, first),
        ] {
            draft.lead(rule, to);
        }
        draft.blob()
    }

    /// First bytes of the entries.
    fn marks(blob: &Blob) -> Vec<u8> {
        blob.entries
            .iter()
            .map(|entry| blob.bytes[entry.range.start])
            .filter(|mark| *mark != 0)
            .collect()
    }

    /// Who leads where, by name.
    fn jumps(table: &Table) -> Vec<String> {
        let all = table.chains.iter();
        all.flat_map(|(name, chain)| {
            let of = move |jump: &Jump| format!("{name} > {}", jump.to);
            chain.jumps.iter().map(of)
        })
        .collect()
    }

    #[test]
    fn what_is_kube_proxys_goes_and_the_rest_leads_where_it_led() {
        for family in Family::ALL {
            let old = table(family);
            let read = old.table().unwrap();
            assert_eq!(
                jumps(&read),
                [
                    "KUBE-SERVICES > KUBE-SEP-A",
                    "OUTPUT > KUBE-SERVICES",
                    "OWN > FIRST",
                    "PREROUTING > KUBE-SERVICES",
                    "PREROUTING > OWN",
                    "PREROUTING > KUBE-SERVICES"
                ]
            );
            let plan = super::super::super::plan::plan(&read);
            let (new, kept) = old.without(&plan).unwrap();
            assert_eq!(marks(&new), [2, 3, 5, 7, 8, 9, 14, 15]);
            assert_eq!(kept.len(), new.n_entries());
            assert_eq!(new.shape.n_entries as usize, kept.len());
            let table = new.table().unwrap();
            assert_eq!(jumps(&table), ["OWN > FIRST", "PREROUTING > OWN"]);
            let at = |offset: u32| new.bytes[offset as usize];
            assert_eq!(new.shape.hook_entry.map(at)[0], 2);
            assert_eq!(new.shape.underflow.map(at)[0], 5);
            // The only rule of the other base chain went, so that it begins with its policy.
            assert_eq!(new.shape.hook_entry[3], new.shape.underflow[3]);
            assert_eq!(at(new.shape.hook_entry[3]), 7);
            let again = super::super::super::plan::plan(&table);
            assert!(again.is_empty());
            assert_eq!(new.without(&again).unwrap().0, new);
        }
    }

    #[test]
    fn a_table_that_is_cut_or_leads_nowhere_is_refused() {
        let whole = table(Family::Ipv4);
        let cut = whole.bytes[..whole.bytes.len() - 4].to_vec();
        assert!(Blob::new(Family::Ipv4, whole.shape, cut).is_err());
        let mut draft = Draft::new(Family::Ipv4);
        draft.shape.valid_hooks = 1;
        draft.verdict(1, 4);
        draft.shape.underflow[0] = draft.verdict(2, ACCEPT) as u32;
        draft.head(HEAD);
        assert_eq!(draft.blob().table(), Err(Garbled(0)));
    }
}

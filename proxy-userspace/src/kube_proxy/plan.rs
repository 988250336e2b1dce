//! From the chains of a table to what of them goes.

use std::collections::{BTreeMap, BTreeSet};

use super::names::{self, MARKED, MARKS};

/// A table of iptables, as far as it matters here.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Table {
    /// By name.
    pub(super) chains: BTreeMap<String, Chain>,
}

/// A chain.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Chain {
    /// Whether the kernel calls it.
    pub(super) is_base: bool,
    /// Its rules that lead to other chains, in order.
    pub(super) jumps: Vec<Jump>,
}

/// A rule that leads to another chain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Jump {
    /// By which it is found again: a handle, or a place.
    pub(super) rule: u64,
    /// Where it leads.
    pub(super) to: String,
}

/// What goes of a table.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Plan {
    /// Chains that go, with all their rules.
    pub(super) chains: BTreeSet<String>,
    /// Rules of other chains that lead there: chain and rule.
    pub(super) jumps: Vec<(String, u64)>,
    /// Chains of kube-proxy's that stay, because rules of others lead there.
    pub(super) kept: BTreeSet<String>,
}

impl Plan {
    /// Whether nothing goes.
    pub(super) fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }
}

/// Plans what goes of a table: kube-proxy's chains, and the rules of base chains that lead there.
///
/// A chain that another one of others leads to stays, with all that it leads to: for instance
/// `KUBE-MARK-MASQ`, which a CNI plugin may be told to use.
pub(super) fn plan(table: &Table) -> Plan {
    let kept = kept(table);
    let goes = |name: &str| names::is_kube_proxys(name) && !kept.contains(name);
    let chains: BTreeSet<_> = table
        .chains
        .iter()
        .filter(|(name, chain)| !chain.is_base && goes(name))
        .map(|(name, _)| name.clone())
        .collect();
    let stay = table.chains.iter().filter(|(name, _)| !goes(name));
    let jumps = stay
        .flat_map(|(name, chain)| chain.jumps.iter().map(move |jump| (name, jump)))
        .filter(|(_, jump)| chains.contains(&jump.to))
        .map(|(name, jump)| (name.clone(), jump.rule))
        .collect();
    Plan {
        chains,
        jumps,
        kept,
    }
}

/// Chains of kube-proxy's that others use.
fn kept(table: &Table) -> BTreeSet<String> {
    let others = table
        .chains
        .iter()
        .filter(|(name, chain)| !chain.is_base && !names::is_kube_proxys(name));
    let mut open: Vec<&str> = others.flat_map(|(_, chain)| targets(chain)).collect();
    let mut kept = BTreeSet::new();
    while let Some(name) = open.pop() {
        let Some(chain) = table.chains.get(name) else {
            continue;
        };
        if !names::is_kube_proxys(name) || !kept.insert(name.to_owned()) {
            continue;
        }
        open.extend(targets(chain));
        if name == MARKS {
            // A mark without what reads it would be of no use.
            open.push(MARKED);
        }
    }
    kept
}

fn targets(chain: &Chain) -> impl Iterator<Item = &str> {
    chain.jumps.iter().map(|jump| jump.to.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads what `iptables-save` says: a table for each `*name`.
    fn tables(text: &str) -> BTreeMap<String, Table> {
        let mut tables = BTreeMap::new();
        let mut name = String::new();
        for (number, line) in text.lines().enumerate() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some(word) if word.starts_with('*') => name = word[1..].to_owned(),
                Some(word) if word.starts_with(':') => {
                    let chain = Chain {
                        is_base: words.next() != Some("-"),
                        jumps: Vec::new(),
                    };
                    let table: &mut Table = tables.entry(name.clone()).or_default();
                    assert!(table.chains.insert(word[1..].to_owned(), chain).is_none());
                }
                Some("-A") => {
                    let from = words.next().unwrap();
                    let to = words
                        .skip_while(|word| *word != "-j" && *word != "-g")
                        .nth(1);
                    let table: &mut Table = tables.get_mut(&name).unwrap();
                    if let Some(to) = to.filter(|to| table.chains.contains_key(*to)) {
                        table.chains.get_mut(from).unwrap().jumps.push(Jump {
                            rule: number as u64,
                            to: to.to_owned(),
                        });
                    }
                }
                _ => {}
            }
        }
        tables
    }

    /// What stays, as text: chains, and who leads where.
    fn rest(table: &Table, plan: &Plan) -> Vec<String> {
        let mut rest = Vec::new();
        for (name, chain) in &table.chains {
            if plan.chains.contains(name) {
                continue;
            }
            rest.push(name.clone());
            for jump in &chain.jumps {
                if !plan.jumps.contains(&(name.clone(), jump.rule)) {
                    rest.push(format!("{name} > {}", jump.to));
                }
            }
        }
        rest
    }

    fn planned(text: &str) -> (Plan, Vec<String>) {
        let table = &tables(text)["nat"];
        let plan = plan(table);
        let rest = rest(table, &plan);
        (plan, rest)
    }

    #[test]
    fn of_a_real_table_only_base_chains_and_the_kubelets_are_left() {
        let file = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../xtask/data/kube-proxy/iptables-100.txt.gz"
        );
        let output = std::process::Command::new("zcat").arg(file).output();
        let text = String::from_utf8(output.unwrap().stdout).unwrap();
        let tables = tables(&text);
        let left = |name: &str| rest(&tables[name], &plan(&tables[name]));
        assert_eq!(
            left("nat"),
            ["INPUT", "OUTPUT", "POSTROUTING", "PREROUTING"]
        );
        assert_eq!(
            left("filter"),
            [
                "FORWARD",
                "INPUT",
                "INPUT > KUBE-FIREWALL",
                "KUBE-FIREWALL",
                "OUTPUT",
                "OUTPUT > KUBE-FIREWALL"
            ]
        );
        let base = ["FORWARD", "INPUT", "OUTPUT", "POSTROUTING", "PREROUTING"];
        assert_eq!(left("mangle"), base);
        let plan = plan(&tables["nat"]);
        assert_eq!((plan.chains.len(), plan.jumps.len()), (607, 3));
    }

    #[test]
    fn what_is_not_kube_proxys_stays() {
        let (plan, rest) = planned(
            "*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-SERVICES -\n:KUBE-SVC-X -\n:KUBE-MARK-DROP -\n\
             :CNI-DN -\n-A PREROUTING -j CNI-DN\n-A PREROUTING -m comment -j KUBE-SERVICES\n\
             -A PREROUTING -j CNI-DN\n-A KUBE-SERVICES -j KUBE-SVC-X\n-A CNI-DN -j DNAT\n",
        );
        assert_eq!(plan.jumps.len(), 1);
        assert_eq!(
            rest,
            [
                "CNI-DN",
                "KUBE-MARK-DROP",
                "PREROUTING",
                "PREROUTING > CNI-DN",
                "PREROUTING > CNI-DN"
            ]
        );
    }

    #[test]
    fn a_chain_that_others_use_stays_with_what_it_needs() {
        let (plan, rest) = planned(
            "*nat\n:POSTROUTING ACCEPT [0:0]\n:CNI-SETMARK -\n:KUBE-MARK-MASQ -\n\
             :KUBE-POSTROUTING -\n:KUBE-SEP-A -\n-A POSTROUTING -j KUBE-POSTROUTING\n\
             -A CNI-SETMARK -j KUBE-MARK-MASQ\n-A KUBE-SEP-A -j KUBE-MARK-MASQ\n",
        );
        let kept = ["KUBE-MARK-MASQ", "KUBE-POSTROUTING"].map(str::to_owned);
        assert_eq!(plan.kept, BTreeSet::from(kept));
        assert_eq!(plan.chains, BTreeSet::from(["KUBE-SEP-A".to_owned()]));
        assert!(rest.contains(&"POSTROUTING > KUBE-POSTROUTING".to_owned()));
        assert!(rest.contains(&"CNI-SETMARK > KUBE-MARK-MASQ".to_owned()));
    }

    #[test]
    fn a_second_time_there_is_nothing() {
        let (plan, _) = planned("*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-FIREWALL -\n");
        assert!(plan.is_empty());
        assert_eq!(plan, Plan::default());
    }
}

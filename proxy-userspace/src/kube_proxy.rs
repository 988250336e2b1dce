//! kube-proxy's rules in the kernel: finding them, and removing them when Beeline serves, so that
//! the connections that they opened live on.
//!
//! `names` knows what kube-proxy calls its chains, and `plan` what of a table goes; both are pure.
//! `nf_tables` and `legacy` are the kernel's two interfaces for rules, `nfnetlink` is how one speaks
//! to the first. `keeper` keeps connections alive, `conntrack` tells which there are, `udp` keeps
//! flows of UDP with their backends, and `process` looks for kube-proxy itself.

mod conntrack;
mod keeper;
mod legacy;
mod names;
mod nf_tables;
mod nfnetlink;
mod plan;
mod process;
mod udp;

use std::fmt;
use std::io;

use proxy_common::abi::Family;
use serde::{Deserialize, Serialize};

pub use self::legacy::LegacyError;
use self::nfnetlink::Netfilter;
use self::plan::Plan;
pub use self::process::{Process, processes};
pub use self::udp::{UdpError, UdpFlows};

/// kube-proxy's rules cannot be found, or not be removed.
#[derive(Debug, thiserror::Error)]
pub enum KubeProxyError {
    /// nf_tables refuses.
    #[error("nf_tables: cannot {action}")]
    NfTables {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A table of `iptables-legacy` cannot be read or replaced.
    #[error("table {table} of iptables-legacy ({})", family.name())]
    Legacy {
        /// The table's name.
        table: &'static str,
        /// Its family.
        family: Family,
        /// What went wrong.
        source: LegacyError,
    },
    /// Connection tracking cannot be read.
    #[error("cannot read the connections that netfilter tracks")]
    Conntrack(#[source] io::Error),
    /// Rules of the ipvs mode.
    #[error(
        "kube-proxy has served in ipvs mode (device {}): that is not removed here; run `kube-proxy \
         --cleanup`",
        names::IPVS_DEVICE
    )]
    Ipvs,
}

fn nf_tables_failed(action: &'static str) -> impl FnOnce(io::Error) -> KubeProxyError {
    move |source| KubeProxyError::NfTables { action, source }
}

/// How kube-proxy's rules are in the kernel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// As a table of its nftables mode.
    Nftables,
    /// As chains of its iptables mode, in nf_tables.
    IptablesNft,
    /// As chains of its iptables mode, in the tables of `iptables-legacy`.
    IptablesLegacy,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nftables => "nftables",
            Self::IptablesNft => "iptables (nf_tables)",
            Self::IptablesLegacy => "iptables (legacy)",
        })
    }
}

/// A table in which kube-proxy has rules.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Table {
    /// How its rules are made.
    pub kind: Kind,
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// Its name.
    pub table: String,
    /// How many chains are kube-proxy's; `None`: all that it holds.
    pub chains: Option<usize>,
    /// How many rules of other chains lead to these.
    pub jumps: usize,
    /// Chains of kube-proxy's that stay, because rules of others lead there.
    pub kept: Vec<String>,
}

impl Table {
    fn whole(family: Family) -> Self {
        Self {
            kind: Kind::Nftables,
            family: family.name().to_owned(),
            table: names::NFTABLES.to_owned(),
            chains: None,
            jumps: 0,
            kept: Vec::new(),
        }
    }

    fn of(kind: Kind, family: Family, table: &str, plan: &Plan) -> Self {
        Self {
            kind,
            family: family.name().to_owned(),
            table: table.to_owned(),
            chains: Some(plan.chains.len()),
            jumps: plan.jumps.len(),
            kept: plan.kept.iter().cloned().collect(),
        }
    }

    /// Whether there is anything to remove.
    pub fn goes(&self) -> bool {
        self.chains != Some(0)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}: table {}", self.kind, self.family, self.table)?;
        if let Some(chains) = self.chains {
            write!(
                f,
                ", {chains} chains and {} rules that lead there",
                self.jumps
            )?;
        }
        if !self.kept.is_empty() {
            write!(f, "; used by others, so kept: {}", self.kept.join(", "))?;
        }
        Ok(())
    }
}

/// What kube-proxy has in this network namespace.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Found {
    /// Tables with its rules.
    pub tables: Vec<Table>,
    /// Whether its ipvs mode has served.
    pub ipvs: bool,
}

impl Found {
    /// Whether there is anything that serves.
    pub fn is_empty(&self) -> bool {
        !self.ipvs && !self.tables.iter().any(Table::goes)
    }
}

/// Looks for kube-proxy's rules in this network namespace.
///
/// # Errors
/// If the kernel refuses, as it does without `CAP_NET_ADMIN`.
pub fn find() -> Result<Found, KubeProxyError> {
    let mut found = Found {
        tables: in_nf_tables(&read_nf_tables()?),
        ipvs: has_ipvs(),
    };
    for (family, table) in legacy_tables()? {
        let plan = legacy::read(family, table).map_err(legacy_failed(family, table))?;
        found.tables.extend(in_legacy(family, table, &plan));
    }
    Ok(found)
}

fn read_nf_tables() -> Result<nf_tables::Rules, KubeProxyError> {
    const ATTEMPTS: usize = 20;
    let mut attempt = 0;
    loop {
        attempt += 1;
        let read = Netfilter::open().and_then(|netfilter| nf_tables::read(&netfilter));
        match read {
            Err(error) if nf_tables::has_changed(&error) && attempt < ATTEMPTS => {}
            read => return read.map_err(nf_tables_failed("read rules")),
        }
    }
}

fn in_nf_tables(rules: &nf_tables::Rules) -> Vec<Table> {
    let nftables = rules.nftables.iter().map(|family| Table::whole(*family));
    let iptables = rules.iptables.iter().filter_map(|((family, table), plan)| {
        let family = nf_tables::family(*family)?;
        Some(Table::of(Kind::IptablesNft, family, table, plan))
    });
    nftables.chain(iptables).collect()
}

fn in_legacy(family: Family, table: &str, plan: &Plan) -> Option<Table> {
    let is_there = !plan.is_empty() || !plan.kept.is_empty();
    is_there.then(|| Table::of(Kind::IptablesLegacy, family, table, plan))
}

fn legacy_tables() -> Result<Vec<(Family, &'static str)>, KubeProxyError> {
    let mut all = Vec::new();
    for family in Family::ALL {
        let tables = legacy::tables(family).map_err(legacy_failed(family, names::TABLES[0]))?;
        all.extend(tables.into_iter().map(|table| (family, table)));
    }
    Ok(all)
}

fn legacy_failed(
    family: Family,
    table: &'static str,
) -> impl FnOnce(LegacyError) -> KubeProxyError {
    move |source| KubeProxyError::Legacy {
        table,
        family,
        source,
    }
}

fn has_ipvs() -> bool {
    nix::net::if_::if_nametoindex(names::IPVS_DEVICE).is_ok()
}

/// Removes kube-proxy's rules; says what they were. What serves in their place must be in force.
///
/// All that is in nf_tables goes in one step. What keeps the connections alive comes in the same
/// step, before any table of `iptables-legacy` is replaced, one step each.
///
/// # Errors
/// If the kernel refuses; what was removed by then is gone. If kube-proxy served in ipvs mode,
/// nothing is removed.
pub fn remove() -> Result<Found, KubeProxyError> {
    let found = find()?;
    if found.ipvs {
        return Err(KubeProxyError::Ipvs);
    }
    if found.is_empty() {
        return Ok(found);
    }
    let in_legacy_tables = found.tables.iter();
    let in_legacy_tables =
        in_legacy_tables.filter(|it| it.kind == Kind::IptablesLegacy && it.goes());
    let families: Vec<_> = Family::ALL
        .into_iter()
        .filter(|family| {
            let mut names = in_legacy_tables.clone().map(|it| it.family.as_str());
            names.any(|name| name == family.name())
        })
        .collect();
    let removed = nf_tables::remove(&families).map_err(nf_tables_failed("remove rules"))?;
    let mut tables = in_nf_tables(&removed);
    for (family, table) in legacy_tables()? {
        let plan = legacy::remove(family, table).map_err(legacy_failed(family, table))?;
        tables.extend(in_legacy(family, table, &plan));
    }
    Ok(Found {
        tables,
        ipvs: false,
    })
}

/// Which of kube-proxy's rules serve, without looking at all of them.
///
/// # Errors
/// If the kernel refuses.
pub fn serving() -> Result<Vec<String>, KubeProxyError> {
    let asked = || {
        let netfilter = Netfilter::open()?;
        let mut serving = Vec::new();
        for family in Family::ALL {
            let tables = match nf_tables::tables(&netfilter, family) {
                Err(error) if nf_tables::is_unknown(&error) => Vec::new(),
                tables => tables?,
            };
            let name = family.name();
            if tables.iter().any(|table| table == names::NFTABLES) {
                serving.push(format!("{}, {name}", Kind::Nftables));
            }
            let nat = names::TABLES[0];
            if tables.iter().any(|table| table == nat)
                && nf_tables::has_chain(&netfilter, family, nat, names::SIGN)?
            {
                serving.push(format!("{}, {name}", Kind::IptablesNft));
            }
        }
        Ok(serving)
    };
    let mut serving = asked().map_err(nf_tables_failed("look for rules"))?;
    for (family, table) in legacy_tables()? {
        if table == names::TABLES[0] {
            let plan = legacy::read(family, table).map_err(legacy_failed(family, table))?;
            if !plan.is_empty() {
                serving.push(format!("{}, {}", Kind::IptablesLegacy, family.name()));
            }
        }
    }
    if has_ipvs() {
        serving.push("ipvs".to_owned());
    }
    Ok(serving)
}

/// Removes the table of Beeline's own that keeps connections alive, in each family in which none is
/// left that needs it, and in all if `force` is set or kube-proxy's rules are back, which keep them
/// as well. Says whether it stays anywhere.
///
/// # Errors
/// If the kernel refuses.
pub fn remove_keeper(force: bool) -> Result<bool, KubeProxyError> {
    let failed = || nf_tables_failed("remove table beeline");
    if !force && serving()?.is_empty() {
        let stays = keeper::remove_unneeded().map_err(failed())?;
        return Ok(!stays.is_empty());
    }
    keeper::remove(&Family::ALL).map_err(failed())?;
    Ok(false)
}

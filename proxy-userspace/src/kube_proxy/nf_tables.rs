//! kube-proxy's rules in nf_tables: its nftables mode, and its iptables mode where `iptables` is
//! the one that makes nf_tables rules.

use std::collections::BTreeMap;
use std::io;

use proxy_common::abi::Family;

use super::keeper;
use super::names;
use super::nfnetlink::{Attributes, Message, Netfilter, attribute, attributes, nested, text};
use super::plan::{Chain, Jump, Plan, Table, plan};

/// How often something else may change rules while kube-proxy's are being removed.
const ATTEMPTS: usize = 20;

/// Numbers of attributes, as `linux/netfilter/nf_tables.h` has them.
pub(super) mod attr {
    pub(in super::super) const LIST_ELEM: u16 = 1;
    pub(in super::super) const TABLE_NAME: u16 = 1;
    pub(in super::super) const CHAIN_TABLE: u16 = 1;
    pub(in super::super) const CHAIN_NAME: u16 = 3;
    pub(in super::super) const CHAIN_HOOK: u16 = 4;
    pub(in super::super) const CHAIN_TYPE: u16 = 7;
    pub(in super::super) const HOOK_NUM: u16 = 1;
    pub(in super::super) const HOOK_PRIORITY: u16 = 2;
    pub(in super::super) const RULE_TABLE: u16 = 1;
    pub(in super::super) const RULE_CHAIN: u16 = 2;
    pub(in super::super) const RULE_HANDLE: u16 = 3;
    pub(in super::super) const RULE_EXPRESSIONS: u16 = 4;
    pub(in super::super) const RULE_USERDATA: u16 = 7;
    pub(in super::super) const EXPR_NAME: u16 = 1;
    pub(in super::super) const EXPR_DATA: u16 = 2;
    pub(in super::super) const IMMEDIATE_DREG: u16 = 1;
    pub(in super::super) const IMMEDIATE_DATA: u16 = 2;
    pub(in super::super) const DATA_VALUE: u16 = 1;
    pub(in super::super) const DATA_VERDICT: u16 = 2;
    pub(in super::super) const VERDICT_CODE: u16 = 1;
    pub(in super::super) const VERDICT_CHAIN: u16 = 2;
    pub(in super::super) const GEN_ID: u16 = 1;
}

/// What kube-proxy has in nf_tables.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Rules {
    /// The state of nf_tables in which that was so.
    generation: u32,
    /// Families in which Beeline's own table is there.
    pub(super) keepers: Vec<Family>,
    /// Families in which the table of the nftables mode is there.
    pub(super) nftables: Vec<Family>,
    /// What goes of the tables of the iptables mode.
    pub(super) iptables: BTreeMap<(FamilyKey, &'static str), Plan>,
}

/// A family as nfnetlink numbers it.
pub(super) type FamilyKey = u8;

/// The number of a family.
pub(super) const fn number(family: Family) -> FamilyKey {
    (match family {
        Family::Ipv4 => libc::AF_INET,
        Family::Ipv6 => libc::AF_INET6,
    }) as u8
}

/// The family of this number.
pub(super) fn family(number: FamilyKey) -> Option<Family> {
    Family::ALL
        .into_iter()
        .find(|family| self::number(*family) == number)
}

/// A message to nf_tables.
pub(super) fn message(what: libc::c_int, family: Family, attributes: Attributes) -> Message {
    request(what, number(family), 0, attributes)
}

fn request(what: libc::c_int, family: u8, flags: libc::c_int, attributes: Attributes) -> Message {
    Message {
        kind: (libc::NFNL_SUBSYS_NFTABLES << 8 | what) as u16,
        flags: flags as u16,
        family,
        attributes,
    }
}

fn dump(what: libc::c_int, family: u8, attributes: Attributes) -> Message {
    request(what, family, libc::NLM_F_DUMP, attributes)
}

/// Reads what kube-proxy has in nf_tables. A kernel without nf_tables has nothing there.
///
/// # Errors
/// If the kernel refuses; `Interrupted` if rules changed meanwhile.
pub(super) fn read(netfilter: &Netfilter) -> io::Result<Rules> {
    let mut rules = Rules::default();
    let generation = request(libc::NFT_MSG_GETGEN, 0, 0, Attributes::default());
    let asked = netfilter.ask(&generation, |answer| {
        let id = attribute(answer, attr::GEN_ID).and_then(|value| value.try_into().ok());
        rules.generation = id.map_or(0, u32::from_be_bytes);
    });
    if asked.as_ref().is_err_and(is_unknown) {
        return Ok(rules);
    }
    asked?;
    for family in Family::ALL {
        let tables = tables(netfilter, family)?;
        if tables.iter().any(|name| name == keeper::TABLE) {
            rules.keepers.push(family);
        }
        if tables.iter().any(|name| name == names::NFTABLES) {
            rules.nftables.push(family);
        }
        for name in names::TABLES {
            if tables.iter().any(|other| other == name) {
                let plan = plan(&table(netfilter, family, name)?);
                rules.iptables.insert((number(family), name), plan);
            }
        }
    }
    rules
        .iptables
        .retain(|_, plan| !plan.is_empty() || !plan.kept.is_empty());
    Ok(rules)
}

/// Whether the kernel has no such subsystem.
pub(super) fn is_unknown(error: &io::Error) -> bool {
    [libc::EOPNOTSUPP, libc::EINVAL, libc::EPROTONOSUPPORT]
        .map(Some)
        .contains(&error.raw_os_error())
}

/// The tables of a family, by name.
///
/// # Errors
/// If the kernel refuses.
pub(super) fn tables(netfilter: &Netfilter, family: Family) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    let question = dump(
        libc::NFT_MSG_GETTABLE,
        number(family),
        Attributes::default(),
    );
    netfilter.ask(&question, |part| {
        let name = attribute(part, attr::TABLE_NAME).and_then(text);
        names.extend(name.map(str::to_owned));
    })?;
    Ok(names)
}

/// Whether a table has a chain of this name.
///
/// # Errors
/// If the kernel refuses.
pub(super) fn has_chain(
    netfilter: &Netfilter,
    family: Family,
    table: &str,
    chain: &str,
) -> io::Result<bool> {
    let of = Attributes::default()
        .text(attr::CHAIN_TABLE, table)
        .text(attr::CHAIN_NAME, chain);
    let asked = netfilter.ask(
        &request(libc::NFT_MSG_GETCHAIN, number(family), 0, of),
        |_| {},
    );
    match asked {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn table(netfilter: &Netfilter, family: Family, name: &str) -> io::Result<Table> {
    let mut table = Table::default();
    let chains = dump(
        libc::NFT_MSG_GETCHAIN,
        number(family),
        Attributes::default(),
    );
    netfilter.ask(&chains, |part| {
        let its_table = attribute(part, attr::CHAIN_TABLE).and_then(text);
        if let Some(chain) = attribute(part, attr::CHAIN_NAME).and_then(text)
            && its_table == Some(name)
        {
            let is_base = attribute(part, attr::CHAIN_HOOK).is_some();
            table.chains.entry(chain.to_owned()).or_default().is_base = is_base;
        }
    })?;
    let of = Attributes::default().text(attr::RULE_TABLE, name);
    let rules = dump(libc::NFT_MSG_GETRULE, number(family), of);
    netfilter.ask(&rules, |part| {
        let its_table = attribute(part, attr::RULE_TABLE).and_then(text);
        let handle = attribute(part, attr::RULE_HANDLE).and_then(|value| value.try_into().ok());
        if let Some(chain) = attribute(part, attr::RULE_CHAIN).and_then(text)
            && let Some(chain) = table.chains.get_mut(chain)
            && let Some(handle) = handle
            // Old kernels tell of all tables.
            && its_table == Some(name)
        {
            jump(part, u64::from_be_bytes(handle), chain);
        }
    })?;
    Ok(table)
}

/// Notes where a rule leads.
fn jump(rule: &[u8], handle: u64, chain: &mut Chain) {
    let expressions = attribute(rule, attr::RULE_EXPRESSIONS).unwrap_or_default();
    for (_, expression) in attributes(expressions) {
        let to = nested(
            expression,
            &[
                attr::EXPR_DATA,
                attr::IMMEDIATE_DATA,
                attr::DATA_VERDICT,
                attr::VERDICT_CHAIN,
            ],
        );
        let name = attribute(expression, attr::EXPR_NAME).and_then(text);
        if let Some(to) = to.and_then(text)
            && name == Some("immediate")
        {
            chain.jumps.push(Jump {
                rule: handle,
                to: to.to_owned(),
            });
        }
    }
}

/// Removes all that kube-proxy has in nf_tables, at once, and in the same step makes what keeps the
/// connections of these families, and of `others`, alive. Returns what was removed.
///
/// # Errors
/// If the kernel refuses; nothing has changed then.
pub(super) fn remove(others: &[Family]) -> io::Result<Rules> {
    let mut attempt = 0;
    loop {
        let netfilter = Netfilter::open()?;
        let done = read(&netfilter).and_then(|rules| {
            let messages = removal(&rules, others);
            netfilter.change(rules.generation, &messages)?;
            Ok(rules)
        });
        attempt += 1;
        match done {
            Err(error) if has_changed(&error) && attempt < ATTEMPTS => {}
            done => return done,
        }
    }
}

/// Whether somebody else changed rules meanwhile.
pub(super) fn has_changed(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Interrupted || error.raw_os_error() == Some(libc::ERESTART)
}

fn removal(rules: &Rules, others: &[Family]) -> Vec<Message> {
    let mut messages = Vec::new();
    for family in Family::ALL {
        let has_chains =
            |((its, _), plan): (&(u8, &str), &Plan)| *its == number(family) && !plan.is_empty();
        let concerned = others.contains(&family)
            || rules.nftables.contains(&family)
            || rules.iptables.iter().any(has_chains);
        if concerned && !rules.keepers.contains(&family) {
            messages.extend(keeper::making(family));
        }
    }
    for family in &rules.nftables {
        let table = Attributes::default().text(attr::TABLE_NAME, names::NFTABLES);
        messages.push(message(libc::NFT_MSG_DELTABLE, *family, table));
    }
    for ((family, table), plan) in &rules.iptables {
        messages.extend(chains_removal(*family, table, plan));
    }
    messages
}

/// First the rules that lead to the chains, then the chains' own, then the chains.
fn chains_removal<'a>(
    family: FamilyKey,
    table: &'a str,
    plan: &'a Plan,
) -> impl Iterator<Item = Message> + 'a {
    let of_chain = move |chain: &str| {
        Attributes::default()
            .text(attr::RULE_TABLE, table)
            .text(attr::RULE_CHAIN, chain)
    };
    let delete_rules = move |attributes| request(libc::NFT_MSG_DELRULE, family, 0, attributes);
    let jumps = plan.jumps.iter().map(move |(chain, handle)| {
        delete_rules(of_chain(chain).bytes(attr::RULE_HANDLE, &handle.to_be_bytes()))
    });
    let own = plan
        .chains
        .iter()
        .map(move |chain| delete_rules(of_chain(chain)));
    let chains = plan.chains.iter().map(move |chain| {
        let name = Attributes::default()
            .text(attr::CHAIN_TABLE, table)
            .text(attr::CHAIN_NAME, chain);
        request(libc::NFT_MSG_DELCHAIN, family, 0, name)
    });
    jumps.chain(own).chain(chains)
}

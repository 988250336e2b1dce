//! What keeps connections alive that kube-proxy opened, once its rules are gone.
//!
//! Netfilter translates their packets by what its connection tracking remembers, and needs no rule
//! for that. But its hooks are there only as long as some rule asks for them: with the last base
//! chain of type `nat` the kernel takes away those of address translation, and with the last rule
//! that looks at connections those of connection tracking. The packets then go on untranslated. So
//! a table of Beeline's own holds both, and lets everything pass:
//!
//! ```text
//! table ip beeline {
//!     chain keep-connections {
//!         type nat hook postrouting priority srcnat;
//!         ct status dnat accept
//!     }
//! }
//! ```

use std::io;

use proxy_common::abi::Family;

use super::conntrack::{self, Which};
use super::nf_tables::{attr, has_changed, is_unknown, message, tables};
use super::nfnetlink::{Attributes, Message, Netfilter};

/// The name of the table, in each family.
pub(super) const TABLE: &str = "beeline";
const CHAIN: &str = "keep-connections";
const COMMENT: &str = "keeps connections that kube-proxy opened";

/// `NF_INET_POST_ROUTING`, where the chain is called …
const POSTROUTING: u32 = 4;
/// … as by others for source NAT (`NF_IP_PRI_NAT_SRC`).
const PRIORITY: u32 = 100;
/// The first register.
const REGISTER: u32 = 1;
/// `NFT_CT_STATUS`
const STATUS: u32 = 2;
/// `NFT_CMP_NEQ`
const DIFFERS: u32 = 1;
/// `NF_ACCEPT`
const ACCEPT: u32 = 1;

/// What makes the table in a family.
pub(super) fn making(family: Family) -> [Message; 3] {
    let create = |what, attributes| {
        let message = message(what, family, attributes);
        Message {
            flags: message.flags | libc::NLM_F_CREATE as u16,
            ..message
        }
    };
    let table = Attributes::default().text(attr::TABLE_NAME, TABLE);
    let hook = Attributes::default()
        .number(attr::HOOK_NUM, POSTROUTING)
        .number(attr::HOOK_PRIORITY, PRIORITY);
    let chain = Attributes::default()
        .text(attr::CHAIN_TABLE, TABLE)
        .text(attr::CHAIN_NAME, CHAIN)
        .nest(attr::CHAIN_HOOK, hook)
        .text(attr::CHAIN_TYPE, "nat");
    let rule = Attributes::default()
        .text(attr::RULE_TABLE, TABLE)
        .text(attr::RULE_CHAIN, CHAIN)
        .nest(attr::RULE_EXPRESSIONS, rule())
        .bytes(attr::RULE_USERDATA, &comment());
    [
        create(libc::NFT_MSG_NEWTABLE, table),
        create(libc::NFT_MSG_NEWCHAIN, chain),
        create(libc::NFT_MSG_NEWRULE, rule),
    ]
}

/// `ct status dnat accept`
fn rule() -> Attributes {
    let none = Attributes::default;
    let value = |value: u32| none().bytes(attr::DATA_VALUE, &value.to_ne_bytes());
    let verdict = none().number(attr::VERDICT_CODE, ACCEPT);
    // Load the connection's status, mask it, compare it, and let the packet pass.
    let load = none().number(1, REGISTER).number(2, STATUS);
    let mask = none()
        .number(1, REGISTER)
        .number(2, REGISTER)
        .number(3, size_of::<u32>() as u32)
        .nest(4, value(conntrack::DST_NAT))
        .nest(5, value(0));
    let compare = none()
        .number(1, REGISTER)
        .number(2, DIFFERS)
        .nest(3, value(0));
    let accept = none().number(attr::IMMEDIATE_DREG, 0).nest(
        attr::IMMEDIATE_DATA,
        none().nest(attr::DATA_VERDICT, verdict),
    );
    [
        ("ct", load),
        ("bitwise", mask),
        ("cmp", compare),
        ("immediate", accept),
    ]
    .into_iter()
    .fold(none(), |all, (name, data)| {
        let expression = none()
            .text(attr::EXPR_NAME, name)
            .nest(attr::EXPR_DATA, data);
        all.nest(attr::LIST_ELEM, expression)
    })
}

/// A comment as `nft` writes it: type 0, length, text.
fn comment() -> Vec<u8> {
    let length = COMMENT.len() as u8 + 1;
    [&[0, length], COMMENT.as_bytes(), &[0]].concat()
}

/// The families in which the table is there.
///
/// # Errors
/// If the kernel refuses.
pub(super) fn families() -> io::Result<Vec<Family>> {
    let netfilter = Netfilter::open()?;
    let mut families = Vec::new();
    for family in Family::ALL {
        let tables = match tables(&netfilter, family) {
            Err(error) if is_unknown(&error) => Vec::new(),
            tables => tables?,
        };
        if tables.iter().any(|name| name == TABLE) {
            families.push(family);
        }
    }
    Ok(families)
}

/// Removes the table in these families; says in which it was there.
///
/// # Errors
/// If the kernel refuses.
pub(super) fn remove(from: &[Family]) -> io::Result<Vec<Family>> {
    let mut removed = families()?;
    removed.retain(|family| from.contains(family));
    let messages: Vec<_> = removed
        .iter()
        .map(|family| {
            let table = Attributes::default().text(attr::TABLE_NAME, TABLE);
            message(libc::NFT_MSG_DELTABLE, *family, table)
        })
        .collect();
    // Whatever the generation is: only this table is meant.
    Netfilter::open()?.change(0, &messages)?;
    Ok(removed)
}

/// Removes the table in the families in which no connection is left that needs it; says in which
/// it stays.
///
/// # Errors
/// If the kernel refuses.
pub(super) fn remove_unneeded() -> io::Result<Vec<Family>> {
    let (mut needed, mut unneeded) = (Vec::new(), Vec::new());
    for family in families()? {
        if conntrack::has_any(family, Which::Translated)? {
            needed.push(family);
        } else {
            unneeded.push(family);
        }
    }
    match remove(&unneeded) {
        Err(error) if has_changed(&error) => needed.extend(unneeded),
        removed => drop(removed?),
    }
    Ok(needed)
}

//! What netfilter's connection tracking knows of connections that are translated.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use proxy_common::abi::{Addr, Family, Port, Protocol, Tuple};

use super::nf_tables::number;
use super::nfnetlink::{Attributes, Message, Netfilter, attribute, nested};

/// Answers have been seen (`IPS_SEEN_REPLY`).
const SEEN_REPLY: u32 = 1 << 1;
/// The conversation has gone on for a while (`IPS_ASSURED`).
const ASSURED: u32 = 1 << 2;
/// Its destination is replaced (`IPS_DST_NAT`).
pub(super) const DST_NAT: u32 = 1 << 5;

/// Numbers of attributes, as `linux/netfilter/nfnetlink_conntrack.h` has them.
mod attr {
    pub(super) const ORIGINAL: u16 = 1;
    pub(super) const REPLY: u16 = 2;
    pub(super) const STATUS: u16 = 3;
    pub(super) const TIMEOUT: u16 = 7;
    pub(super) const ZONE: u16 = 18;
    pub(super) const STATUS_MASK: u16 = 26;
    pub(super) const TUPLE_ADDRESSES: u16 = 1;
    pub(super) const TUPLE_PROTOCOL: u16 = 2;
    pub(super) const V4: [u16; 2] = [1, 2];
    pub(super) const V6: [u16; 2] = [3, 4];
    pub(super) const PROTOCOL: u16 = 1;
    pub(super) const PORTS: [u16; 2] = [2, 3];
}

/// `IPCTNL_MSG_CT_GET`
const GET: libc::c_int = 1;

/// A connection whose destination is replaced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Connection {
    /// IANA protocol number.
    pub(super) protocol: u8,
    /// What the client sends.
    pub(super) asked: Tuple,
    /// What the backend answers.
    pub(super) answer: Tuple,
    /// Answers have been seen.
    pub(super) is_answered: bool,
    /// The conversation has gone on for a while.
    pub(super) is_assured: bool,
    /// Seconds until it is forgotten, if no packet comes.
    pub(super) seconds: u32,
}

/// Which connections are asked for; all have their destination replaced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Which {
    /// All.
    Translated,
    /// Those of UDP.
    Udp,
}

/// Hands the connections of a family to `each`. A kernel that has no connection tracking, or cannot
/// tell of it, has none.
///
/// # Errors
/// If the kernel refuses.
pub(super) fn each(
    family: Family,
    which: Which,
    mut each: impl FnMut(Connection),
) -> io::Result<()> {
    let question = Message {
        kind: (libc::NFNL_SUBSYS_CTNETLINK << 8 | GET) as u16,
        flags: libc::NLM_F_DUMP as u16,
        family: number(family),
        // Kernels before 5.15 tell of all the same.
        attributes: Attributes::default()
            .number(attr::STATUS, DST_NAT)
            .number(attr::STATUS_MASK, DST_NAT),
    };
    let asked = Netfilter::open()?.ask(&question, |part| {
        let is_meant = |connection: &Connection| {
            which == Which::Translated || connection.protocol == Protocol::Udp.number()
        };
        if let Some(connection) = read(part).filter(is_meant) {
            each(connection);
        }
    });
    match asked {
        // Entries come and go all the time.
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
        Err(error) if super::nf_tables::is_unknown(&error) => Ok(()),
        asked => asked,
    }
}

/// Whether there is such a connection of a family.
///
/// # Errors
/// If the kernel refuses.
pub(super) fn has_any(family: Family, which: Which) -> io::Result<bool> {
    let mut has = false;
    each(family, which, |_| has = true)?;
    Ok(has)
}

/// Reads an entry; `None` if it is not translated, or in a zone of its own.
fn read(entry: &[u8]) -> Option<Connection> {
    let word = |kind| {
        attribute(entry, kind)?
            .try_into()
            .ok()
            .map(u32::from_be_bytes)
    };
    let status = word(attr::STATUS)?;
    let is_ours = status & DST_NAT != 0 && attribute(entry, attr::ZONE).is_none();
    let (protocol, asked) = tuple(attribute(entry, attr::ORIGINAL)?)?;
    let (_, answer) = tuple(attribute(entry, attr::REPLY)?)?;
    is_ours.then_some(Connection {
        protocol,
        asked,
        answer,
        is_answered: status & SEEN_REPLY != 0,
        is_assured: status & ASSURED != 0,
        seconds: word(attr::TIMEOUT).unwrap_or(0),
    })
}

fn tuple(attributes: &[u8]) -> Option<(u8, Tuple)> {
    let addresses = attribute(attributes, attr::TUPLE_ADDRESSES)?;
    let address = |at: usize| {
        let v4 = attribute(addresses, attr::V4[at])
            .and_then(|bytes| <[u8; 4]>::try_from(bytes).ok())
            .map(|bytes| Addr::from(Ipv4Addr::from(bytes)));
        let v6 = attribute(addresses, attr::V6[at])
            .and_then(|bytes| <[u8; 16]>::try_from(bytes).ok())
            .map(|bytes| Addr::from(Ipv6Addr::from(bytes)));
        v4.or(v6)
    };
    let of_protocol = attribute(attributes, attr::TUPLE_PROTOCOL)?;
    let port = |at: usize| {
        let bytes = nested(of_protocol, &[attr::PORTS[at]])?;
        Some(Port::new(u16::from_be_bytes(bytes.try_into().ok()?)))
    };
    let protocol = *attribute(of_protocol, attr::PROTOCOL)?.first()?;
    let tuple = Tuple {
        src: address(0)?,
        dst: address(1)?,
        src_port: port(0).unwrap_or(Port::ZERO),
        dst_port: port(1).unwrap_or(Port::ZERO),
    };
    Some((protocol, tuple))
}

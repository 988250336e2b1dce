//! Names of chains, which end in hashes or have them in the middle.

use std::net::SocketAddr;

use data_encoding::BASE32;
use sha2::{Digest, Sha256};

use super::{Port, lower};

/// Letters of a hash in the iptables mode.
const IPTABLES_HASH: usize = 16;
/// Letters of a hash in the nftables mode.
const NFTABLES_HASH: usize = 8;

/// The end of the names of all chains of a port, in the iptables mode.
pub(super) fn of_port(port: &Port) -> String {
    hash(
        &format!("{}{}", port.name, lower(port.protocol)),
        IPTABLES_HASH,
    )
}

/// The end of the name of the chain of a port's endpoint, in the iptables mode.
pub(super) fn of_endpoint(port: &Port, endpoint: SocketAddr) -> String {
    let whole = format!("{}{}{endpoint}", port.name, lower(port.protocol));
    hash(&whole, IPTABLES_HASH)
}

/// What follows `service-` and `external-` in the nftables mode.
pub(super) fn in_nftables(port: &Port) -> String {
    let (service, name) = port.name.split_once(':').unwrap_or((&port.name, ""));
    let whole = format!("{service}/{}/{name}", lower(port.protocol));
    format!("{}-{whole}", hash(&whole, NFTABLES_HASH))
}

fn hash(text: &str, length: usize) -> String {
    let mut text = BASE32.encode(&Sha256::digest(text));
    text.truncate(length);
    text
}

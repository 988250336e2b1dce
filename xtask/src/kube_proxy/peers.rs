//! What the real kube-proxy needed.

use serde::Deserialize;

use crate::figures::{Peer, Proxy};

const DATA: &str = include_str!("../../data/kube-proxy.json");

/// One machine's figures, as they are stored.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Measured {
    version: String,
    machine: String,
    peers: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    mode: Proxy,
    services: u32,
    start_s: f64,
    change_ms: f64,
    resident_mib_after_start: f64,
    resident_mib_after_changes: f64,
}

/// What kube-proxy's control plane needed, by mode and number of Services.
///
/// # Panics
/// Never: a test reads the same data.
pub fn peers() -> Vec<Peer> {
    let Measured {
        version,
        machine,
        peers,
    } = serde_json::from_str(DATA).expect("the data are part of this program");
    peers
        .into_iter()
        .map(|row| Peer {
            mode: row.mode,
            services: row.services,
            start_s: row.start_s,
            change_ms: row.change_ms,
            resident_mib_after_start: row.resident_mib_after_start,
            resident_mib_after_changes: row.resident_mib_after_changes,
            version: version.clone(),
            machine: machine.clone(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn all_modes_were_measured_with_the_same_numbers_of_services() {
        let cases: BTreeSet<_> = peers()
            .iter()
            .map(|peer| (peer.mode, peer.services))
            .collect();
        let modes = [Proxy::Iptables, Proxy::IptablesLegacy, Proxy::Nftables];
        let expected = modes
            .iter()
            .flat_map(|mode| [100, 1_000, 5_000].map(|services| (*mode, services)));
        assert_eq!(cases, expected.collect());
        assert_eq!(peers().len(), cases.len());
    }
}

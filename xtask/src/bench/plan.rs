//! What is measured, and in which groups. Pure.

use std::time::Duration;

use xtask::figures::{Case, Measure, Place, Proxy, Way};

/// Pairs of place and measure that are compared among themselves, in the order of their turns.
const ALL: [(Place, Measure); 23] = [
    (Place::Pod, Measure::TcpConnection),
    (Place::Node, Measure::TcpConnection),
    (Place::OutsideToLocal, Measure::TcpConnection),
    (Place::OutsideToRemote, Measure::TcpConnection),
    (Place::Pod, Measure::TcpRequest),
    (Place::Node, Measure::TcpRequest),
    (Place::Pod, Measure::UdpRequest),
    (Place::Node, Measure::UdpRequest),
    (Place::Pod, Measure::UdpUnconnected),
    (Place::Node, Measure::UdpUnconnected),
    (Place::Pod, Measure::UdpNewSocket),
    (Place::Node, Measure::UdpNewSocket),
    (Place::Pod, Measure::UdpPackets),
    (Place::Pod, Measure::TcpBulk),
    (Place::Pod, Measure::SctpPackets),
    (Place::Pod, Measure::Connect),
    (Place::Pod, Measure::ConnectToEach),
    (Place::Pod, Measure::SocketConnectClose),
    (Place::Pod, Measure::SendTo),
    (Place::Node, Measure::Connect),
    (Place::Node, Measure::ConnectToEach),
    (Place::Node, Measure::SocketConnectClose),
    (Place::Node, Measure::SendTo),
];

/// The most important of [`ALL`], for a first look.
const QUICK: [(Place, Measure); 11] = [
    (Place::Pod, Measure::TcpConnection),
    (Place::Node, Measure::TcpConnection),
    (Place::OutsideToLocal, Measure::TcpConnection),
    (Place::OutsideToRemote, Measure::TcpConnection),
    (Place::Pod, Measure::TcpRequest),
    (Place::Pod, Measure::UdpRequest),
    (Place::Pod, Measure::UdpNewSocket),
    (Place::Pod, Measure::UdpPackets),
    (Place::Pod, Measure::TcpBulk),
    (Place::Pod, Measure::SctpPackets),
    (Place::Pod, Measure::Connect),
];

/// What is to be measured.
pub(super) fn groups(is_quick: bool) -> &'static [(Place, Measure)] {
    if is_quick { &QUICK } else { &ALL }
}

/// The cases of one group on a node. `is_end`: it has the least or the most Services of all with
/// its proxy.
pub(super) fn cases(
    (place, measure): (Place, Measure),
    (proxy, services): (Proxy, Option<u32>),
    is_end: bool,
) -> impl Iterator<Item = Case> {
    let is_call = Measure::CALLS.contains(&measure);
    // What calls cost at numbers in between says nothing more.
    let ways = if is_call && !is_end {
        &[]
    } else {
        ways(place, measure, proxy)
    };
    ways.iter().map(move |&way| Case {
        place,
        measure,
        proxy,
        services,
        way,
    })
}

fn ways(place: Place, measure: Measure, proxy: Proxy) -> &'static [Way] {
    let is_outside = matches!(place, Place::OutsideToLocal | Place::OutsideToRemote);
    // What a proxy costs traffic that uses no Service.
    let is_by_pod_too = !is_outside
        && (matches!(measure, Measure::TcpConnection | Measure::UdpRequest)
            || Measure::CALLS.contains(&measure));
    match proxy {
        Proxy::Direct => &[Way::Pod],
        Proxy::Iptables | Proxy::IptablesLegacy | Proxy::Nftables => {
            if Measure::CALLS.contains(&measure) {
                &[]
            } else if is_by_pod_too {
                &[Way::Pod, Way::Rules]
            } else {
                &[Way::Rules]
            }
        }
        // What comes from outside, and what a raw socket sends, only meets programs for packets.
        Proxy::Beeline if is_outside || measure == Measure::SctpPackets => &[Way::PacketEdge],
        Proxy::Beeline if is_by_pod_too => &[Way::Pod, Way::SocketEdge, Way::PacketEdge],
        Proxy::Beeline => &[Way::SocketEdge, Way::PacketEdge],
    }
}

/// How many rounds of so many turns there is time for.
pub(super) fn rounds(turns: usize, turn: Duration, budget: Duration) -> u32 {
    // Each client gets warm first, and changing over takes a moment.
    let each = turn.mul_f64(1.25) + Duration::from_millis(1);
    let rounds = budget.as_secs_f64() / (each.as_secs_f64() * turns as f64);
    rounds.clamp(5.0, 60.0) as u32
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const NODES: [(Proxy, Option<u32>); 5] = [
        (Proxy::Direct, None),
        (Proxy::Iptables, Some(10)),
        (Proxy::IptablesLegacy, Some(10)),
        (Proxy::Nftables, Some(10)),
        (Proxy::Beeline, Some(10)),
    ];

    #[test]
    fn whatever_is_measured_is_compared_with_no_proxy_at_all() {
        for &group in &ALL {
            let cases = |node| cases(group, node, true).collect::<Vec<_>>();
            let [direct] = cases(NODES[0])[..] else {
                panic!("{group:?}")
            };
            assert_eq!(direct.way, Way::Pod);
            let beeline = cases(NODES[4]);
            assert!(beeline.iter().any(|case| case.way != Way::Pod), "{group:?}");
        }
    }

    #[test]
    fn a_quick_look_is_part_of_the_whole_and_nothing_is_there_twice() {
        let all = BTreeSet::from(ALL);
        assert_eq!(all.len(), ALL.len());
        assert!(QUICK.iter().all(|group| all.contains(group)));
    }

    #[test]
    fn calls_are_beelines_and_at_the_ends_only() {
        let group = (Place::Pod, Measure::Connect);
        for node in &NODES[1..4] {
            assert_eq!(cases(group, *node, true).count(), 0, "{node:?}");
        }
        assert_eq!(cases(group, NODES[4], true).count(), 3);
        assert_eq!(cases(group, NODES[4], false).count(), 0);
        let connection = (Place::Pod, Measure::TcpConnection);
        assert_eq!(cases(connection, NODES[1], false).count(), 2);
    }

    #[test]
    fn the_time_says_how_many_rounds_there_are() {
        let turn = Duration::from_millis(20);
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        assert_eq!(rounds(400, turn, minutes(5)), 28);
        assert_eq!(rounds(400, turn, minutes(0)), 5);
        assert_eq!(rounds(10, turn, minutes(5)), 60);
    }
}

//! Looks things up in figures.

use std::collections::BTreeSet;

use xtask::figures::{Figures, Measure, Place, Traffic};

use super::series::{NO_PROXY, Series};

/// Measures that show their rate.
pub(super) const REQUESTS: [Measure; 8] = [
    Measure::TcpConnection,
    Measure::TcpRequest,
    Measure::TcpBulk,
    Measure::UdpRequest,
    Measure::UdpUnconnected,
    Measure::UdpNewSocket,
    Measure::UdpPackets,
    Measure::SctpPackets,
];

/// Measures whose operation is a packet.
pub(super) const PACKETS: [Measure; 2] = [Measure::UdpPackets, Measure::SctpPackets];

/// All numbers of Services that something was measured with, in order.
pub(super) fn numbers_of_services(figures: &Figures) -> Vec<u32> {
    let traffic = figures.traffic.iter().filter_map(|t| t.case.services);
    let nodes = figures.nodes.iter().map(|node| node.services);
    let numbers: BTreeSet<u32> = traffic.chain(nodes).collect();
    numbers.into_iter().collect()
}

/// The least and the greatest number of Services; one if they are the same.
pub(super) fn least_and_most(figures: &Figures) -> Vec<u32> {
    let numbers = numbers_of_services(figures);
    let ends = [numbers.first(), numbers.last()];
    let ends: BTreeSet<u32> = ends.into_iter().flatten().copied().collect();
    ends.into_iter().collect()
}

/// What a client at a place came to.
pub(super) fn find(
    figures: &Figures,
    place: Place,
    measure: Measure,
    series: Series,
    services: u32,
) -> Option<&Traffic> {
    figures.traffic.iter().find(|traffic| {
        let case = &traffic.case;
        (case.place, case.measure) == (place, measure)
            && series.has(case)
            && (series == NO_PROXY || case.services == Some(services))
    })
}

/// What clients came to by each of these ways, of those that were measured.
pub(super) fn find_all<'a>(
    figures: &'a Figures,
    place: Place,
    measure: Measure,
    all: &[Series],
    services: u32,
) -> Vec<(Series, &'a Traffic)> {
    all.iter()
        .filter_map(|&series| {
            let found = find(figures, place, measure, series, services)?;
            Some((series, found))
        })
        .collect()
}

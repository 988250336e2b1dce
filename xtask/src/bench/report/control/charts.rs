//! Charts of what changes of the cluster cost.

use std::collections::BTreeSet;

use xtask::figures::{Change, Control, Memory, Peer, Proxy, RollingRestart};

use super::super::cards::{Card, scale};
use super::super::chart::{self, Bar, Line, Point};
use super::super::series::{PEERS, SOCKET_EDGE, Series, proxy_class};
use super::super::{names, number, scaling};
use super::{cluster, mebibytes};

/// All charts for which there are figures.
pub(super) fn cards(control: &Control, peers: &[Peer]) -> Vec<Card> {
    let cards = [
        cold_start_card(control, peers),
        change_card(control, peers),
        restart_card(control),
        memory_card(control, peers),
    ];
    cards.into_iter().flatten().collect()
}

fn cold_start_card(control: &Control, peers: &[Peer]) -> Option<Card> {
    let ours = control.cold_start.iter().map(|start| {
        let spread = start.seconds;
        Bar {
            name: format!("Beeline, {}", cluster(start.services, start.endpoints)),
            class: SOCKET_EDGE.class(),
            value: spread.median,
            spread: Some((spread.low, spread.high)),
            text: number::seconds(spread.median),
        }
    });
    let theirs = greatest(peers).map(|(mode, peer)| Bar {
        name: format!("{mode}, {}", cluster(peer.services, 5)),
        class: proxy_class(peer.mode),
        value: peer.start_s,
        spread: None,
        text: number::seconds(peer.start_s),
    });
    let title = "Cold start";
    let bars: Vec<Bar> = ours.chain(theirs).collect();
    (!control.cold_start.is_empty()).then(|| Card {
        title: title.to_owned(),
        unit: "from complete lists to the last map write or rule, Services × endpoints; shorter is better".to_owned(),
        chart: chart::bars(title, &bars, None, 0.0),
        table: super::cold_start(control),
    })
}

/// Of each of kube-proxy's modes the row with the most Services.
fn greatest(peers: &[Peer]) -> impl Iterator<Item = (&'static str, &Peer)> {
    PEERS.iter().filter_map(|series| {
        let of_mode = peers.iter().filter(|peer| peer.mode == series.proxy);
        let peer = of_mode.max_by_key(|peer| peer.services)?;
        Some((series.short(), peer))
    })
}

/// Each mode's rows, by Services.
fn by_mode(peers: &[Peer], mode: Proxy) -> Vec<&Peer> {
    let mut of_mode: Vec<&Peer> = peers.iter().filter(|peer| peer.mode == mode).collect();
    of_mode.sort_by_key(|peer| peer.services);
    of_mode
}

fn change_card(control: &Control, peers: &[Peer]) -> Option<Card> {
    let ours = control.change.iter().map(|change| change.services);
    let numbers: BTreeSet<u32> = ours.chain(peers.iter().map(|peer| peer.services)).collect();
    let numbers = Vec::from_iter(numbers);
    let mut lines = Vec::from(our_changes(&control.change, &numbers));
    lines.extend(their_changes(peers, &numbers));
    let title = "One endpoint replaced";
    (!control.change.is_empty()).then(|| Card {
        title: title.to_owned(),
        unit: format!(
            "time until it is in the kernel{}, by Services; lower is better",
            scale(&lines)
        ),
        chart: chart::legend(&lines)
            + &chart::lines(title, &scaling::ticks(&numbers), &lines, number::time),
        table: super::change(control),
    })
}

fn our_changes(changes: &[Change], numbers: &[u32]) -> [Line; 2] {
    let mut changes: Vec<&Change> = changes.iter().collect();
    changes.sort_by_key(|change| change.services);
    let points = |value: fn(&Change) -> f64| {
        let values = changes.iter();
        points(
            values.map(|change| (change.services, value(change))),
            numbers,
        )
    };
    [
        Line {
            name: "Beeline, p50".to_owned(),
            class: SOCKET_EDGE.class(),
            mark: SOCKET_EDGE.mark(),
            points: points(|change| change.p50_ns),
        },
        Line {
            name: "Beeline, p99".to_owned(),
            class: "socket-edge dashed",
            mark: "M-5-1.5H-1.5V-5H1.5V-1.5H5V1.5H1.5V5H-1.5V1.5H-5Z",
            points: points(|change| change.p99_ns),
        },
    ]
}

fn their_changes(peers: &[Peer], numbers: &[u32]) -> Vec<Line> {
    let line = |series: &Series| {
        let rows = by_mode(peers, series.proxy);
        let values = rows
            .iter()
            .map(|peer| (peer.services, peer.change_ms * 1e6));
        Line {
            name: format!("{}, median", series.name()),
            class: series.class(),
            mark: series.mark(),
            points: points(values, numbers),
        }
    };
    let lines = PEERS.iter().map(line);
    lines.filter(|line| !line.points.is_empty()).collect()
}

/// Times in nanoseconds by numbers of Services, all of which are among `numbers`.
fn points(values: impl Iterator<Item = (u32, f64)>, numbers: &[u32]) -> Vec<Point> {
    let places = chart::by_logarithm(numbers);
    let point = |(services, ns): (u32, f64)| {
        let place = numbers.iter().position(|number| *number == services)?;
        let with = names::services(services);
        Some(Point {
            across: *places.get(place)?,
            value: ns,
            spread: None,
            text: format!("{with} Services, {}", number::time(ns)),
        })
    };
    values.filter_map(point).collect()
}

fn restart_card(control: &Control) -> Option<Card> {
    let bar = |restart: &RollingRestart, name, ns: f64| Bar {
        name: format!("{} endpoints, {name}", names::services(restart.endpoints)),
        class: SOCKET_EDGE.class(),
        value: ns,
        spread: None,
        text: number::time(ns),
    };
    let bars: Vec<Bar> = control
        .rolling_restart
        .iter()
        .flat_map(|restart| {
            [
                bar(restart, "p50", restart.p50_ns),
                bar(restart, "p99", restart.p99_ns),
            ]
        })
        .collect();
    let title = "Rolling restart of one Service";
    (!bars.is_empty()).then(|| Card {
        title: title.to_owned(),
        unit: "time of an event until it is in the kernel; shorter is better".to_owned(),
        chart: chart::bars(title, &bars, None, 0.0),
        table: super::rolling_restart(control),
    })
}

fn memory_card(control: &Control, peers: &[Peer]) -> Option<Card> {
    let bar = |memory: &Memory, name, size: u64| Bar {
        name: format!(
            "Beeline, {}, {name}",
            cluster(memory.services, memory.endpoints)
        ),
        class: SOCKET_EDGE.class(),
        value: size as f64,
        spread: None,
        text: number::bytes(size as f64),
    };
    let ours = control.memory.iter().flat_map(|memory| {
        [
            bar(memory, "resident", memory.resident),
            bar(memory, "peak", memory.peak_resident),
            bar(memory, "maps", memory.maps),
        ]
    });
    let theirs = greatest(peers).map(|(mode, peer)| Bar {
        name: format!("{mode}, {}", cluster(peer.services, 5)),
        class: proxy_class(peer.mode),
        value: peer.resident_mib_after_changes * 1024.0 * 1024.0,
        spread: None,
        text: mebibytes(peer.resident_mib_after_changes),
    });
    let title = "Memory";
    let bars: Vec<Bar> = ours.chain(theirs).collect();
    (!control.memory.is_empty()).then(|| Card {
        title: title.to_owned(),
        unit: "resident, with Services × endpoints; maps are the kernel's; shorter is better"
            .to_owned(),
        chart: chart::bars(title, &bars, None, 0.0),
        table: super::memory(control),
    })
}

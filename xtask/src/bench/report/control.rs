//! What changes of the cluster cost the daemon, beside the real kube-proxy's figures.

use std::collections::BTreeSet;

use xtask::figures::{Change, Control, Figures, Memory, Peer, Proxy, RollingRestart};

use super::cards::{Card, scale};
use super::chart::{self, Bar, Line, Point};
use super::markup::{group, section};
use super::series::{PEERS, SOCKET_EDGE, proxy_class};
use super::table::Table;
use super::{names, number, scaling};

/// All of it, as tables.
pub(super) fn tables(figures: &Figures) -> Vec<Table> {
    let mut tables = Vec::new();
    if let Some(control) = &figures.control {
        tables.extend([
            cold_start(control),
            change(control),
            rolling_restart(control),
            memory(control),
            peers(&figures.peers),
        ]);
    }
    tables
}

/// How many Services, with how many endpoints.
fn cluster(services: u32, endpoints: u32) -> String {
    format!(
        "{} × {}",
        names::services(services),
        names::services(endpoints)
    )
}

fn cold_start(control: &Control) -> Table {
    let rows = control.cold_start.iter().map(|start| {
        let writes: u64 = start.writes.values().sum();
        vec![
            cluster(start.services, start.endpoints),
            number::seconds(start.seconds.median),
            format!(
                "{}–{}",
                number::seconds(start.seconds.low),
                number::seconds(start.seconds.high)
            ),
            number::count(writes as f64),
        ]
    });
    Table::new(
        "Cold start",
        "From complete lists in memory to the last map write.",
        1,
        &["Services × endpoints", "median", "quartiles", "map writes"],
        rows.collect(),
    )
}

fn change(control: &Control) -> Table {
    let rows = control.change.iter().map(|change| {
        vec![
            cluster(change.services, change.endpoints),
            number::time(change.p50_ns),
            number::time(change.p99_ns),
            number::time(change.max_ns),
            number::short(change.writes),
            number::short(change.allocations),
            names::services(change.changes),
        ]
    });
    Table::new(
        "One endpoint replaced",
        "From the event to the last map write.",
        1,
        &[
            "Services × endpoints",
            "p50",
            "p99",
            "longest",
            "map writes",
            "allocations",
            "changes",
        ],
        rows.collect(),
    )
}

fn rolling_restart(control: &Control) -> Table {
    let rows = control.rolling_restart.iter().map(|restart| {
        vec![
            names::services(restart.endpoints),
            names::services(restart.events),
            number::seconds(restart.seconds),
            number::time(restart.p50_ns),
            number::time(restart.p99_ns),
        ]
    });
    Table::new(
        "Rolling restart of one Service",
        "All its endpoints replaced, one after the other.",
        1,
        &[
            "endpoints",
            "events",
            "altogether",
            "an event, p50",
            "an event, p99",
        ],
        rows.collect(),
    )
}

fn memory(control: &Control) -> Table {
    let rows = control.memory.iter().map(|memory| {
        vec![
            cluster(memory.services, memory.endpoints),
            number::bytes(memory.resident as f64),
            number::bytes(memory.peak_resident as f64),
            number::bytes(memory.maps as f64),
        ]
    });
    Table::new(
        "Memory",
        "",
        1,
        &[
            "Services × endpoints",
            "daemon, resident",
            "its peak",
            "maps, in the kernel",
        ],
        rows.collect(),
    )
}

fn peers(peers: &[Peer]) -> Table {
    let rows = peers.iter().map(|peer| {
        vec![
            names::proxy(peer.mode).to_owned(),
            cluster(peer.services, 5),
            number::seconds(peer.start_s),
            number::time(peer.change_ms * 1e6),
            mebibytes(peer.resident_mib_after_start),
            mebibytes(peer.resident_mib_after_changes),
        ]
    });
    Table::new(
        "The real kube-proxy's control plane",
        peers_note(peers),
        1,
        &[
            "mode",
            "Services × endpoints",
            "start",
            "one change",
            "resident after start",
            "after ten changes",
        ],
        rows.collect(),
    )
}

/// Where the figures of kube-proxy are from.
fn peers_note(peers: &[Peer]) -> String {
    let sources: BTreeSet<String> = peers
        .iter()
        .map(|peer| format!("kube-proxy {} on {}", peer.version, peer.machine))
        .collect();
    if sources.is_empty() {
        return String::new();
    }
    let sources = Vec::from_iter(sources).join("; ");
    format!(
        "Not of this run: {sources}. Medians: start is from the start of the process to the last \
         rule, one change from the API call to the last rule."
    )
}

fn mebibytes(size: f64) -> String {
    number::bytes(size * 1024.0 * 1024.0)
}

/// The section; nothing if nothing of the kind was measured.
pub(super) fn html(figures: &Figures) -> String {
    let Some(control) = &figures.control else {
        return String::new();
    };
    let cards = [
        cold_start_card(control, &figures.peers),
        change_card(control, &figures.peers),
        restart_card(control),
        memory_card(control, &figures.peers),
    ];
    let cards: String = cards.iter().flatten().map(Card::html).collect();
    let folded = peers(&figures.peers).folded("kube-proxy's figures as a table");
    let body = if cards.is_empty() {
        String::new()
    } else {
        group("", &cards) + &folded
    };
    section(
        "control",
        "What changes of the cluster cost",
        &format!(
            "Beeline's map writes are real ones. {}",
            peers_note(&figures.peers)
        ),
        &body,
    )
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
        unit: "time until all Services × endpoints are in the kernel; shorter is better".to_owned(),
        chart: chart::bars(title, &bars, None, 0.0),
        table: cold_start(control),
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
    let line = |name: String, class, mark, values: Vec<(u32, f64)>| {
        let places = chart::by_logarithm(&numbers);
        let across = |services| {
            let found = numbers.iter().position(|number| *number == services);
            found.and_then(|number| places.get(number).copied())
        };
        let points = values.into_iter().filter_map(|(services, ns)| {
            Some(Point {
                across: across(services)?,
                value: ns,
                spread: None,
                text: format!(
                    "{} Services, {}",
                    names::services(services),
                    number::time(ns)
                ),
            })
        });
        Line {
            name,
            class,
            mark,
            points: points.collect(),
        }
    };
    let mut changes: Vec<&Change> = control.change.iter().collect();
    changes.sort_by_key(|change| change.services);
    let values = |value: fn(&Change) -> f64| {
        let of = changes.iter();
        of.map(|change| (change.services, value(change))).collect()
    };
    let mut lines = vec![
        line(
            "Beeline, p50".to_owned(),
            SOCKET_EDGE.class(),
            SOCKET_EDGE.mark(),
            values(|change| change.p50_ns),
        ),
        line(
            "Beeline, p99".to_owned(),
            "socket-edge dashed",
            "M-5-1.5H-1.5V-5H1.5V-1.5H5V1.5H1.5V5H-1.5V1.5H-5Z",
            values(|change| change.p99_ns),
        ),
    ];
    lines.extend(PEERS.iter().filter_map(|series| {
        let rows = by_mode(peers, series.proxy);
        let values = rows
            .iter()
            .map(|peer| (peer.services, peer.change_ms * 1e6));
        (!rows.is_empty()).then(|| {
            line(
                format!("{}, median", series.name()),
                series.class(),
                series.mark(),
                values.collect(),
            )
        })
    }));
    let title = "One endpoint replaced";
    (!changes.is_empty()).then(|| Card {
        title: title.to_owned(),
        unit: format!(
            "time until it is in the kernel{}, by Services; lower is better",
            scale(&lines)
        ),
        chart: chart::legend(&lines)
            + &chart::lines(title, &scaling::ticks(&numbers), &lines, number::time),
        table: change(control),
    })
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
        table: rolling_restart(control),
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
        table: memory(control),
    })
}

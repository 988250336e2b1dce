//! What changes of the cluster cost the daemon, beside the real kube-proxy's figures.

mod charts;

use std::collections::BTreeSet;

use xtask::figures::{Control, Figures, Peer};

use super::cards::Card;
use super::markup::{group, section};
use super::table::Table;
use super::{names, number};

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
    let cards = charts::cards(control, &figures.peers);
    let cards: String = cards.iter().map(Card::html).collect();
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

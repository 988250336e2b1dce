//! What packets cost in Beeline's programs, and how large these are.

use std::collections::BTreeSet;

use xtask::figures::{Figures, Packet, Program};

use super::cards::Card;
use super::chart::{self, Bar};
use super::markup::{group, section};
use super::table::Table;
use super::{names, number};

/// What packets cost, as a table.
pub(super) fn packets(figures: &Figures) -> Table {
    let all: Vec<&Packet> = figures.packets.iter().collect();
    packet_table("A packet in a program", &all)
}

fn packet_table(title: &str, packets: &[&Packet]) -> Table {
    let row = |packet: &&Packet| {
        vec![
            packet.program.clone(),
            names::packet(packet),
            number::short(packet.least_ns),
            number::short(packet.median_ns),
        ]
    };
    Table::new(
        title,
        "By test run in the kernel. The least is the mean of the turn that nothing disturbed.",
        2,
        &["program", "packet", "least, ns", "median, ns"],
        packets.iter().map(row).collect(),
    )
}

/// How large programs are, as a table.
pub(super) fn sizes(figures: &Figures) -> Table {
    let text = |number: Option<u32>| {
        number
            .map(|number| number::count(f64::from(number)))
            .unwrap_or_default()
    };
    let row = |program: &Program| {
        vec![
            program.name.clone(),
            text(program.verified),
            text(program.bytes),
        ]
    };
    Table::new(
        "Programs as the kernel loads them",
        "A verifier gives up at 1,000,000 instructions.",
        1,
        &["program", "verified instructions", "bytes when translated"],
        figures.programs.iter().map(row).collect(),
    )
}

/// The sections; nothing if nothing of the kind was measured.
pub(super) fn html(figures: &Figures) -> String {
    let programs: BTreeSet<&str> = figures
        .packets
        .iter()
        .map(|packet| packet.program.as_str())
        .collect();
    let cards: String = programs
        .into_iter()
        .map(|program| packets_of(figures, program).html())
        .collect();
    let packets = section(
        "programs",
        "A packet in Beeline's programs",
        "By test run in the kernel: the program alone, without the rest of a packet's life. Bars are \
         the turn that nothing disturbed; the line across goes to the median of all turns.",
        &group("", &cards),
    );
    let sizes = section(
        "instructions",
        "How much the verifier looks at",
        "It gives up at 1,000,000 instructions.",
        &instructions(figures).map_or_else(String::new, |card| group("", &card.html())),
    );
    packets + &sizes
}

fn packets_of(figures: &Figures, program: &str) -> Card {
    let packets: Vec<&Packet> = figures
        .packets
        .iter()
        .filter(|packet| packet.program == program)
        .collect();
    let bars: Vec<Bar> = packets
        .iter()
        .map(|packet| Bar {
            name: names::packet(packet),
            class: if packet.protocol.is_some() {
                "packet-edge"
            } else {
                "no-proxy"
            },
            value: packet.least_ns,
            spread: Some((packet.least_ns, packet.median_ns)),
            text: number::time(packet.least_ns),
        })
        .collect();
    let longest = figures
        .packets
        .iter()
        .map(|packet| packet.median_ns)
        .fold(0.0, f64::max);
    Card {
        title: program.to_owned(),
        unit: "ns of a packet; shorter is better".to_owned(),
        chart: chart::bars(program, &bars, None, longest),
        table: packet_table(program, &packets),
    }
}

fn instructions(figures: &Figures) -> Option<Card> {
    let mut programs: Vec<(&str, f64)> = figures
        .programs
        .iter()
        .filter_map(|program| Some((program.name.as_str(), f64::from(program.verified?))))
        .collect();
    programs.sort_by(|one, other| other.1.total_cmp(&one.1));
    let bars: Vec<Bar> = programs
        .into_iter()
        .map(|(name, verified)| Bar {
            name: name.to_owned(),
            class: "socket-edge",
            value: verified,
            spread: None,
            text: number::count(verified),
        })
        .collect();
    let title = "Verified instructions";
    (!bars.is_empty()).then(|| Card {
        title: title.to_owned(),
        unit: "instructions; shorter is better".to_owned(),
        chart: chart::bars(title, &bars, None, 0.0),
        table: sizes(figures),
    })
}

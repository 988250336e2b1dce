//! What packets cost in Beeline's programs, and how large these are.

use std::collections::BTreeSet;

use xtask::figures::{Figures, Packet, Program};

use super::cards::Card;
use super::chart::{self, Bar};
use super::markup::{folded_group, group, group_of, section};
use super::series::{NO_PROXY, PACKET_EDGE, SOCKET_EDGE};
use super::table::Table;
use super::{names, number};

/// Protocols and families, in the order of columns; what is none of them comes first.
const COLUMNS: [(Option<&str>, Option<&str>, &str); 7] = [
    (None, None, "any"),
    (Some("TCP"), Some("IPv4"), "TCP, IPv4"),
    (Some("UDP"), Some("IPv4"), "UDP, IPv4"),
    (Some("SCTP"), Some("IPv4"), "SCTP, IPv4"),
    (Some("TCP"), Some("IPv6"), "TCP, IPv6"),
    (Some("UDP"), Some("IPv6"), "UDP, IPv6"),
    (Some("SCTP"), Some("IPv6"), "SCTP, IPv6"),
];

/// What packets cost, as a table with a column for each protocol and family.
pub(super) fn packets(figures: &Figures) -> Table {
    let mut rows: Vec<(&str, &str)> = Vec::new();
    for packet in &figures.packets {
        let row = (packet.program.as_str(), packet.what.as_str());
        if !rows.contains(&row) {
            rows.push(row);
        }
    }
    let cell = |(program, what): (&str, &str), protocol, family| {
        let packet = figures.packets.iter().find(|packet| {
            (packet.program.as_str(), packet.what.as_str()) == (program, what)
                && (packet.protocol.as_deref(), packet.family.as_deref()) == (protocol, family)
        })?;
        let times = [packet.least_ns, packet.median_ns];
        Some(times.map(number::short).join(" / "))
    };
    let rows = rows.into_iter().map(|row| {
        let cells =
            COLUMNS.map(|(protocol, family, _)| cell(row, protocol, family).unwrap_or_default());
        let names = [row.0.to_owned(), row.1.to_owned()];
        names.into_iter().chain(cells).collect()
    });
    let mut header = vec!["program", "packet"];
    header.extend(COLUMNS.map(|(_, _, name)| name));
    Table::new(
        "A packet in a program, least / median in ns",
        "By test run in the kernel. The least is the mean of the turn that nothing disturbed.",
        2,
        &header,
        rows.collect(),
    )
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
        "",
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
    let packets = section(
        "programs",
        "A packet in Beeline's programs",
        "By test run in the kernel: the program alone, without the rest of a packet's life. Bars are \
         the turn that nothing disturbed; the line across goes to the median of all turns.",
        &kinds(figures)
            .into_iter()
            .map(|what| packets_of_kind(figures, what))
            .collect::<String>(),
    );
    let sizes = section(
        "instructions",
        "How much the verifier looks at",
        "It gives up at 1,000,000 instructions.",
        &instructions(figures).map_or_else(String::new, |card| group("", &card.html())),
    );
    packets + &sizes
}

/// The kind of packets that most are.
const USUAL: &str = "established";

/// Kinds of packets, the usual one first.
fn kinds(figures: &Figures) -> Vec<&str> {
    let packets = figures.packets.iter();
    let of_protocols = packets.filter(|packet| packet.protocol.is_some());
    let kinds: BTreeSet<&str> = of_protocols.map(|packet| packet.what.as_str()).collect();
    let (mut first, others): (Vec<&str>, Vec<&str>) =
        kinds.into_iter().partition(|kind| *kind == USUAL);
    first.extend(others);
    first
}

/// A chart for each program that sees packets of a kind.
fn packets_of_kind(figures: &Figures, what: &str) -> String {
    let is_one = |packet: &&Packet| packet.protocol.is_some() && packet.what == what;
    let of_kind = || figures.packets.iter().filter(is_one);
    let longest = of_kind().map(|packet| packet.median_ns).fold(0.0, f64::max);
    let programs: BTreeSet<&str> = of_kind().map(|packet| packet.program.as_str()).collect();
    let cards: String = programs
        .into_iter()
        .map(|program| {
            let all = figures.packets.iter();
            let shown = all.filter(|packet| {
                packet.program == program && (packet.protocol.is_none() || is_one(packet))
            });
            packet_card(program, &Vec::from_iter(shown), longest).html()
        })
        .collect();
    let title = format!("Packets: {what}");
    if what == USUAL {
        group_of(&title, "cards wide", &cards)
    } else {
        folded_group(&title, &cards)
    }
}

fn packet_card(program: &str, packets: &[&Packet], longest: f64) -> Card {
    let bars: Vec<Bar> = packets
        .iter()
        .map(|packet| Bar {
            name: names::packet(packet),
            class: if packet.protocol.is_some() {
                PACKET_EDGE.class()
            } else {
                NO_PROXY.class()
            },
            value: packet.least_ns,
            spread: Some((packet.least_ns, packet.median_ns)),
            text: number::time(packet.least_ns),
        })
        .collect();
    Card {
        title: program.to_owned(),
        unit: "ns of a packet; shorter is better".to_owned(),
        chart: chart::bars(program, &bars, None, longest),
        table: packet_table(program, packets),
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
            class: SOCKET_EDGE.class(),
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

#[cfg(test)]
mod tests {
    use super::super::{Form, sample};
    use super::*;

    #[test]
    fn packets_have_a_column_for_each_protocol_that_was_measured() {
        let text = packets(&sample::full()).text(Form::Markdown).unwrap();
        let table = "| program | packet | any | TCP, IPv4 | SCTP, IPv4 |\n\
                     | --- | --- | ---: | ---: | ---: |\n\
                     | pod_ingress | not IP | 55.0 / 57.0 |  |  |\n\
                     | pod_ingress | established |  | 55.0 / 57.0 | 55.0 / 57.0 |";
        assert!(text.ends_with(table), "{text}");
    }

    #[test]
    fn a_chart_compares_packets_with_what_is_left_alone() {
        let page = html(&sample::full());
        let (before, after) = page.split_once("Packets: established").unwrap();
        assert!(!before.contains("<figure"), "{before}");
        for bar in [
            "not IP",
            "TCP over IPv4, established",
            "SCTP over IPv4, established",
        ] {
            assert!(after.contains(bar), "{bar}");
        }
    }
}

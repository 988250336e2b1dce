//! What things are called, and in which unit they are shown.

use xtask::figures::{Machine, Measure, Packet, Place, Proxy, Settings};

use super::number;

/// A place, as in "from …".
pub(super) fn place(place: Place) -> &'static str {
    match place {
        Place::Pod => "a pod",
        Place::Node => "the node",
        Place::OutsideToLocal => "outside, by NodePort, to a pod here",
        Place::OutsideToRemote => "outside, by NodePort, to a pod elsewhere",
    }
}

/// A place, in a table.
pub(super) fn place_in_table(place: Place) -> &'static str {
    match place {
        Place::Pod => "pod",
        Place::Node => "node",
        Place::OutsideToLocal => "outside, pod here",
        Place::OutsideToRemote => "outside, pod elsewhere",
    }
}

/// What clients do, in full.
pub(super) const MEASURES: [&str; 7] = [
    "TCP connection: open it, one byte each way, close it.",
    "TCP request: one byte each way on a connection that stays open; TCP bulk: as much as one \
     connection carries.",
    "UDP request: a datagram and its answer on one connected socket; unconnected: on one socket \
     that is not; new socket: with a new one each time, as resolvers do it.",
    "UDP packets and SCTP packets one way: what arrives; SCTP's come from a generator.",
    "connect: that of a UDP socket, which sends nothing; each Service: to another one each time, so \
     that what it needs is in no cache of the processor.",
    "sendto: of a socket that is not connected, to where nobody reads.",
    "Clients outside dial a NodePort, with a pod behind it here, on this node, or elsewhere.",
];

/// A measure.
pub(super) fn measure(measure: Measure) -> &'static str {
    match measure {
        Measure::TcpConnection => "TCP connection",
        Measure::TcpRequest => "TCP request",
        Measure::TcpBulk => "TCP bulk",
        Measure::UdpRequest => "UDP request",
        Measure::UdpUnconnected => "UDP request, unconnected",
        Measure::UdpNewSocket => "UDP request, new socket",
        Measure::UdpPackets => "UDP packets one way",
        Measure::SctpPackets => "SCTP packets one way",
        Measure::Connect => "connect",
        Measure::ConnectToEach => "connect, each Service",
        Measure::SocketConnectClose => "socket, connect, close",
        Measure::SendTo => "sendto",
    }
}

/// What one operation of a measure is; where that is a byte, a KiB.
pub(super) fn operation(measure: Measure) -> &'static str {
    match measure {
        Measure::TcpConnection => "connection",
        Measure::TcpRequest
        | Measure::UdpRequest
        | Measure::UdpUnconnected
        | Measure::UdpNewSocket => "request",
        Measure::TcpBulk => "KiB",
        Measure::UdpPackets | Measure::SctpPackets => "packet",
        Measure::Connect
        | Measure::ConnectToEach
        | Measure::SocketConnectClose
        | Measure::SendTo => "call",
    }
}

/// How many bytes or whatever else an [`operation`] is made of.
pub(super) fn per_operation(measure: Measure) -> f64 {
    if measure == Measure::TcpBulk {
        1024.0
    } else {
        1.0
    }
}

/// A rate with its unit.
pub(super) fn rate(measure: Measure, per_second: f64) -> String {
    if measure == Measure::TcpBulk {
        format!("{} Gbit/s", number::short(per_second * 8.0 / 1e9))
    } else {
        format!("{}/s", number::count(per_second))
    }
}

/// The processor time of an [`operation`].
pub(super) fn cpu(measure: Measure, ns: f64) -> String {
    number::time(ns * per_operation(measure))
}

/// A number of Services.
pub(super) fn services(services: u32) -> String {
    number::count(f64::from(services))
}

/// A packet of a test run.
pub(super) fn packet(packet: &Packet) -> String {
    let Packet {
        what,
        protocol,
        family,
        ..
    } = packet;
    match (protocol, family) {
        (Some(protocol), Some(family)) => format!("{protocol} over {family}, {what}"),
        (Some(only), None) | (None, Some(only)) => format!("{only}, {what}"),
        (None, None) => what.clone(),
    }
}

/// Load above which others disturb rates.
const BUSY: f64 = 2.0;

/// What it was measured on, and how busy that was.
pub(super) fn machine(machine: &Machine) -> String {
    let Machine {
        kernel,
        processor,
        processors,
        load: [before, after],
    } = machine;
    let warning = if *before > BUSY {
        " (busy: rates mean little, processor time does)"
    } else {
        ""
    };
    format!(
        "Linux {kernel}, {processor}, {processors} processors; load {before:.2} before, {after:.2} \
         after{warning}"
    )
}

/// How it was measured.
pub(super) fn settings(settings: &Settings) -> String {
    let Settings {
        family,
        rounds,
        turn_ms,
    } = settings;
    format!("{family}, {rounds} rounds, turns of {turn_ms} ms")
}

/// A proxy.
pub(super) fn proxy(proxy: Proxy) -> &'static str {
    match proxy {
        Proxy::Direct => "no proxy",
        Proxy::Iptables => "kube-proxy, iptables",
        Proxy::IptablesLegacy => "kube-proxy, iptables-legacy",
        Proxy::Nftables => "kube-proxy, nftables",
        Proxy::Beeline => "Beeline",
    }
}

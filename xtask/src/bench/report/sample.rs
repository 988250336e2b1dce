//! Figures for tests, in which everything was measured, or nothing.

use std::collections::BTreeMap;

use xtask::figures::{
    Calls, Case, Change, ColdStart, Comparison, Control, Figures, Latency, Machine, Measure,
    Memory, Node, Packet, Peer, Place, Program, Proxy, RollingRestart, Settings, Spread, Traffic,
    Way,
};

use super::select::REQUESTS;
use super::series::{self, NO_PROXY, Series};

/// Numbers of Services.
pub(super) const SERVICES: [u32; 4] = [10, 1_000, 5_000, 30_000];

/// Of a run in which nothing was measured.
pub(super) fn empty() -> Figures {
    Figures {
        command: "cargo xtask bench".to_owned(),
        day: "2026-01-31".to_owned(),
        machine: Machine {
            kernel: "6.18.44".to_owned(),
            processor: "Fast One".to_owned(),
            processors: 2,
            load: [0.1, 0.2],
        },
        settings: Settings {
            family: "IPv4".to_owned(),
            rounds: 40,
            turn_ms: 30,
        },
        nodes: Vec::new(),
        left_out: Vec::new(),
        traffic: Vec::new(),
        calls: Vec::new(),
        packets: Vec::new(),
        programs: Vec::new(),
        control: None,
        peers: Vec::new(),
    }
}

/// Of a run in which everything was measured.
pub(super) fn full() -> Figures {
    Figures {
        left_out: vec!["no legacy tables in </script> this kernel".to_owned()],
        nodes: nodes(),
        traffic: traffic(),
        calls: vec![calls("connect4", 1.0), calls("sock_release", 0.001)],
        packets: packets(),
        programs: vec![
            program("pod_ingress", Some(464_388)),
            program("connect4", Some(51_808)),
            program("old", None),
        ],
        control: Some(control()),
        peers: peers(),
        ..empty()
    }
}

fn nodes() -> Vec<Node> {
    let proxies = [
        Proxy::Beeline,
        Proxy::Nftables,
        Proxy::Iptables,
        Proxy::IptablesLegacy,
    ];
    let nodes = SERVICES.iter().flat_map(|&services| {
        proxies.map(|proxy| Node {
            proxy,
            services,
            ready_s: 0.5,
        })
    });
    nodes.collect()
}

/// The rate as a part of that without a proxy.
fn part(series: Series, services: u32) -> f64 {
    let many = (f64::from(services) / 10.0).log10() / 3_000_f64.log10();
    match (series.proxy, series.way) {
        (Proxy::Direct, _) | (_, Way::Pod) => 1.0,
        (_, Way::SocketEdge) => 0.99,
        (_, Way::PacketEdge) => 0.96,
        (Proxy::Nftables, Way::Rules) => 0.9,
        (Proxy::IptablesLegacy, Way::Rules) => 0.85 - 0.4 * many,
        (Proxy::Iptables | Proxy::Beeline, Way::Rules) => 0.8 - 0.5 * many,
    }
}

fn spread(median: f64, by: f64) -> Spread {
    Spread {
        low: median - by,
        median,
        high: median + by,
    }
}

fn traffic() -> Vec<Traffic> {
    let mut all = Vec::new();
    let ways = series::ALL.iter().chain(&series::BESIDE[1..]);
    let ways: Vec<Series> = ways.copied().collect();
    for place in Place::ALL {
        for measure in REQUESTS.into_iter().chain(Measure::CALLS) {
            all.push(case(place, measure, NO_PROXY, None));
            for &series in ways.iter().filter(|series| **series != NO_PROXY) {
                let by = |services| case(place, measure, series, Some(services));
                all.extend(SERVICES.map(by));
            }
        }
    }
    all
}

fn case(place: Place, measure: Measure, series: Series, services: Option<u32>) -> Traffic {
    let part = part(series, services.unwrap_or(10));
    let cost = 2.0 - part;
    let comparison = Comparison {
        rate: spread(part, 0.01),
        cpu: spread(cost, 0.01),
        added_cpu_ns: spread(1e5 * (cost - 1.0), 100.0),
    };
    Traffic {
        case: Case {
            place,
            measure,
            proxy: series.proxy,
            services,
            way: series.way,
        },
        rate: spread(1e4 * part, 50.0),
        cpu_ns: spread(1e5 * cost, 100.0),
        latency: REQUESTS.contains(&measure).then_some(Latency {
            p50_ns: 5e4 * cost,
            p99_ns: 1e5 * cost,
            p999_ns: 1.5e5 * cost,
        }),
        to_direct: services.map(|_| comparison),
        to_pod: (series.way != Way::Pod).then_some(comparison),
    }
}

fn calls(program: &str, each: f64) -> Calls {
    Calls {
        case: Case {
            place: Place::Pod,
            measure: Measure::Connect,
            proxy: Proxy::Beeline,
            services: Some(30_000),
            way: Way::SocketEdge,
        },
        program: program.to_owned(),
        each,
        ns: 150.0,
    }
}

fn packets() -> Vec<Packet> {
    let packet = |what: &str, protocol: Option<&str>| Packet {
        program: "pod_ingress".to_owned(),
        what: what.to_owned(),
        protocol: protocol.map(str::to_owned),
        family: protocol.map(|_| "IPv4".to_owned()),
        least_ns: 55.0,
        median_ns: 57.0,
    };
    vec![
        packet("not IP", None),
        packet("established", Some("TCP")),
        packet("established", Some("SCTP")),
    ]
}

fn program(name: &str, verified: Option<u32>) -> Program {
    Program {
        name: name.to_owned(),
        verified,
        bytes: Some(1_056),
    }
}

fn control() -> Control {
    let change = |services| Change {
        services,
        endpoints: 4,
        changes: 1_000,
        p50_ns: 40_000.0,
        p99_ns: 90_000.0,
        max_ns: 300_000.0,
        writes: 5.0,
        allocations: 60.0,
    };
    Control {
        cold_start: vec![ColdStart {
            services: 5_000,
            endpoints: 50,
            seconds: spread(0.8, 0.1),
            writes: BTreeMap::from([("SLOTS".to_owned(), 250_000)]),
        }],
        change: [100, 1_000, 30_000].map(change).to_vec(),
        rolling_restart: vec![RollingRestart {
            endpoints: 1_000,
            events: 2_000,
            seconds: 1.5,
            p50_ns: 600_000.0,
            p99_ns: 900_000.0,
        }],
        memory: vec![Memory {
            services: 30_000,
            endpoints: 4,
            resident: 90 << 20,
            peak_resident: 120 << 20,
            maps: 200 << 20,
        }],
    }
}

fn peers() -> Vec<Peer> {
    let peer = |mode, services, change_ms| Peer {
        mode,
        services,
        start_s: 3.9,
        change_ms,
        resident_mib_after_start: 138.0,
        resident_mib_after_changes: 222.0,
        version: "1.36.2".to_owned(),
        machine: "2 processors, Linux 6.18".to_owned(),
    };
    vec![
        peer(Proxy::Nftables, 100, 25.0),
        peer(Proxy::Nftables, 5_000, 1_069.0),
        peer(Proxy::Iptables, 5_000, 352.0),
        peer(Proxy::IptablesLegacy, 5_000, 327.0),
    ]
}

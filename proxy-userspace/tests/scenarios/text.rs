//! Scenarios as text: objects in, map dump out. Each `*.txt` beside this file is one.
//!
//! A file is a list of sections, each under a line `-- word --`; `#` begins a comment line.
//! - `apply`: objects, all changed at once:
//!   `service namespace/name ips=10.96.0.1,fd00::1 http:80/TCP[@30080] [local-only] [affinity=60]
//!   [external=192.0.2.1] [vip=192.0.2.2] [from=10.0.0.0/8] [external-local]`;
//!   `slice namespace/name of namespace/service IPv4 http:8080/TCP`, then its endpoints, one an
//!   indented line, as [`endpoint`] has them; `node [zone=a [10.0.0.1]]`.
//! - `delete`: objects that go, all at once: `service namespace/name`, `slice namespace/name`.
//! - `dump`: what [`beeline::sync::dump`] must say now.
//! - `own`: the node's addresses, one a line: `192.0.2.1` accepts NodePorts, `-192.0.2.1` does not.
//! - `addresses`: what `ADDRESSES` must say now, ordered by address.
//! - `problems`: what must be in trouble now, `subject: message`.
//!
//! Every file is played in several ways that must all come to the same. After the last section
//! everything is deleted, and the maps must be empty.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use beeline::model::{Event, TrafficPolicy};
use beeline::sync::dump;
use proxy_common::abi::{Addr, AddressFlags, Family};

use super::build::{Build, endpoint, ips, nets, node, object, service, slice};
use super::cluster::{Cluster, ROOMY};

struct Section {
    word: String,
    lines: Vec<String>,
}

/// How a file is played.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// Each section is one batch.
    Batches,
    /// One event after the other.
    Singly,
    /// One event after the other, the last first.
    Backwards,
    /// The daemon is restarted after each batch.
    Restarts,
    /// Every third write fails.
    Faults,
}

const WAYS: [Way; 5] = [
    Way::Batches,
    Way::Singly,
    Way::Backwards,
    Way::Restarts,
    Way::Faults,
];

#[test]
fn every_scenario_ends_in_its_dump() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|it| it.unwrap().path())
        .collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        let sections = sections(&fs::read_to_string(&file).unwrap());
        for way in WAYS {
            play(&sections, way, &file.file_name().unwrap().to_string_lossy());
        }
    }
}

fn sections(text: &str) -> Vec<Section> {
    let mut sections: Vec<Section> = vec![];
    for line in text
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.starts_with('#'))
    {
        match line
            .strip_prefix("-- ")
            .and_then(|rest| rest.strip_suffix(" --"))
        {
            Some(word) => sections.push(Section {
                word: word.to_owned(),
                lines: vec![],
            }),
            None => sections.last_mut().unwrap().lines.push(line.to_owned()),
        }
    }
    sections
}

fn play(sections: &[Section], way: Way, file: &str) {
    let mut cluster = Cluster::new(ROOMY);
    for (index, section) in sections.iter().enumerate() {
        let place = format!("{file}, section {} ({}), {way:?}", index + 1, section.word);
        match section.word.as_str() {
            "apply" => bring_in(&mut cluster, objects(&section.lines), way),
            "delete" => bring_in(&mut cluster, deletions(&section.lines), way),
            "dump" => {
                let actual = dump(&cluster.maps.contents());
                let expected = section.lines.join("\n");
                assert_eq!(actual.trim_end(), expected, "{place}:\n{actual}");
            }
            "own" => {
                let addresses: Vec<_> = section.lines.iter().map(String::as_str).collect();
                cluster.set_own(&addresses);
            }
            "addresses" => assert_eq!(addresses(&cluster), section.lines, "{place}"),
            "problems" => assert_eq!(problems(&cluster), section.lines, "{place}"),
            other => panic!("{place}: no such section: {other}"),
        }
    }
    let all = cluster
        .names()
        .into_iter()
        .map(Event::ServiceGone)
        .collect();
    bring_in(&mut cluster, all, way);
    cluster.set_own(&[]);
    assert!(
        cluster.maps.is_empty(),
        "{file}, {way:?}: {}",
        dump(&cluster.maps.contents())
    );
}

fn addresses(cluster: &Cluster) -> Vec<String> {
    let kinds = [
        (AddressFlags::CLUSTER_IP, " cluster-ip"),
        (AddressFlags::EXTERNAL, " external"),
        (AddressFlags::NODE, " node"),
        (AddressFlags::NODE_PORTS, " node-ports"),
    ];
    let mut addresses = cluster.maps.contents().addresses;
    addresses.sort_by_key(|(addr, _)| IpAddr::from(*addr));
    let line = |(addr, flags): &(Addr, AddressFlags)| {
        let words = kinds.iter().filter(|(kind, _)| flags.contains(*kind));
        addr.to_string() + &words.map(|(_, word)| *word).collect::<String>()
    };
    addresses.iter().map(line).collect()
}

fn problems(cluster: &Cluster) -> Vec<String> {
    let problems = cluster.sync.problems();
    problems
        .into_iter()
        .map(|it| format!("{}: {}", it.subject, it.message))
        .collect()
}

fn bring_in(cluster: &mut Cluster, mut events: Vec<Event>, way: Way) {
    if way == Way::Faults {
        cluster.maps.faults = [true, false, false].repeat(100);
    }
    if way == Way::Backwards {
        events.reverse();
    }
    if matches!(way, Way::Singly | Way::Backwards) {
        for event in events {
            cluster.apply([event]);
        }
    } else {
        cluster.apply(events);
    }
    if way == Way::Restarts {
        assert_eq!(
            cluster.restart(),
            0,
            "writes at a restart that changes nothing"
        );
    }
    while !cluster.maps.faults.is_empty() {
        let n_faults = cluster.maps.faults.len();
        cluster.retry();
        if cluster.maps.faults.len() == n_faults {
            cluster.maps.faults.clear();
        }
    }
    cluster.retry();
}

fn objects(lines: &[String]) -> Vec<Event> {
    let mut events = vec![];
    for line in lines {
        if let Some(text) = line.strip_prefix("  ") {
            let Some(Event::Slice(slice)) = events.last_mut() else {
                panic!("no slice: {line}")
            };
            slice.endpoints.push(endpoint(text.trim()));
            continue;
        }
        let words: Vec<_> = line.split_whitespace().collect();
        events.push(match words[..] {
            ["service", name, ref rest @ ..] => parse_service(name, rest),
            ["slice", name, "of", owner, family, ref ports @ ..] => {
                slice(name, owner, parse_family(family), &[])
                    .ports(&ports.join(" "))
                    .event()
            }
            ["node"] => node(None, &[]),
            ["node", zone, ref addresses @ ..] => {
                node(Some(zone.strip_prefix("zone=").unwrap()), addresses)
            }
            _ => panic!("no such object: {line}"),
        });
    }
    events
}

fn parse_service(name: &str, words: &[&str]) -> Event {
    let mut service = service(name, "");
    for word in words {
        match (*word, word.split_once('=')) {
            ("local-only", _) => service.internal_policy = TrafficPolicy::Local,
            ("external-local", _) => service.external_policy = TrafficPolicy::Local,
            (_, Some(("external", list))) => service.external_ips = ips(&list.replace(',', " ")),
            (_, Some(("vip", list))) => service.load_balancer_ips = ips(&list.replace(',', " ")),
            (_, Some(("from", list))) => service.source_ranges = nets(&list.replace(',', " ")),
            (_, Some(("affinity", seconds))) => {
                service.affinity_seconds = Some(seconds.parse().unwrap());
            }
            (_, Some(("ips", list))) => service.cluster_ips = ips(&list.replace(',', " ")),
            (ports, _) => service = service.ports(ports),
        }
    }
    service.event()
}

fn parse_family(name: &str) -> Family {
    Family::ALL
        .into_iter()
        .find(|family| family.name() == name)
        .unwrap()
}

fn deletions(lines: &[String]) -> Vec<Event> {
    let deletion = |line: &String| match line.split_once(' ').unwrap() {
        ("service", name) => Event::ServiceGone(object(name)),
        ("slice", name) => Event::SliceGone(object(name)),
        _ => panic!("no such object: {line}"),
    };
    lines.iter().map(deletion).collect()
}

//! `beeline status`: what the daemon says, beside what the kernel says.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use aya::util::nr_cpus;
use proxy_common::abi::{BackendState, Frontend, Side, Verdict};
use serde::Serialize;

use super::progress::Progress;
use super::{Error, Paths, ReadArgs, block_on, print, table};
use crate::devices::monitor;
use crate::loader::attach::{self, SIDES};
use crate::loader::lock::Lock;
use crate::loader::sizes;
use crate::loader::{SocketHook, cgroup};
use crate::maps::{MapFailure, Maps};
use crate::model::Problem;
use crate::node::SocketLb;
use crate::sockets::Counts;
use crate::status::{self as file, PodsStatus, ResourceStatus, SocketEdgeStatus, Status};

/// Everything that is shown.
#[derive(Serialize, Debug)]
struct View {
    healthy: bool,
    /// Why not.
    reasons: Vec<String>,
    running: bool,
    /// The latest that the daemon said; old if it is not running.
    daemon: Option<Status>,
    attached: Vec<AttachedView>,
    /// The programs of the socket edge that are attached.
    socket_programs: Vec<SocketProgramView>,
    maps: Vec<FillView>,
    /// Maps that are full, or will be soon.
    full: Vec<Problem>,
    outcomes: Vec<OutcomeView>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord, Serialize, Debug)]
struct AttachedView {
    device: String,
    side: &'static str,
    method: &'static str,
    program: u32,
    tag: String,
}

#[derive(Serialize, Debug)]
struct SocketProgramView {
    name: &'static str,
    /// The kernel's number of the link.
    link: u32,
    program: u32,
    tag: String,
    /// The kernel's number of the cgroup.
    cgroup: u64,
}

#[derive(Serialize, Debug)]
struct FillView {
    map: &'static str,
    entries: u32,
    capacity: u32,
}

#[derive(Serialize, Debug)]
struct OutcomeView {
    outcome: &'static str,
    reason: &'static str,
    packets: u64,
}

/// Shows the state of this node; exit code 1 if all is not well.
pub(super) fn status(paths: &Paths, args: &ReadArgs) -> Result<ExitCode, Error> {
    crate::loader::checks::privileges()?;
    let lock = file::lock_file(&paths.state_dir);
    let running = Lock::is_held(&lock)?;
    let daemon = Status::read(&paths.state_dir)?;
    let attached = block_on(attached())?;
    let socket_programs = socket_programs(paths)?;
    let maps = match paths.maps() {
        Ok(maps) => Some(maps),
        Err(Error::NoMaps(_) | Error::Check(_)) => None,
        Err(error) => return Err(error),
    };
    let mut reasons = reasons(running, daemon.as_ref(), maps.is_some(), &attached);
    reasons.extend(socket_reasons(daemon.as_ref(), &socket_programs));
    let n_cpus = nr_cpus().unwrap_or(1);
    let fills = maps.as_ref().map(fills).transpose()?.unwrap_or_default();
    let view = View {
        healthy: reasons.is_empty(),
        reasons,
        running,
        daemon,
        attached,
        socket_programs,
        full: fills
            .iter()
            .filter_map(|fill| crowding(fill, n_cpus))
            .collect(),
        maps: fills,
        outcomes: maps.as_ref().map(outcomes).transpose()?.unwrap_or_default(),
    };
    print(args.output, &view, text);
    Ok(if view.healthy {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Our programs on all devices of this network namespace.
async fn attached() -> Result<Vec<AttachedView>, Error> {
    let netlink = monitor::connect()?;
    let mut all = Vec::new();
    for link in monitor::read(&netlink).await?.links {
        let device = link.device;
        for program in attach::attached(&netlink, &device).await? {
            all.push(AttachedView {
                device: device.name.to_string(),
                side: program.side.name(),
                method: program.method.name(),
                program: program.program,
                tag: program
                    .tag
                    .map_or_else(String::new, |tag| format!("{tag:016x}")),
            });
        }
    }
    all.sort_unstable();
    Ok(all)
}

/// Our programs on the cgroup.
fn socket_programs(paths: &Paths) -> Result<Vec<SocketProgramView>, Error> {
    let programs = cgroup::attached(&paths.pins())?.into_iter();
    let view = |it: cgroup::Attached| SocketProgramView {
        name: it.hook.name(),
        link: it.link,
        program: it.program,
        tag: it.tag,
        cgroup: it.cgroup,
    };
    Ok(programs.map(view).collect())
}

/// Why all is not well with the socket edge, if the daemon has one.
fn socket_reasons(daemon: Option<&Status>, programs: &[SocketProgramView]) -> Vec<String> {
    if daemon.is_none_or(|daemon| daemon.socket_edge.cgroup.is_none()) {
        return Vec::new();
    }
    let is_missing = |hook: &SocketHook| {
        let mut attached = programs.iter().filter(|it| it.cgroup != 0);
        !attached.any(|it| it.name == hook.name())
    };
    let missing = SocketHook::ALL.into_iter().filter(is_missing);
    missing
        .map(|hook| format!("socket edge: {} is not attached", hook.name()))
        .collect()
}

/// Why all is not well. Services that are in trouble are no reason: they are somebody else's.
fn reasons(
    running: bool,
    daemon: Option<&Status>,
    has_maps: bool,
    attached: &[AttachedView],
) -> Vec<String> {
    let mut reasons = Vec::new();
    if !running {
        reasons.push("no daemon is running".to_owned());
    }
    if !has_maps {
        reasons.push("there are no maps".to_owned());
    }
    let Some(daemon) = daemon else {
        if running {
            reasons.push("the daemon is starting".to_owned());
        }
        return reasons;
    };
    if running && !daemon.synced {
        reasons.push("the first lists of Services are not complete".to_owned());
    }
    let both = daemon.devices.iter().chain(&daemon.node_devices);
    let both = both.map(|device| (device, &SIDES[..]));
    let own = daemon.host_devices.iter();
    for (device, sides) in both.chain(own.map(|device| (device, &[Side::Egress][..]))) {
        for side in sides.iter().map(|side| side.name()) {
            let count = attached
                .iter()
                .filter(|at| at.device == *device && at.side == side)
                .count();
            match count {
                0 => reasons.push(format!("device {device}: nothing attached at {side}")),
                1 => {}
                _ => reasons.push(format!("device {device}: attached {count} times at {side}")),
            }
        }
    }
    reasons
}

/// How full the maps are. Those that are always full are left out.
fn fills(maps: &Maps) -> Result<Vec<FillView>, MapFailure> {
    let mut progress = Progress::new("counting entries");
    let contents = maps.contents()?;
    let blocks: BTreeSet<_> = contents
        .frontends
        .iter()
        .map(|(_, f)| (f.first_slot, n_slots(f)))
        .collect();
    let is_live = |state| state != BackendState::Gone as u8;
    let n_backends = contents
        .backends
        .iter()
        .filter(|b| is_live(b.state))
        .count();
    let fill = |map, entries: usize, capacity| FillView {
        map,
        entries: u32::try_from(entries).unwrap_or(u32::MAX),
        capacity,
    };
    let mut count = |keys: &mut dyn Iterator<Item = Option<MapFailure>>| {
        let mut n = 0;
        for failure in keys {
            progress.step();
            if let Some(failure) = failure {
                return Err(failure);
            }
            n += 1;
        }
        Ok(n)
    };
    let flows = count(&mut maps.flows.keys().map(Result::err))?;
    let affinity = count(&mut maps.affinity.keys().map(Result::err))?;
    let fragments = count(&mut maps.fragments.keys().map(Result::err))?;
    let sockets = count(&mut maps.sockets.keys().map(Result::err))?;
    let datagrams = count(&mut maps.datagrams.keys().map(Result::err))?;
    let networks = count(&mut maps.networks.keys().map(Result::err))?;
    let devices = count(&mut maps.devices.keys().map(Result::err))?;
    let clients = count(&mut maps.clients.keys().map(Result::err))?;
    let pods = count(&mut maps.pods.keys().map(Result::err))?;
    let n_used = blocks.iter().map(|(_, n)| *n as usize).sum();
    Ok(vec![
        fill("FRONTENDS", contents.frontends.len(), maps.frontends.size()),
        fill("ADDRESSES", contents.addresses.len(), maps.addresses.size()),
        fill(
            "SOURCE_RANGES",
            contents.source_ranges.len(),
            maps.source_ranges.size(),
        ),
        fill("NETWORKS", networks, maps.networks.size()),
        fill("DEVICES", devices, maps.devices.size()),
        fill("SLOTS", n_used, maps.slots.size()),
        fill("BACKENDS", n_backends, maps.backends.size()),
        fill("SERVICES", contents.services.len(), maps.services.size()),
        fill("FLOWS", flows, maps.flows.size()),
        fill("AFFINITY", affinity, maps.affinity.size()),
        fill("FRAGMENTS", fragments, maps.fragments.size()),
        fill("SOCKETS", sockets, maps.sockets.size()),
        fill("DATAGRAMS", datagrams, maps.datagrams.size()),
        fill("CLIENTS", clients, maps.clients.size()),
        fill("PODS", pods, maps.pods.size()),
    ])
}

/// A map of which nine tenths are used, with what becomes of those that find no room.
fn crowding(fill: &FillView, n_cpus: usize) -> Option<Problem> {
    let FillView {
        map,
        entries,
        capacity,
    } = fill;
    if capacity.saturating_sub(*entries) > slack(map, *capacity, n_cpus) {
        return None;
    }
    let consequence = match *map {
        "FLOWS" => "the flows that were silent longest are forgotten for new ones",
        "AFFINITY" => "the clients that were silent longest are forgotten for new ones",
        "FRAGMENTS" => "the oldest datagrams in pieces are forgotten for new ones",
        "DATAGRAMS" => "the correspondences that were silent longest are forgotten for new ones",
        "SOCKETS" => "sockets that find no room are served by packet",
        "CLIENTS" | "PODS" => "pods that find no room are served by packet",
        "DEVICES" | "NETWORKS" => "those that find no room are named",
        _ => "a Service that finds no room stays as it is, and is named",
    };
    let raise = sizes::setting(map).map(|setting| format!("; raise {setting}"));
    Some(Problem {
        subject: format!("map {map}"),
        message: format!(
            "{entries} of {capacity} entries are used; {consequence}{}",
            raise.unwrap_or_default()
        ),
    })
}

/// How many entries are still free when a map is crowded. Of an LRU map each CPU sets some aside:
/// it begins to forget before they are used.
fn slack(map: &str, capacity: u32, n_cpus: usize) -> u32 {
    /// Of `kernel/bpf/bpf_lru_list.c`.
    const SET_ASIDE: u32 = 128;
    let tenth = capacity / 10;
    if !sizes::is_lru(map) {
        return tenth;
    }
    let set_aside = u32::try_from(n_cpus).map_or(u32::MAX, |n| n.saturating_mul(SET_ASIDE));
    tenth.max(set_aside.min(capacity / 2))
}

const fn n_slots(frontend: &Frontend) -> u32 {
    let cluster = frontend.cluster_offset + frontend.n_cluster;
    if frontend.n_local > cluster {
        frontend.n_local
    } else {
        cluster
    }
}

fn outcomes(maps: &Maps) -> Result<Vec<OutcomeView>, MapFailure> {
    let outcome = |verdict: Verdict| {
        let packets = maps.outcomes.get(verdict.index())?.iter().sum();
        Ok(OutcomeView {
            outcome: verdict.kind(),
            reason: verdict.name(),
            packets,
        })
    };
    Verdict::all().map(outcome).collect()
}

fn text(view: &View) -> String {
    let now = file::unix_time();
    let mut sections = vec![table::render(
        &["BEELINE", &headline(view)],
        &[],
        overview(view, now),
    )];
    if !view.attached.is_empty() {
        let rows = view.attached.iter().map(|at| {
            let program = at.program.to_string();
            [&at.device, at.side, at.method, &program, &at.tag]
                .map(str::to_owned)
                .to_vec()
        });
        let header = ["DEVICE", "SIDE", "BY", "PROGRAM", "TAG"];
        sections.push(table::render(&header, &[3], rows.collect()));
    }
    if !view.socket_programs.is_empty() {
        let rows = view.socket_programs.iter().map(|it| {
            let (program, cgroup) = (it.program.to_string(), it.cgroup.to_string());
            vec![it.name.to_owned(), cgroup, program, it.tag.clone()]
        });
        let header = ["SOCKET EDGE", "CGROUP", "PROGRAM", "TAG"];
        sections.push(table::render(&header, &[1, 2], rows.collect()));
    }
    if !view.maps.is_empty() {
        let rows = view.maps.iter().map(|fill| {
            let share = f64::from(fill.entries) * 100.0 / f64::from(fill.capacity.max(1));
            vec![
                fill.map.to_owned(),
                fill.entries.to_string(),
                fill.capacity.to_string(),
                format!("{share:.1} %"),
            ]
        });
        let header = ["MAP", "ENTRIES", "CAPACITY", "FULL"];
        sections.push(table::render(&header, &[1, 2, 3], rows.collect()));
    }
    let seen = view.outcomes.iter().filter(|outcome| outcome.packets > 0);
    let rows: Vec<_> = seen
        .map(|seen| {
            vec![
                seen.outcome.to_owned(),
                seen.reason.to_owned(),
                seen.packets.to_string(),
            ]
        })
        .collect();
    if !rows.is_empty() {
        sections.push(table::render(&["PACKETS", "WHY", "N"], &[2], rows));
    }
    let problems = view.daemon.iter().flat_map(|daemon| &daemon.problems);
    let rows: Vec<_> = problems
        .chain(&view.full)
        .map(|problem| vec![problem.subject.clone(), problem.message.clone()])
        .collect();
    if !rows.is_empty() {
        sections.push(table::render(&["PROBLEM", ""], &[], rows));
    }
    sections.join("\n")
}

fn headline(view: &View) -> String {
    let n_problems = view
        .daemon
        .as_ref()
        .map_or(0, |daemon| daemon.problems.len());
    let n_problems = n_problems + view.full.len();
    match (view.healthy, n_problems) {
        (true, 0) => "healthy".to_owned(),
        (true, 1) => "healthy, with a problem".to_owned(),
        (true, n) => format!("healthy, with {n} problems"),
        (false, _) => "NOT HEALTHY".to_owned(),
    }
}

fn overview(view: &View, now: u64) -> Vec<Vec<String>> {
    let ago = |at: u64| table::duration(Duration::from_secs(now.saturating_sub(at)));
    let row = |name: &str, text: String| vec![name.to_owned(), text];
    let mut rows: Vec<_> = view
        .reasons
        .iter()
        .map(|reason| row("", reason.clone()))
        .collect();
    let Some(daemon) = &view.daemon else {
        return rows;
    };
    if view.running {
        let text = format!(
            "version {}, process {}, for {}",
            daemon.version,
            daemon.pid,
            ago(daemon.started)
        );
        rows.push(row("daemon", text));
    }
    rows.push(row("node", daemon.node.clone()));
    rows.push(row("source", daemon.source.clone()));
    for (name, resource) in &daemon.resources {
        if let Some(text) = away(resource, &ago(resource.since)) {
            rows.push(row("", format!("{name}: {text}")));
        }
    }
    if let Some(sync) = &daemon.last_sync {
        let text = format!(
            "{} ago: {} Services, {} writes, {} pending, in {:.1?}",
            ago(sync.at),
            sync.services,
            sync.writes,
            sync.pending,
            Duration::from_micros(sync.micros)
        );
        rows.push(row("last sync", text));
    }
    let method = daemon.method.name();
    rows.push(row(
        "devices",
        format!("{} lead to pods, by {method}", daemon.devices.len()),
    ));
    rows.push(row("node edges", listed(&daemon.node_devices)));
    rows.push(row("host edges", listed(&daemon.host_devices)));
    rows.push(row("socket edge", socket_edge(&daemon.socket_edge)));
    if daemon.socket_edge.left != Counts::default() {
        rows.push(row("", left(&daemon.socket_edge.left)));
    }
    if let Some(pods) = &daemon.socket_edge.pods {
        rows.push(row("socket edge's pods", pods_text(pods)));
    }
    let address = |accepts: bool| {
        let all = daemon.node_addresses.iter();
        let those = all.filter(|it| it.node_ports == accepts);
        listed(&those.map(|it| it.address.clone()).collect::<Vec<_>>())
    };
    rows.push(row(
        "node addresses",
        format!("with NodePorts: {}", address(true)),
    ));
    rows.push(row("", format!("without: {}", address(false))));
    let modes = daemon.modes.iter();
    rows.extend(modes.map(|(option, value)| row(option, value.clone())));
    rows
}

/// What is to be said of a resource that is not heard of.
fn away(resource: &ResourceStatus, time: &str) -> Option<String> {
    match (resource.connected, resource.listed) {
        (true, _) => None,
        (false, true) => Some(format!("no news for {time}")),
        (false, false) => Some(format!("nothing known for {time}")),
    }
}

fn socket_edge(edge: &SocketEdgeStatus) -> String {
    match &edge.cgroup {
        Some(cgroup) => format!("{}, in cgroup {}", edge.serves, cgroup.display()),
        None if edge.serves == SocketLb::Off.name() => edge.serves.clone(),
        None => format!("{}, but it is not attached", edge.serves),
    }
}

fn left(counts: &Counts) -> String {
    format!(
        "left backends that were gone: {} TCP closed, {} UDP closed, {} UDP moved",
        counts.tcp_closed, counts.udp_closed, counts.udp_moved
    )
}

fn pods_text(pods: &PodsStatus) -> String {
    let PodsStatus {
        served,
        left_out,
        not_found,
    } = pods;
    format!("{served} served, {left_out} left out, {not_found} without a cgroup that was found")
}

/// Texts one after the other; a word if there are none.
fn listed(texts: &[String]) -> String {
    if texts.is_empty() {
        "none".to_owned()
    } else {
        texts.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::loader::attach::Method;

    fn daemon() -> Status {
        Status {
            version: "1".to_owned(),
            pid: 7,
            started: 3,
            node: "n1".to_owned(),
            source: "manifests in x".to_owned(),
            resources: BTreeMap::new(),
            synced: true,
            last_sync: None,
            problems: Vec::new(),
            method: Method::Tcx,
            devices: vec!["veth1".to_owned()],
            node_devices: Vec::new(),
            host_devices: vec!["lo".to_owned()],
            socket_edge: SocketEdgeStatus::default(),
            node_addresses: Vec::new(),
            modes: BTreeMap::new(),
            timeouts: BTreeMap::new(),
        }
    }

    fn at(side: &'static str) -> AttachedView {
        let (device, tag) = ("veth1".to_owned(), "00".to_owned());
        AttachedView {
            device,
            side,
            method: "TCX",
            program: 1,
            tag,
        }
    }

    #[test]
    fn all_is_well_if_the_daemon_runs_and_every_device_has_both_programs() {
        let lo = || AttachedView {
            device: "lo".to_owned(),
            ..at("egress")
        };
        let both = [lo(), at("ingress"), at("egress")];
        assert_eq!(
            reasons(true, Some(&daemon()), true, &both),
            Vec::<String>::new()
        );
        let cases = [
            (reasons(false, Some(&daemon()), true, &both), "no daemon"),
            (reasons(true, None, true, &both), "starting"),
            (reasons(true, Some(&daemon()), false, &both), "no maps"),
            (
                reasons(true, Some(&daemon()), true, &both[..2]),
                "device veth1: nothing attached at egress",
            ),
            (
                reasons(
                    true,
                    Some(&daemon()),
                    true,
                    &[lo(), at("ingress"), at("egress"), at("egress")],
                ),
                "attached 2 times at egress",
            ),
            (
                reasons(true, Some(&daemon()), true, &both[1..]),
                "device lo: nothing attached at egress",
            ),
            (
                reasons(
                    true,
                    Some(&Status {
                        synced: false,
                        ..daemon()
                    }),
                    true,
                    &both,
                ),
                "not complete",
            ),
        ];
        for (reasons, expected) in cases {
            assert!(
                reasons.len() == 1 && reasons[0].contains(expected),
                "{reasons:?}"
            );
        }
    }

    #[test]
    fn resources_that_are_away_are_named_whatever_the_clock_says() {
        let resource = |connected, listed, since| ResourceStatus {
            listed,
            connected,
            since,
            restarts: BTreeMap::new(),
        };
        let resources = [
            ("nodes", resource(true, true, 0)),
            ("pods", resource(false, false, 940)),
            // The clock was set back since.
            ("services", resource(false, true, u64::MAX)),
        ];
        let mut status = daemon();
        status.resources = resources.map(|(name, it)| (name.to_owned(), it)).into();
        let view = View {
            healthy: true,
            reasons: Vec::new(),
            running: true,
            daemon: Some(status),
            attached: Vec::new(),
            socket_programs: Vec::new(),
            maps: Vec::new(),
            full: Vec::new(),
            outcomes: Vec::new(),
        };
        let rows: Vec<_> = overview(&view, 1000)
            .into_iter()
            .filter(|row| row[1].contains("for ") && row[0].is_empty())
            .map(|row| row[1].clone())
            .collect();
        let shown = ["pods: nothing known for 60s", "services: no news for 0ms"];
        assert_eq!(rows, shown);
    }

    #[test]
    fn a_map_is_crowded_when_nine_tenths_are_used() {
        let fill = |map, entries| FillView {
            map,
            entries,
            capacity: 1000,
        };
        let crowding = |fill: &FillView| crowding(fill, 1);
        assert_eq!(crowding(&fill("SOCKETS", 899)), None);
        assert!(crowding(&fill("SOCKETS", 900)).is_some());
        // 128 are set aside.
        assert_eq!(crowding(&fill("FLOWS", 871)), None);
        assert!(crowding(&fill("FLOWS", 872)).is_some());
        let problem = crowding(&fill("FLOWS", 900)).unwrap();
        assert_eq!(problem.subject, "map FLOWS");
        assert_eq!(
            problem.message,
            "900 of 1000 entries are used; the flows that were silent longest are forgotten for \
             new ones; raise --max-flows (maxFlows)"
        );
        let problem = crowding(&fill("SOCKETS", 1000)).unwrap();
        assert!(
            problem
                .message
                .contains("served by packet; raise --max-sockets (maxSockets)")
        );
    }

    #[test]
    fn a_service_in_trouble_is_shown_and_does_no_harm() {
        let problem = Problem {
            subject: "Service shop/web".to_owned(),
            message: "no room".to_owned(),
        };
        let view = View {
            healthy: true,
            reasons: Vec::new(),
            running: true,
            daemon: Some(Status {
                problems: vec![problem],
                ..daemon()
            }),
            attached: Vec::new(),
            socket_programs: Vec::new(),
            maps: vec![FillView {
                map: "FLOWS",
                entries: 1,
                capacity: 8,
            }],
            full: Vec::new(),
            outcomes: vec![OutcomeView {
                outcome: "drop",
                reason: "write",
                packets: 0,
            }],
        };
        let text = text(&view);
        assert!(text.contains("healthy, with a problem"), "{text}");
        assert!(
            text.contains("Service shop/web") && text.contains("no room"),
            "{text}"
        );
        assert!(text.contains("12.5 %") && !text.contains("drop"), "{text}");
    }
}

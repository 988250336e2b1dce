//! Other programs, larger maps and maps of another layout, while clients are at work.

use std::collections::BTreeSet;
use std::path::PathBuf;

use proxy_common::abi::Family;
use serde_json::Value;
use xtask::testbed::{Daemon, Layout, in_namespace};

use crate::client::Connection;
use crate::cluster::next_beeline;
use crate::load::{Load, PATIENCE};
use crate::world::{Kind, World};

const METHODS: [&str; 2] = ["tcx", "clsact"];

/// What an upgrade to another layout does, one after the other: the first map is shared, programs
/// and entries are there, the old programs hand back, all entries are there, the old programs are
/// gone, and then their maps.
const STEPS: [&str; 6] = [
    "shared",
    "copied",
    "handed-back",
    "copied-again",
    "settled",
    "removed",
];

fn stop(daemon: &Daemon) {
    assert!(daemon.stop().is_some());
}

fn kill(daemon: &Daemon) {
    assert!(daemon.kill().is_some());
}

/// Has everybody talk to Services of every sort while `work` is done.
fn while_all_talk(world: &mut World, work: impl FnOnce(&mut World, &dyn Fn())) {
    let places = [&world.pod.namespace, world.node(), &world.client.namespace].map(Clone::clone);
    let [local, far, _] = world.services();
    let load = Load::default();
    std::thread::scope(|scope| {
        let mut jobs = Vec::new();
        for (place, service, kind, family) in [
            (&places[0], &local, Kind::ClusterIp, Family::Ipv6),
            (&places[0], &far, Kind::ClusterIp, Family::Ipv4),
            (&places[1], &far, Kind::ClusterIp, Family::Ipv4),
            (&places[2], &far, Kind::NodePort, Family::Ipv4),
            (&places[2], &local, Kind::Vip, Family::Ipv6),
        ] {
            let address = service.at(kind, family);
            jobs.push(load.talk(scope, place, address));
            jobs.push(load.send(scope, place, address));
            jobs.push(load.dial(scope, place, address));
        }
        let address = local.at(Kind::ClusterIp, Family::Ipv4);
        jobs.push(load.associate(scope, &places[0], address));
        load.watch(jobs, |jobs| work(world, &|| load.go_on(jobs)));
    });
}

/// Kernel's numbers of what is attached: programs to devices and, with their links, to the cgroup.
fn attached(world: &World) -> (Vec<String>, BTreeSet<u64>) {
    let output = world.beeline().call(["status", "-o", "json"]).unwrap();
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    let list = |field: &str| status[field].as_array().unwrap().clone();
    let all = [list("attached"), list("socket_programs")].concat();
    let programs = all.iter().map(|it| it["program"].as_u64().unwrap());
    let programs = programs.collect();
    let mut all: Vec<_> = all.iter().map(Value::to_string).collect();
    all.sort();
    (all, programs)
}

/// Names of the files in a folder of the pins.
fn pins(world: &World, folder: &str) -> Vec<String> {
    let folder = world.testbed.bpffs().join("beeline").join(folder);
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .map(|it| it.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn layouts(world: &World) -> Vec<String> {
    let mut names = pins(world, "");
    names.retain(|name| name != "links");
    names
}

/// As if the programs that are attached had been loaded from another object.
pub(crate) fn disguise_programs(world: &World) {
    let [layout] = layouts(world).try_into().unwrap();
    let folder = format!("{layout}/programs");
    let [digest] = pins(world, &folder).try_into().unwrap();
    let folder: PathBuf = world.testbed.bpffs().join("beeline").join(folder);
    std::fs::rename(folder.join(digest), folder.join("0000000000000001")).unwrap();
}

fn assert_tidy(world: &World) {
    for folder in ["links", "v1/maps", "v2/maps"] {
        let names = pins(world, folder);
        let left = names
            .iter()
            .find(|it| it.ends_with("-new") || it.ends_with("grown"));
        assert_eq!(left, None, "{folder}");
    }
}

#[test]
fn a_restart_changes_nothing() {
    let mut world = World::new(Layout::Routed, 1500, &[]);
    let before = attached(&world);
    for end in [stop, kill] {
        world.replace_daemon(end, |it| it);
        assert_eq!(attached(&world), before);
        assert_eq!(
            world.daemon.status()["last_sync"]["writes"],
            0,
            "{}",
            world.daemon.log()
        );
    }
}

#[test]
fn nobody_notices_other_programs() {
    let mut world = World::new(Layout::Routed, 1500, &[]);
    while_all_talk(&mut world, |world, go_on| {
        let (_, before) = attached(world);
        kill(&world.daemon);
        disguise_programs(world);
        world.start_again();
        let (_, after) = attached(world);
        assert!(before.is_disjoint(&after), "{before:?} {after:?}");
        assert_eq!(world.daemon.status()["last_sync"]["writes"], 0);
        assert_tidy(world);
        go_on();
    });
}

#[test]
fn nobody_notices_larger_maps() {
    let sizes = |flows, backends| ["--max-flows", flows, "--max-backends", backends];
    let mut world = World::new(Layout::Routed, 1500, &sizes("16384", "100"));
    while_all_talk(&mut world, |world, go_on| {
        for (flows, backends) in [("32768", "100"), ("65536", "200")] {
            world.start_again_with(&sizes(flows, backends));
            assert_eq!(world.daemon.status()["last_sync"]["writes"], 0);
            assert_tidy(world);
            go_on();
        }
    });
}

#[test]
fn nobody_notices_maps_of_another_layout() {
    for method in METHODS {
        let mut world = World::new(Layout::Routed, 1500, &["--attach", method]);
        assert_eq!(layouts(&world), ["v1"]);
        while_all_talk(&mut world, |world, go_on| {
            world.replace_daemon(kill, |it| it.with_binary(next_beeline()));
            assert_eq!(layouts(world), ["v2"], "{}", world.daemon.log());
            assert_eq!(world.daemon.status()["last_sync"]["writes"], 0);
            assert_tidy(world);
            go_on();
        });
    }
}

/// A start that is killed anywhere leaves everybody served, and is finished by the next.
#[test]
fn an_upgrade_may_be_killed_at_every_step() {
    let mut world = World::new(Layout::Routed, 1500, &[]);
    for step in STEPS {
        while_all_talk(&mut world, |world, go_on| {
            kill(&world.daemon);
            let beeline = world.beeline().with_binary(next_beeline());
            let doomed = beeline.with_variable("BEELINE_DIE_AT", step);
            let doomed = doomed.start(world.args()).unwrap();
            let end = doomed.ended(PATIENCE).unwrap();
            assert!(!end.success(), "{step}: {end}");
            println!("killed at step {step}");
            go_on();
            println!("nobody noticed; going on");
            world.replace_daemon(|_| {}, |it| it.with_binary(next_beeline()));
            assert_eq!(layouts(world), ["v2"], "{step}: {}", world.daemon.log());
            assert_eq!(world.daemon.status()["last_sync"]["writes"], 0, "{step}");
            assert_tidy(world);
            go_on();
        });
        world.replace_daemon(stop, |it| it);
    }
}

#[test]
fn an_older_daemon_serves_again_and_says_what_is_lost() {
    let mut world = World::new(Layout::Routed, 1500, &[]);
    world.replace_daemon(stop, |it| it.with_binary(next_beeline()));
    let [local, far, _] = world.services();
    world.replace_daemon(stop, |it| it);
    assert_eq!(layouts(&world), ["v1"]);
    assert_tidy(&world);
    let log = world.daemon.log();
    let warnings = log
        .lines()
        .filter(|it| it.contains("layout v2 is not known"));
    assert_eq!(warnings.count(), 1, "{log}");
    for (place, service, kind) in [
        (&world.pod.namespace, &local, Kind::ClusterIp),
        (world.node(), &far, Kind::ClusterIp),
        (&world.client.namespace, &far, Kind::NodePort),
    ] {
        let address = service.at(kind, Family::Ipv4);
        in_namespace(place, || {
            Connection::open(address).unwrap().echo(b"new").unwrap()
        });
    }
}

//! What the daemon may do: it works with what its DaemonSet gives it, and keeps less.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use beeline::privileges::{NEEDS, Need, Term};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use proxy_common::abi::Family;
use rustix::thread::{
    CapabilitySet, capability_is_in_bounding_set, remove_capability_from_bounding_set,
    set_no_new_privs,
};
use serde_json::Value;
use xtask::testbed::{Daemon, Layout, NODE_IPV4, Namespace, Pod, Serve, Testbed, in_namespace};

use crate::client::Connection;
use crate::cluster::{Endpoint, Service, TARGET_PORT, beeline};

/// How long the daemon may take to notice what changes.
const NOTICED: Duration = Duration::from_secs(20);

pub(crate) fn capabilities(is_meant: impl Fn(&Need) -> bool) -> CapabilitySet {
    let needs = NEEDS.iter().filter(|need| is_meant(need));
    needs.map(|need| need.capability).collect()
}

/// Runs `work` on a thread of its own after `change`, which is for that thread and its offspring.
fn after<T: Send>(change: impl FnOnce() + Send, work: impl FnOnce() -> T + Send) -> T {
    let changed = || {
        change();
        work()
    };
    let result = std::thread::scope(|scope| scope.spawn(changed).join());
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Processes that `work` starts can have these capabilities and no others, as in a container.
pub(crate) fn with_at_most<T: Send>(granted: CapabilitySet, work: impl FnOnce() -> T + Send) -> T {
    let limit = || {
        for capability in (CapabilitySet::all() - granted).iter() {
            if capability_is_in_bounding_set(capability) == Ok(true) {
                remove_capability_from_bounding_set(capability).unwrap();
            }
        }
        set_no_new_privs(true).unwrap();
    };
    after(limit, work)
}

/// What `work` mounts and unmounts is so for it and its offspring alone.
pub(crate) fn in_a_mount_namespace<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let part = || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
    };
    after(part, work)
}

/// As in a container, the machine's names of network namespaces are out of sight.
fn without_names_of_namespaces<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    in_a_mount_namespace(|| {
        let (empty, none) = (Some("tmpfs"), None::<&str>);
        mount(empty, "/run/netns", empty, MsFlags::empty(), none).unwrap();
        work()
    })
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < NOTICED, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A connection to a Service that works.
fn connect(from: &Namespace, service: &Service, family: Family) -> Connection {
    let open = || Connection::open(service.address(family)).unwrap();
    let mut connection = in_namespace(from, open);
    connection.echo(b"hello").unwrap();
    connection
}

fn has_device(daemon: &Daemon, pod: &Pod) -> bool {
    let status = daemon.status();
    let mut devices = status["devices"].as_array().into_iter().flatten();
    devices.any(|device| *device == pod.device)
}

/// What `beeline status` has to complain about.
pub(crate) fn problems(daemon: &Daemon) -> Vec<Value> {
    let status = daemon.status();
    status["problems"].as_array().cloned().unwrap_or_default()
}

#[test]
fn what_the_daemonset_grants_suffices() {
    for args in [&[][..], &["--attach", "clsact"]] {
        let testbed = Testbed::new(Layout::Routed).unwrap();
        let client = testbed.pod("client").unwrap();
        let backends = ["a", "b"].map(|name| testbed.pod(name).unwrap());
        let _servers = [0, 1].map(|at: usize| backends[at].serve(Serve::Echo, TARGET_PORT));
        let mut service = Service::new("web", 10, &backends[..1]);
        service.write(&testbed);

        // By which its namespace is found.
        let mut process = Command::new("sleep");
        process.arg("60");
        let _process = testbed.start(&client.namespace, process).unwrap();

        let granted = capabilities(|need| need.term != Term::IfGiven);
        let daemon = without_names_of_namespaces(|| {
            with_at_most(granted, || beeline(&testbed).socket_lb("all").run(args))
        });
        let daemon = daemon.unwrap();

        let clients = [&testbed.node().namespace, &client.namespace];
        let mut open: Vec<_> = clients
            .iter()
            .flat_map(|from| Family::ALL.map(|family| connect(from, &service, family)))
            .collect();
        let late = testbed.pod("late").unwrap();
        wait_until("the new pod's device", || has_device(&daemon, &late));
        drop(connect(&late.namespace, &service, Family::Ipv4));

        // Sockets are closed in the pod's namespace, too.
        service.endpoints = vec![Endpoint::of(&backends[1])];
        service.write(&testbed);
        for connection in &mut open {
            let told = connection.stream.read(&mut [0]);
            let told = told.map_err(|error| error.kind());
            assert_eq!(told, Err(ErrorKind::ConnectionAborted), "{args:?}");
        }
        drop(connect(&client.namespace, &service, Family::Ipv6));
        let health = format!("{NODE_IPV4}:10256");
        let answers = in_namespace(&testbed.node().namespace, || {
            std::net::TcpStream::connect(&health)
        });
        assert!(answers.is_ok(), "{answers:?}");

        assert_eq!(problems(&daemon), Vec::<Value>::new(), "{args:?}");
        let log = daemon.log();
        for trouble in ["WARN", "ERROR", "os error 1)", "os error 13)"] {
            assert!(!log.contains(trouble), "{args:?}: {log}");
        }
    }
}

#[test]
fn what_cannot_be_done_without_is_named() {
    let testbed = Testbed::new(Layout::Routed).unwrap();
    Service::new("web", 10, &[]).write(&testbed);
    for missing in NEEDS.iter().filter(|need| need.term == Term::Always) {
        let granted = capabilities(|need| need.name != missing.name);
        let ended = with_at_most(granted, || {
            let daemon = beeline(&testbed).run::<&str>([]);
            daemon.map(|daemon| daemon.pid()).unwrap_err()
        });
        let named = format!("missing privilege: CAP_{};", missing.name);
        let said = format!("{ended:#}");
        assert!(said.contains(&named), "{said}");
    }
}

/// A field of each of a process's threads in `/proc`.
fn of_each_thread(pid: u32, field: &str) -> BTreeSet<String> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of_thread = |path: &Path| {
        // Some threads come and go.
        let status = std::fs::read_to_string(path.join("status")).ok()?;
        let mut lines = status.lines();
        let value = lines.find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
        Some(value.trim().to_owned())
    };
    threads
        .filter_map(|thread| of_thread(&thread.unwrap().path()))
        .collect()
}

#[test]
fn every_thread_keeps_only_what_it_needs() {
    let testbed = Testbed::new(Layout::Routed).unwrap();
    Service::new("web", 10, &[]).write(&testbed);
    for (socket_lb, keeps_ptrace) in [("all", true), ("off", false)] {
        let daemon = beeline(&testbed).socket_lb(socket_lb).run::<&str>([]);
        let daemon = daemon.unwrap();
        let kept = capabilities(|need| match need.term {
            Term::Always | Term::IfGiven => true,
            Term::Start => false,
            Term::PodSockets => keeps_ptrace,
        });
        let none = format!("{:016x}", 0);
        let kept = format!("{:016x}", kept.bits());
        for (field, expected) in [
            ("CapEff", kept.as_str()),
            ("CapPrm", &kept),
            ("CapBnd", &kept),
            ("CapInh", &none),
            ("CapAmb", &none),
            ("NoNewPrivs", "1"),
        ] {
            let found = of_each_thread(daemon.pid(), field);
            assert_eq!(found, [expected.to_owned()].into(), "{socket_lb}: {field}");
        }
        drop(daemon);
    }
}

#[test]
fn settings_are_written_where_a_container_has_them_read_only() {
    const SETTING: &str = "net/ipv4/conf/lo/route_localnet";
    let testbed = Testbed::new(Layout::Routed).unwrap();
    Service::new("web", 10, &[]).write(&testbed);
    let node = &testbed.node().namespace;
    assert_eq!(node.get(SETTING).unwrap(), "0");
    let daemon = in_a_mount_namespace(|| {
        let (sysctls, none) = ("/proc/sys", None::<&str>);
        mount(Some(sysctls), sysctls, none, MsFlags::MS_BIND, none).unwrap();
        let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(none, sysctls, none, read_only, none).unwrap();
        assert!(node.set(SETTING, "0").is_err());
        beeline(&testbed).run::<&str>([]).unwrap()
    });
    wait_until(SETTING, || node.get(SETTING).unwrap() == "1");
    assert_eq!(problems(&daemon), Vec::<Value>::new());
}

#[test]
fn without_a_bpffs_one_is_mounted_and_what_that_costs_is_said() {
    let testbed = Testbed::new(Layout::Routed).unwrap();
    Service::new("web", 10, &[]).write(&testbed);
    let bpffs = testbed.bpffs();
    let daemon = in_a_mount_namespace(|| {
        umount2(&bpffs, MntFlags::MNT_DETACH).unwrap();
        beeline(&testbed).run::<&str>([]).unwrap()
    });
    let log = daemon.log();
    let warnings: Vec<_> = log.lines().filter(|line| line.contains("WARN")).collect();
    assert_eq!(warnings.len(), 1, "{log}");
    let place = bpffs.display().to_string();
    for words in [place.as_str(), "go whenever the container ends"] {
        assert!(warnings[0].contains(words), "{log}");
    }
    assert!(!bpffs.join("beeline").exists());
}

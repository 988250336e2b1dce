//! The testbed's control groups: what runs on a node or in a pod is in its group.

use std::path::{Path, PathBuf};
use std::process::Command;

use xtask::testbed::{Layout, PodOptions, Testbed, in_namespace};

const UID: &str = "6c1f2a9e-0d5b-4a53-9d0e-5f3b1c7a8e21";

/// The group of a thread or process, by its name in the unified hierarchy.
fn group(groups: &str) -> PathBuf {
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"));
    path.expect("a kernel with cgroup v2").into()
}

fn of_thread() -> PathBuf {
    group(&std::fs::read_to_string("/proc/thread-self/cgroup").unwrap())
}

fn of_child() -> PathBuf {
    let child = Command::new("cat").arg("/proc/self/cgroup").output();
    group(&String::from_utf8(child.unwrap().stdout).unwrap())
}

fn below(node: &Path, uid: &str) -> PathBuf {
    node.join("kubepods").join(format!("pod{uid}"))
}

#[test]
fn threads_and_processes_are_in_the_groups_of_nodes_and_pods() {
    let outside = of_thread();
    let testbed = Testbed::new(Layout::Routed).unwrap();
    testbed.add_remote_node(Layout::Routed, 1500).unwrap();
    let own = PodOptions {
        uid: Some(UID),
        ..PodOptions::default()
    };
    let pod = testbed.pod_with("pod", &own).unwrap();
    let other = testbed.pod("other").unwrap();
    let far = testbed.remote_pod("far").unwrap();

    let node = in_namespace(&testbed.node().namespace, of_thread);
    assert!(node.starts_with(&outside) && node != outside, "{node:?}");
    assert!(testbed.cgroup().ends_with(node.strip_prefix("/").unwrap()));
    let expected = below(&node, UID);
    assert_eq!(pod.run(of_thread), expected);
    assert_eq!(pod.run(of_child), expected);
    // Threads started by a thread that is in a group.
    let started = || std::thread::spawn(of_thread).join().unwrap();
    assert_eq!(pod.run(started), expected);
    // From one to another.
    assert_eq!(
        pod.run(|| in_namespace(testbed.outside(), of_thread)),
        outside
    );
    assert_eq!(other.run(|| pod.run(of_child)), expected);

    let others = other.run(of_thread);
    assert!(others.starts_with(node.join("kubepods")) && others != expected);
    let remote = in_namespace(&testbed.remote().unwrap().namespace, of_thread);
    assert!(!remote.starts_with(&node) && !node.starts_with(&remote));
    assert!(far.run(of_thread).starts_with(remote.join("kubepods")));
}

#[test]
fn groups_go_away_with_what_they_are_for() {
    let testbed = Testbed::new(Layout::Bridge).unwrap();
    let node = testbed.cgroup().to_owned();
    let (pod, other) = (testbed.pod("pod").unwrap(), testbed.pod("other").unwrap());
    let folders = [&pod, &other].map(|pod| pod.namespace.cgroup().to_owned());
    assert!(folders.iter().all(|folder| folder.exists()));
    testbed.remove_pod(&pod).unwrap();
    assert!(!folders[0].exists() && folders[1].exists());

    // A thread that outlives the testbed, and has to be elsewhere then.
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let late = other.run(|| {
        std::thread::spawn(move || {
            ended.recv().unwrap_err();
            of_thread()
        })
    });
    drop(testbed);
    assert!(!folders[1].exists() && !node.exists());
    assert!(!node.parent().unwrap().exists());
    drop(end);
    assert_eq!(late.join().unwrap(), of_thread());
}

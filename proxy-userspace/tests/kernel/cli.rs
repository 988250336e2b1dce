//! What goes wrong at start is said in one line, and nothing is left half done.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use xtask::testbed::{Layout, Testbed, in_namespace};

use crate::cluster::{Service, beeline};

/// How long it may take to fail.
const PATIENCE: Duration = Duration::from_secs(20);

const NOBODY: u32 = 65_534;

/// Runs to its end on the node of `testbed`, and looks at how it fails.
fn assert_fails(testbed: &Testbed, mut command: Command, code: i32, says: &[&str]) {
    let output = run_to_the_end(testbed, &mut command);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{command:?}: {said}");
    let (line, usage) = said.split_once('\n').unwrap();
    // What is wrong with arguments is followed by how they should be.
    assert!(usage.is_empty() || code == 2, "{command:?}: {said}");
    for word in says {
        assert!(line.contains(word), "{command:?}: no {word:?} in: {said}");
    }
    assert!(!said.contains("panicked"), "{command:?}: {said}");
    let names = std::fs::read_dir(testbed.bpffs())
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    // The kernel itself may put iterators there.
    let pins: Vec<_> = names
        .filter(|name| !["maps.debug", "progs.debug"].map(Into::into).contains(name))
        .collect();
    assert!(pins.is_empty(), "{command:?} left {pins:?}");
}

/// Runs a command on the node; if it does not end by itself, that is the failure.
fn run_to_the_end(testbed: &Testbed, command: &mut Command) -> Output {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = in_namespace(&testbed.node().namespace, || command.spawn()).unwrap();
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!(
                "{command:?} goes on instead of failing: {:?}",
                child.wait_with_output()
            );
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

fn run_with(testbed: &Testbed, manifests: &Path) -> Command {
    let mut command = beeline(testbed).command(["run"]);
    command
        .args(["--source", "file", "--manifests"])
        .arg(manifests)
        .args(["--node-name", "node-1"]);
    command
}

#[test]
fn an_unknown_flag_is_named() {
    let testbed = Testbed::new(Layout::Routed).unwrap();
    let command = beeline(&testbed).command(["run", "--flying-carpet"]);
    assert_fails(&testbed, command, 2, &["--flying-carpet"]);
}

#[test]
fn a_cgroup_path_that_is_no_cgroup_is_named_with_its_option() {
    let testbed = Testbed::new(Layout::Routed).unwrap();
    Service::new("web", 10, &[]).write(&testbed);
    let plain = testbed.manifests();
    let cgroup = testbed.cgroup().join("cgroup.procs");
    let is_none = "no folder of a cgroup v2 file system";
    for (path, says) in [
        (plain.as_path(), is_none),
        (cgroup.as_path(), is_none),
        (Path::new("/nowhere/at/all"), "cannot be opened"),
    ] {
        let mut command = run_with(&testbed, &plain);
        command.arg("--cgroup-path").arg(path);
        let path = path.to_str().unwrap();
        assert_fails(&testbed, command, 1, &["--cgroup-path", path, says]);
    }
}

#[test]
fn a_missing_folder_is_named() {
    let testbed = Testbed::new(Layout::Routed).unwrap();
    let command = run_with(&testbed, Path::new("/nowhere/to/be/found"));
    assert_fails(&testbed, command, 1, &["/nowhere/to/be/found"]);
}

#[test]
fn missing_privileges_are_named() {
    let testbed = Testbed::new(Layout::Routed).unwrap();
    Service::new("web", 10, &[]).write(&testbed);
    // The build's folder may be closed to others.
    let copy = testbed.manifests().with_file_name("beeline");
    std::fs::copy(beeline(&testbed).binary(), &copy).unwrap();
    let original = run_with(&testbed, &testbed.manifests());
    let mut command = Command::new(copy);
    command.args(original.get_args()).uid(NOBODY).gid(NOBODY);
    assert_fails(&testbed, command, 1, &["CAP_"]);
}

#[test]
fn a_folder_that_is_no_bpffs_is_named() {
    let testbed = Testbed::new(Layout::Routed).unwrap();
    Service::new("web", 10, &[]).write(&testbed);
    let folder = testbed.manifests().with_file_name("no-bpffs");
    std::fs::create_dir(&folder).unwrap();
    // Over an empty folder one would be mounted.
    std::fs::write(folder.join("file"), "").unwrap();
    let original = run_with(&testbed, &testbed.manifests());
    let bpffs = testbed.bpffs();
    let args = original.get_args().map(|arg| {
        if arg == bpffs {
            folder.as_os_str()
        } else {
            arg
        }
    });
    let mut command = Command::new(beeline(&testbed).binary());
    command.args(args);
    assert_fails(&testbed, command, 1, &["no-bpffs"]);
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
}

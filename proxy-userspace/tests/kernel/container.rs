//! The daemon as its image has it: with its executable and what the DaemonSet mounts, and nothing
//! else.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use beeline::privileges::Term;
use nix::mount::{MsFlags, mount};
use nix::unistd::chroot;
use proxy_common::abi::Family;
use serde_json::Value;
use xtask::testbed::{Layout, Serve, Testbed, in_namespace};

use crate::client::Connection;
use crate::cluster::{Service, TARGET_PORT, beeline};
use crate::privileges::{capabilities, in_a_mount_namespace, problems, with_at_most};

const NONE: Option<&str> = None;

/// Shows a file or a folder, with what is mounted below it, at the same place under `root`.
fn show(root: &Path, path: &Path) {
    let place = root.join(path.strip_prefix("/").unwrap());
    if path.is_dir() {
        fs::create_dir_all(&place).unwrap();
    } else {
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        drop(File::create(&place).unwrap());
    }
    let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(path), &place, NONE, bind, NONE).unwrap();
}

/// The shared libraries that an executable cannot start without; none if it is static.
fn libraries(executable: &Path) -> Vec<PathBuf> {
    let Ok(said) = Command::new("ldd").arg(executable).output() else {
        return Vec::new();
    };
    let said = String::from_utf8(said.stdout).unwrap();
    let words = said.split_whitespace();
    words
        .filter(|word| word.starts_with('/'))
        .map(|word| PathBuf::from(word.trim_end_matches(':')))
        .filter(|path| path.is_file() && path != executable)
        .collect()
}

#[test]
fn the_executable_needs_no_other_file() {
    let testbed = Testbed::new(Layout::Routed).unwrap();
    let client = testbed.pod("client").unwrap();
    let backend = testbed.pod("web").unwrap();
    let _server = backend.serve(Serve::Echo, TARGET_PORT).unwrap();
    let service = Service::new("web", 10, &[backend]);
    service.write(&testbed);

    let command = beeline(&testbed).socket_lb("all");
    let folder = testbed.state_folder();
    let folder = folder.parent().unwrap();
    let granted = capabilities(|need| need.term != Term::IfGiven);
    let daemon = in_a_mount_namespace(|| {
        let root = folder.join("root");
        fs::create_dir(&root).unwrap();
        mount(Some("tmpfs"), &root, Some("tmpfs"), MsFlags::empty(), NONE).unwrap();
        let (executable, bpffs) = (command.binary(), testbed.bpffs());
        for path in libraries(executable) {
            show(&root, &path);
        }
        // What the container runtime brings, what the DaemonSet mounts, and the testbed's own.
        let runtimes = ["/proc", "/sys", "/dev/null"].map(Path::new);
        for path in runtimes.into_iter().chain([executable, folder, &bpffs]) {
            show(&root, path);
        }
        let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(NONE, &root, NONE, read_only, NONE).unwrap();
        chroot(&root).unwrap();
        assert!(!Path::new("/etc").exists() && !Path::new("/tmp/x").exists());
        with_at_most(granted, || command.run::<&str>([]).unwrap())
    });

    for from in [&testbed.node().namespace, &client.namespace] {
        for family in Family::ALL {
            let open = || Connection::open(service.address(family)).unwrap();
            in_namespace(from, open).echo(b"hello").unwrap();
        }
    }
    assert_eq!(problems(&daemon), Vec::<Value>::new());
    assert!(!daemon.log().contains("WARN"), "{}", daemon.log());
}

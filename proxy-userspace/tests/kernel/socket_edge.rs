//! The programs of the socket edge: how they come to the node's cgroup, stay there, are replaced,
//! and go.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use proxy_common::abi::Family;
use serde_json::Value;
use xtask::testbed::{Daemon, Layout, Namespace, Pod, Serve, Server, Testbed, in_namespace};

use crate::client::Connection;
use crate::cluster::{Service, TARGET_PORT, beeline};
use crate::foreign_program::ForeignProgram;

const N_PROGRAMS: usize = 9;

/// A node with a Service, a client, and a daemon that comes and goes.
struct Node {
    daemon: Option<Daemon>,
    _server: Server,
    client: Pod,
    service: Service,
    testbed: Testbed,
}

impl Node {
    fn new() -> Self {
        let testbed = Testbed::new(Layout::Routed).unwrap();
        let client = testbed.pod("client").unwrap();
        let backend = testbed.pod("web-0").unwrap();
        let server = backend.serve(Serve::Echo, TARGET_PORT).unwrap();
        let service = Service::new("web", 10, &[backend]);
        service.write(&testbed);
        Self {
            daemon: None,
            _server: server,
            client,
            service,
            testbed,
        }
    }

    fn serving(socket_lb: &'static str) -> Self {
        let mut node = Self::new();
        node.start(socket_lb, &[]);
        node
    }

    /// Starts the daemon in place of the one that runs.
    fn start(&mut self, socket_lb: &'static str, args: &[&str]) {
        self.stop();
        let daemon = beeline(&self.testbed).socket_lb(socket_lb).run(args);
        self.daemon = Some(daemon.unwrap());
    }

    fn stop(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.stop();
        }
    }

    fn processes(&self) -> &Namespace {
        &self.testbed.node().namespace
    }

    fn address(&self) -> SocketAddr {
        self.service.address(Family::Ipv4)
    }

    /// Connects and sends something, in both families; the connections are open still.
    fn connect(&self, from: &Namespace) -> [Connection; 2] {
        let open = |family| {
            let mut connection = Connection::open(self.service.address(family)).unwrap();
            connection.echo(b"hello").unwrap();
            connection
        };
        in_namespace(from, || Family::ALL.map(open))
    }

    /// How many sockets were pointed at backends while `work` ran.
    fn pointed<T>(&self, work: impl FnOnce() -> T) -> u64 {
        let before = self.outcome("rewrite", "connect");
        drop(work());
        self.outcome("rewrite", "connect") - before
    }

    fn outcome(&self, outcome: &str, reason: &str) -> u64 {
        let status = self.status();
        let outcomes = status["outcomes"].as_array().unwrap();
        let is_it = |it: &&Value| it["outcome"] == outcome && it["reason"] == reason;
        outcomes.iter().find(is_it).unwrap()["packets"]
            .as_u64()
            .unwrap()
    }

    fn n_sockets(&self) -> u64 {
        let status = self.status();
        let maps = status["maps"].as_array().unwrap();
        let map = maps.iter().find(|it| it["map"] == "SOCKETS").unwrap();
        map["entries"].as_u64().unwrap()
    }

    /// What is so, whether or not all is well.
    fn status(&self) -> Value {
        let output = beeline(&self.testbed).call(["status", "-o", "json"]);
        serde_json::from_slice(&output.unwrap().stdout).unwrap()
    }

    /// The programs that are attached: kernel's numbers of cgroup, link and program.
    fn attached(&self) -> Vec<[u64; 3]> {
        let status = self.status();
        let programs = status["socket_programs"].as_array().unwrap();
        let number = |it: &Value, field: &str| it[field].as_u64().unwrap();
        let numbers = |it: &Value| ["cgroup", "link", "program"].map(|field| number(it, field));
        programs.iter().map(numbers).collect()
    }

    /// As if the programs that are attached had been loaded from another object.
    fn disguise_programs(&self) {
        let layout = folders(&self.testbed.bpffs().join("beeline"))
            .into_iter()
            .find(|folder| folder.join("programs").exists());
        let programs = layout.unwrap().join("programs");
        let [digest] = folders(&programs).try_into().unwrap();
        std::fs::rename(digest, programs.join("0000000000000001")).unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop();
    }
}

fn folders(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn inode(path: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap())
}

#[test]
fn the_option_says_whose_sockets_are_served() {
    let mut node = Node::serving("all");
    let client = node.client.namespace.clone();
    let from_pod = |node: &Node| node.pointed(|| node.connect(&client));
    let from_node = |node: &Node| node.pointed(|| node.connect(node.processes()));
    assert_eq!((from_pod(&node), from_node(&node)), (2, 2));
    let daemon = &node.status()["daemon"]["socket_edge"];
    assert_eq!(daemon["serves"], "all");
    assert_eq!(daemon["cgroup"].as_str(), node.testbed.cgroup().to_str());

    node.start("host", &[]);
    assert_eq!((from_pod(&node), from_node(&node)), (0, 2));

    let mut open = node.connect(node.processes());
    assert_eq!(node.n_sockets(), 2);
    node.start("off", &[]);
    assert_eq!((from_pod(&node), from_node(&node)), (0, 0));
    assert_eq!((node.attached().len(), node.n_sockets()), (0, 0));
    // They talk to the backend itself.
    for connection in &mut open {
        connection.echo(b"still here").unwrap();
    }

    node.start("all", &[]);
    assert_eq!((from_pod(&node), from_node(&node)), (2, 2));
    assert_eq!(node.status()["healthy"], true);
}

#[test]
fn a_restart_leaves_links_and_programs_as_they_are() {
    let mut node = Node::serving("all");
    let attached = node.attached();
    assert_eq!(attached.len(), N_PROGRAMS);
    let cgroup = inode(node.testbed.cgroup());
    assert!(
        attached.iter().all(|[it, ..]| *it == cgroup),
        "{attached:?}"
    );
    node.daemon.take().unwrap().kill();
    assert_eq!(node.pointed(|| node.connect(&node.client.namespace)), 2);
    node.start("all", &[]);
    assert_eq!(node.attached(), attached);
    node.start("host", &[]);
    assert_eq!(node.attached(), attached);
}

#[test]
fn programs_are_replaced_without_a_moment_without_one() {
    let mut node = Node::serving("all");
    let client = node.client.namespace.clone();
    let address = node.address();
    let before = node.attached();
    let (n_before, is_done) = (node.outcome("rewrite", "connect"), AtomicBool::new(false));
    let n_connected = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let connect = move |(is_done, n_connected): (&AtomicBool, &AtomicU64)| {
            while !is_done.load(Ordering::Relaxed) {
                drop(std::net::TcpStream::connect(address).unwrap());
                n_connected.fetch_add(1, Ordering::Relaxed);
            }
        };
        let shared = (&is_done, &n_connected);
        let client = &client;
        scope.spawn(move || in_namespace(client, || connect(shared)));
        for _ in 0..3 {
            node.disguise_programs();
            node.start("all", &[]);
        }
        is_done.store(true, Ordering::Relaxed);
    });
    let n_pointed = node.outcome("rewrite", "connect") - n_before;
    let n_connected = n_connected.into_inner();
    assert!(n_connected > 100, "{n_connected}");
    assert_eq!(n_pointed, n_connected);
    for (old, new) in before.iter().zip(node.attached()) {
        assert_eq!(old[..2], new[..2]);
        assert_ne!(old[2], new[2]);
    }
}

/// Another version may have one that this one has not, and lack one that it has.
#[test]
fn another_set_of_programs_becomes_ours() {
    let mut node = Node::serving("all");
    let mut open = node.connect(&node.client.namespace);
    node.stop();
    let links = node.testbed.bpffs().join("beeline/links");
    std::fs::rename(
        links.join("cgroup-getpeername6"),
        links.join("cgroup-bind6"),
    )
    .unwrap();
    let before = node.attached();
    assert_eq!(before.len(), N_PROGRAMS - 1);
    node.start("all", &[]);
    let after = node.attached();
    assert_eq!(after.len(), N_PROGRAMS);
    assert!(before.iter().all(|it| after.contains(it)));
    assert!(!links.join("cgroup-bind6").exists());
    for connection in &mut open {
        connection.echo(b"still here").unwrap();
    }
    node.stop();
    std::fs::rename(
        links.join("cgroup-connect6"),
        links.join("cgroup-bind6-new"),
    )
    .unwrap();
    let removed = beeline(&node.testbed).json(["cleanup", "--now"]).unwrap();
    assert_eq!(removed["socket_programs"], N_PROGRAMS - 1);
    assert!(!links.exists());
}

#[test]
fn sockets_are_remembered_when_their_map_grows() {
    let mut node = Node::new();
    node.start("all", &["--max-sockets", "100"]);
    let (early, mut late) = (
        node.connect(&node.client.namespace),
        node.connect(&node.client.namespace),
    );
    node.start("all", &["--max-sockets", "1000"]);
    assert_eq!(node.n_sockets(), 4);
    for connection in &mut late {
        connection.echo(b"still here").unwrap();
        let peer = connection.stream.peer_addr().unwrap();
        assert_eq!(peer, node.service.address(Family::of(peer.ip())));
    }
    drop(early);
    assert_eq!(node.n_sockets(), 2);
    drop(late);
    assert_eq!(node.n_sockets(), 0);
}

#[test]
fn others_programs_in_the_cgroup_stay_and_work() {
    const PORT: u16 = 4444;
    let mut node = Node::new();
    let foreign = ForeignProgram::attach(node.testbed.cgroup(), PORT);
    node.start("all", &[]);
    let forbidden = SocketAddr::new(node.client.ipv4.into(), PORT);
    let is_forbidden = |node: &Node| {
        let connect = || std::net::TcpStream::connect(forbidden).unwrap_err().kind();
        node.client.run(connect) == ErrorKind::PermissionDenied
    };
    assert!(is_forbidden(&node));
    assert_eq!(node.pointed(|| node.connect(&node.client.namespace)), 2);
    node.disguise_programs();
    node.start("all", &[]);
    assert!(is_forbidden(&node));
    node.start("off", &[]);
    assert!(is_forbidden(&node));
    drop(foreign);
    assert!(!is_forbidden(&node));
}

#[test]
fn nodes_with_cgroups_of_their_own_do_not_disturb_each_other() {
    let (one, mut other) = (Node::serving("all"), Node::serving("all"));
    let attached = one.attached();
    let n_pointed = one.pointed(|| {
        assert_eq!(other.pointed(|| other.connect(&other.client.namespace)), 2);
    });
    assert_eq!(n_pointed, 0);
    other.stop();
    let removed = beeline(&other.testbed).json(["cleanup", "--now"]).unwrap();
    assert_eq!(removed["socket_programs"], N_PROGRAMS);
    assert_eq!(one.attached(), attached);
    assert_eq!(one.pointed(|| one.connect(&one.client.namespace)), 2);
}

#[test]
fn programs_move_to_another_cgroup() {
    let mut node = Node::serving("all");
    let pods = node.testbed.cgroup().join("kubepods");
    node.stop();
    let daemon = beeline(&node.testbed)
        .socket_lb("all")
        .in_cgroup(pods.clone());
    let daemon = daemon.run::<&str>([]);
    node.daemon = Some(daemon.unwrap());
    let attached = node.attached();
    assert_eq!(attached.len(), N_PROGRAMS);
    assert!(attached.iter().all(|[cgroup, ..]| *cgroup == inode(&pods)));
    assert_eq!(node.pointed(|| node.connect(&node.client.namespace)), 2);
    assert_eq!(node.pointed(|| node.connect(node.processes())), 0);
}

#[test]
fn the_cgroup_is_found_if_none_is_named() {
    let mut node = Node::new();
    // Only those of the node: of pods, it would be those of all nodes of this machine.
    let daemon = beeline(&node.testbed).socket_lb("host").in_cgroup(None);
    node.daemon = Some(daemon.run::<&str>([]).unwrap());
    let status = node.status();
    let found = status["daemon"]["socket_edge"]["cgroup"].as_str().unwrap();
    assert!(!Path::new(found).join("cgroup.events").exists(), "{found}");
    assert_eq!(node.attached().len(), N_PROGRAMS);
    if beeline::loader::node_netns().unwrap().is_some() {
        assert_eq!(node.pointed(|| node.connect(node.processes())), 2);
    }
    node.stop();
    let own = node.testbed.state_folder().join("cgroup");
    let is_own = Path::new(found) == own;
    let removed = beeline(&node.testbed).json(["cleanup", "--now"]).unwrap();
    let paths = removed["paths"].as_array().unwrap();
    assert_eq!(
        paths.iter().any(|path| *path == own.to_str().unwrap()),
        is_own
    );
    assert!(!own.exists());
}

#[test]
fn cleanup_takes_everything_off() {
    let mut node = Node::serving("all");
    let mut open = node.connect(&node.client.namespace);
    let pins = node.testbed.bpffs().join("beeline");
    node.stop();
    let removed = beeline(&node.testbed).json(["cleanup", "--now"]).unwrap();
    assert_eq!(removed["socket_programs"], N_PROGRAMS);
    assert!(!pins.exists() && !node.testbed.state_folder().exists());
    for connection in &mut open {
        connection.echo(b"still here").unwrap();
        // Nobody says that it is the Service's any more.
        assert_eq!(connection.stream.peer_addr().unwrap().port(), TARGET_PORT);
    }
}

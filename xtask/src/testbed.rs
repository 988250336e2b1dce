//! One node or two, pods and networks around them, made of network namespaces.
//!
//! ```text
//!   pod ── veth101 ┐                               ┌ veth101 ── pod
//!   pod ── veth102 ┼ node ── outside ── remote node ┼ veth102 ── pod
//!   pod ── veth103 ┘    (any MTU, machines)         └ veth103 ── pod
//! ```
//!
//! Everything has addresses of both families; nodes forward, with strict reverse path filtering.
//! They have control groups, their pods' within, and a bpffs and a state folder each, so that both
//! may run Beeline. Any number of testbeds may be up at a time, of this process and of others. A
//! testbed goes away with everything in it when it is dropped, on Ctrl-C and on SIGTERM; if its
//! process is killed, when the next testbed is made.

mod cgroup;
mod daemon;
mod device;
pub mod dns;
pub mod load;
mod namespace;
mod node;
mod program;
pub mod sctp;
mod server;
mod traces;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};

use self::cgroup::Cgroup;
pub use daemon::{Beeline, Daemon};
pub use device::{Offload, set_offload};
pub use namespace::{Namespace, in_namespace, ip, on_network};
pub use node::{Layout, Node, Pod, PodOptions};
pub use program::{Ended, Program};
pub use server::{Serve, Server};
pub use traces::release_all_and_exit;

/// The node's name, as EndpointSlices have it.
pub const NODE_NAME: &str = "node-1";
/// The name of the other node.
pub const REMOTE_NODE_NAME: &str = "node-2";

/// The node's own addresses.
pub const NODE_IPV4: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 2);
/// See [`NODE_IPV4`].
pub const NODE_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x172, 0x18, 0, 0, 0, 0, 2);

/// A node and what is around it.
#[derive(Debug)]
pub struct Testbed {
    id: traces::Id,
    node: Node,
    outside: Namespace,
    remote: OnceLock<Node>,
    /// Of all that is on no node.
    own_cgroup: Cgroup,
    /// Above those of the nodes.
    cgroup: Cgroup,
    logs: AtomicU32,
}

impl Testbed {
    /// Makes a node without pods, and the network outside.
    ///
    /// # Errors
    /// Without root's privileges, or if a command fails. Nothing is left behind then.
    pub fn new(layout: Layout) -> Result<Self> {
        Self::make(|id| Self::build(id, layout))
    }

    /// Makes a node that forwards but has no device and no address, and a namespace for whatever
    /// is around it, which is as empty: for those who connect the two themselves.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn bare() -> Result<Self> {
        Self::make(Self::build_bare)
    }

    /// The same with the bpffs of another testbed, and whatever is pinned there. The other has to
    /// outlive it, and to have no daemon meanwhile.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn bare_on(other: &Self) -> Result<Self> {
        let mut testbed = Self::bare()?;
        testbed.node.bpffs = other.bpffs();
        Ok(testbed)
    }

    fn make(build: impl FnOnce(&traces::Id) -> Result<Self>) -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "network namespaces need root"
        );
        traces::remove_leftovers();
        traces::release_on_signal();
        let id = traces::making().testbed();
        build(&id).inspect_err(|_| traces::release(&id))
    }

    fn build(id: &traces::Id, layout: Layout) -> Result<Self> {
        // Held so that a signal in between cannot miss what is being made.
        let _making = traces::making();
        let testbed = Self::unlinked(id, layout)?;
        node::forward(&testbed.outside)?;
        link(&testbed.outside, &testbed.node, "node", 1500)?;
        Ok(testbed)
    }

    fn build_bare(id: &traces::Id) -> Result<Self> {
        let _making = traces::making();
        Self::unlinked(id, Layout::Routed)
    }

    fn unlinked(id: &traces::Id, layout: Layout) -> Result<Self> {
        let manifests = id.folder().join("manifests");
        std::fs::create_dir_all(&manifests)
            .with_context(|| format!("create folder {}", manifests.display()))?;
        let own_cgroup = Cgroup::own(id)?;
        let cgroup = own_cgroup.testbed(id)?;
        let outside = Namespace::create(&id.namespace("outside"), own_cgroup.clone())?;
        let node = Namespace::create(&id.namespace("node"), cgroup.child("node")?)?;
        Ok(Self {
            id: id.clone(),
            node: Node::new(node, layout, id, 0)?,
            outside,
            remote: OnceLock::new(),
            own_cgroup,
            cgroup,
            logs: AtomicU32::new(0),
        })
    }

    /// The node.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// The network outside: the node's default router.
    pub fn outside(&self) -> &Namespace {
        &self.outside
    }

    /// Adds an ordinary pod to the node.
    ///
    /// # Errors
    /// If a command fails, or there is a pod of that name.
    pub fn pod(&self, name: &str) -> Result<Pod> {
        self.pod_with(name, &PodOptions::default())
    }

    /// Adds a pod to the node.
    ///
    /// # Errors
    /// If a command fails, or there is a pod of that name.
    pub fn pod_with(&self, name: &str, options: &PodOptions) -> Result<Pod> {
        self.add_pod(&self.node, name, options)
    }

    /// Adds a namespace in the control group of a pod of the node, without a device or an address:
    /// for those who connect it themselves.
    ///
    /// # Errors
    /// If a command fails, or there is a pod of that name.
    pub fn bare_pod(&self, name: &str) -> Result<Namespace> {
        let _making = traces::making();
        let cgroup = self.node.pod_cgroup(&PodOptions::default())?;
        Namespace::create(&self.id.namespace(name), cgroup)
    }

    /// Adds a node beyond the outside router, over a link with this MTU in bytes. It has the
    /// same layout as the first.
    ///
    /// # Errors
    /// If a command fails, or there is one already.
    pub fn add_remote_node(&self, layout: Layout, mtu: u32) -> Result<()> {
        ensure!(
            self.remote.get().is_none(),
            "there is a remote node already"
        );
        let _making = traces::making();
        let cgroup = self.cgroup.child("remote")?;
        let namespace = Namespace::create(&self.id.namespace("remote"), cgroup)?;
        let remote = Node::new(namespace, layout, &self.id, 1)?;
        link(&self.outside, &remote, "remote", mtu)?;
        self.remote.get_or_init(|| remote);
        Ok(())
    }

    /// Adds an ordinary pod to the remote node.
    ///
    /// # Errors
    /// If a command fails, or there is no remote node.
    pub fn remote_pod(&self, name: &str) -> Result<Pod> {
        let remote = self.remote.get().context("there is no remote node")?;
        self.add_pod(remote, name, &PodOptions::default())
    }

    /// The remote node, if there is one.
    pub fn remote(&self) -> Option<&Node> {
        self.remote.get()
    }

    /// Adds a machine that is no node, in a network of its own beyond the outside router. `net`
    /// (20 to 255) is a byte of its addresses. To its processes it is like a pod, but the device
    /// is the router's.
    ///
    /// # Errors
    /// If a command fails, or there is a machine of that name or number.
    pub fn machine(&self, name: &str, net: u8) -> Result<Pod> {
        let _making = traces::making();
        let namespace = Namespace::create(&self.id.namespace(name), self.own_cgroup.clone())?;
        connect(&self.outside, &namespace, name, net, 1500)?;
        Ok(Pod {
            name: name.to_owned(),
            namespace,
            ipv4: Ipv4Addr::new(172, net, 0, 2),
            ipv6: network_v6(net, 2),
            device: name.to_owned(),
        })
    }

    fn add_pod(&self, node: &Node, name: &str, options: &PodOptions) -> Result<Pod> {
        let _making = traces::making();
        let cgroup = node.pod_cgroup(options)?;
        let namespace = Namespace::create(&self.id.namespace(name), cgroup)?;
        node.add_pod(name, namespace, options)
            .with_context(|| format!("add pod {name}"))
    }

    /// Takes a pod off its node, as a CNI does when a pod ends: its link disappears, its
    /// namespace as soon as nothing runs in it, and its control group unless something does.
    ///
    /// # Errors
    /// If a command fails.
    pub fn remove_pod(&self, pod: &Pod) -> Result<()> {
        let _making = traces::making();
        pod.namespace.ip(["link delete eth0"])?;
        namespace::ip(None, &[format!("netns delete {}", pod.namespace.name())])?;
        pod.namespace.group().remove_if_empty()
    }

    /// The folder of the node's control group, in which its processes are and, below, those of
    /// its pods: see [`Namespace::cgroup`].
    pub fn cgroup(&self) -> &Path {
        self.node.namespace.cgroup()
    }

    /// The node's bpffs.
    pub fn bpffs(&self) -> PathBuf {
        self.node.bpffs().to_owned()
    }

    /// The state folder of the node's daemon.
    pub fn state_folder(&self) -> PathBuf {
        self.node.state_folder().to_owned()
    }

    /// The folder that daemons read manifests from; empty at first.
    pub fn manifests(&self) -> PathBuf {
        self.id.folder().join("manifests")
    }

    fn id(&self) -> &traces::Id {
        &self.id
    }

    fn new_log(&self) -> PathBuf {
        let number = self.logs.fetch_add(1, Ordering::Relaxed);
        self.id.folder().join(format!("run-{number}.log"))
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        traces::release(&self.id);
    }
}

/// Connects a node to the outside router.
fn link(outside: &Namespace, node: &Node, name: &str, mtu: u32) -> Result<()> {
    let net = node.network();
    connect(outside, &node.namespace, name, net, mtu)?;
    outside.ip([
        format!("route add {} via 172.{net}.0.2", node.pod_range_v4()),
        format!(
            "route add {} via {}",
            node.pod_range_v6(),
            network_v6(net, 2)
        ),
    ])
}

/// Connects a namespace to the outside router. `net` is a byte of the addresses between them.
fn connect(outside: &Namespace, inner: &Namespace, name: &str, net: u8, mtu: u32) -> Result<()> {
    let inside = inner.name();
    let [router, own] = [1, 2].map(|host| network_v6(net, host));
    outside.ip([
        format!("link add {name} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {inside}"),
        format!("address add 172.{net}.0.1/24 dev {name}"),
        format!("address add {router}/64 dev {name} nodad"),
        format!("link set {name} up"),
    ])?;
    inner.ip([
        format!("address add 172.{net}.0.2/24 dev eth0"),
        format!("address add {own}/64 dev eth0 nodad"),
        "link set eth0 up".to_owned(),
        format!("route add default via 172.{net}.0.1"),
        format!("route add default via {router}"),
    ])?;
    outside.wait_for_devices(&[name])?;
    inner.wait_for_devices(&["eth0"])
}

/// An IPv6 address between the outside router and a machine: its third group reads like the
/// second number of the IPv4 address.
fn network_v6(net: u8, host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x172, as_read(net), 0, 0, 0, 0, host)
}

/// The group that reads in hexadecimal like a number in decimal.
fn as_read(number: u8) -> u16 {
    let [hundreds, tens, ones] = [number / 100, number / 10 % 10, number % 10].map(u16::from);
    hundreds << 8 | tens << 4 | ones
}

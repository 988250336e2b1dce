//! Nodes, and pods on them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use proxy_common::abi::Family;

use super::cgroup::Cgroup;
use super::device::{Offload, set_offload};
use super::namespace::{Namespace, in_namespace};
use super::server::{Serve, Server};
use super::traces::Id;
use super::{NODE_NAME, REMOTE_NODE_NAME, as_read, network_v6};

/// How pods reach their node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layout {
    /// As Calico does it: each pod has a /32 and its own route on the node, and a gateway
    /// that is nobody's address: the node answers ARP for everything.
    Routed,
    /// As flannel does it: pods share a bridge, which has the gateway's address. Traffic between
    /// pods of one node is switched, not routed.
    Bridge,
}

impl Layout {
    /// Both layouts, for tests where it matters.
    pub const ALL: [Self; 2] = [Self::Routed, Self::Bridge];
}

/// What is special about a pod.
#[derive(Clone, Copy, Debug)]
pub struct PodOptions {
    /// Its uid, by which its control group is called; a made-up one if `None`.
    pub uid: Option<&'static str>,
    /// The last number of its addresses; the next free one from 101 on if `None`.
    pub number: Option<u8>,
    /// MTU of the pod's link, both ends, in bytes.
    pub mtu: u32,
    /// The segment size that the pod's TCP announces, in bytes, in place of the one that follows
    /// from the MTU. One that is too large leaves it to path-MTU discovery to find out.
    pub announced_mss: Option<u32>,
    /// Leave checksums of what the pod sends to be filled in later, as devices with checksum
    /// offload do (on by default). Off also ends segmentation offload.
    pub checksum_offload: bool,
    /// Merge packets that arrive from the pod (off by default, as for any veth).
    pub receive_offload: bool,
}

impl Default for PodOptions {
    fn default() -> Self {
        Self {
            uid: None,
            number: None,
            mtu: 1500,
            announced_mss: None,
            checksum_offload: true,
            receive_offload: false,
        }
    }
}

/// A pod: a namespace with one device, `eth0`, and an address of each family.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Where its processes run.
    pub namespace: Namespace,
    /// Its IPv4 address.
    pub ipv4: Ipv4Addr,
    /// Its IPv6 address.
    pub ipv6: Ipv6Addr,
    /// The node's end of its link.
    pub device: String,
}

impl Pod {
    /// Its address of a family.
    pub fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::Ipv4 => self.ipv4.into(),
            Family::Ipv6 => self.ipv6.into(),
        }
    }

    /// Runs `work` as a process of this pod would: see [`in_namespace`].
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        in_namespace(&self.namespace, work)
    }

    /// Starts a server at both of the pod's addresses that answers in the pod's name.
    ///
    /// # Errors
    /// The port is taken.
    pub fn serve(&self, what: Serve, port: u16) -> Result<Server> {
        Server::start(self, what, port, false)
    }

    /// The same, but behind its name the server says at which address it sees the client.
    ///
    /// # Errors
    /// The port is taken.
    pub fn serve_as_witness(&self, what: Serve, port: u16) -> Result<Server> {
        Server::start(self, what, port, true)
    }
}

/// A node: forwards between its uplink and its pods.
#[derive(Debug)]
pub struct Node {
    /// Where its processes run.
    pub namespace: Namespace,
    layout: Layout,
    number: u8,
    pub(super) bpffs: PathBuf,
    state_folder: PathBuf,
    next_pod: AtomicU8,
    next_uid: AtomicU32,
}

/// Calico gives the node's ends of all pods' links this one hardware address …
const ROUTED_MAC: &str = "ee:ee:ee:ee:ee:ee";
/// … so that this is the pods' gateway for IPv6 …
const ROUTED_GATEWAY_V6: &str = "fe80::ecee:eeff:feee:eeee";
/// … and this, which nobody has, the one for IPv4.
const ROUTED_GATEWAY_V4: &str = "169.254.1.1";

const BRIDGE: &str = "cni0";

impl Node {
    /// Turns a namespace into node number `number` (0 or 1): forwarding, strict reverse path
    /// filtering, and the bridge if pods share one; a bpffs and a folder for a daemon. Its uplink
    /// is made by the testbed.
    pub(super) fn new(namespace: Namespace, layout: Layout, id: &Id, number: u8) -> Result<Self> {
        forward(&namespace)?;
        namespace.set("net/ipv4/conf/all/rp_filter", "1")?;
        namespace.set("net/ipv4/conf/default/rp_filter", "1")?;
        let node = Self {
            namespace,
            layout,
            number,
            bpffs: id.bpffs(number),
            state_folder: id.folder().join(format!("state-{number}")),
            next_pod: AtomicU8::new(101),
            next_uid: AtomicU32::new(0),
        };
        node.make_folders()?;
        if layout == Layout::Bridge {
            node.namespace.ip([
                // With snooping, neighbour discovery would wait for a multicast querier.
                format!("link add {BRIDGE} type bridge mcast_snooping 0"),
                format!("address add {}/24 dev {BRIDGE}", node.ipv4(1)),
                format!("address add {}/64 dev {BRIDGE} nodad", node.ipv6(1)),
                format!("link set {BRIDGE} up"),
            ])?;
        }
        Ok(node)
    }

    fn make_folders(&self) -> Result<()> {
        for folder in [&self.bpffs, &self.state_folder] {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("create folder {}", folder.display()))?;
        }
        let (at, kind) = (&self.bpffs, Some("bpf"));
        mount(kind, at, kind, MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mount bpffs at {}", at.display()))
    }

    /// Its name, as EndpointSlices have it.
    pub fn name(&self) -> &'static str {
        match self.number {
            0 => NODE_NAME,
            _ => REMOTE_NODE_NAME,
        }
    }

    /// Its address of a family towards the outside router.
    pub fn address(&self, family: Family) -> IpAddr {
        let net = self.network();
        match family {
            Family::Ipv4 => Ipv4Addr::new(172, net, 0, 2).into(),
            Family::Ipv6 => network_v6(net, 2).into(),
        }
    }

    /// A byte of the addresses between it and the outside router.
    pub(super) fn network(&self) -> u8 {
        18 + self.number
    }

    /// Its bpffs.
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// Its daemon's state folder.
    pub fn state_folder(&self) -> &Path {
        &self.state_folder
    }

    /// The range of its pods' IPv4 addresses.
    pub fn pod_range_v4(&self) -> String {
        format!("{}/24", self.ipv4(0))
    }

    /// The range of its pods' IPv6 addresses.
    pub fn pod_range_v6(&self) -> String {
        format!("{}/64", self.ipv6(0))
    }

    fn ipv4(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, self.number, host)
    }

    /// Its last group reads like the last number of the IPv4 address.
    fn ipv6(&self, host: u8) -> Ipv6Addr {
        Ipv6Addr::new(
            0xfd00,
            0x10,
            0x244,
            self.number.into(),
            0,
            0,
            0,
            as_read(host),
        )
    }

    /// Makes a control group for a pod.
    pub(super) fn pod_cgroup(&self, options: &PodOptions) -> Result<Cgroup> {
        let made_up = || {
            let number = self.next_uid.fetch_add(1, Ordering::Relaxed);
            format!("00000000-0000-4000-8000-{number:012x}")
        };
        let uid = options.uid.map_or_else(made_up, str::to_owned);
        self.namespace.group().pod(&uid)
    }

    /// Connects a namespace to this node as a pod.
    pub(super) fn add_pod(
        &self,
        name: &str,
        namespace: Namespace,
        options: &PodOptions,
    ) -> Result<Pod> {
        let next = || self.next_pod.fetch_add(1, Ordering::Relaxed);
        let number = options.number.unwrap_or_else(next);
        let pod = Pod {
            name: name.to_owned(),
            namespace,
            ipv4: self.ipv4(number),
            ipv6: self.ipv6(number),
            device: format!("veth{number:03}"),
        };
        let (device, mtu) = (&pod.device, options.mtu);
        let pod_namespace = pod.namespace.name();
        self.namespace.ip([format!(
            "link add {device} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {pod_namespace}"
        )])?;
        if !options.checksum_offload {
            set_offload(&pod.namespace, "eth0", Offload::TransmitChecksum, false)?;
        }
        if options.receive_offload {
            set_offload(&self.namespace, device, Offload::GenericReceive, true)?;
        }
        match self.layout {
            Layout::Routed => self.connect_routed(&pod, options)?,
            Layout::Bridge => self.connect_bridged(&pod, options)?,
        }
        self.namespace.wait_for_devices(&[device])?;
        pod.namespace.wait_for_devices(&["eth0"])?;
        Ok(pod)
    }

    fn connect_routed(&self, pod: &Pod, options: &PodOptions) -> Result<()> {
        let Pod {
            device, ipv4, ipv6, ..
        } = pod;
        self.namespace
            .set(&format!("net/ipv4/conf/{device}/proxy_arp"), "1")?;
        // Else the kernel waits up to 0.8 s before it answers for somebody else.
        self.namespace
            .set(&format!("net/ipv4/neigh/{device}/proxy_delay"), "0")?;
        self.namespace.ip([
            format!("link set {device} address {ROUTED_MAC} addrgenmode none up"),
            format!("address add {ROUTED_GATEWAY_V6}/64 dev {device} nodad"),
            format!("route add {ipv4}/32 dev {device}"),
            format!("route add {ipv6}/128 dev {device}"),
        ])?;
        let mss = announced(options);
        pod.namespace.ip([
            format!("address add {ipv4}/32 dev eth0"),
            format!("address add {ipv6}/128 dev eth0 nodad"),
            "link set eth0 up".to_owned(),
            format!("route add {ROUTED_GATEWAY_V4} dev eth0 scope link"),
            format!("route add default via {ROUTED_GATEWAY_V4} dev eth0{mss}"),
            format!("route add default via {ROUTED_GATEWAY_V6} dev eth0{mss}"),
        ])
    }

    fn connect_bridged(&self, pod: &Pod, options: &PodOptions) -> Result<()> {
        let Pod {
            device, ipv4, ipv6, ..
        } = pod;
        self.namespace.ip([
            format!("link set {device} master {BRIDGE} up"),
            // As the bridge plugin's `hairpinMode` does.
            format!("link set {device} type bridge_slave hairpin on"),
        ])?;
        let mss = announced(options);
        pod.namespace.ip([
            format!("address add {ipv4}/24 dev eth0"),
            format!("address add {ipv6}/64 dev eth0 nodad"),
            "link set eth0 up".to_owned(),
            format!("route add default via {} dev eth0{mss}", self.ipv4(1)),
            format!("route add default via {} dev eth0{mss}", self.ipv6(1)),
        ])
    }
}

fn announced(options: &PodOptions) -> String {
    options
        .announced_mss
        .map(|mss| format!(" advmss {mss}"))
        .unwrap_or_default()
}

/// Makes a namespace forward both families.
pub(super) fn forward(namespace: &Namespace) -> Result<()> {
    namespace.set("net/ipv4/ip_forward", "1")?;
    namespace.set("net/ipv6/conf/all/forwarding", "1")
}

//! The node's devices and routes, and a packet's way between them.
//!
//! One device leads to each pod of this node, one to other machines; there are loopback and
//! `beeline0`, by which this node's processes reach ServiceCIDRs. A packet passes the hooks of the
//! devices that it crosses, and the routing in between, until it has left the node or is delivered
//! in it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use beeline::node::LocalDevice;
use ipnet::IpNet;
use proxy_common::abi::Verdict;
use proxy_common::datapath::{Hook, decide};
use proxy_common::testing::Memory;

use super::parcel::{Parcel, Redirect};
use super::speech;
use crate::case::{Case, Config, DetectLocal, From, Kind};

/// The device `lo`.
const LOOPBACK: u32 = 1;
/// The device `beeline0`.
pub(super) const HOST: u32 = 2;
/// The device `eth0`, which has the node's addresses.
const UPLINK: u32 = 3;
/// Where devices are numbered from that cases ask for.
const FIRST_FREE: u32 = 4;

/// Most devices that a packet may cross.
const MAX_HOPS: usize = 16;

/// The devices of the node.
pub(super) struct Network {
    node_ips: Vec<IpAddr>,
    service_cidrs: Vec<IpNet>,
    /// Devices by which cases say that packets from elsewhere come in.
    uplinks: BTreeMap<String, u32>,
    /// Pods with their devices; a pod is never forgotten, since its connections may go on.
    pods: BTreeMap<IpAddr, Pod>,
    /// An address that this node has for one flow.
    extra_ip: Option<IpAddr>,
}

/// The device that leads to a pod.
struct Pod {
    index: u32,
    name: Arc<str>,
    master: Option<Arc<str>>,
}

/// Who is at the other end of a packet's way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// A process of this node.
    Node,
    /// Whoever is behind this device.
    Device(u32),
}

/// What became of a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Way {
    /// What was decided at each hook, in order.
    pub(super) verdicts: Vec<Verdict>,
    /// Where the packet came out, or why it did not.
    pub(super) end: Result<End, Lost>,
    /// The packet as it came out.
    pub(super) bytes: Vec<u8>,
}

/// Why a packet did not come out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Lost {
    /// A program dropped it.
    Dropped(proxy_common::abi::Drop),
    /// The kernel would not let it in, for this reason.
    Refused(String),
}

/// The next thing that happens to a packet.
enum Next {
    Ingress(u32),
    /// It is routed, having come in by this device.
    Routed(u32),
    Egress(u32),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Loopback,
    Host,
    Uplink,
    Pod,
}

impl Network {
    /// The devices that the flows of a case need; those of pods that are endpoints follow.
    pub(super) fn new(case: &Case) -> Self {
        let mut network = Self {
            node_ips: case.config.node_ips.clone(),
            service_cidrs: case.config.service_cidrs.clone(),
            uplinks: BTreeMap::new(),
            pods: BTreeMap::new(),
            extra_ip: None,
        };
        let clients: Vec<&From> = case.flows().map(|(_, flow)| &flow.from).collect();
        let bridges = bridges(&case.config, &clients);
        for from in clients {
            network.add_client(from, &bridges);
        }
        network
    }

    fn add_client(&mut self, from: &From, bridges: &BTreeSet<&str>) {
        let index = self.next_index();
        match (from.kind, &from.iface) {
            (Kind::Pod, None) => self.add_pod(from.ip),
            (Kind::Pod, Some(iface)) => {
                let is_port = bridges.contains(iface.as_str());
                let pod = Pod {
                    index,
                    name: if is_port {
                        format!("pod{index}").into()
                    } else {
                        iface.as_str().into()
                    },
                    master: is_port.then(|| iface.as_str().into()),
                };
                let _known = self.pods.entry(from.ip).or_insert(pod);
            }
            (Kind::PodOtherNode | Kind::OtherNode | Kind::External, Some(iface)) => {
                let _known = self.uplinks.entry(iface.clone()).or_insert(index);
            }
            (Kind::PodOtherNode | Kind::OtherNode | Kind::External, None) | (Kind::Node, _) => {}
        }
    }

    /// Sees to it that a pod of this node has a device.
    pub(super) fn add_pod(&mut self, ip: IpAddr) {
        let index = self.next_index();
        if self.node_ips.contains(&ip) {
            return;
        }
        let _pod = self.pods.entry(ip).or_insert_with(|| Pod {
            index,
            name: format!("pod{index}").into(),
            master: None,
        });
    }

    fn next_index(&self) -> u32 {
        FIRST_FREE + u32::try_from(self.pods.len() + self.uplinks.len()).expect("few devices")
    }

    /// Gives the node one more address, or takes it away.
    pub(super) fn set_extra_ip(&mut self, ip: Option<IpAddr>) {
        self.extra_ip = ip;
    }

    /// Whether this is an address of the node, loopback aside.
    pub(super) fn is_node_ip(&self, ip: IpAddr) -> bool {
        self.node_ips.contains(&ip) || self.extra_ip == Some(ip)
    }

    /// The devices, as netlink would tell of them.
    pub(super) fn devices(&self) -> Vec<LocalDevice> {
        let device = |index: u32, name: &str| LocalDevice {
            index,
            name: name.into(),
            master: None,
            mtu: 1500,
            mac: mac(index),
            addresses: Vec::new(),
            is_loopback: false,
            leads_to_pod: false,
        };
        let uplink = LocalDevice {
            addresses: self
                .node_ips
                .iter()
                .chain(&self.extra_ip)
                .copied()
                .collect(),
            ..device(UPLINK, "eth0")
        };
        let loopback = LocalDevice {
            addresses: ["127.0.0.1", "::1"]
                .map(|ip| ip.parse().expect("address"))
                .into(),
            mtu: 65_536,
            mac: [0; 6],
            is_loopback: true,
            leads_to_pod: false,
            ..device(LOOPBACK, "lo")
        };
        let others = self
            .uplinks
            .iter()
            .map(|(name, index)| device(*index, name));
        let pods = self.pods.values().map(|pod| LocalDevice {
            master: pod.master.clone(),
            ..device(pod.index, &pod.name)
        });
        [uplink, loopback, device(HOST, "beeline0")]
            .into_iter()
            .chain(others)
            .chain(pods)
            .collect()
    }

    /// Where a client of a flow is.
    pub(super) fn client(&self, from: &From) -> End {
        match (from.kind, &from.iface) {
            (Kind::Node, _) => End::Node,
            (Kind::Pod, _) => End::Device(self.pods[&from.ip].index),
            (Kind::PodOtherNode | Kind::OtherNode | Kind::External, Some(iface)) => {
                End::Device(self.uplinks[iface])
            }
            (Kind::PodOtherNode | Kind::OtherNode | Kind::External, None) => End::Device(UPLINK),
        }
    }

    /// Where an address is, by the routing table. Where the client of the flow is goes before it.
    pub(super) fn place(&self, ip: IpAddr, client: (IpAddr, End)) -> End {
        if ip == client.0 {
            return client.1;
        }
        if self.is_node_ip(ip) || ip.is_loopback() {
            return End::Node;
        }
        if let Some(pod) = self.pods.get(&ip) {
            return End::Device(pod.index);
        }
        if self.service_cidrs.iter().any(|range| range.contains(&ip)) {
            return End::Device(HOST);
        }
        End::Device(UPLINK)
    }

    fn role(&self, device: u32) -> Role {
        match device {
            LOOPBACK => Role::Loopback,
            HOST => Role::Host,
            _ if self.pods.values().any(|pod| pod.index == device) => Role::Pod,
            _ => Role::Uplink,
        }
    }

    /// What becomes of a packet that `from` sends, if the client of the flow is `client`.
    pub(super) fn send(
        &self,
        memory: &Memory,
        bytes: Vec<u8>,
        from: End,
        client: (IpAddr, End),
    ) -> Way {
        let (_, to) = speech::addresses(&bytes);
        let mut next = match from {
            End::Device(device) => Next::Ingress(device),
            End::Node => self.leave(to, client),
        };
        let route = |ip| match self.place(ip, client) {
            End::Device(device) => Some(device),
            End::Node => None,
        };
        let mut parcel = Parcel::new(bytes, &route);
        let mut verdicts = Vec::new();
        for _ in 0..MAX_HOPS {
            let step = match next {
                Next::Ingress(device) => self.ingress(device, &mut parcel, memory, &mut verdicts),
                Next::Routed(device) => self.routed(device, &parcel, client),
                Next::Egress(device) => self.egress(device, &mut parcel, memory, &mut verdicts),
            };
            match step {
                Ok(step) => next = step,
                Err(end) => {
                    return Way {
                        verdicts,
                        end,
                        bytes: parcel.bytes(),
                    };
                }
            }
        }
        Way {
            verdicts,
            end: Err(Lost::Refused("it goes round in circles".into())),
            bytes: parcel.bytes(),
        }
    }

    /// The way out for what this node itself sends.
    fn leave(&self, to: IpAddr, client: (IpAddr, End)) -> Next {
        match self.place(to, client) {
            End::Node => Next::Egress(LOOPBACK),
            End::Device(device) => Next::Egress(device),
        }
    }

    fn ingress(
        &self,
        device: u32,
        parcel: &mut Parcel<'_>,
        memory: &Memory,
        verdicts: &mut Vec<Verdict>,
    ) -> Result<Next, Result<End, Lost>> {
        let hook = match self.role(device) {
            Role::Pod => Hook::PodIngress,
            Role::Uplink => Hook::NodeIngress,
            Role::Loopback | Role::Host => return Ok(Next::Routed(device)),
        };
        let redirect = cross(hook, device, parcel, memory, verdicts)?;
        Ok(redirect.unwrap_or(Next::Routed(device)))
    }

    /// The kernel takes no packet from outside that claims to be from this node.
    fn routed(
        &self,
        device: u32,
        parcel: &Parcel<'_>,
        client: (IpAddr, End),
    ) -> Result<Next, Result<End, Lost>> {
        let (from, to) = parcel.addresses();
        if device != LOOPBACK && (self.is_node_ip(from) || from.is_loopback()) {
            let reason = format!("it comes in from {from}, an address of this node");
            return Err(Err(Lost::Refused(reason)));
        }
        match self.place(to, client) {
            End::Node => Err(Ok(End::Node)),
            End::Device(device) => Ok(Next::Egress(device)),
        }
    }

    fn egress(
        &self,
        device: u32,
        parcel: &mut Parcel<'_>,
        memory: &Memory,
        verdicts: &mut Vec<Verdict>,
    ) -> Result<Next, Result<End, Lost>> {
        let role = self.role(device);
        let hook = match role {
            Role::Pod => Hook::PodEgress,
            Role::Uplink | Role::Loopback | Role::Host => Hook::NodeEgress,
        };
        match cross(hook, device, parcel, memory, verdicts)? {
            Some(next) => Ok(next),
            None if role == Role::Loopback => Ok(Next::Ingress(device)),
            None => Err(Ok(End::Device(device))),
        }
    }
}

/// Lets a program decide; yields where it sends the packet itself.
fn cross(
    hook: Hook,
    device: u32,
    parcel: &mut Parcel<'_>,
    memory: &Memory,
    verdicts: &mut Vec<Verdict>,
) -> Result<Option<Next>, Result<End, Lost>> {
    parcel.arrive(device);
    let verdict = decide(parcel, memory, hook);
    verdicts.push(verdict);
    if let Verdict::Drop(reason) = verdict {
        return Err(Err(Lost::Dropped(reason)));
    }
    Ok(parcel.redirect().map(|redirect| match redirect {
        Redirect::In(device) => Next::Ingress(device),
        Redirect::Out(device) => Next::Egress(device),
    }))
}

/// A link-layer address of its own for each device.
fn mac(index: u32) -> [u8; 6] {
    let [a, b, c, d] = index.to_be_bytes();
    [0x02, 0xbe, a, b, c, d]
}

/// The interfaces of pods that are bridges: those by which several pods come in, and the one that
/// local pods are recognised by.
fn bridges<'a>(config: &'a Config, clients: &[&'a From]) -> BTreeSet<&'a str> {
    let mut pods: BTreeMap<&str, BTreeSet<IpAddr>> = BTreeMap::new();
    for from in clients.iter().filter(|from| from.kind == Kind::Pod) {
        if let Some(iface) = &from.iface {
            let _new = pods.entry(iface).or_default().insert(from.ip);
        }
    }
    let shared = pods.into_iter().filter(|(_, pods)| pods.len() > 1);
    let mut bridges: BTreeSet<&str> = shared.map(|(iface, _)| iface).collect();
    if let DetectLocal::BridgeInterface(bridge) = &config.detect_local {
        let _new = bridges.insert(bridge);
    }
    bridges
}

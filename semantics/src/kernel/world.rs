//! A node of network namespaces with the addresses of a case, and everything around it.
//!
//! ```text
//!   outside ┬ f0 ── eth0 ┐
//!           ├ f1 ── veth1 ┼ node
//!           └ f2 ── veth2 ┘
//! ```
//!
//! The far ends of all devices are in one namespace, where nobody lives: frames are put on them
//! and read from them. All neighbours are known beforehand, so that nothing waits for them.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use proxy_common::testing::Frame;
use xtask::testbed::{Namespace, Offload, Testbed, in_namespace, set_offload};

use super::host::Host;
use super::packet::Seen;
use super::plan::{Plan, UPLINK};
use super::pods::{self, Ear, Pod};
use super::wire::Wire;

/// Routers that are nobody: packets to them have a neighbour, and that is all.
pub(super) const GATEWAYS: [&str; 2] = ["169.254.1.1", "fe80::1"];
/// The outside's own addresses, for clients that are sockets (RFC 2544 and RFC 5180).
const OUTSIDE: [&str; 2] = ["198.18.0.1", "2001:2::1"];

/// Where a packet is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// Out of the far end of a device, by index.
    Device(usize),
    /// Delivered to the node's own processes.
    Node,
}

/// A packet, and where it came out.
#[derive(Clone, Debug)]
pub(super) struct Sighting {
    /// Where.
    pub(super) place: Place,
    /// The packet.
    pub(super) seen: Seen,
}

/// The namespaces with their devices, and sockets to see and send packets.
pub(super) struct World {
    pub(super) testbed: Testbed,
    pub(super) plan: Plan,
    pub(super) host: Host,
    /// Of the outside, then of the pods with a stack of their own.
    wires: Vec<Wire>,
    /// The far ends.
    far: Vec<FarEnd>,
    homes: BTreeMap<IpAddr, usize>,
    /// Clients with a stack of their own, by device.
    pods: BTreeMap<usize, Pod>,
    /// The client that is listened to.
    ear: Cell<Option<Ear>>,
}

impl World {
    /// Builds it on a testbed without a network. Clients on pods are frames, or sockets if
    /// `has_sockets`.
    pub(super) fn build(plan: Plan, testbed: Testbed, has_sockets: bool) -> Result<Self> {
        let near = &testbed.node().namespace;
        let outside = testbed.outside();
        for namespace in [near, outside] {
            namespace.set("net/ipv4/conf/all/send_redirects", "0")?;
            namespace.set("net/ipv4/conf/default/send_redirects", "0")?;
        }
        let clients = plan.clients.keys().filter(|_| has_sockets);
        let clients: BTreeMap<usize, Namespace> = clients
            .map(|device| Ok((*device, testbed.bare_pod(&format!("pod{device}"))?)))
            .collect::<Result<_>>()?;
        let ends: Vec<_> = (0..plan.devices.len())
            .map(|device| match clients.get(&device) {
                Some(pod) => (pod, pods::DEVICE.to_owned()),
                None => (outside, far_name(device)),
            })
            .collect();
        near.ip(devices(&plan, &ends))?;
        outside.ip(far_ends(&plan, &clients))?;
        near.ip(addresses_and_routes(&plan))?;
        for device in &plan.devices {
            // What leaves the node is to have whole checksums.
            set_offload(near, &device.name, Offload::TransmitChecksum, false)?;
        }
        let (wires, far) = open_ends(outside, &ends)?;
        let pods = clients.into_iter().map(|(device, pod)| {
            let (addresses, gateway) = (&plan.clients[&device], near_mac(&plan, device));
            let pod = Pod::connect(&testbed, pod, device, addresses, gateway)?;
            Ok((device, pod))
        });
        let pods = pods.collect::<Result<_>>()?;
        let host = in_namespace(near, || Host::open(plan.servers.iter().copied()))
            .context("open sockets on the node")?;
        Ok(Self {
            homes: plan.homes.clone(),
            testbed,
            plan,
            host,
            wires,
            far,
            pods,
            ear: Cell::new(None),
        })
    }

    /// The namespace of a client behind a device, if it has a stack of its own.
    pub(super) fn pod(&self, device: usize) -> Option<&Namespace> {
        self.pods.get(&device).map(|pod| &pod.namespace)
    }

    /// From now on packets to this socket reach it, if it is one of a pod's.
    pub(super) fn listen(&self, ear: Option<Ear>) {
        self.ear.set(ear);
    }

    /// Where packets to an address belong.
    pub(super) fn place_of(&self, address: IpAddr) -> Place {
        if self.plan.is_on_node(address) {
            Place::Node
        } else {
            Place::Device(self.homes.get(&address).copied().unwrap_or(0))
        }
    }

    /// Moves an address that lives at two places in a case to this one.
    pub(super) fn house(&mut self, address: IpAddr, device: usize) -> Result<()> {
        let home = self.homes.get(&address).copied().unwrap_or(0);
        if home == device || self.plan.is_on_node(address) {
            return Ok(());
        }
        self.homes.insert(address, device);
        let commands = if device == 0 {
            vec![format!("route del {}", whole(address))]
        } else {
            route(&self.plan, address, device)
        };
        self.testbed.node().namespace.ip(commands)
    }

    /// Puts a packet on the far end of a device, as if from there.
    pub(super) fn send(&self, device: usize, packet: &Frame) -> Result<()> {
        let frame = Frame {
            from_mac: far_mac(device),
            to_mac: near_mac(&self.plan, device),
            ..packet.clone()
        };
        let (wire, index) = self.far.get(device).context("no such device")?;
        self.wires[*wire]
            .send(*index, &frame.bytes())
            .with_context(|| format!("send by the device {}", self.plan.devices[device].name))
    }

    /// What came out since the last call; whatever happened before the last packet of it did
    /// is in it, too.
    pub(super) fn look(&self) -> Result<Vec<Sighting>> {
        let mut all = Vec::new();
        for (number, wire) in self.wires.iter().enumerate() {
            while let Some((index, frame)) = wire.receive().context("receive frames")? {
                let end = (number, index);
                let Some(device) = self.far.iter().position(|far| *far == end) else {
                    continue;
                };
                // A bridge may let others hear what is not for them.
                let for_it = |seen: &Seen| seen.to_mac == Some(far_mac(device));
                if let Some(seen) = Seen::frame(&frame).filter(for_it) {
                    self.hand_in(device, &seen, frame)?;
                    let place = Place::Device(device);
                    all.push(Sighting { place, seen });
                }
            }
        }
        let delivered = self.host.receive().context("receive at the node")?;
        all.extend(delivered.into_iter().map(|seen| Sighting {
            place: Place::Node,
            seen,
        }));
        Ok(all)
    }

    /// Gives a pod a frame that is for the socket that is listened to.
    fn hand_in(&self, device: usize, seen: &Seen, frame: Vec<u8>) -> Result<()> {
        let ear = self.ear.get().filter(|ear| ear.device == device);
        match (self.pods.get(&device), ear) {
            (Some(pod), Some(ear)) if ear.hears(seen) => pod.give(&self.wires[0], frame),
            _ => Ok(()),
        }
    }

    /// Waits until something comes out, or a client hears something.
    pub(super) fn wait(
        &self,
        client: Option<(BorrowedFd<'_>, PollFlags)>,
        until: Instant,
    ) -> Result<()> {
        let mut fds: Vec<_> = self
            .wires
            .iter()
            .map(|wire| PollFd::new(wire.as_fd(), PollFlags::POLLIN))
            .collect();
        fds.extend(
            self.host
                .ears()
                .map(|fd| PollFd::new(fd, PollFlags::POLLIN)),
        );
        fds.extend(client.map(|(fd, flags)| PollFd::new(fd, flags)));
        let left = until.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let _n_ready = poll(&mut fds, timeout).context("wait for packets")?;
        Ok(())
    }

    /// A place's name.
    pub(super) fn name(&self, place: Place) -> String {
        match place {
            Place::Device(device) => match self.plan.devices.get(device) {
                Some(device) => format!("out of {}", device.name),
                None => "nowhere".to_owned(),
            },
            Place::Node => "at the node itself".to_owned(),
        }
    }

    /// A sighting in one line.
    pub(super) fn line(&self, sighting: &Sighting) -> String {
        format!("[{}] {}", sighting.seen, self.name(sighting.place))
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World")
            .field("plan", &self.plan)
            .finish_non_exhaustive()
    }
}

/// An address and the length of all of it.
pub(super) fn whole(address: IpAddr) -> String {
    match address {
        IpAddr::V4(_) => format!("{address}/32"),
        IpAddr::V6(_) => format!("{address}/128"),
    }
}

/// The far end of a device: where it is, and its name there.
type End<'a> = (&'a Namespace, String);

/// The same in numbers: which wire is there, and the device's index.
type FarEnd = (usize, u32);

/// Wires of the outside and of each pod that has an end, and which of them has which end.
fn open_ends(outside: &Namespace, ends: &[End<'_>]) -> Result<(Vec<Wire>, Vec<FarEnd>)> {
    let open = |namespace| in_namespace(namespace, Wire::open).context("open a packet socket");
    let mut wires = vec![open(outside)?];
    let mut far = Vec::new();
    for (namespace, name) in ends {
        let index = in_namespace(namespace, || nix::net::if_::if_nametoindex(name.as_str()));
        let index = index.with_context(|| name.clone())?;
        if namespace.name() == outside.name() {
            far.push((0, index));
        } else {
            wires.push(open(namespace)?);
            far.push((wires.len() - 1, index));
        }
    }
    Ok((wires, far))
}

fn far_name(device: usize) -> String {
    format!("f{device}")
}

const fn far_mac(device: usize) -> [u8; 6] {
    [0x02, 0, 0, 0xf, (device >> 8) as u8, device as u8]
}

/// Where frames from the far end of a device are sent.
fn near_mac(plan: &Plan, device: usize) -> [u8; 6] {
    if plan.devices[device].is_port {
        BRIDGE_MAC
    } else {
        own_mac(device)
    }
}

const BRIDGE_MAC: [u8; 6] = [0x02, 0, 0, 0xb, 0, 0];

const fn own_mac(device: usize) -> [u8; 6] {
    [0x02, 0, 0, 0xe, (device >> 8) as u8, device as u8]
}

pub(super) fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn devices(plan: &Plan, ends: &[End<'_>]) -> Vec<String> {
    let mut commands = Vec::new();
    if let Some(bridge) = &plan.bridge {
        let mac = text(BRIDGE_MAC);
        commands.push(format!(
            "link add {bridge} address {mac} type bridge mcast_snooping 0"
        ));
        commands.push(format!("link set {bridge} addrgenmode none up"));
    }
    for (index, (device, (beyond, far_name))) in plan.devices.iter().zip(ends).enumerate() {
        let (name, beyond) = (&device.name, beyond.name());
        let (near_mac, far_mac) = (text(own_mac(index)), text(far_mac(index)));
        commands.push(format!(
            "link add {name} address {near_mac} type veth peer name {far_name} address {far_mac} \
             netns {beyond}"
        ));
        commands.push(format!("link set {name} addrgenmode none up"));
        if let (true, Some(bridge)) = (device.is_port, &plan.bridge) {
            commands.push(format!("link set {name} master {bridge}"));
            commands.push(format!("link set {name} type bridge_slave hairpin on"));
        }
    }
    commands
}

/// The outside's devices. It can open connections to the node by the first.
fn far_ends(plan: &Plan, clients: &BTreeMap<usize, Namespace>) -> Vec<String> {
    let own = (0..plan.devices.len()).filter(|device| !clients.contains_key(device));
    let up = |device| format!("link set {} addrgenmode none up", far_name(device));
    let mut commands: Vec<_> = own.map(up).collect();
    let (device, mac) = (far_name(0), text(own_mac(0)));
    for (address, gateway) in OUTSIDE.iter().zip(GATEWAYS) {
        let address: IpAddr = address.parse().unwrap_or(IpAddr::from([0; 4]));
        let nodad = if address.is_ipv6() { " nodad" } else { "" };
        commands.push(format!(
            "address add {} dev {device}{nodad}",
            whole(address)
        ));
        commands.push(format!(
            "neigh replace {gateway} lladdr {mac} dev {device} nud permanent"
        ));
        commands.push(format!(
            "route add default via {gateway} dev {device} onlink"
        ));
    }
    commands
}

fn addresses_and_routes(plan: &Plan) -> Vec<String> {
    let mut commands = Vec::new();
    let on_devices = plan.node.iter().map(|address| (address, UPLINK));
    for (address, device) in on_devices.chain(plan.loopback.iter().map(|ip| (ip, "lo"))) {
        let nodad = if address.is_ipv6() { " nodad" } else { "" };
        commands.push(format!(
            "address add {} dev {device}{nodad}",
            whole(*address)
        ));
    }
    for gateway in GATEWAYS {
        let mac = text(far_mac(0));
        commands.push(format!(
            "neigh replace {gateway} lladdr {mac} dev {UPLINK} nud permanent"
        ));
        commands.push(format!(
            "route add default via {gateway} dev {UPLINK} onlink"
        ));
    }
    for (address, device) in &plan.homes {
        commands.extend(route(plan, *address, *device));
    }
    commands
}

/// Leads an address to a device.
fn route(plan: &Plan, address: IpAddr, device: usize) -> Vec<String> {
    let mac = text(far_mac(device));
    let device = &plan.devices[device];
    let by = match &plan.bridge {
        Some(bridge) if device.is_port => bridge,
        _ => &device.name,
    };
    vec![
        format!("route replace {} dev {by}", whole(address)),
        format!("neigh replace {address} lladdr {mac} dev {by} nud permanent"),
    ]
}

/// The address of a backend and where it is, for reports.
pub(super) fn list(addresses: &[SocketAddr]) -> String {
    let shown: Vec<_> = addresses.iter().take(6).map(ToString::to_string).collect();
    let more = addresses.len().saturating_sub(shown.len());
    match more {
        0 => shown.join(", "),
        _ => format!("{} and {more} more", shown.join(", ")),
    }
}

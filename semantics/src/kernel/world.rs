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
use super::pods::{self, Focus, Pod};

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
    wire: super::wire::Wire,
    /// Indices of the far ends.
    far: Vec<u32>,
    homes: BTreeMap<IpAddr, usize>,
    /// Clients with a stack of their own, by device; and the indices of their outer ends.
    pods: BTreeMap<usize, (Pod, u32)>,
    /// The client whose packets are passed on.
    focus: Cell<Option<Focus>>,
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
        near.ip(devices(&plan, outside.name()))?;
        outside.ip(far_ends(&plan))?;
        near.ip(addresses_and_routes(&plan))?;
        for device in &plan.devices {
            // What leaves the node is to have whole checksums.
            set_offload(near, &device.name, Offload::TransmitChecksum, false)?;
        }
        let pods = if has_sockets {
            pods::build(&plan, &testbed)?
        } else {
            BTreeMap::new()
        };
        let names: Vec<_> = (0..plan.devices.len()).map(far_name).collect();
        let (wire, far, pods) = in_namespace(outside, || -> Result<_> {
            let index =
                |name: &str| nix::net::if_::if_nametoindex(name).with_context(|| name.to_owned());
            let far: Result<Vec<_>> = names.iter().map(|name| index(name)).collect();
            let pods = pods.into_iter().map(|(device, pod)| {
                let tap = index(&pod.tap)?;
                Ok((device, (pod, tap)))
            });
            let pods: Result<BTreeMap<_, _>> = pods.collect();
            let wire = super::wire::Wire::open().context("open a packet socket")?;
            Ok((wire, far?, pods?))
        })?;
        let host = in_namespace(near, || Host::open(plan.servers.iter().copied()))
            .context("open sockets on the node")?;
        Ok(Self {
            homes: plan.homes.clone(),
            testbed,
            plan,
            host,
            wire,
            far,
            pods,
            focus: Cell::new(None),
        })
    }

    /// The namespace of a client behind a device, if it has a stack of its own.
    pub(super) fn pod(&self, device: usize) -> Option<&Namespace> {
        self.pods.get(&device).map(|(pod, _)| &pod.namespace)
    }

    /// From now on the packets of this client are passed on, if it is behind a device.
    pub(super) fn follow(&self, focus: Option<Focus>) {
        self.focus.set(focus);
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
        let index = self.far.get(device).context("no such device")?;
        self.wire
            .send(*index, &frame.bytes())
            .with_context(|| format!("send by the device {}", self.plan.devices[device].name))
    }

    /// What came out since the last call; whatever happened before the last packet of it did
    /// is in it, too.
    pub(super) fn look(&self) -> Result<Vec<Sighting>> {
        let mut all = Vec::new();
        while let Some((index, frame)) = self.wire.receive().context("receive frames")? {
            let Some(device) = self.far.iter().position(|far| *far == index) else {
                self.pass_out(index, frame)?;
                continue;
            };
            // A bridge may let others hear what is not for them.
            let for_it = |seen: &Seen| seen.to_mac == Some(far_mac(device));
            if let Some(seen) = Seen::frame(&frame).filter(for_it) {
                self.pass_in(device, &seen, frame)?;
                let place = Place::Device(device);
                all.push(Sighting { place, seen });
            }
        }
        let delivered = self.host.receive().context("receive at the node")?;
        all.extend(delivered.into_iter().map(|seen| Sighting {
            place: Place::Node,
            seen,
        }));
        Ok(all)
    }

    /// Puts what came out of a pod on the far end of its device, if it is to be followed.
    fn pass_out(&self, tap: u32, mut frame: Vec<u8>) -> Result<()> {
        let Some(focus) = self.focus.get() else {
            return Ok(());
        };
        let is_its = self
            .pods
            .get(&focus.device)
            .is_some_and(|(_, own)| *own == tap);
        if is_its && Seen::frame(&frame).is_some_and(|seen| focus.is_from(&seen)) {
            readdress(
                &mut frame,
                far_mac(focus.device),
                near_mac(&self.plan, focus.device),
            );
            let far = self.far[focus.device];
            self.wire.send(far, &frame).context("pass a frame on")?;
        }
        Ok(())
    }

    /// Hands the followed socket's pod what is for the socket.
    fn pass_in(&self, device: usize, seen: &Seen, mut frame: Vec<u8>) -> Result<()> {
        let focus = self.focus.get().filter(|focus| focus.device == device);
        if let (Some(focus), Some((_, tap))) = (focus, self.pods.get(&device))
            && focus.is_for(seen)
        {
            readdress(&mut frame, pods::tap_mac(device), pods::mac(device));
            self.wire.send(*tap, &frame).context("hand a frame in")?;
        }
        Ok(())
    }

    /// Waits until something comes out, or a client hears something.
    pub(super) fn wait(
        &self,
        client: Option<(BorrowedFd<'_>, PollFlags)>,
        until: Instant,
    ) -> Result<()> {
        let mut fds = vec![PollFd::new(self.wire.as_fd(), PollFlags::POLLIN)];
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

/// Gives a frame other hardware addresses.
fn readdress(frame: &mut [u8], from: [u8; 6], to: [u8; 6]) {
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
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

fn devices(plan: &Plan, outside: &str) -> Vec<String> {
    let mut commands = Vec::new();
    if let Some(bridge) = &plan.bridge {
        let mac = text(BRIDGE_MAC);
        commands.push(format!(
            "link add {bridge} address {mac} type bridge mcast_snooping 0"
        ));
        commands.push(format!("link set {bridge} addrgenmode none up"));
    }
    for (index, device) in plan.devices.iter().enumerate() {
        let (name, far) = (&device.name, far_name(index));
        let (near, beyond) = (text(own_mac(index)), text(far_mac(index)));
        commands.push(format!(
            "link add {name} address {near} type veth peer name {far} address {beyond} \
             netns {outside}"
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
fn far_ends(plan: &Plan) -> Vec<String> {
    let up = |index| format!("link set {} addrgenmode none up", far_name(index));
    let mut commands: Vec<_> = (0..plan.devices.len()).map(up).collect();
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

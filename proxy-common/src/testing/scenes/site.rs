//! A node with devices, an address that takes NodePorts, and Services of every kind.

use super::stage::{Stage, at, ip, with_port};
use crate::abi::{
    Addr, AddressFlags, BackendFlags, Device, DeviceFlags, Frontend, FrontendFlags, FrontendKey,
    Port, Protocol,
};
use crate::testing::{Frame, Memory, network};

/// The device that leads to other machines.
pub(super) const UPLINK: u32 = 7;
/// The device that leads to this node's pods.
pub(super) const POD: u32 = 8;
/// `beeline0`.
pub(super) const HOST: u32 = 9;
/// `lo`.
pub(super) const LOOPBACK: u32 = 1;

/// The only port that a client's port can be mapped to.
pub(super) const MAPPED: u16 = 20_000;

/// What the uplink takes.
pub(super) const MTU: u32 = 1_500;

/// The kinds of address that lead to a Service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    ClusterIp,
    External,
    NodePort,
}

pub(super) const KINDS: [Kind; 3] = [Kind::ClusterIp, Kind::External, Kind::NodePort];

impl Kind {
    /// What clients dial.
    pub(super) fn dialled(self, stage: Stage) -> String {
        match self {
            Self::ClusterIp | Self::External => stage.frontend.to_owned(),
            Self::NodePort => with_port(stage.node, 30_080),
        }
    }

    pub(super) fn key(self, stage: Stage, protocol: Protocol) -> FrontendKey {
        let dialled = at(&self.dialled(stage));
        let port = Port::new(dialled.port());
        let addr = Addr::from(dialled.ip());
        match self {
            Self::ClusterIp | Self::External => FrontendKey::exact(addr, port, protocol),
            Self::NodePort => FrontendKey::node_port(addr.family(), port, protocol),
        }
    }

    fn flags(self) -> FrontendFlags {
        match self {
            Self::ClusterIp => FrontendFlags::NONE,
            Self::External | Self::NodePort => FrontendFlags::EXTERNAL,
        }
    }
}

/// The link-layer address of a device.
pub(super) fn mac(device: u32) -> [u8; 6] {
    if device == LOOPBACK {
        [0; 6]
    } else {
        [0x02, 0, 0, 0, 7, device as u8]
    }
}

fn device(index: u32) -> Device {
    Device {
        v4: Addr::UNSPECIFIED,
        v6: Addr::UNSPECIFIED,
        mtu: if index == UPLINK { MTU } else { 9_000 },
        mac: bytemuck::cast(mac(index)),
        flags: DeviceFlags::NONE,
    }
}

/// The frame as it is delivered into this node by a device.
pub(super) fn entering(frame: &Frame, device: u32) -> Frame {
    Frame {
        from_mac: mac(device),
        to_mac: mac(device),
        ..frame.clone()
    }
}

/// A node that routes, and one Service with these backends. Packets that leave by the uplink get
/// its address as source, others [`Stage::node`].
pub(super) fn site(stage: Stage, protocol: Protocol, kind: Kind, backends: &[&str]) -> Memory {
    let mut memory = stage.serving_by(protocol, backends);
    let exact = FrontendKey::exact(
        ip(stage.frontend).into(),
        Port::new(at(stage.frontend).port()),
        protocol,
    );
    let mut frontend = memory.frontends.remove(&exact).expect("the Service");
    frontend.flags = frontend.flags.union(kind.flags());
    let _none = memory.frontends.insert(kind.key(stage, protocol), frontend);
    let service = Addr::from(ip(stage.frontend));
    let _cluster_ip = match kind {
        Kind::ClusterIp => None,
        Kind::External => memory.addresses.insert(service, AddressFlags::EXTERNAL),
        Kind::NodePort => memory.addresses.remove(&service),
    };
    place(stage, &mut memory);
    memory
}

/// Makes a node of it.
pub(super) fn place(stage: Stage, memory: &mut Memory) {
    let [node, uplink] = [stage.node, stage.uplink].map(|host| ip(&with_port(host, 0)));
    let takes_node_ports = AddressFlags::NODE.union(AddressFlags::NODE_PORTS);
    memory.addresses.extend([
        (node.into(), takes_node_ports),
        (uplink.into(), AddressFlags::NODE),
    ]);
    let mut devices: Vec<_> = [LOOPBACK, UPLINK, POD, HOST]
        .map(|index| (index, device(index)))
        .into();
    if node.is_ipv4() {
        memory.settings.node_v4 = node.into();
        devices[1].1.v4 = uplink.into();
    } else {
        memory.settings.node_v6 = node.into();
        devices[1].1.v6 = uplink.into();
    }
    memory.devices.extend(devices);
    memory.settings.host_device = HOST;
    memory.settings.first_port = Port::new(MAPPED);
    memory.settings.last_port = Port::new(MAPPED);
    let [pods, backends, outside] = if node.is_ipv4() {
        ["10.0.1.0/24", "10.0.2.0/24", "198.51.100.0/24"]
    } else {
        ["fd00:1::/64", "fd00:2::/64", "2001:db8:51::/64"]
    };
    memory.routes.extend([
        (network(pods), POD),
        (network(backends), UPLINK),
        (network(outside), UPLINK),
    ]);
    for backend in &mut memory.backends {
        let is_local =
            backend.addr == ip(stage.local_backend).into() || backend.addr == uplink.into();
        if is_local {
            backend.flags = backend.flags.union(BackendFlags::IS_LOCAL);
        }
    }
}

/// The Service's frontend.
pub(super) fn frontend(
    memory: &mut Memory,
    stage: Stage,
    protocol: Protocol,
    kind: Kind,
) -> &mut Frontend {
    memory
        .frontends
        .get_mut(&kind.key(stage, protocol))
        .expect("the Service")
}

impl Stage {
    /// Whom a backend elsewhere takes for a client whose address is replaced.
    pub(super) fn mapped(&self) -> String {
        with_port(self.uplink, MAPPED)
    }

    /// Whom a pod of this node takes for such a client.
    pub(super) fn mapped_here(&self) -> String {
        with_port(self.node, MAPPED)
    }

    /// A process of this node as a client.
    pub(super) fn process(&self) -> String {
        with_port(self.node, 40_000)
    }

    /// A process of this node as a backend.
    pub(super) fn server(&self) -> String {
        with_port(self.uplink, 8_080)
    }
}

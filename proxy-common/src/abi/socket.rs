//! Sockets that are pointed at backends, and what tells how to treat them.

use bytemuck::{Pod, Zeroable};

use super::{Addr, Port};

/// An address and a port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Peer {
    /// The address.
    pub addr: Addr,
    /// The port.
    pub port: Port,
    /// Always 0.
    pub _pad: u16,
}

impl Peer {
    /// This address and port.
    #[inline(always)]
    pub const fn new(addr: Addr, port: Port) -> Self {
        Self {
            addr,
            port,
            _pad: 0,
        }
    }
}

/// What a socket that dialled a frontend talks to instead.
///
/// Value of the map `SOCKETS`, whose key is the cookie of a connected socket, and of `DATAGRAMS`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct SocketRecord {
    /// What the program dialled, and is told when it asks.
    pub frontend: Peer,
    /// What it talks to.
    pub backend: Peer,
    /// Id of the backend.
    pub id: u32,
    /// The backend's [`generation`](super::Backend::generation) when it was chosen.
    pub generation: u32,
    /// The service port.
    pub service: u32,
    /// IANA protocol number.
    pub protocol: u8,
    /// Always 0.
    pub _pad: [u8; 3],
    /// Cookie of the socket's network namespace.
    pub netns: u64,
    /// When it was pointed there or, in `DATAGRAMS`, used last: nanoseconds of `CLOCK_MONOTONIC`.
    pub last_seen: u64,
}

/// Key of the map `DATAGRAMS`: a correspondent of a UDP socket that is not connected.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct DatagramKey {
    /// The socket's cookie.
    pub cookie: u64,
    /// The frontend or the backend, by `side`.
    pub peer: Peer,
    /// A [`DatagramSide`].
    pub side: u32,
}

/// By which end a [`DatagramKey`] names a correspondence. There is one record for each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum DatagramSide {
    /// By the frontend: where the next datagram goes.
    Dialled = 0,
    /// By the backend: whose answers they are.
    Answers = 1,
}

/// Value of the map `CLIENTS`, by the cookie of a pod's network namespace: what rules ask about a
/// client before its first packet is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct SocketClient {
    /// The one IPv4 address that its packets come from; unspecified: none, or several.
    pub v4: Addr,
    /// The same for IPv6.
    pub v6: Addr,
    /// Index of the device on this node by which its packets come in; 0: none, or several.
    pub device: u32,
    /// Always 0.
    pub _pad: u32,
}

/// The one entry of the map `SOCKET_SETTINGS`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct SocketSettings {
    /// Cookie of this node's network namespace; 0: the kernel's first one (Linux before 5.14 does
    /// not tell user space).
    pub node_netns: u64,
    /// [`SocketFlags`].
    pub flags: SocketFlags,
    /// Depths in the cgroup tree at which pods' cgroups are that `PODS` names: bit 1 for children
    /// of the root.
    pub pod_levels: u32,
}

/// Switches of the socket edge, a bit set.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Pod, Zeroable)]
#[repr(transparent)]
pub struct SocketFlags(u32);

impl SocketFlags {
    /// No switch: nothing is pointed anywhere.
    pub const NONE: Self = Self(0);
    /// Sockets of this node's network namespace are served.
    pub const NODE: Self = Self(1);
    /// Sockets of pods are served.
    pub const PODS: Self = Self(1 << 1);
    /// Of pods, only those that `PODS` names without [`PodFlags::SKIP`].
    pub const KNOWN_PODS: Self = Self(1 << 2);
    /// NodePorts are served at loopback addresses of this node (rule R88).
    pub const LOCALHOST_NODE_PORTS: Self = Self(1 << 3);
}

bit_set!(SocketFlags);

/// Value of the map `PODS`, by the id of a pod's cgroup (the inode of its folder), a bit set.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Pod, Zeroable)]
#[repr(transparent)]
pub struct PodFlags(u32);

impl PodFlags {
    /// An ordinary pod.
    pub const NONE: Self = Self(0);
    /// Its sockets are left alone: its packets are translated at its device.
    pub const SKIP: Self = Self(1);
}

bit_set!(PodFlags);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_the_size_that_limits_tell() {
        assert_eq!(size_of::<SocketRecord>(), 72);
        assert_eq!(size_of::<DatagramKey>(), 32);
        assert_eq!(size_of::<SocketClient>(), 40);
        assert_eq!(size_of::<SocketSettings>(), 16);
    }
}

//! Ports that a first fragment leaves behind for the others.

use bytemuck::{Pod, Zeroable};

use super::{Addr, Port};

/// Key of the map `FRAGMENTS`: a datagram that is on its way in pieces (RFC 791, RFC 8200 4.5).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct FragmentKey {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Identification as in the header, network order; IPv4's 16 bits as a number.
    pub id: u32,
    /// IANA protocol number.
    pub protocol: u8,
    /// A [`Side`](super::Side).
    pub side: u8,
    /// Always 0.
    pub _pad: u16,
}

/// Value of the map `FRAGMENTS`. Nobody speaks from port 0 to port 0: see
/// [`FragmentPorts::REFUSED`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct FragmentPorts {
    /// Source port of the datagram.
    pub src_port: Port,
    /// Destination port of the datagram.
    pub dst_port: Port,
}

impl FragmentPorts {
    /// In place of the ports of a datagram whose first fragment was refused: the others are no use
    /// to anybody.
    pub const REFUSED: Self = Self {
        src_port: Port::new(0),
        dst_port: Port::new(0),
    };
}

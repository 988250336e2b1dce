//! The bytes of a packet.

use bytemuck::Pod;

use super::checksum::Repair;
use crate::abi::Addr;

/// Where a packet that is to be routed comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Origin {
    /// Index of the device by which it came into this node, or for one of the node's own the one by
    /// which such packets are routed.
    pub device: u32,
    /// It is one of this node's own.
    pub is_own: bool,
}

/// Where the routing table sends a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    /// To a neighbour on the device with this index.
    Neighbour(u32),
    /// Nowhere, or not past the stack.
    None,
}

#[allow(clippy::len_without_is_empty, reason = "no packet is empty")]
/// A packet from its link-layer header on.
///
/// Everything goes by value: no pointer into the packet survives a call, so neither the borrow
/// checker nor the verifier has anything to object to.
pub trait Packet {
    /// Length of the whole packet in bytes.
    fn len(&self) -> u32;

    /// Makes the first `len` bytes readable and writable, if there are so many.
    fn pull(&mut self, len: u32);

    /// Reads a value of at least two bytes at `offset`; `None` if it is not within the bytes
    /// pulled.
    fn load<T: Pod>(&self, offset: u32) -> Option<T>;

    /// Reads a value at `offset` without pulling it; `None` if it is not within the packet.
    fn peek<T: Pod>(&self, offset: u32) -> Option<T>;

    /// Writes a value of at least two bytes at `offset`; `None` if it is not within the bytes pulled.
    fn store<T: Pod>(&mut self, offset: u32, value: T) -> Option<()>;

    /// Repairs a TCP or UDP checksum.
    ///
    /// A device may have summed up a packet that it received (`CHECKSUM_COMPLETE`): what the kernel
    /// knows of that sum stays true, too.
    fn repair(&mut self, repair: &Repair) -> Option<()>;

    /// Makes the packet `len` bytes long, by cutting or extending its end, and forgets that it
    /// was several segments in one.
    fn resize(&mut self, len: u32) -> Option<()>;

    /// Index of the device that the packet comes in by or goes out by.
    fn device(&self) -> u32;

    /// Whether the packet has a VLAN tag that the kernel keeps beside it (IEEE 802.1Q).
    fn is_tagged(&self) -> bool;

    /// Whether this is several segments in one, each of which fits where the whole does not.
    fn is_segmented(&self) -> bool;

    /// Asks the routing table about a packet from `src` to `dst`, and sends the packet that way if it
    /// leaves at all.
    fn route(&mut self, src: &Addr, dst: &Addr, origin: Origin) -> Route;

    /// Sends the packet out of a device, with its link-layer header as it is.
    fn redirect_out(&mut self, device: u32);

    /// Lets the packet come in by a device.
    fn redirect_in(&mut self, device: u32);
}

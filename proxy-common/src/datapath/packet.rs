//! The bytes of a packet.

use bytemuck::Pod;

use super::checksum::Difference;

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

    /// Repairs the TCP or UDP checksum at `offset` after changes.
    ///
    /// A checksum that is still to be completed by the device covers the pseudo-header alone, so
    /// the two differences are told apart: `pseudo` is that of the addresses, `body` that of
    /// the ports. With `zero_is_none` a checksum of 0 means that there is none (RFC 768).
    fn repair(
        &mut self,
        offset: u32,
        pseudo: Difference,
        body: Difference,
        zero_is_none: bool,
    ) -> Option<()>;

    /// Makes the packet `len` bytes long, by cutting or extending its end, and forgets that it
    /// was several segments in one.
    fn resize(&mut self, len: u32) -> Option<()>;
}

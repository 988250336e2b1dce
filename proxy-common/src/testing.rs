//! Packets and tables for tests: what a kernel provides, on the host.
//!
//! [`Frame`] builds packets with checksums of its own reckoning, plain and slow, so that a packet
//! rewritten by the datapath can be compared with one built as it should be. [`Memory`] holds the
//! maps, [`Skb`] a packet in the kernel's care.

mod frame;
mod memory;
mod skb;

pub use frame::{CLIENT_MAC, Extension, Frame, Icmp, NODE_MAC, Piece, turned};
pub use memory::Memory;
pub use skb::Skb;

//! Packets, tables and scenes for tests: what a kernel provides, on the host.
//!
//! [`Frame`] builds packets with checksums of its own reckoning, plain and slow, so that a packet
//! rewritten by the datapath can be compared with one built as it should be; [`verify`] checks
//! one from scratch. [`Memory`] holds the maps, [`Skb`] a packet in the kernel's care. [`scenes`]
//! is what the datapath does, packet by packet: the host library and the compiled programs are
//! held to the same list.

mod device;
mod frame;
mod memory;
mod scene;
mod scenes;
mod skb;
mod sockets;
mod verify;

pub use device::completed;
pub use frame::{CLIENT_MAC, Extension, Frame, Icmp, NODE_MAC, Piece};
pub use memory::{Memory, network};
pub use scene::{Scene, Step, difference};
pub use scenes::scenes;
pub use skb::{Sent, Skb};
pub use sockets::SocketMemory;
pub use verify::verify;

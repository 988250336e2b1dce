//! Every decision about a packet, without a kernel.
//!
//! A program at an edge is one call: [`from_client`] for what comes in from the client's side of
//! a device, [`to_client`] for what goes out to it. Both read as prose: parse, look up, rewrite,
//! count. They see bytes through [`Packet`] and maps and clock through [`Tables`], so that the
//! kernel program, the tests and the tools run the same code.
//!
//! Rare paths are out of line (`#[inline(never)]`): the kernel gives a program and what it calls
//! 512 bytes of stack together. Such a function returns a single word, and its caller looks at it,
//! if need be by `black_box`. Otherwise the register for it holds what the compiler left there, and
//! the verifier will not have that be an address: "cannot return stack pointer to the caller" (5.10
//! to 6.18).
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

pub mod checksum;
pub mod conntrack;
pub mod crc32c;
mod egress;
mod icmp;
mod ingress;
pub mod nat;
mod open;
mod packet;
pub mod parse;
mod reply;
pub mod select;
mod tables;
#[cfg(test)]
mod tests;

pub use egress::to_client;
pub use ingress::from_client;
pub use packet::Packet;
pub use tables::{Claim, Count, Tables};

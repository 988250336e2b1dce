//! Every decision about a packet, without a kernel.
//!
//! A program is one call of [`decide`], which reads as prose: parse, look up, rewrite, count. It
//! sees bytes through [`Packet`] and maps and clock through [`Tables`], so that the
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
mod edge;
mod egress;
mod exit;
pub mod fate;
pub mod find;
mod hook;
mod icmp;
pub mod nat;
mod open;
mod packet;
pub mod parse;
pub mod policy;
mod reply;
pub mod select;
pub mod socket;
mod tables;
#[cfg(test)]
mod tests;

pub use hook::Hook;
pub use packet::{Origin, Packet, Route};
pub use tables::{Claim, Count, Draft, Sockets, Tables};

use crate::abi::Verdict;

/// Decides about a packet, rewrites it, and sends it its way if that is not the stack's.
#[inline(always)]
pub fn decide<P: Packet, T: Tables>(packet: &mut P, tables: &T, hook: Hook) -> Verdict {
    match hook {
        Hook::PodEgress => egress::to_pod(packet, tables),
        Hook::PodIngress | Hook::NodeIngress | Hook::NodeEgress => {
            edge::decide(packet, tables, hook)
        }
    }
}

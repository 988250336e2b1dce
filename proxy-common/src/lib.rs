//! What Beeline's kernel programs, daemon and tests agree on.
//!
//! [`abi`] is the layout of every BPF map. [`datapath`] is every decision about a packet, written
//! against two small traits ([`datapath::Packet`] for the bytes, [`datapath::Tables`] for maps and
//! clock), so that the very same code runs in the kernel, in unit tests and in tools.
#![cfg_attr(not(any(test, feature = "testing")), no_std)]
#![forbid(unsafe_code)]

pub mod abi;
pub mod datapath;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

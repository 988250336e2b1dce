//! Tests that need root and a kernel: real sockets in network namespaces.
//!
//! Each test makes a testbed of its own, so any number may run side by side.

mod client;
mod plain_network;

//! The datapath on the host.

mod scenes;

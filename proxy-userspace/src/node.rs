//! What this node is to the datapath: its configuration, addresses, networks and devices.
//!
//! Pure: [`tables`] turns configuration, Node object and devices into what the maps `SETTINGS`,
//! `ADDRESSES`, `NETWORKS` and `DEVICES` are to hold.

mod config;
mod sockets;
mod tables;

pub use self::config::{
    ConfigError, DetectLocal, GoneBackends, MidFlow, NodeConfig, NodePortAddresses, SourceNat,
    SourcePorts, cluster_cidrs, networks,
};
pub use self::sockets::{SocketLb, socket_flags};
pub use self::tables::{LocalDevice, NodeTables, node_port_ranges, primary_addresses, tables};

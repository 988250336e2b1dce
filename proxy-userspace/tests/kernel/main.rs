//! Tests that need root and a kernel: real sockets in network namespaces.
//!
//! Each test makes a testbed of its own, so any number may run side by side.

mod cgroups;
mod changes;
mod cli;
mod client;
mod closed_doors;
mod cluster;
mod configuration;
mod departures;
mod endpoints;
mod every_address;
mod foreign_program;
mod fragments;
mod hairpin;
mod host_edge;
mod kubernetes;
mod node_addresses;
mod options;
mod outside_clients;
mod path_mtu;
mod plain_network;
mod refusal;
mod restart;
mod sctp_sockets;
mod shared_port;
mod socket_clients;
mod socket_crowd;
mod socket_departures;
mod socket_edge;
mod socket_option;
mod socket_pods;
mod socket_programs;
mod socket_world;
mod spread;
mod test_run;
mod transfer;
mod unread;
mod vitals;
mod world;

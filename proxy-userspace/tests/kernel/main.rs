//! Tests that need root and a kernel: real sockets in network namespaces.
//!
//! Each test makes a testbed of its own, so any number may run side by side.

mod api_cluster;
#[path = "../support/api_server.rs"]
mod api_server;
mod api_trouble;
mod capacity;
mod cgroups;
mod changes;
mod cli;
mod client;
mod closed_doors;
mod cluster;
mod configuration;
mod container;
mod departures;
mod endpoints;
mod every_address;
mod foreign_program;
mod fragments;
mod hairpin;
mod hand_back;
mod host_edge;
mod kube_proxy_rules;
mod kubernetes;
mod load;
#[path = "../support/loaded.rs"]
mod loaded;
mod loss;
mod loss_crowd;
mod loss_footprint;
mod node_addresses;
mod options;
mod outside_clients;
mod path_mtu;
mod plain_network;
mod privileges;
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
mod take_over;
mod take_over_rules;
mod test_run;
mod transfer;
mod two_nodes;
mod two_nodes_world;
mod unread;
mod upgrade;
mod verified;
mod vitals;
mod world;

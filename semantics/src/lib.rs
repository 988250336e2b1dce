//! What becomes of packets to Services, described by example, held against Beeline.
//!
//! A [`case`] is a node's configuration, Kubernetes objects, packets and what must become of them.
//! It is run at two levels: [`pure`] asks the compiler and the shared packet decisions on the
//! host; [`kernel`] puts packets on the devices of a node made of network namespaces.

pub mod case;
pub mod cli;
pub mod kernel;
pub mod outcome;
pub mod pure;

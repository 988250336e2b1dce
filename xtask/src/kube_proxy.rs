//! kube-proxy 1.36: what its control plane needed.

mod peers;

pub use peers::peers;

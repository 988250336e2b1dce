//! What `cargo xtask`, the kernel tests, the examples and the cases share: nodes made of network
//! namespaces, kube-proxy's rules, numbers of tests, and what benchmarks measured.

pub mod figures;
pub mod kube_proxy;
pub mod tally;
pub mod testbed;

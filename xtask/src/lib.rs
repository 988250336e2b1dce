//! What `cargo xtask`, the kernel tests, the examples and the cases share: nodes made of network
//! namespaces, numbers of tests, and what benchmarks measured.

pub mod figures;
pub mod tally;
pub mod testbed;

//! What `cargo xtask`, the kernel tests and the cases share: nodes made of network namespaces, and
//! numbers of tests.

pub mod tally;
pub mod testbed;

//! What `cargo xtask run` and the kernel tests share: nodes made of network namespaces.

pub mod testbed;

//! Pods that the socket edge leaves to their devices: for meshes, whose sidecars must see the
//! addresses of Services.
//!
//! The programs tell pods by their cgroups, which the map `PODS` names. So, once any pod is to be
//! left out, this node's Pods have to be known and their cgroups to be found. A pod of which that
//! is not so yet is left to its device as well: translated there it is in any case.

mod keeper;
mod names;
mod selector;
mod skip;
mod tree;
mod wanted;

pub use keeper::{Handle, Keeper, PodsError};
pub use selector::{PodSelector, SelectorError};
pub use skip::{NamespaceError, Namespaces, Skip};

/// What has become of this node's pods.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct View {
    /// Pods whose sockets are pointed at backends.
    pub n_served: usize,
    /// Pods that are left out as it is wanted.
    pub n_left_out: usize,
    /// Pods whose cgroups are not found, or not yet.
    pub n_not_found: usize,
    /// For [`SocketSettings::pod_levels`](proxy_common::abi::SocketSettings::pod_levels).
    pub levels: u32,
    /// What an administrator should know.
    pub problem: Option<String>,
}

/// Whether DNS could have this between two dots.
fn is_dns_label(text: &str) -> bool {
    let is_inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&text.len())
        && text.chars().all(is_inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

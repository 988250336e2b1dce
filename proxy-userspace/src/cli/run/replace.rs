//! Whether kube-proxy's rules are removed.

use clap::Args;

/// What becomes of kube-proxy's rules.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct ReplaceArgs {
    /// Remove kube-proxy's rules once everything is in force; connections that they opened live
    /// on. kube-proxy must not run any more: while it does, its rules are left.
    #[arg(long)]
    pub(super) replace_kube_proxy: bool,
}

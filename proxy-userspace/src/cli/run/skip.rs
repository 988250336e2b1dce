//! Which pods the socket edge leaves alone.

use clap::Args;

use crate::pods::{Namespaces, PodSelector, Skip};

/// Pods whose sockets are not pointed at backends.
#[derive(Args, Debug)]
pub(super) struct SkipArgs {
    /// Namespaces whose pods see the addresses of Services, as the sidecars of a mesh must: they
    /// are served packet by packet. Has this node's Pods watched.
    #[arg(long, value_name = "NAMESPACE,…")]
    socket_lb_skip_namespaces: Option<Namespaces>,
    /// The same for pods of all namespaces with labels like these, such as
    /// `sidecar.istio.io/inject=true,app notin (a,b)`. May be given several times: a pod that one
    /// of the selectors selects is left out.
    #[arg(long, value_name = "SELECTOR")]
    socket_lb_skip_pods: Vec<PodSelector>,
}

impl SkipArgs {
    /// The pods that are meant.
    pub(super) fn skip(&self) -> Skip {
        Skip {
            namespaces: self.socket_lb_skip_namespaces.clone().unwrap_or_default(),
            selectors: self.socket_lb_skip_pods.clone(),
        }
    }
}

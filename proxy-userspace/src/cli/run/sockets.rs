//! Which sockets are pointed at backends, and where.

use std::path::PathBuf;

use clap::{ArgAction, Args};

use super::skip::SkipArgs;
use crate::node::SocketLb;

/// Which sockets are pointed at backends, and where.
#[derive(Args, Debug)]
#[command(next_help_heading = "Sockets")]
pub(super) struct SocketArgs {
    /// Whose TCP and UDP sockets are pointed at a backend once, when they connect or send, so that
    /// no packet has to be translated. Everybody else is served packet by packet.
    #[arg(long, value_enum, default_value = "all")]
    pub(super) socket_lb: SocketLb,
    /// The cgroup v2 folder whose processes' sockets are served, with all cgroups below. If not
    /// given: the root, wherever it is mounted; if it is not, in the state folder.
    #[arg(long, value_name = "DIR")]
    pub(super) cgroup_path: Option<PathBuf>,
    /// Whether this node's own processes reach NodePorts at localhost, which needs --socket-lb.
    /// Never if --nodeport-addresses has ranges and none with loopback addresses.
    #[arg(long, action = ArgAction::Set, default_value = "true")]
    pub(super) localhost_nodeports: bool,
    #[command(flatten)]
    pub(super) skip: SkipArgs,
}

impl SocketArgs {
    /// Why these arguments do not belong together, if they do not.
    pub(super) fn conflict(&self) -> Option<&'static str> {
        let serves_pods = self.socket_lb == SocketLb::All;
        (self.skip.skip().is_some() && !serves_pods).then_some(
            "--socket-lb-skip-namespaces and --socket-lb-skip-pods go with --socket-lb all only",
        )
    }
}

//! What the daemon may do: each capability that it needs and why. It gives up all others before it
//! starts a second thread, and every thread inherits what is left.
//!
//! [`NEEDS`] is the one list: the check at start, what is given up, and the DaemonSet's
//! `capabilities` go by it.

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};

use crate::loader::checks;
use crate::node::SocketLb;

/// A capability, and what it is for.
#[derive(Clone, Copy, Debug)]
pub struct Need {
    /// The capability, a single one.
    pub capability: CapabilitySet,
    /// Its name, as in `securityContext.capabilities` of a container.
    pub name: &'static str,
    /// How long it is kept.
    pub term: Term,
    /// What it is for.
    pub why: &'static str,
}

/// How long a capability is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Term {
    /// Nothing works without it: kept, and its lack is an error.
    Always,
    /// Until the limits of this process are set.
    Start,
    /// As long as sockets of pods are served.
    PodSockets,
    /// Kept if it is there, but nothing that a pod has to ask for.
    IfGiven,
}

/// All of them. `SYS_ADMIN` has all rights of `BPF` and `PERFMON` (for kernels: since there are
/// these two, 5.8), so they are not asked for besides.
pub const NEEDS: [Need; 5] = [
    Need {
        capability: CapabilitySet::NET_ADMIN,
        name: "NET_ADMIN",
        term: Term::Always,
        why: "attaching programs to devices and the cgroup; beeline0, its routes and settings; \
              kube-proxy's rules; closing sockets",
    },
    Need {
        capability: CapabilitySet::SYS_ADMIN,
        name: "SYS_ADMIN",
        term: Term::Always,
        why: "loading programs and looking at those of a device, which the kernel gives out by \
              number (bpf_prog_get_fd_by_id) to nobody else; entering the pods' network \
              namespaces, in which their sockets are closed",
    },
    Need {
        capability: CapabilitySet::SYS_PTRACE,
        name: "SYS_PTRACE",
        term: Term::PodSockets,
        why: "finding the pods' network namespaces: /proc/PID/ns is closed to others",
    },
    Need {
        capability: CapabilitySet::SYS_RESOURCE,
        name: "SYS_RESOURCE",
        term: Term::Start,
        why: "up to Linux 5.10 maps count as locked memory, the limit of which has to be lifted; \
              --oom-score-adj below what it was",
    },
    Need {
        capability: CapabilitySet::DAC_READ_SEARCH,
        name: "DAC_READ_SEARCH",
        term: Term::IfGiven,
        why: "reading manifests, a kubeconfig and a configuration that belong to another user; \
              where the kernel cannot close sockets, finding the process that has one open",
    },
];

/// Some right could not be given up.
#[derive(Debug, thiserror::Error)]
#[error("cannot give up privileges: {action}")]
pub struct PrivilegeError {
    action: &'static str,
    source: Errno,
}

fn failed(action: &'static str) -> impl Fn(Errno) -> PrivilegeError {
    move |source| PrivilegeError { action, source }
}

/// Gives up what serving sockets in this way does not take, for good; the calling thread must be
/// the only one.
///
/// # Errors
/// If the kernel refuses.
pub fn give_up_others(sockets: SocketLb) -> Result<(), PrivilegeError> {
    checks::raise_memlock();
    set_no_new_privs(true).map_err(failed("no_new_privs"))?;
    let kept = kept(sockets);
    let had = capabilities(None).map_err(failed("reading the capabilities"))?;
    bound(kept, had.effective)?;
    clear_ambient_capability_set().map_err(failed("the ambient set"))?;
    let left = CapabilitySets {
        effective: had.effective & kept,
        permitted: had.permitted & kept,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, left).map_err(failed("the permitted set"))
}

/// Takes all but these out of the bounding set. Who may not has none to win either: what a program
/// could gain from that set is barred by `no_new_privs` already.
fn bound(kept: CapabilitySet, effective: CapabilitySet) -> Result<(), PrivilegeError> {
    if !effective.contains(CapabilitySet::SETPCAP) {
        return Ok(());
    }
    for capability in (CapabilitySet::all() - kept).iter() {
        // An older kernel does not know all of them.
        if capability_is_in_bounding_set(capability) == Ok(true) {
            remove_capability_from_bounding_set(capability).map_err(failed("the bounding set"))?;
        }
    }
    Ok(())
}

/// What is kept for serving sockets in this way.
fn kept(sockets: SocketLb) -> CapabilitySet {
    let is_kept = |need: &&Need| match need.term {
        Term::Always | Term::IfGiven => true,
        Term::Start => false,
        Term::PodSockets => sockets != SocketLb::Off,
    };
    let kept = NEEDS.iter().filter(is_kept);
    kept.map(|need| need.capability).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_named_once_and_as_the_kernel_does() {
        let all: CapabilitySet = NEEDS.iter().map(|need| need.capability).collect();
        assert_eq!(all.iter().count(), NEEDS.len());
        for need in NEEDS {
            let named = CapabilitySet::from_name(need.name);
            assert_eq!(named, Some(need.capability), "{}", need.name);
        }
    }

    #[test]
    fn without_sockets_to_serve_no_process_is_looked_at() {
        let ptrace = CapabilitySet::SYS_PTRACE;
        assert!(kept(SocketLb::All).contains(ptrace));
        assert!(!kept(SocketLb::Off).contains(ptrace));
        assert!(!kept(SocketLb::All).contains(CapabilitySet::SYS_RESOURCE));
    }
}

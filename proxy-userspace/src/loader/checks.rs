//! What must be there before anything is loaded or attached, checked by trying.

use std::io;
use std::path::{Path, PathBuf};

use aya::maps::MapType;
use aya::programs::{ProgramError, ProgramType, SchedClassifier, TcAttachType};
use aya::sys::{
    BpfHelper, SyscallError, is_helper_supported, is_map_supported, is_program_supported,
};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use rustix::thread::{CapabilitySet, capabilities};

use super::netns::node_netns;
use crate::privileges::{NEEDS, Term};

/// Something that is missing, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// Too few privileges.
    #[error("missing privilege: {missing}; run as root, or give the process {needed}")]
    Privilege {
        /// The capabilities that are missing.
        missing: String,
        /// All that are needed.
        needed: String,
    },
    /// The kernel does not tell what this process may do.
    #[error("cannot find out about the capabilities of this process")]
    Capabilities(#[source] rustix::io::Errno),
    /// The folder is not there.
    #[error("no bpffs at {}: the folder does not exist; mount one with `mount -t bpf bpf DIR` and name it with --bpffs", path.display())]
    NoFolder {
        /// The folder.
        path: PathBuf,
    },
    /// The folder is on another file system.
    #[error("no bpffs at {path}: mount one with `mount -t bpf bpf {path}`, or name another with --bpffs", path = path.display())]
    NotBpffs {
        /// The folder.
        path: PathBuf,
    },
    /// The folder is on another file system, and none can be mounted over it.
    #[error("no bpffs at {path}, and none can be mounted there; mount one with `mount -t bpf bpf {path}`, or name another with --bpffs", path = path.display())]
    CannotMount {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: Errno,
    },
    /// The kernel lacks something.
    #[error("this kernel lacks {what}; Linux 5.10 or newer with {option} is needed")]
    Kernel {
        /// What it lacks.
        what: &'static str,
        /// The build options that bring it.
        option: &'static str,
    },
    /// A probe failed for another reason.
    #[error("cannot find out whether the kernel has {what}")]
    Probe {
        /// What was asked for.
        what: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file of /proc or the folder cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What this kernel offers beyond the necessary.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Features {
    /// Links at TC (Linux 6.6).
    pub tcx: bool,
    /// `bpf_ktime_get_coarse_ns` (Linux 5.11).
    pub coarse_clock: bool,
    /// `bpf_set_retval` in programs of the socket edge (Linux 5.18): what they refuse gets its
    /// own error.
    pub set_retval: bool,
    /// The kernel tells user space the cookies of network namespaces (Linux 5.14).
    pub netns_cookie: bool,
}

/// Checks everything that [`super::load`] and attaching need, and finds out about the rest.
///
/// # Errors
/// The first thing that is missing.
pub fn check(bpffs: &Path) -> Result<Features, CheckError> {
    daemon_privileges()?;
    ensure_bpffs(bpffs)?;
    raise_memlock();
    required_features()?;
    Ok(Features {
        tcx: has_tcx()?,
        coarse_clock: has_coarse_clock()?,
        set_retval: has_set_retval(),
        netns_cookie: node_netns().is_ok_and(|cookie| cookie.is_some()),
    })
}

/// Checks that this process may look at programs and maps, and at the devices that they are on.
///
/// # Errors
/// [`CheckError::Privilege`] naming what is missing.
pub fn privileges() -> Result<(), CheckError> {
    // Whoever has the latter has all rights of the former.
    let effective = effective()?;
    let bpf = if effective.contains(CapabilitySet::SYS_ADMIN) {
        CapabilitySet::SYS_ADMIN
    } else {
        CapabilitySet::BPF
    };
    require_privileges(effective, CapabilitySet::NET_ADMIN | bpf)
}

/// Checks that this process may do all that the daemon cannot do without.
fn daemon_privileges() -> Result<(), CheckError> {
    let always = NEEDS.iter().filter(|need| need.term == Term::Always);
    require_privileges(effective()?, always.map(|need| need.capability).collect())
}

fn effective() -> Result<CapabilitySet, CheckError> {
    let sets = capabilities(None).map_err(CheckError::Capabilities)?;
    Ok(sets.effective)
}

fn require_privileges(effective: CapabilitySet, needed: CapabilitySet) -> Result<(), CheckError> {
    let missing = needed - effective;
    if missing.is_empty() {
        return Ok(());
    }
    Err(CheckError::Privilege {
        missing: names(missing),
        needed: names(needed),
    })
}

/// As the kernel's documentation writes them.
fn names(capabilities: CapabilitySet) -> String {
    let names = capabilities.iter_names();
    let names: Vec<_> = names.map(|(name, _)| format!("CAP_{name}")).collect();
    names.join(" and ")
}

/// Checks that a bpffs is mounted at `path`.
///
/// # Errors
/// [`CheckError::NoFolder`] or [`CheckError::NotBpffs`].
pub fn is_bpffs(path: &Path) -> Result<(), CheckError> {
    match statfs(path) {
        Ok(found) if found.filesystem_type() == BPF_FS_MAGIC => Ok(()),
        Ok(_) => Err(CheckError::NotBpffs {
            path: path.to_owned(),
        }),
        Err(Errno::ENOENT) => Err(CheckError::NoFolder {
            path: path.to_owned(),
        }),
        Err(error) => Err(CheckError::Io {
            path: path.to_owned(),
            source: error.into(),
        }),
    }
}

/// Sees to it that a bpffs is mounted at `path`: mounts one over a folder that is empty.
///
/// # Errors
/// As [`is_bpffs`], or [`CheckError::CannotMount`].
pub fn ensure_bpffs(path: &Path) -> Result<(), CheckError> {
    match is_bpffs(path) {
        Err(CheckError::NotBpffs { .. }) if is_empty(path) => mount_bpffs(path),
        found => found,
    }
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

fn mount_bpffs(path: &Path) -> Result<(), CheckError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // As the system's own: nobody else looks in.
    let mounted = mount(Some("bpf"), path, Some("bpf"), flags, Some("mode=700"));
    mounted.map_err(|source| CheckError::CannotMount {
        path: path.to_owned(),
        source,
    })?;
    tracing::warn!(
        "no bpffs was mounted at {path}, so there is one now, in this mount namespace alone: if \
         that is a container's, the programs, Services and flows in it go whenever the container \
         ends, and connections with them; mount the node's /sys/fs/bpf into it",
        path = path.display()
    );
    Ok(())
}

/// Lifts the limit on locked memory, which maps count against up to Linux 5.10.
///
/// A refusal is no error here: newer kernels do not care, and on an older one the creation of a
/// map fails with a message of its own.
pub(crate) fn raise_memlock() {
    if let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
        tracing::debug!("cannot raise RLIMIT_MEMLOCK: {error}");
    }
}

fn required_features() -> Result<(), CheckError> {
    let program = is_program_supported(ProgramType::SchedClassifier);
    let what = "TC programs (BPF_PROG_TYPE_SCHED_CLS)";
    require(what, "CONFIG_BPF_SYSCALL and CONFIG_NET_CLS_BPF", program)?;
    let maps = [
        (MapType::Hash, "hash maps (BPF_MAP_TYPE_HASH)"),
        (MapType::LruHash, "LRU hash maps (BPF_MAP_TYPE_LRU_HASH)"),
        (
            MapType::LpmTrie,
            "longest-prefix tries (BPF_MAP_TYPE_LPM_TRIE)",
        ),
        (MapType::Array, "array maps (BPF_MAP_TYPE_ARRAY)"),
        (
            MapType::PerCpuArray,
            "per-CPU arrays (BPF_MAP_TYPE_PERCPU_ARRAY)",
        ),
    ];
    for (map, what) in maps {
        require(what, "CONFIG_BPF_SYSCALL", is_map_supported(map))?;
    }
    Ok(())
}

fn require<E: std::error::Error + Send + Sync + 'static>(
    what: &'static str,
    option: &'static str,
    answer: Result<bool, E>,
) -> Result<(), CheckError> {
    match answer {
        Ok(true) => Ok(()),
        Ok(false) => Err(CheckError::Kernel { what, option }),
        Err(error) => Err(CheckError::Probe {
            what,
            source: Box::new(error),
        }),
    }
}

fn has_coarse_clock() -> Result<bool, CheckError> {
    is_helper_supported(
        ProgramType::SchedClassifier,
        BpfHelper::BPF_FUNC_ktime_get_coarse_ns,
    )
    .map_err(|error| CheckError::Probe {
        what: "a coarse clock",
        source: Box::new(error),
    })
}

/// A kernel that does not tell has no programs of this kind at all, which loading them will show.
fn has_set_retval() -> bool {
    is_helper_supported(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval)
        .unwrap_or_default()
}

/// Asks for the programs at the loopback device: kernels without TCX do not know the question.
fn has_tcx() -> Result<bool, CheckError> {
    match SchedClassifier::query_tcx("lo", TcAttachType::Ingress) {
        Ok(_) => Ok(true),
        Err(ProgramError::SyscallError(SyscallError { io_error, .. }))
            if io_error.raw_os_error() == Some(libc::EINVAL) =>
        {
            Ok(false)
        }
        Err(error) => Err(CheckError::Probe {
            what: "TCX",
            source: Box::new(error),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        let (net, sys) = (CapabilitySet::NET_ADMIN, CapabilitySet::SYS_ADMIN);
        let said = |effective| match require_privileges(effective, net | sys) {
            Ok(()) => String::new(),
            Err(error) => error.to_string(),
        };
        assert_eq!(said(net | sys | CapabilitySet::CHOWN), "");
        let both = "run as root, or give the process CAP_NET_ADMIN and CAP_SYS_ADMIN";
        assert_eq!(
            said(net),
            format!("missing privilege: CAP_SYS_ADMIN; {both}")
        );
        assert!(said(CapabilitySet::empty()).starts_with("missing privilege: CAP_NET_ADMIN and"));
    }

    #[test]
    fn an_ordinary_folder_is_no_bpffs() {
        let error = is_bpffs(Path::new("/proc")).unwrap_err().to_string();
        assert!(error.contains("mount -t bpf bpf /proc"), "{error}");
        assert!(matches!(
            is_bpffs(Path::new("/nowhere")),
            Err(CheckError::NoFolder { .. })
        ));
    }
}

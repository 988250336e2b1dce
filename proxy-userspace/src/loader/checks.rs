//! What must be there before anything is loaded or attached, checked by trying.

use std::io;
use std::path::{Path, PathBuf};

use aya::maps::MapType;
use aya::programs::{ProgramError, ProgramType, SchedClassifier, TcAttachType};
use aya::sys::{
    BpfHelper, SyscallError, is_helper_supported, is_map_supported, is_program_supported,
};
use nix::errno::Errno;
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::netns::node_netns;

/// Numbers of `linux/capability.h`.
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_BPF: u32 = 39;

/// Something that is missing, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// Too few privileges.
    #[error(
        "missing privilege: {missing}; run as root, or give the process CAP_NET_ADMIN and CAP_BPF"
    )]
    Privilege {
        /// The capabilities that are missing.
        missing: &'static str,
    },
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
    privileges()?;
    is_bpffs(bpffs)?;
    raise_memlock();
    required_features()?;
    Ok(Features {
        tcx: has_tcx()?,
        coarse_clock: has_coarse_clock()?,
        set_retval: has_set_retval(),
        netns_cookie: node_netns().is_ok_and(|cookie| cookie.is_some()),
    })
}

/// Checks that this process may load programs and attach them to devices.
///
/// # Errors
/// [`CheckError::Privilege`] naming what is missing.
pub fn privileges() -> Result<(), CheckError> {
    let path = Path::new("/proc/thread-self/status");
    let status = std::fs::read_to_string(path).map_err(|source| CheckError::Io {
        path: path.to_owned(),
        source,
    })?;
    match missing_capabilities(effective_capabilities(&status).unwrap_or(0)) {
        Some(missing) => Err(CheckError::Privilege { missing }),
        None => Ok(()),
    }
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// Netlink asks for `CAP_NET_ADMIN` itself, whatever else is there.
fn missing_capabilities(effective: u64) -> Option<&'static str> {
    let has = |capability: u32| effective & (1 << capability) != 0;
    match (has(CAP_NET_ADMIN), has(CAP_BPF) || has(CAP_SYS_ADMIN)) {
        (true, true) => None,
        (true, false) => Some("CAP_BPF"),
        (false, true) => Some("CAP_NET_ADMIN"),
        (false, false) => Some("CAP_NET_ADMIN and CAP_BPF"),
    }
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

/// Lifts the limit on locked memory, which maps count against up to Linux 5.10.
///
/// A refusal is no error here: newer kernels do not care, and on an older one the creation of a
/// map fails with a message of its own.
fn raise_memlock() {
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
    fn capabilities_are_read_from_the_status_file() {
        let status = "Name:\tbeeline\nCapPrm:\t0000000000000000\nCapEff:\t000001ffffffffff\n";
        assert_eq!(effective_capabilities(status), Some(0x1ff_ffff_ffff));
        assert_eq!(effective_capabilities("Name:\tbeeline\n"), None);
    }

    #[test]
    fn missing_capabilities_are_named() {
        let (net, bpf, sys) = (1_u64 << 12, 1_u64 << 39, 1_u64 << 21);
        assert_eq!(missing_capabilities(net | bpf), None);
        assert_eq!(missing_capabilities(net | sys), None);
        assert_eq!(missing_capabilities(net), Some("CAP_BPF"));
        assert_eq!(missing_capabilities(sys), Some("CAP_NET_ADMIN"));
        assert_eq!(missing_capabilities(0), Some("CAP_NET_ADMIN and CAP_BPF"));
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

//! The requests of bpf(2) that aya has no method for: those about links.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

const BPF_OBJ_GET: libc::c_int = 7;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;

/// The part of `union bpf_attr` that `BPF_OBJ_GET` reads.
#[repr(C)]
struct ObjectRequest {
    path: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The part of `union bpf_attr` that `BPF_LINK_UPDATE` reads.
#[repr(C)]
struct LinkUpdate {
    link: RawFd,
    new_program: RawFd,
    flags: u32,
    old_program: u32,
}

/// The part of `union bpf_attr` that `BPF_LINK_DETACH` reads.
#[repr(C)]
struct LinkDetach {
    link: RawFd,
}

/// Opens what is pinned at `path`.
pub(in crate::loader) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let request = ObjectRequest {
        path: path.as_ptr() as u64,
        bpf_fd: 0,
        file_flags: 0,
    };
    let fd = bpf(BPF_OBJ_GET, &request)?;
    // SAFETY: the kernel has just made this descriptor, for this call alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes `program` the program of `link`, in one step.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let request = LinkUpdate {
        link: link.as_raw_fd(),
        new_program: program.as_raw_fd(),
        flags: 0,
        old_program: 0,
    };
    bpf(BPF_LINK_UPDATE, &request).map(drop)
}

/// Detaches `link` now. With the last reference to a link goes its program, too, but by a work queue
/// of the kernel's, which may take its time.
pub(in crate::loader) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let request = LinkDetach {
        link: link.as_raw_fd(),
    };
    bpf(BPF_LINK_DETACH, &request).map(drop)
}

/// Calls bpf(2) with a request that only tells the kernel something.
fn bpf<R>(command: libc::c_int, request: &R) -> io::Result<RawFd> {
    let size = size_of::<R>();
    // SAFETY: `request` is a whole structure of `size` bytes without padding, which the
    // commands above read and do not write; the string that one of them points to outlives the
    // call, and the kernel checks descriptors itself.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, request, size) };
    match RawFd::try_from(answer) {
        Ok(answer) if answer >= 0 => Ok(answer),
        _ => Err(io::Error::last_os_error()),
    }
}

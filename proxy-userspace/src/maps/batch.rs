//! Many entries of an array by one request of bpf(2), which aya has no method for (Linux 5.6).

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};

use bytemuck::Pod;

const BPF_MAP_UPDATE_BATCH: libc::c_int = 26;

/// The part of `union bpf_attr` that it reads; the kernel writes how many entries it has set to
/// `count`.
#[repr(C)]
struct Request {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: RawFd,
    entry_flags: u64,
    flags: u64,
}

/// Sets consecutive entries of the array `map`, whose values have the size of `V`. If that fails, the
/// first ones may be set.
///
/// # Errors
/// The kernel refuses, for instance because there is no such entry.
pub(super) fn set<V: Pod>(map: BorrowedFd<'_>, first: u32, values: &[V]) -> io::Result<()> {
    let keys: Vec<u32> = (first..).take(values.len()).collect();
    let count = u32::try_from(keys.len()).map_err(io::Error::other)?;
    let mut request = Request {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count,
        map: map.as_raw_fd(),
        entry_flags: 0,
        flags: 0,
    };
    let size = size_of::<Request>();
    // SAFETY: `request` is a whole structure of `size` bytes without padding, which the kernel may
    // write to; it reads `count` keys and as many values, which outlive the call, and checks the
    // descriptor itself.
    let answer =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_UPDATE_BATCH, &raw mut request, size) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

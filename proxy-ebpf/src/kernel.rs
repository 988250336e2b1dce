//! Safe wrappers over kernel helpers.

use core::ffi::c_void;

use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_F_INGRESS;
use aya_ebpf::helpers::{bpf_redirect, generated};

/// Whether the kernel has a coarse clock (5.11); set by the loader. The verifier sees a constant
/// and drops the branch not taken, so that older kernels never meet the unknown helper.
#[unsafe(no_mangle)]
static COARSE_CLOCK: Global<u8> = Global::new(0);

/// Whether the kernel lets programs at cgroups choose the error (5.18); as above.
#[unsafe(no_mangle)]
static SET_RETVAL: Global<u8> = Global::new(0);

/// Lets the system call that the program watches over fail with `ECONNREFUSED`, if the kernel can.
#[inline(always)]
pub(crate) fn refuse_connection() -> bool {
    const ECONNREFUSED: i32 = 111;
    SET_RETVAL.load() != 0 && {
        // SAFETY: no pointers.
        unsafe { generated::bpf_set_retval(-ECONNREFUSED) == 0 }
    }
}

/// The id of the cgroup of the running task, or of its ancestor at this depth; 0: it is not so deep.
#[inline(always)]
pub(crate) fn ancestor_cgroup(level: u32) -> u64 {
    // SAFETY: no pointers.
    unsafe { generated::bpf_get_current_ancestor_cgroup_id(level as i32) }
}

/// The cookie of the network namespace of a socket at a cgroup's hook.
#[inline(always)]
pub(crate) fn netns_cookie(context: *mut c_void) -> u64 {
    // SAFETY: the context of the running program.
    unsafe { generated::bpf_get_netns_cookie(context) }
}

/// The cookie of the kernel's first network namespace.
#[inline(always)]
pub(crate) fn first_netns_cookie() -> u64 {
    // SAFETY: no context stands for the first namespace.
    unsafe { generated::bpf_get_netns_cookie(core::ptr::null_mut()) }
}

/// The cookie of a socket at a cgroup's hook.
#[inline(always)]
pub(crate) fn socket_cookie(context: *mut c_void) -> u64 {
    // SAFETY: the context of the running program.
    unsafe { generated::bpf_get_socket_cookie(context) }
}

/// Nanoseconds of `CLOCK_MONOTONIC`, to within one tick where that is cheaper.
#[inline(always)]
pub(crate) fn now() -> u64 {
    if COARSE_CLOCK.load() != 0 {
        // SAFETY: no arguments, no effect.
        unsafe { generated::bpf_ktime_get_coarse_ns() }
    } else {
        // SAFETY: no arguments, no effect.
        unsafe { generated::bpf_ktime_get_ns() }
    }
}

/// The kernel's tick counter, 100 to 1,000 a second: no call, the verifier makes it a load (5.6).
#[inline(always)]
pub(crate) fn tick() -> u32 {
    // SAFETY: no arguments, no effect.
    unsafe { generated::bpf_jiffies64() as u32 }
}

/// Sends the packet out of the device with this index. Returns the action to give to the kernel.
#[inline(always)]
pub(crate) fn redirect_out(ifindex: u32) -> i32 {
    // SAFETY: no pointers; an unknown index drops the packet.
    unsafe { bpf_redirect(ifindex, 0) as i32 }
}

/// Lets the packet come in by the device with this index. Returns the action to give to the kernel.
#[inline(always)]
pub(crate) fn redirect_in(ifindex: u32) -> i32 {
    // SAFETY: as above.
    unsafe { bpf_redirect(ifindex, u64::from(BPF_F_INGRESS)) as i32 }
}

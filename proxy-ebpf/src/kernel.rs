//! Safe wrappers over kernel helpers.

use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_F_INGRESS;
use aya_ebpf::helpers::{bpf_redirect, generated};

/// Whether the kernel has a coarse clock (5.11); set by the loader. The verifier sees a constant
/// and drops the branch not taken, so that older kernels never meet the unknown helper.
#[unsafe(no_mangle)]
static COARSE_CLOCK: Global<u8> = Global::new(0);

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

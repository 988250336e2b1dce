//! A socket buffer at a TC hook.

use core::arch::asm;
use core::hint::black_box;
use core::mem::offset_of;

use aya_ebpf::bindings::{
    __sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, TC_ACT_REDIRECT, TC_ACT_UNSPEC,
};
use aya_ebpf::helpers::{
    bpf_csum_update, bpf_l4_csum_replace, bpf_skb_change_tail, bpf_skb_load_bytes,
    bpf_skb_pull_data,
};
use aya_ebpf::programs::TcContext;
use bytemuck::Pod;
use proxy_common::abi::{Addr, Family};
use proxy_common::datapath::checksum::{Difference, Repair, was_complete};
use proxy_common::datapath::{Hook, Origin, Packet, Route};

use super::fib;
use crate::kernel;

/// No header is further away: six IPv6 extensions of 2 KiB at the very most.
const MAX_OFFSET: u32 = 0x3fff;

/// A packet that is read and written where it lies.
pub(crate) struct Skb {
    raw: *mut __sk_buff,
    /// What the kernel is to do with it.
    action: i32,
    /// It comes from a device that may have summed it up.
    is_received: bool,
}

impl Skb {
    #[inline(always)]
    pub(crate) fn new(context: &TcContext, hook: Hook) -> Self {
        Self {
            raw: context.skb.skb,
            action: TC_ACT_UNSPEC,
            is_received: hook == Hook::NodeIngress,
        }
    }

    /// What the kernel is to do with the packet, unless it is dropped.
    #[inline(always)]
    pub(crate) fn action(&self) -> i32 {
        self.action
    }

    /// Begin and end of the linear part, read afresh each time, since helpers move it.
    ///
    /// By hand, since the fields are 32 bits wide and LLVM computes with that: "R4 pointer
    /// arithmetic with <<= operator prohibited" (5.10 to 6.18). The kernel replaces these loads
    /// by loads of whole pointers.
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        const DATA: usize = offset_of!(__sk_buff, data);
        const DATA_END: usize = offset_of!(__sk_buff, data_end);
        let (data, end): (usize, usize);
        // SAFETY: the kernel hands out a valid context for the length of the program.
        unsafe {
            asm!(
                "{data} = *(u32 *)({skb} + {DATA})",
                "{end} = *(u32 *)({skb} + {DATA_END})",
                skb = in(reg) self.raw,
                data = out(reg) data,
                end = lateout(reg) end,
                DATA = const DATA,
                DATA_END = const DATA_END,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        (data, end)
    }

    /// Lets the kernel, which knows whether a checksum is complete, take a difference into it.
    #[inline(always)]
    fn replace_checksum(
        &mut self,
        repair: &Repair,
        difference: Difference,
        flags: u64,
    ) -> Option<()> {
        let difference = u64::from(difference.fold32());
        // SAFETY: the context is valid, and the helper checks the offset.
        let done = unsafe { bpf_l4_csum_replace(self.raw, repair.offset, 0, difference, flags) };
        (done == 0).then_some(())
    }

    /// Adds to the sum of the whole packet, if the device that received it made one
    /// (`CHECKSUM_COMPLETE`). An IPv4 header has a checksum of its own that makes up for other
    /// addresses, an IPv6 header has not.
    #[inline(always)]
    fn adjust_sum(&mut self, difference: u32) {
        if self.is_received {
            // SAFETY: the context is valid. Nothing happens if there is no such sum.
            let _sum = unsafe { bpf_csum_update(self.raw, difference) };
        }
    }

    /// The `T` at `offset`, if all of it lies in the linear part.
    #[inline(always)]
    fn at<T: Pod>(&self, offset: u32) -> Option<*mut T> {
        // LLVM makes `start + 1 <= end` into `start < end`, from which no verifier concludes that
        // one byte may be read: "R5 offset is outside of the packet" (5.10 to 6.18).
        const { assert!(size_of::<T>() > 1, "read at least two bytes") };
        let (data, end) = self.bounds();
        let start = data + bounded(offset);
        (start + size_of::<T>() <= end).then_some(start as *mut T)
    }
}

impl Packet for Skb {
    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: as in `ifindex`.
        unsafe { (*self.raw).len }
    }

    #[inline(always)]
    fn pull(&mut self, len: u32) {
        if self.at::<[u8; 2]>(len - 2).is_none() && self.len() >= len {
            // SAFETY: the context is valid. All pointers into the packet are made anew by `at`.
            // What could not be pulled is found missing when it is read.
            let _pulled = unsafe { bpf_skb_pull_data(self.raw, len) };
        }
    }

    #[inline(always)]
    fn load<T: Pod>(&self, offset: u32) -> Option<T> {
        let at = self.at::<T>(offset)?;
        // SAFETY: `at` has checked the bounds, the verifier checks them again, and any bytes are
        // a `T`. A packet's fields lie at even addresses at least, which BPF loads accept for
        // every width wherever the kernel does not make up for it by NET_IP_ALIGN.
        Some(unsafe { at.read() })
    }

    #[inline(always)]
    fn peek<T: Pod>(&self, offset: u32) -> Option<T> {
        self.load(offset).or_else(|| {
            let mut value = T::zeroed();
            let to: *mut T = &raw mut value;
            // SAFETY: the context is valid, the helper checks `offset`, and `value` has room for as
            // many bytes as are asked for.
            let done = unsafe {
                bpf_skb_load_bytes(self.raw.cast(), offset, to.cast(), size_of::<T>() as u32)
            };
            (done == 0).then_some(value)
        })
    }

    #[inline(always)]
    fn store<T: Pod>(&mut self, offset: u32, value: T) -> Option<()> {
        let at = self.at::<T>(offset)?;
        // SAFETY: as in `load`; the kernel makes the linear part private before the first write.
        unsafe { at.write(value) };
        Some(())
    }

    #[inline(always)]
    fn repair(&mut self, repair: &Repair) -> Option<()> {
        let before: u16 = self.load(repair.offset)?;
        if repair.is_none(before) {
            return Some(());
        }
        // A helper costs more than all the rest of a rewrite. Whether several segments in one have a
        // plain pseudo-header is for the kernel to know.
        if repair.is_complete(before) && !self.is_segmented() {
            if repair.family == Family::Ipv4 {
                self.adjust_sum(!repair.pseudo.fold32());
            }
            return self.store(repair.offset, repair.of_complete(before));
        }
        let mangled = if repair.zero_is_none {
            u64::from(BPF_F_MARK_MANGLED_0)
        } else {
            0
        };
        self.replace_checksum(repair, repair.pseudo, u64::from(BPF_F_PSEUDO_HDR) | mangled)?;
        if repair.family == Family::Ipv6 {
            // The kernel took the addresses to be in no header that is part of the sum.
            self.adjust_sum(repair.pseudo.fold32());
        }
        // The second call is mostly spared, too.
        let after: u16 = self.load(repair.offset)?;
        match was_complete(before, after, repair.pseudo) {
            Some(false) => Some(()),
            Some(true) => {
                let repaired = repair.stored(repair.body.applied_to(after));
                self.store(repair.offset, repaired)
            }
            None => self.replace_checksum(repair, repair.body, mangled),
        }
    }

    #[inline(always)]
    fn resize(&mut self, len: u32) -> Option<()> {
        // SAFETY: the context is valid; all pointers into the packet are made anew by `at`.
        let done = unsafe { bpf_skb_change_tail(self.raw, len, 0) };
        (done == 0).then_some(())
    }

    #[inline(always)]
    fn device(&self) -> u32 {
        // Volatile, or LLVM makes one load of this and of a field of a map's value behind a choice of
        // pointers: "same insn cannot be used with different pointers" (5.10 to 6.18).
        // SAFETY: the kernel hands out a valid context for the length of the program.
        unsafe { (&raw const (*self.raw).ifindex).read_volatile() }
    }

    #[inline(always)]
    fn is_tagged(&self) -> bool {
        // SAFETY: as in `device`.
        unsafe { (*self.raw).vlan_present != 0 }
    }

    #[inline(always)]
    fn is_segmented(&self) -> bool {
        // SAFETY: as in `device`.
        unsafe { (*self.raw).gso_size != 0 }
    }

    #[inline(always)]
    fn route(&mut self, src: &Addr, dst: &Addr, origin: Origin) -> Route {
        match black_box(fib::route(self.raw, src, dst, origin)) {
            0 => Route::None,
            device => {
                self.action = TC_ACT_REDIRECT;
                Route::Neighbour(device)
            }
        }
    }

    #[inline(always)]
    fn redirect_out(&mut self, device: u32) {
        self.action = kernel::redirect_out(device);
    }

    #[inline(always)]
    fn redirect_in(&mut self, device: u32) {
        self.action = kernel::redirect_in(device);
    }
}

/// The offset, with a bound that the verifier sees.
///
/// By hand, since LLVM leaves out a mask that it can prove needless, but keeps what it knows in
/// 32 bits on the stack, where the verifier forgets it: "R3 offset is outside of the packet"
/// (5.10 to 6.18).
#[inline(always)]
fn bounded(offset: u32) -> usize {
    let mut bounded = offset as usize;
    // SAFETY: arithmetic on a register.
    unsafe {
        asm!(
            "{bounded} &= {MAX_OFFSET}",
            bounded = inout(reg) bounded,
            MAX_OFFSET = const MAX_OFFSET,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    bounded
}

//! The kernel's routing table.

use core::ffi::c_long;
use core::ptr::null_mut;

use aya_ebpf::bindings::{__sk_buff, bpf_fib_lookup, bpf_redir_neigh};
use aya_ebpf::helpers::generated;
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use proxy_common::abi::Addr;
use proxy_common::datapath::Origin;

/// `AF_INET`.
const IPV4: u8 = 2;
/// `AF_INET6`.
const IPV6: u8 = 10;

/// `BPF_FIB_LKUP_RET_SUCCESS`.
const FOUND: c_long = 0;
/// `BPF_FIB_LKUP_RET_NO_NEIGH`: the way is known, the neighbour's link-layer address is not.
const NO_NEIGHBOUR: c_long = 7;
/// `BPF_FIB_LKUP_RET_FRAG_NEEDED`: the way is known, this packet does not fit.
const TOO_LONG: c_long = 8;

/// A question to the routing table, and its answer: the stack has no room for them.
#[repr(C)]
struct Scratch {
    way: bpf_fib_lookup,
    neighbour: bpf_redir_neigh,
}

#[map]
static ROUTE: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// Asks the routing table for the way of a packet from `src` to `dst`, and sends the packet that way
/// if it leaves. Returns the index of the device by which it would leave, or 0.
///
/// One of this node's own has been routed before, and keeps that route until the kernel looks for
/// another one itself, which it does if it is not told the neighbour. Otherwise a packet that
/// has to wait for the neighbour's link-layer address is sent to the old route's neighbour in the
/// end (`neigh_update_process_arp_queue`, 5.10 to 6.18).
#[inline(never)]
pub(super) fn route(skb: *mut __sk_buff, src: &Addr, dst: &Addr, origin: Origin) -> u32 {
    let Some(scratch) = ROUTE.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: this CPU's own value; programs at the same hook do not interrupt each other.
    let Scratch { way, neighbour } = unsafe { &mut *scratch };
    let is_v4 = dst.is_v4();
    way.family = if is_v4 { IPV4 } else { IPV6 };
    way.l4_protocol = 0;
    way.sport = 0;
    way.dport = 0;
    way.__bindgen_anon_1.tot_len = 0;
    way.__bindgen_anon_2.flowinfo = 0;
    way.ifindex = origin.device;
    way.__bindgen_anon_3.ipv6_src = src.words();
    way.__bindgen_anon_4.ipv6_dst = dst.words();
    if is_v4 {
        way.__bindgen_anon_3.ipv4_src = src.v4_word();
        way.__bindgen_anon_4.ipv4_dst = dst.v4_word();
    }
    let len = size_of::<bpf_fib_lookup>() as i32;
    // SAFETY: context and parameters are valid, and the length is theirs.
    let found = unsafe { generated::bpf_fib_lookup(skb.cast(), &raw mut *way, len, 0) };
    if !matches!(found, FOUND | NO_NEIGHBOUR | TOO_LONG) {
        return 0;
    }
    let device = way.ifindex;
    if origin.is_own {
        // SAFETY: without parameters the kernel looks for the neighbour itself.
        let _redirect = unsafe { generated::bpf_redirect_neigh(device, null_mut(), 0, 0) };
        return device;
    }
    neighbour.nh_family = u32::from(way.family);
    // SAFETY: plain bytes; an IPv4 address is the first of the four words.
    neighbour.__bindgen_anon_1.ipv6_nh = unsafe { way.__bindgen_anon_4.ipv6_dst };
    let len = size_of::<bpf_redir_neigh>() as i32;
    // SAFETY: the parameters are valid, and the length is theirs.
    let _redirect = unsafe { generated::bpf_redirect_neigh(device, &raw mut *neighbour, len, 0) };
    device
}

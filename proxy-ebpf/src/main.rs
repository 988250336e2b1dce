//! Beeline's kernel programs.
//!
//! Each program is a thin entry point: it wraps its context as a
//! [`Packet`](proxy_common::datapath::Packet), lets [`proxy_common::datapath`] decide, counts the
//! verdict and turns it into an action. All the `unsafe` of the datapath is in [`context`],
//! [`maps`] and [`kernel`].
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![deny(unused_results)]

#[cfg(target_arch = "bpf")]
mod context;
#[cfg(target_arch = "bpf")]
mod kernel;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod sock;
#[cfg(target_arch = "bpf")]
mod tc;

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier accepts no program that could get here.
    loop {}
}

/// Several helpers are for programs under the GPL only.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {}

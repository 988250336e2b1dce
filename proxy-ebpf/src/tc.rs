//! Programs at TC hooks.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::warn;
use proxy_common::abi::{Drop, Verdict};
use proxy_common::datapath::{Hook, Packet as _, decide};

use crate::context::Skb;
use crate::maps::{self, Maps};

/// TC ingress of a pod's host-side device: what the pod sends.
#[classifier]
pub(crate) fn pod_ingress(context: TcContext) -> i32 {
    run(&context, Hook::PodIngress)
}

/// TC egress of a pod's host-side device: what the pod gets.
#[classifier]
pub(crate) fn pod_egress(context: TcContext) -> i32 {
    run(&context, Hook::PodEgress)
}

/// TC ingress of a device that leads to other machines: what they send.
#[classifier]
pub(crate) fn node_ingress(context: TcContext) -> i32 {
    run(&context, Hook::NodeIngress)
}

/// TC egress of a device that leads to other machines, of `lo` and of `beeline0`: answers to other
/// machines, and what this node's own processes send.
#[classifier]
pub(crate) fn node_egress(context: TcContext) -> i32 {
    run(&context, Hook::NodeEgress)
}

#[inline(always)]
fn run(context: &TcContext, hook: Hook) -> i32 {
    let mut packet = Skb::new(context, hook);
    let verdict = decide(&mut packet, &Maps, hook);
    conclude(context, &packet, verdict)
}

/// Counts the verdict and turns it into an action.
///
/// A packet that stays on its way goes to the next program on the device, whosever it is:
/// `TC_ACT_OK` would hide it from filters behind this one.
#[inline(always)]
fn conclude(context: &TcContext, packet: &Skb, verdict: Verdict) -> i32 {
    let before = maps::count_outcome(verdict);
    match verdict {
        Verdict::Pass(_) => TC_ACT_UNSPEC,
        Verdict::Rewrite(_) | Verdict::Reply(_) => packet.action(),
        Verdict::Drop(reason) => {
            if before.is_multiple_of(DROPS_PER_LINE) {
                let _said = core::hint::black_box(say_dropped(context, packet.device(), reason));
            }
            TC_ACT_SHOT
        }
    }
}

/// Dropped packets of one reason on one CPU for each line in the log: no flood of packets makes a
/// flood of lines.
const DROPS_PER_LINE: u64 = 1024;

/// Tells the daemon's log of a dropped packet.
#[inline(never)]
fn say_dropped(context: &TcContext, ifindex: u32, reason: Drop) -> bool {
    warn!(
        context,
        "device {}: packet dropped: {}",
        ifindex,
        reason.name()
    );
    true
}

//! Programs at TC hooks: the pod edge.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::warn;
use proxy_common::abi::{Drop, Verdict};
use proxy_common::datapath::{from_client, to_client};

use crate::context::Skb;
use crate::kernel;
use crate::maps::{self, Maps};

/// TC ingress of a pod's host-side device: what the pod sends.
#[classifier]
pub(crate) fn pod_ingress(context: TcContext) -> i32 {
    let mut packet = Skb::new(&context);
    let verdict = from_client(&mut packet, &Maps);
    conclude(&context, &packet, verdict)
}

/// TC egress of a pod's host-side device: what the pod gets.
#[classifier]
pub(crate) fn pod_egress(context: TcContext) -> i32 {
    let mut packet = Skb::new(&context);
    let verdict = to_client(&mut packet, &Maps);
    conclude(&context, &packet, verdict)
}

/// Counts the verdict and turns it into an action.
///
/// A packet that stays on its way goes to the next program on the device, whosever it is:
/// `TC_ACT_OK` would hide it from filters behind this one.
#[inline(always)]
fn conclude(context: &TcContext, packet: &Skb, verdict: Verdict) -> i32 {
    let before = maps::count_outcome(verdict);
    match verdict {
        returned if returned.is_returned() => kernel::redirect(packet.ifindex()),
        Verdict::Pass(_) | Verdict::Rewrite(_) => TC_ACT_UNSPEC,
        Verdict::Reply(_) => TC_ACT_SHOT,
        Verdict::Drop(reason) => {
            if before.is_multiple_of(DROPS_PER_LINE) {
                let _said = core::hint::black_box(say_dropped(context, packet.ifindex(), reason));
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

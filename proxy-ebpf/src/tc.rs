//! Programs at TC hooks: the pod edge.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use proxy_common::abi::Verdict;
use proxy_common::datapath::{from_client, to_client};

use crate::context::Skb;
use crate::kernel;
use crate::maps::{self, Maps};

/// TC ingress of a pod's host-side device: what the pod sends.
#[classifier]
pub(crate) fn pod_ingress(context: TcContext) -> i32 {
    let mut packet = Skb::new(&context);
    let verdict = from_client(&mut packet, &Maps);
    conclude(&packet, verdict)
}

/// TC egress of a pod's host-side device: what the pod gets.
#[classifier]
pub(crate) fn pod_egress(context: TcContext) -> i32 {
    let mut packet = Skb::new(&context);
    let verdict = to_client(&mut packet, &Maps);
    conclude(&packet, verdict)
}

/// Counts the verdict and turns it into an action.
///
/// A packet that stays on its way goes to the next program on the device, whosever it is:
/// `TC_ACT_OK` would hide it from filters behind this one.
#[inline(always)]
fn conclude(packet: &Skb, verdict: Verdict) -> i32 {
    maps::count_outcome(verdict);
    match verdict {
        returned if returned.is_returned() => kernel::redirect(packet.ifindex()),
        Verdict::Pass(_) | Verdict::Rewrite(_) => TC_ACT_UNSPEC,
        Verdict::Reply(_) | Verdict::Drop(_) => TC_ACT_SHOT,
    }
}

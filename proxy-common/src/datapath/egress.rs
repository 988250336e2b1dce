//! What goes out to a pod.

use super::conntrack::touch;
use super::edge::{Class, classify};
use super::parse::Headers;
use super::{Count, Hook, Packet, Tables, icmp, nat};
use crate::abi::{Pass, Rewrite, Side, Verdict};

/// Decides about a packet to a pod, and rewrites it if it answers one of the pod's flows.
#[inline(always)]
pub(super) fn to_pod<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let mut verdict = Verdict::Pass(Pass::NoService);
    let mut headers = Headers::seen_at(Side::Egress as u8);
    match classify(packet, tables, &mut headers) {
        Class::Segment => {}
        Class::Icmp => {
            return if icmp::translate(packet, tables, Hook::PodEgress, &headers, &mut verdict) {
                verdict
            } else {
                Verdict::Pass(Pass::UnrelatedError)
            };
        }
        Class::Other(reason) => return Verdict::Pass(reason),
    }
    if !tables.has_flows(&headers.key.tuple.dst) {
        return Verdict::Pass(Pass::NoService);
    }
    let translated = tables.with_flow(&headers.key, |flow| {
        if let Err(drop) = nat::rewrite(packet, tables, &headers, &flow.to) {
            return Verdict::Drop(drop);
        }
        touch(tables, flow, headers.key.protocol, headers.signal());
        tables.count(flow.service, packet.len(), Count::Packet);
        Verdict::Rewrite(Rewrite::Reverse)
    });
    translated.unwrap_or(Verdict::Pass(Pass::NoService))
}

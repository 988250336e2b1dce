//! What goes out to the client's side of a device.

use super::conntrack::touch;
use super::ingress::{Class, classify, key};
use super::parse::Headers;
use super::{Count, Packet, Tables, icmp, nat};
use crate::abi::{Pass, Rewrite, Side, Verdict};

/// Decides about a packet to a client, and rewrites it if it comes from a Service's backend.
#[inline(always)]
pub fn to_client<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let mut headers = Headers::EMPTY;
    let protocol = match classify(packet, tables, Side::Egress, &mut headers) {
        Class::Segment(protocol) => protocol,
        Class::Icmp => return icmp::translate(packet, tables, &headers, Side::Egress),
        Class::Other(reason) => return Verdict::Pass(reason),
    };
    let verdict = tables.with_flow(&key(&headers, Side::Egress), |flow| {
        if let Err(drop) = nat::rewrite(packet, tables, &headers, protocol, &flow.to) {
            return Verdict::Drop(drop);
        }
        touch(tables, flow, protocol.number(), headers.signal);
        tables.count(flow.service, packet.len(), Count::Packet);
        Verdict::Rewrite(Rewrite::Reverse)
    });
    verdict.unwrap_or(Verdict::Pass(Pass::NoService))
}

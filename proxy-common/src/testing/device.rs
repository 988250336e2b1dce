//! What a device does to a packet whose checksum was left to it.

use super::frame::{crc32c, sum};
use crate::abi::Protocol;

/// Completes a checksum as `skb_checksum_help` and `skb_crc32c_csum_help` in the kernel's
/// `net/core/dev.c` do: over everything from where the transport header was in the packet
/// `before`, into the field that its protocol has, whatever stands there in the packet `after`.
///
/// `before` has neither IPv4 options nor IPv6 extension headers.
pub fn completed(before: &[u8], after: &[u8]) -> Vec<u8> {
    let is_v4 = before[12] == 0x08;
    let (start, number) = if is_v4 {
        (34, before[23])
    } else {
        (54, before[20])
    };
    let mut frame = after.to_vec();
    let part = &mut frame[start..];
    match Protocol::from_number(number).expect("no extension headers") {
        Protocol::Sctp => {
            part[8..12].fill(0);
            let crc = crc32c(part);
            part[8..12].copy_from_slice(&crc.to_le_bytes());
        }
        Protocol::Tcp => complete(part, 16),
        Protocol::Udp => complete(part, 6),
    }
    frame
}

fn complete(part: &mut [u8], at: usize) {
    let checksum = match !sum(part) {
        0 => 0xffff,
        checksum => checksum,
    };
    part[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

//! Rewriting addresses and ports, checksums included.

use super::checksum::{Repair, Sum, pseudo_header};
use super::parse::{Fragment, Headers, ip_header_len};
use super::{Packet, Tables, crc32c};
use crate::abi::{Addr, Drop, Family, Protocol, Tuple};

/// Offset of the checksum in a TCP header.
pub const TCP_CHECKSUM: u32 = 16;
/// Offset of the checksum in a UDP header.
pub const UDP_CHECKSUM: u32 = 6;
/// Offset of the checksum in an SCTP header.
pub const SCTP_CHECKSUM: u32 = 8;

/// Gives the packet the addresses and ports of `to`.
///
/// # Errors
///
/// The packet cannot be written, or is a piece of an SCTP packet whose ports would change: the
/// CRC32c covers the whole packet, whose length no piece tells.
#[inline(always)]
pub fn rewrite<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    headers: &Headers,
    to: &Tuple,
) -> Result<(), Drop> {
    let addresses = addresses(packet, headers, &to.src, &to.dst).ok_or(Drop::Write)?;
    if headers.fragment() == Fragment::Later {
        return Ok(());
    }
    let from = ports(&headers.key.tuple);
    let to = ports(to);
    match headers.protocol() {
        Some(protocol @ (Protocol::Tcp | Protocol::Udp)) => {
            let is_udp = protocol == Protocol::Udp;
            let checksum = headers.l4 + if is_udp { UDP_CHECKSUM } else { TCP_CHECKSUM };
            let repair = Repair {
                offset: checksum,
                family: headers.family(),
                pseudo: addresses,
                body: Sum::ZERO.change32(from, to),
                zero_is_none: is_udp,
                seed: pseudo_header(headers, headers.key.protocol, headers.l4_len),
                options: headers.l4 - headers.l3 - ip_header_len(headers.family()),
            };
            packet
                .store(headers.l4, to)
                .and_then(|()| packet.repair(&repair))
                .ok_or(Drop::Write)
        }
        Some(Protocol::Sctp) if from == to => Ok(()),
        Some(Protocol::Sctp) if headers.fragment() == Fragment::First => Err(Drop::SctpFragment),
        Some(Protocol::Sctp) => sctp_ports(packet, tables, headers, from, to).ok_or(Drop::Write),
        // A flow of another protocol has no record.
        None => Err(Drop::Inconsistent),
    }
}

/// Both ports as they stand at the start of every transport header.
#[inline(always)]
fn ports(tuple: &Tuple) -> u32 {
    bytemuck::cast([tuple.src_port.network(), tuple.dst_port.network()])
}

/// Rewrites the addresses and, for IPv4, the header's checksum. Returns their difference.
#[inline(always)]
pub fn addresses<P: Packet>(
    packet: &mut P,
    headers: &Headers,
    src: &Addr,
    dst: &Addr,
) -> Option<Sum> {
    let from = &headers.key.tuple;
    match headers.family() {
        Family::Ipv4 => {
            let difference = Sum::ZERO
                .change32(from.src.v4_word(), src.v4_word())
                .change32(from.dst.v4_word(), dst.v4_word());
            let checksum: u16 = packet.load(headers.l3 + 10)?;
            packet.store(headers.l3 + 10, difference.applied_to(checksum))?;
            packet.store(headers.l3 + 12, [src.v4_word(), dst.v4_word()])?;
            Some(difference)
        }
        Family::Ipv6 => {
            packet.store(headers.l3 + 8, [*src, *dst])?;
            Some(
                Sum::ZERO
                    .change128(from.src.words(), src.words())
                    .change128(from.dst.words(), dst.words()),
            )
        }
    }
}

/// Rewrites the ports of an SCTP packet. Its checksum knows nothing of addresses.
#[inline(always)]
fn sctp_ports<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    headers: &Headers,
    from: u32,
    to: u32,
) -> Option<()> {
    let at = headers.l4 + SCTP_CHECKSUM;
    let checksum: u32 = packet.load(at)?;
    // 0: the device is still to fill it in, from the ports that it finds then.
    if checksum != 0 {
        let shift = tables.crc_shift(headers.l4_len)?;
        packet.store(at, checksum ^ crc32c::difference(from, to, shift))?;
    }
    packet.store(headers.l4, to)
}

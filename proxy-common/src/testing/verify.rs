//! Checks a frame from scratch, whoever made it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::frame::{crc32c, pseudo_header, sum};

/// Checks lengths and every checksum of an Ethernet frame with a whole IP packet.
///
/// ICMP errors are checked as such; what they quote is not looked at.
///
/// # Errors
///
/// What is wrong with it.
pub fn verify(frame: &[u8]) -> Result<(), String> {
    let packet = frame.get(14..).ok_or("no IP header")?;
    match frame[12..14] {
        [0x08, 0x00] => ipv4(packet),
        [0x86, 0xdd] => ipv6(packet),
        _ => Err("not IP".into()),
    }
}

fn ipv4(packet: &[u8]) -> Result<(), String> {
    let header_len = usize::from(packet[0] & 0xf) * 4;
    let total_len = usize::from(word(packet, 2));
    if total_len != packet.len() {
        return Err(format!("IPv4 length {total_len}, packet {}", packet.len()));
    }
    let (header, transport) = packet.split_at(header_len);
    if sum(header) != 0xffff {
        return Err("IPv4 header checksum".into());
    }
    let src = Ipv4Addr::from(<[u8; 4]>::try_from(&header[12..16]).expect("four bytes"));
    let dst = Ipv4Addr::from(<[u8; 4]>::try_from(&header[16..20]).expect("four bytes"));
    transport_checksum(src.into(), dst.into(), header[9], transport)
}

fn ipv6(packet: &[u8]) -> Result<(), String> {
    let (header, mut rest) = packet.split_at(40);
    let payload_len = usize::from(word(header, 4));
    if payload_len != rest.len() {
        return Err(format!("IPv6 length {payload_len}, payload {}", rest.len()));
    }
    let mut next = header[6];
    while matches!(next, 0 | 43 | 51 | 60) {
        let len = match next {
            51 => (usize::from(rest[1]) + 2) * 4,
            _ => (usize::from(rest[1]) + 1) * 8,
        };
        next = rest[0];
        rest = &rest[len..];
    }
    let src = Ipv6Addr::from(<[u8; 16]>::try_from(&header[8..24]).expect("16 bytes"));
    let dst = Ipv6Addr::from(<[u8; 16]>::try_from(&header[24..40]).expect("16 bytes"));
    transport_checksum(src.into(), dst.into(), next, rest)
}

fn transport_checksum(src: IpAddr, dst: IpAddr, protocol: u8, bytes: &[u8]) -> Result<(), String> {
    let pseudo = pseudo_header(src, dst, protocol, bytes.len());
    let is_right = match protocol {
        1 => sum(bytes) == 0xffff,
        17 if word(bytes, 6) == 0 => src.is_ipv4(),
        6 | 17 | 58 => sum(&[&pseudo, bytes].concat()) == 0xffff,
        132 => {
            let mut blank = bytes.to_vec();
            blank[8..12].fill(0);
            crc32c(&blank).to_le_bytes() == bytes[8..12]
        }
        other => return Err(format!("protocol {other}")),
    };
    if is_right {
        Ok(())
    } else {
        Err(format!("checksum of protocol {protocol}"))
    }
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

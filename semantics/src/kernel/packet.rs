//! What a captured packet says, as far as a runner wants to know.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use proxy_common::testing::verify;

use crate::case::Protocol;

/// TCP flags.
pub(super) const FIN: u8 = 0x01;
/// See [`FIN`].
pub(super) const SYN: u8 = 0x02;
/// See [`FIN`].
pub(super) const RST: u8 = 0x04;
/// See [`FIN`].
pub(super) const PSH: u8 = 0x08;
/// See [`FIN`].
pub(super) const ACK: u8 = 0x10;

const ETHERNET: usize = 14;

/// A packet.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// Link-layer destination; not known of packets that were delivered.
    pub(super) to_mac: Option<[u8; 6]>,
    pub(super) src: IpAddr,
    pub(super) dst: IpAddr,
    pub(super) body: Body,
    /// What is wrong with lengths and checksums; not known of packets that were delivered.
    pub(super) wrong: Option<String>,
}

/// What the IP header is followed by.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Body {
    Transport(Transport),
    /// An ICMP error, of either family: type, code, and what it quotes.
    Error {
        kind: [u8; 2],
        quote: Vec<u8>,
    },
}

/// TCP, UDP or SCTP.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Transport {
    pub(super) protocol: Protocol,
    pub(super) src_port: u16,
    pub(super) dst_port: u16,
    /// TCP's flags.
    pub(super) flags: u8,
    /// TCP's sequence number, or SCTP's verification tag.
    pub(super) seq: u32,
    /// TCP's acknowledgement number.
    pub(super) ack: u32,
    /// What TCP or UDP carry; SCTP's chunks.
    pub(super) payload: Vec<u8>,
}

impl Seen {
    /// Reads an Ethernet frame; `None` if it holds nothing of interest.
    pub(super) fn frame(bytes: &[u8]) -> Option<Self> {
        let mut seen = match bytes.get(12..ETHERNET)? {
            [0x08, 0x00] => Self::ipv4(&bytes[ETHERNET..])?,
            [0x86, 0xdd] => Self::ipv6(&bytes[ETHERNET..])?,
            _ => return None,
        };
        seen.to_mac = Some(bytes[..6].try_into().ok()?);
        seen.wrong = verify(bytes).err();
        Some(seen)
    }

    /// Reads an IPv4 packet.
    pub(super) fn ipv4(packet: &[u8]) -> Option<Self> {
        let header = packet.get(..20)?;
        let address = |at| Some(Ipv4Addr::from(array::<4>(header, at)?).into());
        let body = packet.get(usize::from(header[0] & 0xf) * 4..)?;
        Self::of(address(12)?, address(16)?, header[9], body)
    }

    /// Reads an IPv6 packet without extension headers.
    fn ipv6(packet: &[u8]) -> Option<Self> {
        let header = packet.get(..40)?;
        let address = |at| Some(Ipv6Addr::from(array::<16>(header, at)?).into());
        Self::of(address(8)?, address(24)?, header[6], &packet[40..])
    }

    /// Reads what an IP header that says this is followed by.
    pub(super) fn of(src: IpAddr, dst: IpAddr, protocol: u8, bytes: &[u8]) -> Option<Self> {
        let body = match (protocol, src) {
            (1, IpAddr::V4(_)) if matches!(bytes.first()?, 3 | 11) => error(bytes)?,
            (58, IpAddr::V6(_)) if *bytes.first()? < 128 => error(bytes)?,
            _ => Body::Transport(Transport::read(protocol, bytes)?),
        };
        Some(Self {
            to_mac: None,
            src,
            dst,
            body,
            wrong: None,
        })
    }

    /// Source address and port; port 0 of an ICMP error.
    pub(super) fn from(&self) -> SocketAddr {
        let port = self.transport().map_or(0, |transport| transport.src_port);
        SocketAddr::new(self.src, port)
    }

    /// Destination address and port; port 0 of an ICMP error.
    pub(super) fn to(&self) -> SocketAddr {
        let port = self.transport().map_or(0, |transport| transport.dst_port);
        SocketAddr::new(self.dst, port)
    }

    /// The transport header and what follows.
    pub(super) const fn transport(&self) -> Option<&Transport> {
        match &self.body {
            Body::Transport(transport) => Some(transport),
            Body::Error { .. } => None,
        }
    }

    /// What an ICMP error quotes; `None` if it is none, or the quote is too short to say.
    pub(super) fn quoted(&self) -> Option<Self> {
        let Body::Error { quote, .. } = &self.body else {
            return None;
        };
        // What quotes need not hold is taken for zero.
        let mut quote = quote.clone();
        quote.resize(quote.len().max(128), 0);
        match self.src {
            IpAddr::V4(_) => Self::ipv4(&quote),
            IpAddr::V6(_) => Self::ipv6(&quote),
        }
    }

    /// Whether it is an ICMP error that says: port unreachable.
    pub(super) const fn is_port_unreachable(&self) -> bool {
        match (&self.body, self.src) {
            (Body::Error { kind, .. }, IpAddr::V4(_)) => matches!(kind, [3, 3]),
            (Body::Error { kind, .. }, IpAddr::V6(_)) => matches!(kind, [1, 4]),
            (Body::Transport(_), _) => false,
        }
    }
}

impl Transport {
    fn read(protocol: u8, bytes: &[u8]) -> Option<Self> {
        let protocol = match protocol {
            6 => Protocol::Tcp,
            17 => Protocol::Udp,
            132 => Protocol::Sctp,
            _ => return None,
        };
        let (flags, seq, ack, data) = match protocol {
            Protocol::Tcp => {
                let words = usize::from(bytes.get(12)? >> 4);
                (*bytes.get(13)?, long(bytes, 4)?, long(bytes, 8)?, words * 4)
            }
            Protocol::Udp => (0, 0, 0, 8),
            Protocol::Sctp => (0, long(bytes, 4)?, 0, 12),
        };
        Some(Self {
            protocol,
            src_port: u16::from_be_bytes(array(bytes, 0)?),
            dst_port: u16::from_be_bytes(array(bytes, 2)?),
            flags,
            seq,
            ack,
            payload: bytes.get(data..).unwrap_or_default().to_vec(),
        })
    }

    /// Whether it opens a TCP connection.
    pub(super) const fn is_syn(&self) -> bool {
        self.flags & (SYN | ACK) == SYN
    }
}

fn error(bytes: &[u8]) -> Option<Body> {
    Some(Body::Error {
        kind: array(bytes, 0)?,
        quote: bytes.get(8..)?.to_vec(),
    })
}

fn long(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(array(bytes, at)?))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.body {
            Body::Transport(transport) => {
                write!(f, "{} > {} {transport}", self.from(), self.to())?;
            }
            Body::Error { kind, .. } => {
                write!(
                    f,
                    "{} > {} ICMP {}/{}",
                    self.src, self.dst, kind[0], kind[1]
                )?;
                if let Some(quoted) = self.quoted() {
                    write!(f, " about [{quoted}]")?;
                }
            }
        }
        match &self.wrong {
            Some(wrong) => write!(f, ", wrong: {wrong}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol {
            Protocol::Tcp => {
                write!(f, "TCP")?;
                let names = [(SYN, "SYN"), (ACK, "ACK"), (RST, "RST"), (FIN, "FIN")];
                for (_, name) in names.iter().filter(|(flag, _)| self.flags & flag != 0) {
                    write!(f, " {name}")?;
                }
                Ok(())
            }
            Protocol::Udp => write!(f, "UDP, {} bytes", self.payload.len()),
            Protocol::Sctp => {
                let chunk = self.payload.first().copied().unwrap_or_default();
                write!(f, "SCTP, chunk {chunk}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proxy_common::testing::{Frame, Icmp};

    use super::*;

    fn transport(frame: &Frame) -> Transport {
        let seen = Seen::frame(&frame.bytes()).unwrap();
        assert_eq!(seen.wrong, None);
        assert_eq!(seen.from(), SocketAddr::new(frame.src, frame.src_port));
        assert_eq!(seen.to(), SocketAddr::new(frame.dst, frame.dst_port));
        seen.transport().unwrap().clone()
    }

    #[test]
    fn packets_of_both_families_are_read() {
        let tcp = transport(&Frame::tcp(SYN, "192.0.2.1:1", "192.0.2.2:80"));
        assert_eq!((tcp.seq, tcp.flags, tcp.is_syn()), (1000, SYN, true));
        let udp = transport(&Frame::udp("[2001:db8::1]:1", "[2001:db8::2]:53"));
        assert_eq!(udp.payload, b"question");
        let sctp = transport(&Frame::sctp(1, "192.0.2.1:1", "192.0.2.2:80"));
        assert_eq!((sctp.seq, sctp.payload[0]), (0xdead_beef, 1));
    }

    #[test]
    fn a_wrong_checksum_is_noticed() {
        let mut bytes = Frame::udp("192.0.2.1:1", "192.0.2.2:53").bytes();
        *bytes.last_mut().unwrap() ^= 1;
        let seen = Seen::frame(&bytes).unwrap();
        assert!(
            seen.wrong
                .as_ref()
                .is_some_and(|wrong| wrong.contains("checksum"))
        );
        assert!(seen.to_string().contains("wrong"));
    }

    #[test]
    fn errors_tell_what_they_are_about() {
        let packet = Frame::tcp(SYN, "192.0.2.1:1", "192.0.2.2:80");
        let mut quote = packet.packet();
        quote.truncate(28);
        let error = |kind| Icmp::new(kind, "192.0.2.9", "192.0.2.1", quote.clone()).bytes();
        let seen = Seen::frame(&error([3, 3])).unwrap();
        assert!(seen.is_port_unreachable());
        assert_eq!(seen.quoted().unwrap().to(), "192.0.2.2:80".parse().unwrap());
        assert!(!Seen::frame(&error([3, 1])).unwrap().is_port_unreachable());
    }
}

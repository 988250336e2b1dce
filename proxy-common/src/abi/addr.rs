//! Addresses, ports and protocols.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytemuck::{Pod, Zeroable};

use super::limits;

/// An IPv4 or IPv6 address in 16 bytes, network order; IPv4 is v4-mapped (RFC 4291, 2.5.5.2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(transparent)]
pub struct Addr([u32; 4]);

/// `::ffff:0:0/96`, third word, network order.
const V4_MAPPED: u32 = 0xffff_u32.to_be();

impl Addr {
    /// `::`, no address at all.
    pub const UNSPECIFIED: Self = Self([0; 4]);

    /// The address whose IPv4 header field, read in network order, is `word`.
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self([0, 0, V4_MAPPED, word])
    }

    /// The address whose IPv6 header field, read in network order, is `words`.
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self(words)
    }

    /// The 16 bytes as they stand in an IPv6 header.
    #[inline(always)]
    pub const fn words(self) -> [u32; 4] {
        self.0
    }

    /// The 4 bytes as they stand in an IPv4 header; meaningless for an IPv6 address.
    #[inline(always)]
    pub const fn v4_word(self) -> u32 {
        self.0[3]
    }

    /// Whether this is a v4-mapped address.
    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == V4_MAPPED
    }

    /// The family that the address belongs to.
    pub const fn family(self) -> Family {
        if self.is_v4() {
            Family::Ipv4
        } else {
            Family::Ipv6
        }
    }

    /// Whether this is one of `127.0.0.0/8`, or `::1`.
    #[inline(always)]
    pub const fn is_loopback(self) -> bool {
        const V4_NET: u32 = 0xff00_0000_u32.to_be();
        const V4_LOOPBACK: u32 = 0x7f00_0000_u32.to_be();
        if self.is_v4() {
            self.0[3] & V4_NET == V4_LOOPBACK
        } else {
            self.0[0] | self.0[1] | self.0[2] == 0 && self.0[3] == 1_u32.to_be()
        }
    }

    /// Whether this is [`Self::UNSPECIFIED`].
    #[inline(always)]
    pub const fn is_unspecified(self) -> bool {
        self.0[0] | self.0[1] | self.0[2] | self.0[3] == 0
    }

    /// Where the map `POD_FLOWS` notes that the pod with this address has flows.
    #[inline(always)]
    pub const fn pod_slot(&self) -> u32 {
        // Fibonacci hashing: addresses that differ in the last byte alone never share a slot.
        const FACTOR: u32 = 0x9e37_79b1;
        const SHIFT: u32 = 32 - limits::POD_FLOWS.ilog2();
        let [a, b, c, d] = self.words();
        (d ^ c.rotate_left(8) ^ b.rotate_left(16) ^ a.rotate_left(24)).wrapping_mul(FACTOR) >> SHIFT
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => v6.into(),
        }
    }
}

impl From<Ipv4Addr> for Addr {
    fn from(ip: Ipv4Addr) -> Self {
        Self::from_v4_word(u32::from_ne_bytes(ip.octets()))
    }
}

impl From<Ipv6Addr> for Addr {
    fn from(ip: Ipv6Addr) -> Self {
        Self(bytemuck::cast(ip.octets()))
    }
}

impl From<Addr> for IpAddr {
    fn from(addr: Addr) -> Self {
        if addr.is_v4() {
            Self::V4(Ipv4Addr::from(addr.0[3].to_ne_bytes()))
        } else {
            Self::V6(Ipv6Addr::from(bytemuck::cast::<_, [u8; 16]>(addr.0)))
        }
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}

impl fmt::Debug for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A transport port in network order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(transparent)]
pub struct Port(u16);

impl Port {
    /// No port.
    pub const ZERO: Self = Self(0);

    /// The port with this number.
    #[inline(always)]
    pub const fn new(number: u16) -> Self {
        Self(number.to_be())
    }

    /// The port whose header field, read in network order, is `raw`.
    #[inline(always)]
    pub const fn from_network(raw: u16) -> Self {
        Self(raw)
    }

    /// The header field, network order.
    #[inline(always)]
    pub const fn network(self) -> u16 {
        self.0
    }

    /// The number, host order.
    #[inline(always)]
    pub const fn number(self) -> u16 {
        u16::from_be(self.0)
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number().fmt(f)
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number().fmt(f)
    }
}

/// A transport protocol that Services can use, with its IANA number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Protocol {
    /// RFC 9293.
    Tcp = 6,
    /// RFC 768.
    Udp = 17,
    /// RFC 9260.
    Sctp = 132,
}

impl Protocol {
    /// The protocol with this IANA number, if Services can use it.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }

    /// The IANA number.
    #[inline(always)]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The name that Kubernetes uses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One of the two IP families.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Family {
    /// RFC 791.
    Ipv4,
    /// RFC 8200.
    Ipv6,
}

impl Family {
    /// Both families.
    pub const ALL: [Self; 2] = [Self::Ipv4, Self::Ipv6];

    /// The family of `ip`.
    pub const fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self::Ipv4,
            IpAddr::V6(_) => Self::Ipv6,
        }
    }

    /// `0.0.0.0` or `::`.
    pub const fn unspecified(self) -> IpAddr {
        match self {
            Self::Ipv4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Self::Ipv6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        }
    }

    /// The name that Kubernetes uses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_round_trip() {
        for text in [
            "10.96.0.10",
            "0.0.0.0",
            "::",
            "fd00::1",
            "2001:db8::ffff:1.2.3.4",
        ] {
            let ip: IpAddr = text.parse().unwrap();
            let addr = Addr::from(ip);
            assert_eq!(IpAddr::from(addr), ip);
            assert_eq!(addr.is_v4(), ip.is_ipv4());
        }
    }

    #[test]
    fn neighbours_share_no_slot() {
        for base in ["10.244.1.0", "fd00:10:244::"] {
            let mut addr = Addr::from(base.parse::<IpAddr>().unwrap());
            let slots: std::collections::BTreeSet<u32> = (0..=255)
                .map(|last| {
                    bytemuck::bytes_of_mut(&mut addr)[15] = last;
                    addr.pod_slot()
                })
                .collect();
            assert_eq!(slots.len(), 256, "{base}");
            assert!(slots.iter().all(|&slot| slot < limits::POD_FLOWS));
        }
    }

    #[test]
    fn loopback_addresses_are_known() {
        let is_loopback = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap()).is_loopback();
        assert!(
            ["127.0.0.1", "127.255.0.9", "::1"]
                .into_iter()
                .all(is_loopback)
        );
        assert!(
            !["128.0.0.1", "::", "::2", "1::1", "0.0.0.1"]
                .into_iter()
                .any(is_loopback)
        );
    }

    #[test]
    fn ports_are_kept_in_network_order() {
        assert_eq!(Port::new(80).network().to_ne_bytes(), [0, 80]);
        assert_eq!(Port::new(80).number(), 80);
    }
}

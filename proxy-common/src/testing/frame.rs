//! Ethernet frames, built field by field.

use std::net::IpAddr;

use crate::abi::Protocol;

/// Link-layer address of the client's side.
pub const CLIENT_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
/// Link-layer address of the node's side.
pub const NODE_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];

/// An IPv6 extension header: its number and its content without the first two bytes.
#[derive(Clone, Debug)]
pub struct Extension {
    /// IANA protocol number.
    pub kind: u8,
    /// What follows next-header and length; six bytes and a multiple of eight.
    pub content: Vec<u8>,
}

/// Which piece of a datagram a frame carries.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Identification.
    pub id: u32,
    /// First byte of the transport part that is carried, a multiple of eight.
    pub offset: usize,
    /// How many are carried.
    pub len: usize,
}

/// A TCP, UDP or SCTP packet.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// The protocol.
    pub protocol: Protocol,
    /// TCP flags.
    pub flags: u8,
    /// TCP sequence number.
    pub seq: u32,
    /// TCP acknowledgement number.
    pub ack: u32,
    /// TCP window.
    pub window: u16,
    /// TCP options, a multiple of four bytes.
    pub tcp_options: Vec<u8>,
    /// SCTP verification tag.
    pub tag: u32,
    /// TCP or UDP payload; SCTP chunks.
    pub payload: Vec<u8>,
    /// IPv4 options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// IPv6 extension headers, in order.
    pub extensions: Vec<Extension>,
    /// `None`: whole.
    pub piece: Option<Piece>,
    /// IPv4: do not fragment.
    pub dont_fragment: bool,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// UDP over IPv4 without checksum.
    pub no_checksum: bool,
    /// The checksum is left to the device.
    pub is_partial: bool,
    /// Link-layer source.
    pub from_mac: [u8; 6],
    /// Link-layer destination.
    pub to_mac: [u8; 6],
}

impl Frame {
    /// A packet from the client's side, `address:port` to `address:port`.
    pub fn new(protocol: Protocol, from: &str, to: &str) -> Self {
        let from: std::net::SocketAddr = from.parse().expect("address and port");
        let to: std::net::SocketAddr = to.parse().expect("address and port");
        Self {
            src: from.ip(),
            dst: to.ip(),
            src_port: from.port(),
            dst_port: to.port(),
            protocol,
            flags: 0x10,
            seq: 1_000,
            ack: 2_000,
            window: 0xffff,
            tcp_options: Vec::new(),
            tag: 0xdead_beef,
            payload: Vec::new(),
            options: Vec::new(),
            extensions: Vec::new(),
            piece: None,
            dont_fragment: false,
            ttl: 61,
            no_checksum: false,
            is_partial: false,
            from_mac: CLIENT_MAC,
            to_mac: NODE_MAC,
        }
    }

    /// A TCP segment with these flags.
    pub fn tcp(flags: u8, from: &str, to: &str) -> Self {
        Self {
            flags,
            ..Self::new(Protocol::Tcp, from, to)
        }
    }

    /// A UDP datagram.
    pub fn udp(from: &str, to: &str) -> Self {
        Self {
            payload: b"question".to_vec(),
            ..Self::new(Protocol::Udp, from, to)
        }
    }

    /// An SCTP packet with one chunk of this type.
    pub fn sctp(chunk: u8, from: &str, to: &str) -> Self {
        let payload = vec![chunk, 0, 0, 12, 1, 2, 3, 4, 5, 6, 7, 8];
        Self {
            payload,
            ..Self::new(Protocol::Sctp, from, to)
        }
    }

    /// The same packet between other addresses.
    #[must_use]
    pub fn between(&self, from: &str, to: &str) -> Self {
        let ends = Self::new(self.protocol, from, to);
        Self {
            src: ends.src,
            dst: ends.dst,
            src_port: ends.src_port,
            dst_port: ends.dst_port,
            ..self.clone()
        }
    }

    /// The same packet with this payload.
    #[must_use]
    pub fn with_payload(&self, payload: impl Into<Vec<u8>>) -> Self {
        Self {
            payload: payload.into(),
            ..self.clone()
        }
    }

    /// The piece of the packet that starts `offset` bytes into its transport part.
    #[must_use]
    pub fn piece(&self, id: u32, offset: usize, len: usize) -> Self {
        Self {
            piece: Some(Piece { id, offset, len }),
            ..self.clone()
        }
    }

    /// The same packet going back the way it came, link-layer addresses swapped.
    #[must_use]
    pub fn turned(&self) -> Self {
        Self {
            from_mac: self.to_mac,
            to_mac: self.from_mac,
            ..self.clone()
        }
    }

    /// The same packet with its checksum left to the device.
    #[must_use]
    pub fn partial(&self) -> Self {
        Self {
            is_partial: true,
            ..self.clone()
        }
    }

    /// The frame, with correct checksums.
    pub fn bytes(&self) -> Vec<u8> {
        self.claiming(self.protocol.number())
    }

    /// The frame, with another protocol's number in its IP header.
    pub fn claiming(&self, protocol: u8) -> Vec<u8> {
        let transport = self.transport();
        let part = match self.piece {
            Some(piece) => {
                let end = transport.len().min(piece.offset + piece.len);
                &transport[piece.offset..end]
            }
            None => &transport,
        };
        let more = self
            .piece
            .is_some_and(|piece| piece.offset + piece.len < transport.len());
        let ip = self.ip(protocol, part.len(), more);
        [&self.ethernet()[..], &ip, part].concat()
    }

    /// The frame without its link-layer header.
    pub fn packet(&self) -> Vec<u8> {
        self.bytes().split_off(14)
    }

    /// The frame with only `len` bytes from its transport header on, as its IP header says.
    pub fn shortened(&self, len: usize) -> Vec<u8> {
        let ip = self.ip(self.protocol.number(), len, false);
        [self.ethernet(), ip, self.transport()[..len].to_vec()].concat()
    }

    fn ethernet(&self) -> Vec<u8> {
        let ethertype: [u8; 2] = if self.src.is_ipv4() {
            [0x08, 0x00]
        } else {
            [0x86, 0xdd]
        };
        [&self.to_mac[..], &self.from_mac, &ethertype].concat()
    }

    fn ip(&self, protocol: u8, payload_len: usize, more: bool) -> Vec<u8> {
        match self.src {
            IpAddr::V4(_) => self.ipv4(protocol, payload_len, more),
            IpAddr::V6(_) => self.ipv6(protocol, payload_len, more),
        }
    }

    fn ipv4(&self, protocol: u8, payload_len: usize, more: bool) -> Vec<u8> {
        let header_len = 20 + self.options.len();
        let (id, offset) = self.piece.map_or((0, 0), |piece| (piece.id, piece.offset));
        let flags = u16::from(self.dont_fragment) << 14 | u16::from(more) << 13;
        let fragment = flags | u16::try_from(offset / 8).expect("offset");
        let mut header = vec![
            0x40 | u8::try_from(header_len / 4).expect("header length"),
            0,
        ];
        header.extend(
            u16::try_from(header_len + payload_len)
                .expect("length")
                .to_be_bytes(),
        );
        header.extend(u16::try_from(id).expect("id").to_be_bytes());
        header.extend(fragment.to_be_bytes());
        header.extend([self.ttl, protocol, 0, 0]);
        header.extend(octets(self.src));
        header.extend(octets(self.dst));
        header.extend(&self.options);
        let checksum = !sum(&header);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        header
    }

    fn ipv6(&self, protocol: u8, payload_len: usize, more: bool) -> Vec<u8> {
        let extensions = self.ipv6_extensions(protocol, more);
        let first = self.extensions.first().map(|extension| extension.kind);
        let fragment = self.piece.map(|_| 44);
        let mut header = vec![0x60, 0, 0, 0];
        let len = u16::try_from(extensions.len() + payload_len).expect("length");
        header.extend(len.to_be_bytes());
        header.extend([first.or(fragment).unwrap_or(protocol), self.ttl]);
        header.extend(octets(self.src));
        header.extend(octets(self.dst));
        header.extend(extensions);
        header
    }

    /// The extension headers as given, then the fragment header if this is a piece.
    fn ipv6_extensions(&self, protocol: u8, more: bool) -> Vec<u8> {
        let kinds: Vec<u8> = self
            .extensions
            .iter()
            .map(|extension| extension.kind)
            .chain(self.piece.map(|_| 44))
            .chain([protocol])
            .collect();
        let mut bytes = Vec::new();
        for (extension, next) in self.extensions.iter().zip(&kinds[1..]) {
            let len = extension.content.len() + 2;
            assert_eq!(len % 8, 0, "extension headers are multiples of eight bytes");
            // The authentication header's length counts words (RFC 4302, 2.2).
            let field = if extension.kind == 51 {
                len / 4 - 2
            } else {
                len / 8 - 1
            };
            bytes.extend([*next, u8::try_from(field).expect("length")]);
            bytes.extend(&extension.content);
        }
        if let Some(piece) = self.piece {
            let offset = u16::try_from(piece.offset).expect("offset") | u16::from(more);
            bytes.extend([protocol, 0]);
            bytes.extend(offset.to_be_bytes());
            bytes.extend(piece.id.to_be_bytes());
        }
        bytes
    }

    fn transport(&self) -> Vec<u8> {
        let mut bytes = [self.src_port.to_be_bytes(), self.dst_port.to_be_bytes()].concat();
        match self.protocol {
            Protocol::Tcp => {
                bytes.extend(self.seq.to_be_bytes());
                bytes.extend(self.ack.to_be_bytes());
                let words = u8::try_from(5 + self.tcp_options.len() / 4).expect("header length");
                bytes.extend([words << 4, self.flags]);
                bytes.extend(self.window.to_be_bytes());
                bytes.extend([0; 4]);
                bytes.extend(&self.tcp_options);
            }
            Protocol::Udp => {
                let len = u16::try_from(8 + self.payload.len()).expect("length");
                bytes.extend(len.to_be_bytes());
                bytes.extend([0, 0]);
            }
            Protocol::Sctp => {
                bytes.extend(self.tag.to_be_bytes());
                bytes.extend([0; 4]);
            }
        }
        bytes.extend(&self.payload);
        self.seal(&mut bytes);
        bytes
    }

    /// Writes the checksum.
    fn seal(&self, transport: &mut [u8]) {
        let pseudo = self.pseudo_header(transport.len());
        match self.protocol {
            Protocol::Sctp if self.is_partial => {}
            Protocol::Sctp => {
                let crc = crc32c(transport);
                transport[8..12].copy_from_slice(&crc.to_le_bytes());
            }
            Protocol::Udp if self.no_checksum => {}
            Protocol::Tcp | Protocol::Udp => {
                let checksum = if self.is_partial {
                    sum(&pseudo)
                } else {
                    !sum(&[&pseudo, &*transport].concat())
                };
                let zero = self.protocol == Protocol::Udp && checksum == 0;
                let checksum = if zero { 0xffff } else { checksum };
                let at = if self.protocol == Protocol::Tcp {
                    16
                } else {
                    6
                };
                transport[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
            }
        }
    }

    fn pseudo_header(&self, len: usize) -> Vec<u8> {
        pseudo_header(self.src, self.dst, self.protocol.number(), len)
    }
}

/// An ICMP or ICMPv6 message.
#[derive(Clone, Debug)]
pub struct Icmp {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Type and code.
    pub kind: [u8; 2],
    /// The four bytes behind the checksum.
    pub parameter: u32,
    /// What the message quotes: an IP packet, perhaps cut.
    pub quote: Vec<u8>,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// IPv4 options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// IPv6 extension headers, in order.
    pub extensions: Vec<Extension>,
    /// IPv4: do not fragment.
    pub dont_fragment: bool,
    /// Link-layer source.
    pub from_mac: [u8; 6],
    /// Link-layer destination.
    pub to_mac: [u8; 6],
}

impl Icmp {
    /// An error about a packet, `address` to `address`, from the client's side.
    pub fn new(kind: [u8; 2], from: &str, to: &str, quote: Vec<u8>) -> Self {
        Self {
            src: from.parse().expect("address"),
            dst: to.parse().expect("address"),
            kind,
            parameter: 0,
            quote,
            ttl: 64,
            options: Vec::new(),
            extensions: Vec::new(),
            dont_fragment: false,
            from_mac: CLIENT_MAC,
            to_mac: NODE_MAC,
        }
    }

    /// The same message going back the way it came, link-layer addresses swapped.
    #[must_use]
    pub fn turned(&self) -> Self {
        Self {
            from_mac: self.to_mac,
            to_mac: self.from_mac,
            ..self.clone()
        }
    }

    /// The frame, with correct checksums.
    pub fn bytes(&self) -> Vec<u8> {
        let mut message = [&self.kind[..], &[0, 0], &self.parameter.to_be_bytes()].concat();
        message.extend(&self.quote);
        let protocol = if self.src.is_ipv4() { 1 } else { 58 };
        let checksum = !sum(&[self.pseudo_header(), message.clone()].concat());
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
        let shell = Frame {
            src: self.src,
            dst: self.dst,
            ttl: self.ttl,
            options: self.options.clone(),
            extensions: self.extensions.clone(),
            dont_fragment: self.dont_fragment,
            from_mac: self.from_mac,
            to_mac: self.to_mac,
            ..Frame::new(Protocol::Tcp, "0.0.0.0:0", "0.0.0.0:0")
        };
        [
            shell.ethernet(),
            shell.ip(protocol, message.len(), false),
            message,
        ]
        .concat()
    }

    /// The sum of what the checksum covers beside the message.
    pub fn pseudo_sum(&self) -> u16 {
        sum(&self.pseudo_header())
    }

    fn pseudo_header(&self) -> Vec<u8> {
        match self.src {
            IpAddr::V4(_) => Vec::new(),
            IpAddr::V6(_) => pseudo_header(self.src, self.dst, 58, 8 + self.quote.len()),
        }
    }
}

impl From<&Frame> for Vec<u8> {
    fn from(frame: &Frame) -> Self {
        frame.bytes()
    }
}

impl From<&Icmp> for Vec<u8> {
    fn from(message: &Icmp) -> Self {
        message.bytes()
    }
}

pub(super) fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// RFC 9293, 3.1 and RFC 8200, 8.1: their sums are the same.
pub(super) fn pseudo_header(src: IpAddr, dst: IpAddr, protocol: u8, len: usize) -> Vec<u8> {
    let len = u32::try_from(len).expect("length");
    [
        &octets(src)[..],
        &octets(dst),
        &len.to_be_bytes(),
        &[0, 0, 0, protocol],
    ]
    .concat()
}

/// One's-complement sum, RFC 1071.
pub(super) fn sum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low)));
    let mut sum = words.sum::<u32>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("folded")
}

/// CRC32c bit by bit, RFC 9260, appendix A.
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            if crc & 1 == 1 {
                crc >> 1 ^ 0x82f6_3b78
            } else {
                crc >> 1
            }
        })
    })
}

//! SCTP packets (RFC 9260, section 3): as much of them as a conversation needs.

use super::crc32c::crc32c;

/// Length of the common header.
pub(super) const HEADER: usize = 12;
/// Type of a chunk of data.
pub(super) const DATA: u32 = 0;
/// Where its checksum stands.
const CHECKSUM: std::ops::Range<usize> = 8..12;
/// Length of the header of a chunk.
const CHUNK_HEADER: usize = 4;
/// Type of the parameter that carries the cookie.
const COOKIE_PARAMETER: u16 = 7;

/// An SCTP packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Packet {
    /// The sender's port.
    pub(super) source: u16,
    /// The receiver's port.
    pub(super) destination: u16,
    /// Verification tag.
    pub(super) tag: u32,
    /// What it carries.
    pub(super) chunks: Vec<Chunk>,
}

/// A chunk of a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Chunk {
    /// A piece of a message.
    Data {
        tsn: u32,
        begins: bool,
        ends: bool,
        payload: Vec<u8>,
    },
    /// A client's first words.
    Init(Init),
    /// A server's answer, with its cookie.
    InitAck(Init, Vec<u8>),
    /// All data up to this number has arrived.
    Sack { tsn: u32 },
    /// "Are you there?"
    Heartbeat(Vec<u8>),
    /// "I am."
    HeartbeatAck(Vec<u8>),
    /// The association is no more; `reflected` if the tag is the receiver's own.
    Abort { reflected: bool },
    /// The end, please.
    Shutdown { tsn: u32 },
    /// The end is fine.
    ShutdownAck,
    /// The server's cookie, given back.
    CookieEcho(Vec<u8>),
    /// The association is up.
    CookieAck,
    /// The end; `reflected` if the tag is the receiver's own.
    ShutdownComplete { reflected: bool },
    /// Anything else.
    Other(u8),
}

/// What both sides say about themselves in the beginning.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Init {
    /// The tag that packets to the sender of this must carry.
    pub(super) tag: u32,
    /// Number of the first piece of data.
    pub(super) tsn: u32,
}

/// Why a packet is dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unusable {
    /// Too short, or its lengths contradict each other.
    Malformed,
    /// The checksum is wrong.
    Checksum,
}

impl Packet {
    /// The bytes of the packet, checksum included.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.source.to_be_bytes());
        bytes.extend(self.destination.to_be_bytes());
        bytes.extend(self.tag.to_be_bytes());
        bytes.extend([0; 4]);
        for chunk in &self.chunks {
            chunk.write(&mut bytes);
        }
        let checksum = crc32c(&bytes);
        bytes[CHECKSUM].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads a packet; as strict about its checksum as the kernel is.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Unusable> {
        let (header, mut rest) = bytes.split_at_checked(HEADER).ok_or(Unusable::Malformed)?;
        let mut zeroed = bytes.to_vec();
        zeroed[CHECKSUM].fill(0);
        if header[CHECKSUM] != crc32c(&zeroed).to_le_bytes() {
            return Err(Unusable::Checksum);
        }
        let mut chunks = Vec::new();
        while !rest.is_empty() {
            let length = usize::from(u16_at(rest, 2)?);
            let chunk = rest.get(..length).ok_or(Unusable::Malformed)?;
            chunks.push(Chunk::parse(chunk)?);
            // The last chunk's padding may be missing.
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        let (source, destination) = (u16_at(header, 0)?, u16_at(header, 2)?);
        Ok(Self {
            source,
            destination,
            tag: u32_at(header, 4)?,
            chunks,
        })
    }
}

impl Chunk {
    fn parse(chunk: &[u8]) -> Result<Self, Unusable> {
        let (header, body) = chunk
            .split_at_checked(CHUNK_HEADER)
            .ok_or(Unusable::Malformed)?;
        let (kind, flags) = (header[0], header[1]);
        Ok(match kind {
            0 => Self::Data {
                tsn: u32_at(body, 0)?,
                begins: flags & 2 != 0,
                ends: flags & 1 != 0,
                payload: body.get(12..).ok_or(Unusable::Malformed)?.to_vec(),
            },
            1 => Self::Init(Init::parse(body)?),
            2 => Self::InitAck(Init::parse(body)?, cookie(body)?),
            3 => Self::Sack {
                tsn: u32_at(body, 0)?,
            },
            4 => Self::Heartbeat(body.to_vec()),
            5 => Self::HeartbeatAck(body.to_vec()),
            6 => Self::Abort {
                reflected: flags & 1 != 0,
            },
            7 => Self::Shutdown {
                tsn: u32_at(body, 0)?,
            },
            8 => Self::ShutdownAck,
            10 => Self::CookieEcho(body.to_vec()),
            11 => Self::CookieAck,
            14 => Self::ShutdownComplete {
                reflected: flags & 1 != 0,
            },
            other => Self::Other(other),
        })
    }

    fn write(&self, bytes: &mut Vec<u8>) {
        let (kind, flags, body) = self.parts();
        bytes.extend([kind, flags]);
        bytes.extend(((CHUNK_HEADER + body.len()) as u16).to_be_bytes());
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }

    fn parts(&self) -> (u8, u8, Vec<u8>) {
        match self {
            Self::Data {
                tsn,
                begins,
                ends,
                payload,
            } => {
                // Stream 0, sequence number 0, protocol 0: all on one unordered stream.
                let body = [&tsn.to_be_bytes()[..], &[0; 8], payload].concat();
                (0, 4 | u8::from(*begins) << 1 | u8::from(*ends), body)
            }
            Self::Init(init) => (1, 0, init.to_bytes()),
            Self::InitAck(init, cookie) => {
                let length = (CHUNK_HEADER + cookie.len()) as u16;
                let parameter = [COOKIE_PARAMETER.to_be_bytes(), length.to_be_bytes()].concat();
                (2, 0, [init.to_bytes(), parameter, cookie.clone()].concat())
            }
            Self::Sack { tsn } => (
                3,
                0,
                [tsn.to_be_bytes(), WINDOW.to_be_bytes(), [0; 4]].concat(),
            ),
            Self::Heartbeat(body) => (4, 0, body.clone()),
            Self::HeartbeatAck(body) => (5, 0, body.clone()),
            Self::Abort { reflected } => (6, u8::from(*reflected), Vec::new()),
            Self::Shutdown { tsn } => (7, 0, tsn.to_be_bytes().to_vec()),
            Self::ShutdownAck => (8, 0, Vec::new()),
            Self::CookieEcho(cookie) => (10, 0, cookie.clone()),
            Self::CookieAck => (11, 0, Vec::new()),
            Self::ShutdownComplete { reflected } => (14, u8::from(*reflected), Vec::new()),
            Self::Other(kind) => (*kind, 0, Vec::new()),
        }
    }
}

/// The receive window that everybody announces, in bytes.
const WINDOW: u32 = 65_536;

impl Init {
    fn parse(body: &[u8]) -> Result<Self, Unusable> {
        Ok(Self {
            tag: u32_at(body, 0)?,
            tsn: u32_at(body, 12)?,
        })
    }

    fn to_bytes(self) -> Vec<u8> {
        let one_stream_each_way = [0, 1, 0, 1];
        let words = [
            self.tag.to_be_bytes(),
            WINDOW.to_be_bytes(),
            one_stream_each_way,
        ];
        [words.as_flattened(), &self.tsn.to_be_bytes()].concat()
    }
}

/// The cookie among the parameters of an INIT ACK.
fn cookie(body: &[u8]) -> Result<Vec<u8>, Unusable> {
    let mut rest = body.get(16..).ok_or(Unusable::Malformed)?;
    loop {
        let (kind, length) = (u16_at(rest, 0)?, usize::from(u16_at(rest, 2)?));
        let parameter = rest.get(CHUNK_HEADER..length).ok_or(Unusable::Malformed)?;
        if kind == COOKIE_PARAMETER {
            return Ok(parameter.to_vec());
        }
        rest = rest
            .get(length.next_multiple_of(4)..)
            .ok_or(Unusable::Malformed)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, Unusable> {
    bytes[at.min(bytes.len())..]
        .first_chunk()
        .map(|b| u16::from_be_bytes(*b))
        .ok_or(Unusable::Malformed)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, Unusable> {
    bytes[at.min(bytes.len())..]
        .first_chunk()
        .map(|b| u32::from_be_bytes(*b))
        .ok_or(Unusable::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn everything() -> Packet {
        let init = Init { tag: 1, tsn: 2 };
        let chunks = vec![
            Chunk::Data {
                tsn: 9,
                begins: true,
                ends: false,
                payload: b"hello".to_vec(),
            },
            Chunk::Init(init),
            Chunk::InitAck(init, b"cookie".to_vec()),
            Chunk::Sack { tsn: 7 },
            Chunk::Heartbeat(vec![1, 2, 3]),
            Chunk::Abort { reflected: true },
            Chunk::Shutdown { tsn: 4 },
            Chunk::ShutdownAck,
            Chunk::CookieEcho(b"cookie".to_vec()),
            Chunk::CookieAck,
            Chunk::ShutdownComplete { reflected: false },
        ];
        Packet {
            source: 1000,
            destination: 2000,
            tag: 3,
            chunks,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(Packet::parse(&everything().to_bytes()), Ok(everything()));
    }

    #[test]
    fn any_changed_bit_is_noticed() {
        let bytes = everything().to_bytes();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            assert_eq!(
                Packet::parse(&changed),
                Err(Unusable::Checksum),
                "byte {at}"
            );
        }
    }

    #[test]
    fn short_packets_are_malformed() {
        assert_eq!(Packet::parse(&[0; 11]), Err(Unusable::Malformed));
    }
}

//! Names of service ports, so that the maps can be read without the daemon.

use bytemuck::{Pod, Zeroable};

const CAPACITY: usize = 192;

/// Value of the map `SERVICES`, by service id: `namespace/name:port` and the IP family.
///
/// A namespace and a Service name have at most 63 bytes each, a port name 63 (RFC 1123 labels).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct ServiceName {
    /// UTF-8, not terminated.
    bytes: [u8; CAPACITY],
    /// How many of `bytes` count.
    len: u8,
    /// IANA number of the service port's protocol.
    pub protocol: u8,
    /// 4 or 6.
    pub family: u8,
    /// Always 0.
    pub _pad: u8,
}

impl ServiceName {
    /// Longest text in bytes.
    pub const CAPACITY: usize = CAPACITY;

    /// The name; `None` if it has over [`Self::CAPACITY`] bytes.
    pub fn new(text: &str, protocol: u8, family: u8) -> Option<Self> {
        let mut bytes = [0; Self::CAPACITY];
        bytes
            .get_mut(..text.len())?
            .copy_from_slice(text.as_bytes());
        Some(Self {
            bytes,
            len: u8::try_from(text.len()).ok()?,
            protocol,
            family,
            _pad: 0,
        })
    }

    /// `namespace/name:port`, or `namespace/name` if the port has no name.
    pub fn text(&self) -> &str {
        let used = self.bytes.get(..usize::from(self.len)).unwrap_or_default();
        core::str::from_utf8(used).unwrap_or("?")
    }
}

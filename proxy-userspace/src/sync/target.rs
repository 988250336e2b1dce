//! What [`super::Sync`] reads at its start and writes from then on.

use ipnet::IpNet;
use proxy_common::abi::{
    Addr, AddressFlags, Backend, Frontend, FrontendKey, ServiceName, SourceRangeKey,
};

/// One write to one map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Write {
    /// Entry of `SERVICES`. Always the start of a life: whoever counts by service id starts at 0.
    Service {
        /// Service id.
        id: u32,
        /// The service port's name.
        name: ServiceName,
    },
    /// Entry of `BACKENDS`.
    Backend {
        /// Backend id.
        id: u32,
        /// The whole entry.
        backend: Backend,
    },
    /// Consecutive entries of `SLOTS`, one backend id each.
    Slots {
        /// Index of the first entry.
        first: u32,
        /// Backend ids, at least one.
        ids: Vec<u32>,
    },
    /// Entry of `FRONTENDS`, new or replaced as a whole.
    Frontend {
        /// What clients dial.
        key: FrontendKey,
        /// Where it leads.
        value: Frontend,
    },
    /// Removal from `FRONTENDS`.
    RemoveFrontend {
        /// What clients dialled.
        key: FrontendKey,
    },
    /// Entry of `ADDRESSES`, new or replaced.
    Address {
        /// The address.
        addr: Addr,
        /// What it is, at least one bit.
        flags: AddressFlags,
    },
    /// Removal from `ADDRESSES`.
    RemoveAddress {
        /// The address.
        addr: Addr,
    },
    /// New entry of `SOURCE_RANGES`.
    SourceRange {
        /// The service port that it guards.
        service: u32,
        /// From where connections are taken.
        net: IpNet,
    },
    /// Removal from `SOURCE_RANGES`.
    RemoveSourceRange {
        /// The service port that it guarded.
        service: u32,
        /// From where connections were taken.
        net: IpNet,
    },
    /// Removal from `SERVICES`.
    RemoveService {
        /// Service id.
        id: u32,
    },
}

/// Whoever holds the maps.
pub trait Target {
    /// Why a write failed; its text goes into a problem's message.
    type Error: std::error::Error;

    /// Carries out one write.
    ///
    /// # Errors
    /// After an error the entry is taken to be as it was before. Only entries of `SLOTS`, which
    /// no frontend names yet, may be left half written.
    fn write(&mut self, write: &Write) -> Result<(), Self::Error>;

    /// Returns when no program that began before the call still runs.
    fn grace_period(&mut self);
}

/// What the maps hold.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Contents {
    /// `SERVICES`, in any order.
    pub services: Vec<(u32, ServiceName)>,
    /// `FRONTENDS`, in any order.
    pub frontends: Vec<(FrontendKey, Frontend)>,
    /// `SLOTS` by index, possibly shorter than the map if no frontend names the rest.
    pub slots: Vec<u32>,
    /// `BACKENDS` by id, possibly shorter than the map if the rest was never used (gone, with
    /// generation 0).
    pub backends: Vec<Backend>,
    /// `ADDRESSES`, in any order.
    pub addresses: Vec<(Addr, AddressFlags)>,
    /// `SOURCE_RANGES`, in any order: service id and range.
    pub source_ranges: Vec<(u32, IpNet)>,
}

/// How many entries each map can hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capacity {
    /// Of `FRONTENDS`.
    pub frontends: u32,
    /// Of `SLOTS`.
    pub slots: u32,
    /// Of `BACKENDS`.
    pub backends: u32,
    /// Of `SERVICES`.
    pub services: u32,
    /// Of `ADDRESSES`.
    pub addresses: u32,
    /// Of `SOURCE_RANGES`.
    pub source_ranges: u32,
}

/// The key of a range in `SOURCE_RANGES`.
pub fn source_range_key(service: u32, net: IpNet) -> SourceRangeKey {
    let of_family = match net {
        IpNet::V4(_) => 128,
        IpNet::V6(_) => 32,
    };
    SourceRangeKey {
        prefix_len: of_family + u32::from(net.prefix_len()),
        service,
        addr: net.network().into(),
    }
}

/// The reverse of [`source_range_key`]; `None` for a key that it can't have made.
pub fn source_range(key: &SourceRangeKey) -> Option<(u32, IpNet)> {
    let is_v4 = key.addr.is_v4() && key.prefix_len >= 128;
    let of_family = if is_v4 { 128 } else { 32 };
    let length = u8::try_from(key.prefix_len.checked_sub(of_family)?).ok()?;
    let net = IpNet::new(key.addr.into(), length).ok()?;
    Some((key.service, net))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_survive_the_round_trip() {
        for text in [
            "10.0.0.0/8",
            "0.0.0.0/0",
            "10.1.2.3/32",
            "::/0",
            "fd00::/64",
            "fd00::1/128",
        ] {
            let net: IpNet = text.parse().unwrap();
            assert_eq!(source_range(&source_range_key(7, net)), Some((7, net)));
        }
        let key = source_range_key(7, "10.0.0.0/8".parse().unwrap());
        assert_eq!(key.prefix_len, 32 + 96 + 8);
        assert_eq!(
            source_range(&SourceRangeKey {
                prefix_len: 31,
                ..key
            }),
            None
        );
    }
}

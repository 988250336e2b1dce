//! What [`super::Sync`] reads at its start and writes from then on.

use proxy_common::abi::{Backend, Frontend, FrontendKey, ServiceName};

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
}

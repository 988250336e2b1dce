//! Session affinity (rules R111 to R117).

use bytemuck::{Pod, Zeroable};

use super::Addr;

/// Key of the map `AFFINITY`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct AffinityKey {
    /// The client's address before any source NAT (rule R117).
    pub client: Addr,
    /// The service port (rule R113).
    pub service: u32,
}

/// Value of the map `AFFINITY`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Affinity {
    /// Id of the remembered backend.
    pub backend: u32,
    /// [`Backend::joined`](super::Backend::joined) when it was chosen.
    pub joined: u32,
    /// Start of the last new connection: nanoseconds of `CLOCK_MONOTONIC`.
    pub last_used: u64,
}

//! Backends: the endpoints that frontends lead to.

use bytemuck::{Pod, Zeroable};

use super::{Addr, Port};

/// Value of the map `BACKENDS`, indexed by backend id.
///
/// An id belongs to one endpoint of one service port for that endpoint's life. When the endpoint
/// is removed the entry stays with [`BackendState::Gone`] and the next `generation`, so that the
/// next packet of a flow that remembers the old one notices.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Backend {
    /// Address of the endpoint.
    pub addr: Addr,
    /// The service port that the endpoint belongs to.
    pub service: u32,
    /// Counts the lives of this id; a flow record with another number is stale.
    pub generation: u32,
    /// Grows whenever the backend joins a set again after it had left both, session affinity is
    /// switched on, or another life of this id begins; an affinity record with another number is
    /// void (rules R114, R116).
    pub joined: u32,
    /// Port of the endpoint.
    pub port: Port,
    /// A [`BackendState`].
    pub state: u8,
    /// [`BackendFlags`].
    pub flags: BackendFlags,
}

impl Backend {
    /// Whether TCP and SCTP flows that remember `generation`, an earlier one, are left alone;
    /// `by_default` where their Service does not say. It is not asked once the id has another life.
    #[inline(always)]
    pub const fn keeps(&self, generation: u32, by_default: bool) -> bool {
        let is_their_end =
            self.state == BackendState::Gone as u8 && self.generation == generation.wrapping_add(1);
        if !is_their_end {
            by_default
        } else if by_default {
            !self.flags.contains(BackendFlags::RESET_WHEN_GONE)
        } else {
            self.flags.contains(BackendFlags::KEEP_WHEN_GONE)
        }
    }
}

/// Properties of a [`Backend`], a bit set.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Pod, Zeroable)]
#[repr(transparent)]
pub struct BackendFlags(u8);

impl BackendFlags {
    /// Nothing special.
    pub const NONE: Self = Self(0);
    /// The endpoint is on this node (rule R25).
    pub const IS_LOCAL: Self = Self(1);
    /// It is a member of the local set (rule R32).
    pub const IN_LOCAL_SET: Self = Self(1 << 1);
    /// It is a member of the cluster set (rule R31).
    pub const IN_CLUSTER_SET: Self = Self(1 << 2);
    /// Its Service wants TCP and SCTP flows reset when it is gone, whatever this node does.
    pub const RESET_WHEN_GONE: Self = Self(1 << 3);
    /// Its Service wants them left alone.
    pub const KEEP_WHEN_GONE: Self = Self(1 << 4);

    /// What is still to be known once the endpoint is gone.
    #[must_use]
    pub const fn when_gone(self) -> Self {
        Self(self.0 & (Self::RESET_WHEN_GONE.0 | Self::KEEP_WHEN_GONE.0))
    }
}

bit_set!(BackendFlags);

/// What a backend is good for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum BackendState {
    /// No endpoint has this id.
    Gone = 0,
    /// Takes new flows if a frontend's slots name it.
    Active = 1,
    /// Terminating: serves the flows it has; new ones only by the fall-back of R31 and R32.
    Terminating = 2,
    /// Neither ready nor terminating: keeps the flows it has, gets no new ones (rule R34).
    NotReady = 3,
    /// Does not serve, while another endpoint of the service port does: UDP flows leave it for
    /// that one, others stay (rules R141, R143).
    NotServing = 4,
    /// Its service port is gone, but flows may still use it (rule R147). The id is free when there
    /// are none left.
    Detached = 5,
}

impl BackendState {
    /// The state with this number.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Gone),
            1 => Some(Self::Active),
            2 => Some(Self::Terminating),
            3 => Some(Self::NotReady),
            4 => Some(Self::NotServing),
            5 => Some(Self::Detached),
            _ => None,
        }
    }

    /// A word for tables and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Active => "active",
            Self::Terminating => "terminating",
            Self::NotReady => "not-ready",
            Self::NotServing => "not-serving",
            Self::Detached => "detached",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_service_says_counts_for_its_own_flows_only() {
        let service = |flags, state: BackendState| Backend {
            addr: Addr::UNSPECIFIED,
            service: 1,
            generation: 8,
            joined: 1,
            port: Port::ZERO,
            state: state as u8,
            flags,
        };
        let (reset, keep) = (BackendFlags::RESET_WHEN_GONE, BackendFlags::KEEP_WHEN_GONE);
        for by_default in [false, true] {
            let keeps = |flags, generation| {
                service(flags, BackendState::Gone).keeps(generation, by_default)
            };
            assert_eq!(keeps(BackendFlags::NONE, 7), by_default);
            assert!(keeps(keep, 7));
            assert!(!keeps(reset, 7));
            assert_eq!(keeps(keep, 6), by_default);
            assert_eq!(keeps(reset, 6), by_default);
            let next_life = service(keep.union(reset), BackendState::Active);
            assert_eq!(next_life.keeps(7, by_default), by_default);
        }
    }

    #[test]
    fn a_gone_backend_is_in_no_set() {
        let all = BackendFlags::IS_LOCAL
            .union(BackendFlags::IN_LOCAL_SET)
            .union(BackendFlags::IN_CLUSTER_SET);
        assert_eq!(all.when_gone(), BackendFlags::NONE);
        let keep = BackendFlags::KEEP_WHEN_GONE;
        assert_eq!(all.union(keep).when_gone(), keep);
    }
}

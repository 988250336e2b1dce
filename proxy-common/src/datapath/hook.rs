//! Where a program sees packets.

use crate::abi::Side;

/// A device's kind and direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    /// What a pod sends.
    PodIngress,
    /// What a pod gets.
    PodEgress,
    /// What comes in from other machines.
    NodeIngress,
    /// What goes out to other machines, or from this node's processes to itself or to Services.
    NodeEgress,
}

impl Hook {
    /// Every hook.
    pub const ALL: [Self; 4] = [
        Self::PodIngress,
        Self::PodEgress,
        Self::NodeIngress,
        Self::NodeEgress,
    ];

    /// Which records apply.
    #[inline(always)]
    pub const fn side(self) -> Side {
        match self {
            Self::PodIngress | Self::NodeIngress => Side::Ingress,
            Self::PodEgress | Self::NodeEgress => Side::Egress,
        }
    }
}

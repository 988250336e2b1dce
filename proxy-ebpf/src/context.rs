//! Contexts of the hooks as packets.

mod skb;

pub(crate) use skb::Skb;

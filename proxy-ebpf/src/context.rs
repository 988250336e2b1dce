//! Contexts of the hooks as packets.

mod fib;
mod skb;

pub(crate) use skb::Skb;

//! Contexts of the hooks as packets and sockets.

mod fib;
mod skb;
mod sock_addr;

pub(crate) use skb::Skb;
pub(crate) use sock_addr::SockAddr;

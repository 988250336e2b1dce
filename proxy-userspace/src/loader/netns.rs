//! What the kernel calls the network namespace that the daemon serves.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::sys::socket::getsockopt;
use nix::{getsockopt_impl, sockopt_impl};

sockopt_impl!(
    /// `SO_NETNS_COOKIE`: the cookie of the socket's network namespace.
    NetnsCookie,
    GetOnly,
    libc::SOL_SOCKET,
    libc::SO_NETNS_COOKIE,
    u64
);

/// The cookie of this thread's network namespace; `None` if the kernel does not tell (before
/// Linux 5.14).
///
/// # Errors
/// If no socket can be made, or the question fails otherwise.
pub fn node_netns() -> io::Result<Option<u64>> {
    netns_of(&UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?)
}

/// The same for the namespace that a socket belongs to.
///
/// # Errors
/// If the question fails.
pub fn netns_of(socket: &impl AsFd) -> io::Result<Option<u64>> {
    match getsockopt(socket, NetnsCookie) {
        Ok(cookie) => Ok(Some(cookie)),
        Err(Errno::ENOPROTOOPT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

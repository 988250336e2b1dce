//! What can be had of sockets that no crate offers.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use nix::libc;
use proxy_common::abi::Family;

/// Has an IPv4 option and an IPv6 destination option sent with every packet.
pub(crate) fn send_ip_options(socket: &impl AsRawFd, family: Family) -> io::Result<()> {
    match family {
        // Timestamps only (RFC 791): room for one, which the first router fills in.
        Family::Ipv4 => set(
            socket,
            libc::IPPROTO_IP,
            libc::IP_OPTIONS,
            &[68, 8, 5, 0, 0, 0, 0, 0],
        ),
        // A padding option (RFC 8200): a header of 8 bytes; the kernel fills in the first byte.
        Family::Ipv6 => set(
            socket,
            libc::IPPROTO_IPV6,
            libc::IPV6_DSTOPTS,
            &[0, 0, 1, 4, 0, 0, 0, 0],
        ),
    }
}

/// Forbids that what the socket sends is cut into fragments, here or on its way.
pub(crate) fn forbid_fragments(socket: &impl AsRawFd, family: Family) -> io::Result<()> {
    let (level, name, value) = match family {
        Family::Ipv4 => (
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            libc::IP_PMTUDISC_DO,
        ),
        Family::Ipv6 => (
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_DO,
        ),
    };
    set(socket, level, name, &value.to_ne_bytes())
}

/// The MTU of the path to the socket's peer, as far as the kernel knows it, in bytes.
pub(crate) fn path_mtu(socket: &impl AsRawFd, peer: SocketAddr) -> io::Result<u32> {
    let (level, name) = match Family::of(peer.ip()) {
        Family::Ipv4 => (libc::IPPROTO_IP, libc::IP_MTU),
        Family::Ipv6 => (libc::IPPROTO_IPV6, libc::IPV6_MTU),
    };
    let mut value = 0_u32;
    let mut length = size_of::<u32>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `value`, and the length to `length`;
    // both outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(value)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Ends a socket's connection but not the socket: `connect` to no address.
pub(crate) fn disconnect(socket: &impl AsRawFd) -> io::Result<()> {
    let nowhere = libc::sockaddr {
        sa_family: libc::AF_UNSPEC as libc::sa_family_t,
        sa_data: [0; 14],
    };
    let length = size_of_val(&nowhere) as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes of `nowhere`, which outlives the call.
    let result = unsafe { libc::connect(socket.as_raw_fd(), &raw const nowhere, length) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn set(socket: &impl AsRawFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let length = value.len() as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes of `value`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            value.as_ptr().cast(),
            length,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

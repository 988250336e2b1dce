//! Offloads of a network device.

use std::io;

use anyhow::{Context, Result};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::os::fd::AsRawFd;

use super::namespace::{Namespace, in_namespace};

const SIOCETHTOOL: libc::Ioctl = 0x8946;

/// An offload, by the ethtool command that switches it.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub enum Offload {
    /// Checksums of packets sent, SCTP's CRC32c included.
    TransmitChecksum = 0x17,
    /// Packets received are merged into larger ones.
    GenericReceive = 0x2c,
}

/// Switches an offload of a device on or off.
///
/// # Errors
/// There is no such device, or it refuses.
pub fn set_offload(namespace: &Namespace, device: &str, offload: Offload, on: bool) -> Result<()> {
    in_namespace(namespace, || ethtool(device, offload as u32, u32::from(on)))
        .with_context(|| format!("device {device}: switch {offload:?} to {on}"))
}

#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

fn ethtool(device: &str, command: u32, data: u32) -> Result<()> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let mut value = EthtoolValue { command, data };
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_data: (&raw mut value).cast(),
        },
    };
    // The last byte stays 0.
    for (to, from) in request
        .ifr_name
        .iter_mut()
        .take(libc::IFNAMSIZ - 1)
        .zip(device.bytes())
    {
        *to = from.cast_signed();
    }
    // SAFETY: SIOCETHTOOL reads an `ifreq` whose data points to an `ethtool_value`; both live on
    // this stack frame until the call returns, and the name ends with a 0.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error().into())
    }
}

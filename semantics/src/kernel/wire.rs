//! Frames in and out of all devices of one network namespace.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket,
    sockopt,
};

/// Room for frames that wait to be read, in bytes.
const BUFFER: usize = 8 << 20;
/// Longest frame, in bytes.
const FRAME: usize = 9000;

/// A packet socket that hears what arrives by any device of its namespace.
#[derive(Debug)]
pub(super) struct Wire(OwnedFd);

impl Wire {
    /// Listens in the caller's namespace.
    pub(super) fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let all = Some(SockProtocol::EthAll);
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, all)?;
        setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
        Ok(Self(socket))
    }

    /// Sends a frame by a device.
    pub(super) fn send(&self, device: u32, frame: &[u8]) -> io::Result<()> {
        // SAFETY: all-zero bytes are a valid `sockaddr_ll`, a struct of integers.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_ifindex = device as i32;
        to.sll_halen = 6;
        // SAFETY: frame and address are borrowed for the call, with their true lengths, and a
        // packet socket's address is a `sockaddr_ll`.
        let sent = unsafe {
            libc::sendto(
                self.0.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            )
        };
        Errno::result(sent)?;
        Ok(())
    }

    /// The next frame that arrived, and by which device; `None` if there is none.
    pub(super) fn receive(&self) -> io::Result<Option<(u32, Vec<u8>)>> {
        let mut buffer = [0; FRAME];
        loop {
            let (len, from) = match recvfrom::<LinkAddr>(self.0.as_raw_fd(), &mut buffer) {
                Ok(received) => received,
                Err(Errno::EAGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            // What it sends itself is heard too.
            let Some(from) = from.filter(|from| from.pkttype() != libc::PACKET_OUTGOING) else {
                continue;
            };
            return Ok(Some((from.ifindex() as u32, buffer[..len].to_vec())));
        }
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

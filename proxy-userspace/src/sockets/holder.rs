//! The next best way to part a socket from a backend: by the process that has it open.
//!
//! Where the kernel cannot destroy sockets, a copy of the process's descriptor does what the
//! process itself could do (Linux 5.6).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv6Addr, Shutdown, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;

use proxy_common::abi::{Addr, Family, Peer, Protocol};
use rustix::net::connect_unspec;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use socket2::{SockAddr, SockRef};

/// A descriptor of a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Holder {
    pid: i32,
    fd: i32,
}

/// What became of a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Parted {
    /// It is connected to what the frontend leads to now.
    Moved,
    /// Who uses it is told that it is over.
    Closed,
}

/// The numbers of all processes.
pub(super) fn pids(proc: &Path) -> Vec<i32> {
    numbers(proc)
}

/// The files in a folder whose names are numbers.
fn numbers(folder: &Path) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let number = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    entries.flatten().filter_map(number).collect()
}

/// Who has the sockets with these inodes open; one for each is enough, since they share the socket.
pub(super) fn find(proc: &Path, inodes: &BTreeSet<u32>) -> BTreeMap<u32, Holder> {
    let mut holders = BTreeMap::new();
    for pid in pids(proc) {
        if holders.len() == inodes.len() {
            break;
        }
        let folder = proc.join(format!("{pid}/fd"));
        for fd in numbers(&folder) {
            let Ok(target) = std::fs::read_link(folder.join(fd.to_string())) else {
                continue;
            };
            if let Some(inode) = target.to_str().and_then(socket_inode)
                && inodes.contains(&inode)
            {
                let _other = holders.insert(inode, Holder { pid, fd });
            }
        }
    }
    holders
}

/// The inode in `socket:[4711]`.
fn socket_inode(link: &str) -> Option<u32> {
    link.strip_prefix("socket:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

impl Holder {
    /// A copy of the descriptor, if it still is the socket with this cookie.
    ///
    /// # Errors
    /// If the process is gone, or may not be asked: that takes the right to trace it, and the
    /// machine's process numbers.
    pub(super) fn socket(self, cookie: u64) -> io::Result<OwnedFd> {
        let pid = Pid::from_raw(self.pid).ok_or(io::ErrorKind::NotFound)?;
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        let socket = pidfd_getfd(&process, self.fd, PidfdGetfdFlags::empty())?;
        if SockRef::from(&socket).cookie()? == cookie {
            Ok(socket)
        } else {
            Err(io::ErrorKind::NotFound.into())
        }
    }
}

/// Parts a socket from its backend.
///
/// A UDP socket dials the frontend once more, and the programs of its cgroup point it at a backend
/// that is there; if none is, or for TCP, it is shut.
///
/// # Errors
/// If the kernel refuses.
pub(super) fn part(
    socket: &OwnedFd,
    protocol: Protocol,
    family: Family,
    frontend: &Peer,
) -> io::Result<Parted> {
    let shared = SockRef::from(socket);
    if protocol == Protocol::Udp && shared.connect(&address(family, frontend)).is_ok() {
        return Ok(Parted::Moved);
    }
    // Dialling nobody resets a TCP connection, and its user is told so. Some kernels refuse while
    // somebody waits at the socket, who then is told that nothing more comes.
    if protocol == Protocol::Udp || connect_unspec(socket).is_err() {
        shared.shutdown(Shutdown::Both)?;
    }
    Ok(Parted::Closed)
}

/// An address as sockets of a family want it.
fn address(family: Family, peer: &Peer) -> SockAddr {
    let ip = match family {
        Family::Ipv4 => peer.addr.into(),
        Family::Ipv6 => Ipv6Addr::from(octets(peer.addr)).into(),
    };
    SocketAddr::new(ip, peer.port.number()).into()
}

fn octets(addr: Addr) -> [u8; 16] {
    bytemuck::cast(addr.words())
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use proxy_common::abi::Port;

    use super::*;

    #[test]
    fn links_to_sockets_are_told_from_others() {
        assert_eq!(socket_inode("socket:[4711]"), Some(4711));
        for other in ["pipe:[4711]", "/dev/null", "socket:[x]", "socket:[1"] {
            assert_eq!(socket_inode(other), None, "{other}");
        }
    }

    #[test]
    fn an_ipv6_socket_dials_ipv4_by_a_mapped_address() {
        let peer = Peer::new(Ipv4Addr::new(10, 96, 0, 1).into(), Port::new(53));
        let dialled = |family| address(family, &peer).as_socket().unwrap();
        let mapped: IpAddr = "::ffff:10.96.0.1".parse().unwrap();
        assert_eq!(dialled(Family::Ipv4), "10.96.0.1:53".parse().unwrap());
        assert_eq!(dialled(Family::Ipv6), SocketAddr::new(mapped, 53));
    }
}

//! The socket options by which the tables of `iptables-legacy` are read and replaced, which no
//! crate has.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd as _;

use bytemuck::{Pod, Zeroable};
use proxy_common::abi::Family;

use super::blob::{Blob, Shape};

/// Length of a table's name.
const NAME: usize = 32;

/// `IPT_SO_GET_INFO`, `IPT_SO_SET_REPLACE`
const INFO_OR_REPLACE: libc::c_int = 64;
/// `IPT_SO_GET_ENTRIES`, `IPT_SO_SET_ADD_COUNTERS`
const ENTRIES_OR_COUNTERS: libc::c_int = 65;

/// `struct ipt_getinfo`
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Info {
    name: [u8; NAME],
    valid_hooks: u32,
    hook_entry: [u32; 5],
    underflow: [u32; 5],
    n_entries: u32,
    size: u32,
}

/// The head of `struct ipt_get_entries`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct EntriesHead {
    name: [u8; NAME],
    size: u32,
    _pad: u32,
}

/// The head of `struct ipt_replace`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ReplaceHead {
    name: [u8; NAME],
    valid_hooks: u32,
    n_entries: u32,
    size: u32,
    hook_entry: [u32; 5],
    underflow: [u32; 5],
    n_counters: u32,
    counters: u64,
}

/// The head of `struct xt_counters_info`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct CountersHead {
    name: [u8; NAME],
    n_counters: u32,
    _pad: u32,
}

/// Packets and bytes (`struct xt_counters`).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Counters {
    packets: u64,
    bytes: u64,
}

/// The tables of a family in the network namespace of the thread that opened them.
pub(super) struct Tables {
    socket: UdpSocket,
    level: libc::c_int,
}

impl Tables {
    /// Opens them.
    ///
    /// # Errors
    /// If there can be no socket of this family.
    pub(super) fn open(family: Family) -> io::Result<Self> {
        Ok(Self {
            socket: UdpSocket::bind((family.unspecified(), 0))?,
            level: match family {
                Family::Ipv4 => libc::SOL_IP,
                Family::Ipv6 => libc::SOL_IPV6,
            },
        })
    }

    /// Reads a table.
    ///
    /// # Errors
    /// If the kernel refuses; `WouldBlock` if the table changed meanwhile.
    pub(super) fn get(&self, table: &str) -> io::Result<(Shape, Vec<u8>)> {
        let mut info = Info {
            name: name(table),
            ..Info::zeroed()
        };
        self.ask(INFO_OR_REPLACE, bytemuck::bytes_of_mut(&mut info))?;
        let head = EntriesHead {
            name: name(table),
            size: info.size,
            _pad: 0,
        };
        let mut bytes = bytemuck::bytes_of(&head).to_vec();
        bytes.resize(bytes.len() + info.size as usize, 0);
        self.ask(ENTRIES_OR_COUNTERS, &mut bytes)?;
        let shape = Shape {
            valid_hooks: info.valid_hooks,
            hook_entry: info.hook_entry,
            underflow: info.underflow,
            n_entries: info.n_entries,
        };
        Ok((shape, bytes.split_off(size_of::<EntriesHead>())))
    }

    /// Puts `new` in place of a table that has `n_old` entries, and returns what those had counted.
    ///
    /// # Errors
    /// If the kernel refuses; `WouldBlock` if the table has another number of entries.
    pub(super) fn replace(
        &self,
        table: &str,
        new: &Blob,
        n_old: usize,
    ) -> io::Result<Vec<Counters>> {
        let mut counters = vec![Counters::default(); n_old];
        let head = ReplaceHead {
            name: name(table),
            valid_hooks: new.shape.valid_hooks,
            n_entries: new.shape.n_entries,
            size: new.bytes.len() as u32,
            hook_entry: new.shape.hook_entry,
            underflow: new.shape.underflow,
            n_counters: n_old as u32,
            counters: counters.as_mut_ptr().expose_provenance() as u64,
        };
        let bytes = [bytemuck::bytes_of(&head), &new.bytes].concat();
        self.tell(INFO_OR_REPLACE, &bytes)?;
        Ok(counters)
    }

    /// Adds to what the entries of a table have counted.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(super) fn add_counters(&self, table: &str, counters: &[Counters]) -> io::Result<()> {
        let head = CountersHead {
            name: name(table),
            n_counters: counters.len() as u32,
            _pad: 0,
        };
        let bytes = [bytemuck::bytes_of(&head), bytemuck::cast_slice(counters)].concat();
        self.tell(ENTRIES_OR_COUNTERS, &bytes)
    }

    fn ask(&self, option: libc::c_int, bytes: &mut [u8]) -> io::Result<()> {
        let mut length = bytes.len() as libc::socklen_t;
        // SAFETY: The kernel reads and writes at most `length` bytes of `bytes`, which are valid
        // for both; any bits are valid there.
        let done = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                self.level,
                option,
                bytes.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        result(done)
    }

    /// With `INFO_OR_REPLACE`, `bytes` name memory of the caller's, which is to be valid for as
    /// many counters as they say.
    fn tell(&self, option: libc::c_int, bytes: &[u8]) -> io::Result<()> {
        // SAFETY: The kernel reads `bytes`. It writes counters to where `ReplaceHead` says: the
        // only maker of one, `replace`, names a vector of its own, which it made as long as the
        // head says and does not touch meanwhile.
        let done = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                self.level,
                option,
                bytes.as_ptr().cast(),
                bytes.len() as libc::socklen_t,
            )
        };
        result(done)
    }
}

fn result(done: libc::c_int) -> io::Result<()> {
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A table's name as the kernel wants it.
fn name(table: &str) -> [u8; NAME] {
    let mut name = [0; NAME];
    let length = table.len().min(NAME - 1);
    name[..length].copy_from_slice(&table.as_bytes()[..length]);
    name
}

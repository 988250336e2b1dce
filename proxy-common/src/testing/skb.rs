//! A packet in the kernel's care.

use core::ops::Range;
use std::collections::BTreeMap;

use bytemuck::Pod;

use super::memory::longest;
use crate::abi::{Addr, NetworkKey};
use crate::datapath::checksum::Repair;
use crate::datapath::{Origin, Packet, Route};

/// A packet as a program sees it, with the kernel's knowledge of its checksum.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Skb {
    /// From the Ethernet header on.
    pub bytes: Vec<u8>,
    /// The transport checksum covers the pseudo-header alone; the device is to complete it.
    pub is_partial: bool,
    /// How many of the first bytes can be read and written without a pull.
    pub n_linear: usize,
    /// It has a VLAN tag beside it.
    pub is_tagged: bool,
    /// It is several segments in one.
    pub is_segmented: bool,
    /// Index of the device where it is seen.
    pub device: u32,
    /// The routing table: networks and the devices that lead to them.
    pub routes: BTreeMap<NetworkKey, u32>,
    /// Where it goes.
    pub sent: Sent,
}

/// Where a packet goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sent {
    /// On through the stack.
    Stack,
    /// Out of the device with this index as it is.
    Out(u32),
    /// Into this node by the device with this index.
    In(u32),
    /// To a neighbour on the device with this index.
    Neighbour(u32),
}

impl Skb {
    /// Index of the device where packets are seen unless a scene says otherwise: that of `lo`, as in
    /// a test run.
    pub const DEVICE: u32 = 1;

    /// A packet in one piece of memory, whose checksums are complete.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self {
            n_linear: bytes.len(),
            is_partial: false,
            is_tagged: false,
            is_segmented: false,
            device: Self::DEVICE,
            routes: BTreeMap::new(),
            sent: Sent::Stack,
            bytes,
        }
    }

    /// The same packet with nothing but its link-layer header in the linear part.
    #[must_use]
    pub fn scattered(self) -> Self {
        Self {
            n_linear: self.bytes.len().min(14),
            ..self
        }
    }

    fn linear<T>(&self, offset: u32) -> Option<Range<usize>> {
        let start = offset as usize;
        let end = start + size_of::<T>();
        (end <= self.n_linear).then_some(start..end)
    }
}

impl Packet for Skb {
    fn len(&self) -> u32 {
        u32::try_from(self.bytes.len()).expect("packets are short")
    }

    fn pull(&mut self, len: u32) {
        if len <= self.len() {
            self.n_linear = self.n_linear.max(len as usize);
        }
    }

    fn load<T: Pod>(&self, offset: u32) -> Option<T> {
        let bytes = self.bytes.get(self.linear::<T>(offset)?)?;
        Some(bytemuck::pod_read_unaligned(bytes))
    }

    fn peek<T: Pod>(&self, offset: u32) -> Option<T> {
        let bytes = self.bytes.get(offset as usize..)?;
        Some(bytemuck::pod_read_unaligned(bytes.get(..size_of::<T>())?))
    }

    fn store<T: Pod>(&mut self, offset: u32, value: T) -> Option<()> {
        let range = self.linear::<T>(offset)?;
        self.bytes
            .get_mut(range)?
            .copy_from_slice(bytemuck::bytes_of(&value));
        Some(())
    }

    /// As `inet_proto_csum_replace_by_diff` in the kernel's `net/core/utils.c` does it.
    fn repair(&mut self, repair: &Repair) -> Option<()> {
        self.pull(repair.offset + 2);
        let checksum: u16 = self.load(repair.offset)?;
        if repair.is_none(checksum) {
            return Some(());
        }
        let repaired = if self.is_partial {
            assert!(!repair.is_complete(checksum), "{self:?}: {repair:?}");
            repair.of_partial(checksum)
        } else {
            repair.of_complete(checksum)
        };
        self.store(repair.offset, repaired)
    }

    fn resize(&mut self, len: u32) -> Option<()> {
        self.bytes.resize(len as usize, 0);
        self.n_linear = self.n_linear.min(len as usize);
        Some(())
    }

    fn device(&self) -> u32 {
        self.device
    }

    fn is_tagged(&self) -> bool {
        self.is_tagged
    }

    fn is_segmented(&self) -> bool {
        self.is_segmented
    }

    fn route(&mut self, src: &Addr, dst: &Addr, origin: Origin) -> Route {
        // No packet comes in by no device, nor is one from a loopback address let through.
        let may_pass = origin.device != 0 && !src.is_loopback();
        match longest(&self.routes, dst).filter(|_| may_pass) {
            Some(device) => {
                self.sent = Sent::Neighbour(device);
                Route::Neighbour(device)
            }
            None => Route::None,
        }
    }

    fn redirect_out(&mut self, device: u32) {
        self.sent = Sent::Out(device);
    }

    fn redirect_in(&mut self, device: u32) {
        self.sent = Sent::In(device);
    }
}

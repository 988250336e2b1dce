//! A packet in the kernel's care.

use bytemuck::Pod;

use crate::datapath::Packet;
use crate::datapath::checksum::Difference;

/// A packet as a program sees it, with the kernel's knowledge of its checksum.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Skb {
    /// From the Ethernet header on.
    pub bytes: Vec<u8>,
    /// The transport checksum covers the pseudo-header alone; the device is to complete it.
    pub is_partial: bool,
}

impl Skb {
    /// A packet whose checksums are complete.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            is_partial: false,
        }
    }
}

impl Packet for Skb {
    fn len(&self) -> u32 {
        u32::try_from(self.bytes.len()).expect("packets are short")
    }

    fn pull(&mut self, _len: u32) {}

    fn load<T: Pod>(&self, offset: u32) -> Option<T> {
        let bytes = self.bytes.get(offset as usize..)?.get(..size_of::<T>())?;
        Some(bytemuck::pod_read_unaligned(bytes))
    }

    fn store<T: Pod>(&mut self, offset: u32, value: T) -> Option<()> {
        let bytes = self
            .bytes
            .get_mut(offset as usize..)?
            .get_mut(..size_of::<T>())?;
        bytes.copy_from_slice(bytemuck::bytes_of(&value));
        Some(())
    }

    /// As `inet_proto_csum_replace_by_diff` in the kernel's `net/core/utils.c` does it.
    fn repair(
        &mut self,
        offset: u32,
        pseudo: Difference,
        body: Difference,
        zero_is_none: bool,
    ) -> Option<()> {
        let checksum: u16 = self.load(offset)?;
        if zero_is_none && checksum == 0 {
            return Some(());
        }
        let repaired = if self.is_partial {
            pseudo.add16(checksum).fold()
        } else {
            pseudo.plus(body).applied_to(checksum)
        };
        self.store(
            offset,
            if zero_is_none && repaired == 0 {
                0xffff
            } else {
                repaired
            },
        )
    }

    fn resize(&mut self, len: u32) -> Option<()> {
        self.bytes.resize(len as usize, 0);
        Some(())
    }
}

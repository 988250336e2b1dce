//! The maps that describe this node.

use std::collections::BTreeMap;

use proxy_common::abi::{Addr, Device, NetworkFlags, NetworkKey};

use super::{MapFailure, Maps};

impl Maps {
    /// Makes `wanted` the contents of `NETWORKS`; says how many entries had to be written.
    ///
    /// A network that was there and is wanted is never missing meanwhile.
    ///
    /// # Errors
    /// If the kernel refuses; what is written stays.
    pub fn set_networks(
        &mut self,
        wanted: &BTreeMap<NetworkKey, NetworkFlags>,
    ) -> Result<usize, MapFailure> {
        let held: BTreeMap<_, _> = self.held_networks()?;
        let mut n_writes = 0;
        for (key, flags) in wanted
            .iter()
            .filter(|(key, flags)| held.get(key) != Some(flags))
        {
            self.networks
                .insert(key.prefix_len, &key.addr.words(), flags)?;
            n_writes += 1;
        }
        for key in held.keys().filter(|key| !wanted.contains_key(key)) {
            self.networks.remove(key.prefix_len, &key.addr.words())?;
            n_writes += 1;
        }
        Ok(n_writes)
    }

    fn held_networks(&self) -> Result<BTreeMap<NetworkKey, NetworkFlags>, MapFailure> {
        let network = |entry: Result<(u32, [u32; 4], NetworkFlags), MapFailure>| {
            let (prefix_len, words, flags) = entry?;
            let addr = Addr::from_words(words);
            Ok((NetworkKey { prefix_len, addr }, flags))
        };
        self.networks.entries().map(network).collect()
    }

    /// Makes `wanted` the contents of `DEVICES`; says how many entries had to be written.
    ///
    /// # Errors
    /// If the kernel refuses, for instance because there are too many; what is written stays.
    pub fn set_devices(&mut self, wanted: &BTreeMap<u32, Device>) -> Result<usize, MapFailure> {
        let held: BTreeMap<_, _> = self.devices.entries().collect::<Result<_, _>>()?;
        let mut n_writes = 0;
        // First those that are gone: they may make room.
        for index in held.keys().filter(|index| !wanted.contains_key(index)) {
            let _was_there = self.devices.remove(index)?;
            n_writes += 1;
        }
        for (index, device) in wanted
            .iter()
            .filter(|(index, device)| held.get(index) != Some(device))
        {
            self.devices.insert(index, device)?;
            n_writes += 1;
        }
        Ok(n_writes)
    }
}

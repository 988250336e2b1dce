//! The maps that describe this node.

use std::collections::BTreeMap;

use proxy_common::abi::{Addr, Device, NetworkFlags, NetworkKey};

use super::{Held, MapFailure, Maps};

impl Maps {
    /// Makes `wanted` the contents of `NETWORKS`.
    ///
    /// A network that was there and is wanted is never missing meanwhile. One entry stays free:
    /// kernels before 6.13 replace none in a full trie.
    ///
    /// # Errors
    /// If the kernel refuses for another reason than want of room; what is written stays.
    pub fn set_networks(
        &mut self,
        wanted: &BTreeMap<NetworkKey, NetworkFlags>,
    ) -> Result<Held<NetworkKey>, MapFailure> {
        let held: BTreeMap<_, _> = self.held_networks()?;
        let size = self.networks.size().saturating_sub(1) as usize;
        let (mut n_writes, mut n_held, mut left_out) = (0, held.len(), Vec::new());
        for (key, flags) in wanted {
            if held.get(key) == Some(flags) {
                continue;
            }
            let is_new = !held.contains_key(key);
            if is_new && n_held >= size {
                left_out.push(*key);
                continue;
            }
            self.networks
                .insert(key.prefix_len, &key.addr.words(), flags)?;
            n_held += usize::from(is_new);
            n_writes += 1;
        }
        for key in held.keys().filter(|key| !wanted.contains_key(key)) {
            self.networks.remove(key.prefix_len, &key.addr.words())?;
            n_held -= 1;
            n_writes += 1;
        }
        // Those that went have made room.
        let n_fit = size.saturating_sub(n_held).min(left_out.len());
        for key in left_out.drain(..n_fit) {
            if let Some(flags) = wanted.get(&key) {
                self.networks
                    .insert(key.prefix_len, &key.addr.words(), flags)?;
                n_writes += 1;
            }
        }
        Ok(Held { n_writes, left_out })
    }

    fn held_networks(&self) -> Result<BTreeMap<NetworkKey, NetworkFlags>, MapFailure> {
        let network = |entry: Result<(u32, [u32; 4], NetworkFlags), MapFailure>| {
            let (prefix_len, words, flags) = entry?;
            let addr = Addr::from_words(words);
            Ok((NetworkKey { prefix_len, addr }, flags))
        };
        self.networks.entries().map(network).collect()
    }

    /// Makes `wanted` the contents of `DEVICES`. If there are too many, those that came last are
    /// left out.
    ///
    /// # Errors
    /// If the kernel refuses for another reason than want of room; what is written stays.
    pub fn set_devices(&mut self, wanted: &BTreeMap<u32, Device>) -> Result<Held<u32>, MapFailure> {
        self.devices.hold(wanted, |_| false)
    }
}

//! What the programs of the socket edge are told.

use proxy_common::abi::{SocketFlags, SocketSettings};

use super::pins::Pins;
use crate::maps::{List, MapFailure};

/// The map `SOCKET_SETTINGS`, whose only writer this is.
pub struct SocketSettingsMap {
    map: List<SocketSettings>,
    /// What it holds.
    settings: SocketSettings,
    /// The flags, but for [`SocketFlags::KNOWN_PODS`].
    served: SocketFlags,
}

impl SocketSettingsMap {
    /// Opens the pinned map as a predecessor left it. [`Self::set_served`] has to be called next.
    ///
    /// # Errors
    /// If it is not there.
    pub fn open(pins: &Pins) -> Result<Self, MapFailure> {
        let map: List<SocketSettings> = List::open(pins, "SOCKET_SETTINGS")?;
        let settings = map.get(0)?;
        Ok(Self {
            map,
            settings,
            served: SocketFlags::NONE,
        })
    }

    /// Says whose sockets are served: `node_netns` is the cookie of the node's network namespace,
    /// `None` if the kernel does not tell; `flags` are all but [`SocketFlags::KNOWN_PODS`], which
    /// [`Self::set_pods`] knows.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_served(
        &mut self,
        node_netns: Option<u64>,
        flags: SocketFlags,
    ) -> Result<(), MapFailure> {
        let only_known = self.settings.flags.contains(SocketFlags::KNOWN_PODS);
        self.served = flags;
        self.write(SocketSettings {
            node_netns: node_netns.unwrap_or(0),
            flags: flags.union(known_pods(only_known)),
            ..self.settings
        })
    }

    /// Says where in the cgroup tree the pods are that `PODS` names, a bit for each depth
    /// ([`SocketSettings::pod_levels`]), and whether only pods that it names are served.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_pods(&mut self, levels: u32, only_known: bool) -> Result<(), MapFailure> {
        self.write(SocketSettings {
            pod_levels: levels,
            flags: self.served.union(known_pods(only_known)),
            ..self.settings
        })
    }

    fn write(&mut self, settings: SocketSettings) -> Result<(), MapFailure> {
        if settings != self.settings {
            self.map.set(0, &settings)?;
            self.settings = settings;
        }
        Ok(())
    }
}

const fn known_pods(only_known: bool) -> SocketFlags {
    if only_known {
        SocketFlags::KNOWN_PODS
    } else {
        SocketFlags::NONE
    }
}

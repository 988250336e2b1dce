//! The maps of the socket edge, in memory.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

use super::Memory;
use crate::abi::{DatagramKey, PodFlags, SocketClient, SocketRecord, SocketSettings};
use crate::datapath::Sockets;

/// What only sockets need.
#[derive(Clone, Debug, Default)]
pub struct SocketMemory {
    /// The entry of the map `SOCKET_SETTINGS`.
    pub settings: SocketSettings,
    /// What the map `PODS` has on the caller's cgroup.
    pub pod: Option<PodFlags>,
    /// The map `CLIENTS`.
    pub clients: HashMap<u64, SocketClient>,
    /// The map `SOCKETS`.
    pub connected: RefCell<HashMap<u64, SocketRecord>>,
    /// The map `DATAGRAMS`.
    pub datagrams: RefCell<BTreeMap<DatagramKey, SocketRecord>>,
    /// There is room in neither of the last two.
    pub is_full: bool,
}

impl Sockets for Memory {
    fn socket_settings(&self) -> &SocketSettings {
        &self.sockets.settings
    }

    fn pod(&self) -> Option<PodFlags> {
        self.sockets.pod
    }

    fn client(&self, netns: u64) -> Option<&SocketClient> {
        self.sockets.clients.get(&netns)
    }

    fn with_connected<R>(&self, cookie: u64, act: impl FnOnce(&SocketRecord) -> R) -> Option<R> {
        self.sockets.connected.borrow().get(&cookie).map(act)
    }

    fn put_connected(&self, cookie: u64, record: &SocketRecord) -> bool {
        if !self.sockets.is_full {
            let _before = self.sockets.connected.borrow_mut().insert(cookie, *record);
        }
        !self.sockets.is_full
    }

    fn remove_connected(&self, cookie: u64) {
        let _was_there = self.sockets.connected.borrow_mut().remove(&cookie);
    }

    fn with_datagrams<R>(
        &self,
        key: &DatagramKey,
        act: impl FnOnce(&mut SocketRecord) -> R,
    ) -> Option<R> {
        self.sockets.datagrams.borrow_mut().get_mut(key).map(act)
    }

    fn put_datagrams(&self, key: &DatagramKey, record: &SocketRecord) -> bool {
        if !self.sockets.is_full {
            let _before = self.sockets.datagrams.borrow_mut().insert(*key, *record);
        }
        !self.sockets.is_full
    }

    fn remove_datagrams(&self, key: &DatagramKey) {
        let _was_there = self.sockets.datagrams.borrow_mut().remove(key);
    }
}

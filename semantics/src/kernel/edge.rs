//! What the socket edge did, as far as its maps tell.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use beeline::loader::pins::Pins;
use beeline::maps::Table;
use proxy_common::abi::{Addr, DatagramKey, DatagramSide, Peer, Port, SocketRecord};
use xtask::testbed::Testbed;

use super::process::Process;
use crate::case::Protocol;

/// Numbers of sockets, over all cases.
#[derive(Default, Debug)]
pub(super) struct Edge {
    tcp: Count,
    connected: Count,
    unconnected: Count,
    told: AtomicU64,
}

/// Sockets that dialled an address, and those of them that were pointed elsewhere.
#[derive(Default, Debug)]
struct Count {
    all: AtomicU64,
    pointed: AtomicU64,
}

/// What it did.
pub(super) static EDGE: Edge = Edge {
    tcp: Count::new(),
    connected: Count::new(),
    unconnected: Count::new(),
    told: AtomicU64::new(0),
};

impl Edge {
    /// Whether a socket that has dialled was pointed at a backend.
    pub(super) fn points(&self, testbed: &Testbed, process: &Process) -> Result<bool> {
        let count = match process.protocol {
            Protocol::Sctp => return Ok(false),
            Protocol::Tcp => &self.tcp,
            Protocol::Udp if process.is_connected_udp() => &self.connected,
            Protocol::Udp => &self.unconnected,
        };
        let is_pointed = is_pointed(testbed, process)?;
        count.all.fetch_add(1, Ordering::Relaxed);
        count
            .pointed
            .fetch_add(is_pointed.into(), Ordering::Relaxed);
        Ok(is_pointed)
    }

    /// A connected socket was told that its backend is gone.
    pub(super) fn has_told(&self) {
        self.told.fetch_add(1, Ordering::Relaxed);
    }

    /// How many sockets were pointed anywhere.
    pub(super) fn n_pointed(&self) -> u64 {
        let counts = [&self.tcp, &self.connected, &self.unconnected];
        let pointed = counts.map(|count| count.pointed.load(Ordering::Relaxed));
        pointed.iter().sum()
    }
}

impl Count {
    const fn new() -> Self {
        Self {
            all: AtomicU64::new(0),
            pointed: AtomicU64::new(0),
        }
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [pointed, all] = [&self.pointed, &self.all].map(|n| n.load(Ordering::Relaxed));
        write!(f, "{pointed} of {all}")
    }
}

impl fmt::Display for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "pointed at a backend: {} TCP sockets, {} connected UDP sockets, {} others; told that \
             their backend is gone: {}",
            self.tcp,
            self.connected,
            self.unconnected,
            self.told.load(Ordering::Relaxed)
        )
    }
}

fn is_pointed(testbed: &Testbed, process: &Process) -> Result<bool> {
    let pins = Pins::new(&testbed.bpffs());
    let cookie = process.cookie().context("ask for a socket's cookie")?;
    if process.is_unconnected() {
        let table: Table<DatagramKey, SocketRecord> = Table::open(&pins, "DATAGRAMS")?;
        let dialled = DatagramKey {
            cookie,
            peer: Peer::new(Addr::from(process.to.ip()), Port::new(process.to.port())),
            side: DatagramSide::Dialled as u32,
        };
        Ok(table.get(&dialled)?.is_some())
    } else {
        let table: Table<u64, SocketRecord> = Table::open(&pins, "SOCKETS")?;
        Ok(table.get(&cookie)?.is_some())
    }
}

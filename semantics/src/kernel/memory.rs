//! What the daemon and its programs remember, in pinned maps: put back, or made older.
//!
//! Time passes by making all records older. No clock is changed.

use anyhow::Result;
use beeline::loader::pins::Pins;
use beeline::maps::Table;
use proxy_common::abi::{Affinity, AffinityKey, DatagramKey, Flow, FlowKey, SocketRecord};
use xtask::testbed::Testbed;

/// Records of session affinity.
#[derive(Clone, Default, Debug)]
pub(super) struct Remembered(Vec<(AffinityKey, Affinity)>);

impl Remembered {
    /// All there are.
    pub(super) fn read(testbed: &Testbed) -> Result<Self> {
        let records = affinity(testbed)?;
        let records = records.entries().collect::<Result<_, _>>()?;
        Ok(Self(records))
    }

    /// Makes them all there are again.
    pub(super) fn restore(&self, testbed: &Testbed) -> Result<()> {
        let mut records = affinity(testbed)?;
        let keys: Vec<_> = records.keys().collect::<Result<_, _>>()?;
        for key in keys {
            let _was_there = records.remove(&key)?;
        }
        for (key, value) in &self.0 {
            records.insert(key, value)?;
        }
        Ok(())
    }
}

fn affinity(testbed: &Testbed) -> Result<Table<AffinityKey, Affinity>> {
    Ok(Table::open(&Pins::new(&testbed.bpffs()), "AFFINITY")?)
}

/// Makes all records of affinity, of flows and of datagrams older.
pub(super) fn pass(testbed: &Testbed, seconds: u64) -> Result<()> {
    let age = seconds * 1_000_000_000;
    let mut clients = affinity(testbed)?;
    let entries: Vec<_> = clients.entries().collect::<Result<_, _>>()?;
    for (key, mut record) in entries {
        record.last_used = record.last_used.saturating_sub(age);
        clients.insert(&key, &record)?;
    }
    let mut flows: Table<FlowKey, Flow> = Table::open(&Pins::new(&testbed.bpffs()), "FLOWS")?;
    let entries: Vec<_> = flows.entries().collect::<Result<_, _>>()?;
    for (key, mut flow) in entries {
        flow.created = flow.created.saturating_sub(age);
        flow.last_seen = flow.last_seen.saturating_sub(age);
        // The next packet is to be taken note of, however soon it really comes.
        flow.tick = flow.tick.wrapping_sub(1 << 20);
        flows.insert(&key, &flow)?;
    }
    let pins = Pins::new(&testbed.bpffs());
    let mut datagrams: Table<DatagramKey, SocketRecord> = Table::open(&pins, "DATAGRAMS")?;
    let entries: Vec<_> = datagrams.entries().collect::<Result<_, _>>()?;
    for (key, mut record) in entries {
        record.last_seen = record.last_seen.saturating_sub(age);
        datagrams.insert(&key, &record)?;
    }
    Ok(())
}

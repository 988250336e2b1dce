//! What UDP sockets that are not connected said to backends long ago.

use std::time::Duration;

use proxy_common::abi::{DatagramKey, DatagramSide, FlowState, SocketRecord};

use crate::conntrack_gc::{Timeouts, now};
use crate::loader::pins::Pins;
use crate::maps::{MapFailure, Table};

/// So many records are looked at …
const BATCH: usize = 1024;
/// … before a pause, so that a pass costs less than a tenth of one CPU.
const PAUSE: Duration = Duration::from_millis(15);

const SECOND: u64 = 1_000_000_000;

/// Removes the records of correspondences that are over.
pub(super) struct Idle {
    datagrams: Table<DatagramKey, SocketRecord>,
}

impl Idle {
    /// Opens the pinned map.
    ///
    /// # Errors
    /// If it is not there.
    pub(super) fn open(pins: &Pins) -> Result<Self, MapFailure> {
        let datagrams = Table::open(pins, "DATAGRAMS")?;
        Ok(Self { datagrams })
    }

    /// Looks at every record once; says how many went.
    ///
    /// # Errors
    /// If the map refuses; what was removed by then is gone.
    pub(super) fn remove(&mut self, timeouts: &Timeouts) -> Result<usize, MapFailure> {
        // Whether there ever was an answer, the record of one side does not tell.
        let patience = u64::from(timeouts.seconds(FlowState::UdpStream)) * SECOND;
        let oldest = now().saturating_sub(patience);
        // Nothing is removed while walking: the kernel starts over if the key it stands at goes.
        let mut idle = Vec::new();
        for (number, entry) in self.datagrams.entries().enumerate() {
            let (key, record) = entry?;
            if (number + 1).is_multiple_of(BATCH) {
                std::thread::sleep(PAUSE);
            }
            if record.last_seen < oldest {
                idle.push(key);
            }
        }
        let mut n_removed = 0;
        for key in idle {
            n_removed += self.remove_pair(&key, oldest)?;
        }
        Ok(n_removed)
    }

    /// Removes a record and its twin if neither was used since `oldest`.
    fn remove_pair(&mut self, key: &DatagramKey, oldest: u64) -> Result<usize, MapFailure> {
        let Some(record) = self.datagrams.get(key)? else {
            return Ok(0);
        };
        let twin_key = twin_key(key, &record);
        let twin = self.datagrams.get(&twin_key)?;
        let twin = twin.filter(|twin| self::twin_key(&twin_key, twin) == *key);
        let last_seen = twin.map_or(record.last_seen, |it| it.last_seen.max(record.last_seen));
        if last_seen >= oldest {
            return Ok(0);
        }
        let mut n_removed = usize::from(self.datagrams.remove(key)?);
        if twin.is_some() {
            n_removed += usize::from(self.datagrams.remove(&twin_key)?);
        }
        Ok(n_removed)
    }
}

/// The key of the other record of a correspondence.
fn twin_key(key: &DatagramKey, record: &SocketRecord) -> DatagramKey {
    let (peer, side) = if key.side == DatagramSide::Dialled as u32 {
        (record.backend, DatagramSide::Answers)
    } else {
        (record.frontend, DatagramSide::Dialled)
    };
    DatagramKey {
        cookie: key.cookie,
        peer,
        side: side as u32,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proxy_common::abi::{Peer, Port};

    use super::*;

    #[test]
    fn twins_name_each_other() {
        let peer = |last| Peer::new(Ipv4Addr::new(10, 0, 0, last).into(), Port::new(53));
        let record = SocketRecord {
            frontend: peer(1),
            backend: peer(2),
            id: 1,
            generation: 1,
            service: 1,
            protocol: 17,
            _pad: [0; 3],
            netns: 1,
            last_seen: 0,
        };
        let dialled = DatagramKey {
            cookie: 9,
            peer: peer(1),
            side: DatagramSide::Dialled as u32,
        };
        let answers = twin_key(&dialled, &record);
        assert_eq!(answers.peer, peer(2));
        assert_eq!(twin_key(&answers, &record), dialled);
    }
}

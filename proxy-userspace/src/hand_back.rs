//! Hands traffic back to whoever serves beside Beeline: what has a record goes on until it is
//! over, everything else is left to the stack.
//!
//! The programs do it, told by [`SettingsFlags::HANDED_BACK`]. Here the flag is set, and what is
//! still open is counted. A daemon that starts clears the flag once its Services are in force.

use std::collections::BTreeSet;
use std::fmt;

use proxy_common::abi::{
    DatagramKey, DatagramSide, Flow, FlowKey, FlowRole, FlowState, Protocol, Settings,
    SettingsFlags, SocketRecord,
};
use proxy_common::datapath::conntrack::is_over;

use crate::conntrack_gc::{self, Collector, Timeouts};
use crate::loader::pins::Pins;
use crate::maps::{List, MapFailure, Table, wait_for_programs};

const SECOND: u64 = 1_000_000_000;

/// So many open flows are described at most.
const SHOWN: usize = 5;

/// What is still open.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Left {
    /// Connections of TCP and associations of SCTP, half-open ones included.
    pub connections: usize,
    /// Flows of datagrams that are not idle.
    pub datagrams: usize,
    /// UDP sockets that are pointed at a backend and were used lately.
    pub sockets: usize,
    /// A few of the flows, in words.
    pub examples: Vec<String>,
}

impl Left {
    /// How many there are.
    pub const fn total(&self) -> usize {
        self.connections + self.datagrams + self.sockets
    }
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            (self.connections, "connections"),
            (self.datagrams, "flows of datagrams"),
            (self.sockets, "UDP sockets"),
        ];
        let parts = parts.into_iter().filter(|(n, _)| *n > 0);
        let parts: Vec<_> = parts.map(|(n, what)| format!("{n} {what}")).collect();
        if parts.is_empty() {
            return f.write_str("nothing");
        }
        f.write_str(&parts.join(", "))
    }
}

/// Traffic that is being handed back.
pub struct HandBack {
    settings: List<Settings>,
    flows: Table<FlowKey, Flow>,
    sockets: Table<u64, SocketRecord>,
    datagrams: Table<DatagramKey, SocketRecord>,
    timeouts: Timeouts,
    /// No daemon collects what is over, and by its record a new flow would go on as the old one.
    collector: Collector,
}

/// Tells the programs that use this map `SETTINGS` to open no flow any more.
pub(crate) fn tell(map: &mut List<Settings>) -> Result<(), MapFailure> {
    let settings = map.get(0)?;
    let flags = settings.flags.union(SettingsFlags::HANDED_BACK);
    map.set(0, &Settings { flags, ..settings })
}

impl HandBack {
    /// Opens the pinned maps.
    ///
    /// # Errors
    /// If one is not there.
    pub fn open(pins: &Pins, timeouts: Timeouts) -> Result<Self, MapFailure> {
        Ok(Self {
            settings: List::open(pins, "SETTINGS")?,
            flows: Table::open(pins, "FLOWS")?,
            sockets: Table::open(pins, "SOCKETS")?,
            datagrams: Table::open(pins, "DATAGRAMS")?,
            collector: Collector::open(pins, timeouts.clone())?,
            timeouts,
        })
    }

    /// Tells the programs. After this no flow is opened any more.
    ///
    /// # Errors
    /// If the map refuses.
    pub fn begin(&mut self) -> Result<(), MapFailure> {
        tell(&mut self.settings)?;
        // Some may just be opening a flow.
        wait_for_programs();
        Ok(())
    }

    /// Whether nobody has taken the traffic again.
    ///
    /// # Errors
    /// If the map refuses.
    pub fn is_in_force(&self) -> Result<bool, MapFailure> {
        let flags = self.settings.get(0)?.flags;
        Ok(flags.contains(SettingsFlags::HANDED_BACK))
    }

    /// Counts what is open, and removes the records of what is not any more. Takes as long as it
    /// takes to walk through all of them, twice.
    ///
    /// # Errors
    /// If a map refuses.
    pub fn left(&mut self) -> Result<Left, MapFailure> {
        let _collected = self.collector.pass(&|| {}, &BTreeSet::new())?;
        let now = conntrack_gc::now();
        let mut left = Left::default();
        for entry in self.flows.entries() {
            let (key, flow) = entry?;
            // Each conversation has two records.
            if flow.role == FlowRole::Forward as u8 && self.is_open(&key, &flow, now)? {
                left.add(&key, &flow, now);
            }
        }
        for entry in self.sockets.entries() {
            let (_, record) = entry?;
            // Of these nothing tells when they were used last. What asks a question, such as a
            // resolver, does so at once, and has its answer soon.
            let patience = self.timeouts.seconds(FlowState::UdpUnreplied);
            let is_udp = record.protocol == Protocol::Udp.number();
            left.sockets += usize::from(is_udp && is_recent(&record, patience, now));
        }
        for entry in self.datagrams.entries() {
            let (key, record) = entry?;
            let patience = self.timeouts.seconds(FlowState::UdpStream);
            let is_dialled = key.side == DatagramSide::Dialled as u32;
            left.sockets += usize::from(is_dialled && is_recent(&record, patience, now));
        }
        Ok(left)
    }

    fn is_open(&self, key: &FlowKey, flow: &Flow, now: u64) -> Result<bool, MapFailure> {
        if !is_open(flow) {
            return Ok(false);
        }
        if !conntrack_gc::is_expired(flow, None, now, &self.timeouts) {
            return Ok(true);
        }
        let twin = self.flows.get(&conntrack_gc::twin_key(key, flow))?;
        Ok(!conntrack_gc::is_expired(
            flow,
            twin.as_ref(),
            now,
            &self.timeouts,
        ))
    }
}

/// Whether more packets of the flow may come that matter to somebody.
fn is_open(flow: &Flow) -> bool {
    FlowState::from_number(flow.state).is_some_and(|state| !is_over(state))
}

fn is_recent(record: &SocketRecord, seconds: u32, now: u64) -> bool {
    let end = record.last_seen.saturating_add(u64::from(seconds) * SECOND);
    end >= now
}

impl Left {
    fn add(&mut self, key: &FlowKey, flow: &Flow, now: u64) {
        if key.protocol == Protocol::Udp.number() {
            self.datagrams += 1;
        } else {
            self.connections += 1;
        }
        if self.examples.len() < SHOWN {
            self.examples.push(describe(key, flow, now));
        }
    }
}

fn describe(key: &FlowKey, flow: &Flow, now: u64) -> String {
    let socket = |address: proxy_common::abi::Addr, port: proxy_common::abi::Port| {
        std::net::SocketAddr::new(address.into(), port.number())
    };
    format!(
        "{} from {} to {}, {}, silent for {} s",
        Protocol::from_number(key.protocol).map_or("?", Protocol::name),
        socket(key.tuple.src, key.tuple.src_port),
        socket(key.tuple.dst, key.tuple.dst_port),
        FlowState::from_number(flow.state).map_or("?", FlowState::name),
        now.saturating_sub(flow.last_seen) / SECOND
    )
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;

    use super::*;

    fn flow(state: FlowState) -> Flow {
        Flow {
            state: state as u8,
            ..Flow::zeroed()
        }
    }

    #[test]
    fn what_is_over_is_not_waited_for() {
        let over = FlowState::ALL.into_iter().filter(|it| !is_open(&flow(*it)));
        assert_eq!(
            over.collect::<Vec<_>>(),
            [
                FlowState::TcpTimeWait,
                FlowState::TcpClose,
                FlowState::SctpClosed
            ]
        );
    }

    #[test]
    fn a_socket_counts_while_answers_may_come() {
        let record = SocketRecord {
            last_seen: 5 * SECOND,
            ..SocketRecord::zeroed()
        };
        assert!(is_recent(&record, 30, 35 * SECOND));
        assert!(!is_recent(&record, 30, 35 * SECOND + 1));
    }

    #[test]
    fn what_is_left_is_said_in_words() {
        assert_eq!(Left::default().to_string(), "nothing");
        let mut left = Left::default();
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            let key = FlowKey {
                protocol: protocol.number(),
                ..FlowKey::zeroed()
            };
            left.add(&key, &flow(FlowState::TcpEstablished), 3 * SECOND);
        }
        assert_eq!(left.to_string(), "2 connections, 1 flows of datagrams");
        assert_eq!(left.total(), 3);
        assert!(left.examples[0].ends_with("established, silent for 3 s"));
    }
}

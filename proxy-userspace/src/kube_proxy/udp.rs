//! Flows of UDP that kube-proxy opened stay with their backends.
//!
//! A datagram tells nobody whether it is the first: where Beeline begins to serve, it would choose
//! a backend anew for each. So as long as netfilter remembers such a flow, records say that it is
//! left as it is: both its directions are rewritten to what they are already, and netfilter goes on
//! translating them. A record names its backend, so that the datapath moves the flow when that is
//! gone, as it does with any other.
//!
//! Records are made once the maps are filled, before they count, and go before netfilter forgets
//! the flow: otherwise they would hold what nobody translates.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use proxy_common::abi::{
    Addr, AddressFlags, Backend, BackendState, Exit, Family, Flow, FlowKey, FlowRole, FlowState,
    Frontend, FrontendKey, Port, Protocol, Side,
};

use super::KubeProxyError;
use super::conntrack::{self, Connection, Which};
use crate::conntrack_gc::{now, twin_key};
use crate::maps::{List, MapFailure, Table};
use crate::sync::Contents;

/// From the end of one look at the flows to the next, at least and at most: netfilter forgets flows
/// after 30 s and more.
const INTERVAL: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(5));
/// So many times as long as a look takes is between two.
const REST: u32 = 20;

/// Flows of UDP could not be held.
#[derive(Debug, thiserror::Error)]
pub enum UdpError {
    /// Connection tracking cannot be read.
    #[error(transparent)]
    Conntrack(#[from] KubeProxyError),
    /// A map refuses.
    #[error(transparent)]
    Map(#[from] MapFailure),
}

/// Flows that are left to netfilter.
#[derive(Debug)]
pub struct UdpFlows {
    /// The keys of what the clients send, in some order.
    keys: BTreeSet<[u32; 10]>,
    /// From one look at them to the next.
    interval: Duration,
}

impl UdpFlows {
    /// Leaves all flows alone that netfilter translates to backends of their Services, given what
    /// the maps hold. Returns them, and how many had another backend: those move.
    ///
    /// # Errors
    /// If connection tracking or the map refuses.
    pub fn hold(
        flows: &mut Table<FlowKey, Flow>,
        pod_flows: &mut List<u32>,
        contents: &Contents,
    ) -> Result<(Self, usize), UdpError> {
        let known = Known::new(contents);
        let mut held = Self {
            keys: BTreeSet::new(),
            interval: INTERVAL.0,
        };
        let mut n_moved = 0;
        for connection in connections()? {
            match known.backend(&connection) {
                Ok(backend) => {
                    let (key, record) = record(&connection, backend, now());
                    pod_flows.set(key.tuple.src.pod_slot(), &1)?;
                    if hold(flows, &key, &record)? {
                        held.keys.insert(bytemuck::cast(key));
                    }
                }
                Err(is_ours) => n_moved += usize::from(is_ours == IsOurs::Yes),
            }
        }
        Ok((held, n_moved))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// From one look at them to the next.
    pub const fn interval(&self) -> Duration {
        self.interval
    }

    /// Takes in what a predecessor left alone.
    ///
    /// # Errors
    /// If the map refuses.
    pub fn inherit(&mut self, flows: &Table<FlowKey, Flow>) -> Result<(), UdpError> {
        for entry in flows.entries() {
            let (key, flow) = entry?;
            if is_left_alone(&key, &flow) && key.side == Side::Ingress as u8 {
                self.keys.insert(bytemuck::cast(key));
            }
        }
        Ok(())
    }

    /// Forgets flows that netfilter is about to forget.
    ///
    /// # Errors
    /// If connection tracking or the map refuses.
    pub fn look(&mut self, flows: &mut Table<FlowKey, Flow>) -> Result<(), UdpError> {
        let (start, clock) = (Instant::now(), now());
        let left: HashMap<FlowKey, u32> = connections()?
            .into_iter()
            .map(|connection| (key(&connection), connection.seconds))
            .collect();
        // It is looked at twice more, at least, before netfilter forgets it.
        let margin = 2 * self.interval.as_secs() + 1;
        for raw in std::mem::take(&mut self.keys) {
            let key: FlowKey = bytemuck::cast(raw);
            let Some(record) = flows.get(&key)? else {
                continue;
            };
            let lasts = left.get(&key).is_some_and(|left| u64::from(*left) > margin);
            if !is_left_alone(&key, &record) {
                continue;
            }
            if lasts || record.last_seen > clock {
                self.keys.insert(raw);
            } else {
                forget(flows, &key)?;
            }
        }
        self.interval = (start.elapsed() * REST).clamp(INTERVAL.0, INTERVAL.1);
        Ok(())
    }
}

fn connections() -> Result<Vec<Connection>, UdpError> {
    let mut connections = Vec::new();
    for family in Family::ALL {
        let listed = conntrack::each(family, Which::Udp, |it| connections.push(it));
        listed.map_err(KubeProxyError::Conntrack)?;
    }
    Ok(connections)
}

/// Leaves a flow alone, unless there is a record already that says what becomes of it. Says whether
/// it is left alone.
fn hold(
    flows: &mut Table<FlowKey, Flow>,
    key: &FlowKey,
    record: &Flow,
) -> Result<bool, MapFailure> {
    if flows.insert_if_absent(key, record)? {
        flows.insert(&twin_key(key, record), &twin(key, record))?;
        return Ok(true);
    }
    Ok(flows.get(key)?.is_some_and(|old| is_left_alone(key, &old)))
}

fn forget(flows: &mut Table<FlowKey, Flow>, key: &FlowKey) -> Result<(), MapFailure> {
    let Some(record) = flows.get(key)?.filter(|old| is_left_alone(key, old)) else {
        return Ok(());
    };
    let _was_there = flows.remove(key)?;
    let _was_there = flows.remove(&twin_key(key, &record))?;
    Ok(())
}

/// Whether a record leaves a flow to netfilter.
fn is_left_alone(key: &FlowKey, flow: &Flow) -> bool {
    key.protocol == Protocol::Udp.number() && key.tuple == flow.to
}

/// The key of what a client sends, before anything is translated.
const fn key(connection: &Connection) -> FlowKey {
    FlowKey {
        tuple: connection.asked,
        protocol: connection.protocol,
        side: Side::Ingress as u8,
        _pad: 0,
    }
}

/// The record that leaves what a client sends alone.
const fn record(
    connection: &Connection,
    (id, backend): (u32, Backend),
    now: u64,
) -> (FlowKey, Flow) {
    let state = if connection.is_assured {
        FlowState::UdpStream
    } else if connection.is_answered {
        FlowState::UdpReplied
    } else {
        FlowState::UdpUnreplied
    };
    let flow = Flow {
        #[cfg(feature = "next-layout")]
        rehearsed: 0,
        to: connection.asked,
        backend: id,
        generation: backend.generation,
        service: backend.service,
        device: 0,
        state: state as u8,
        role: FlowRole::Forward as u8,
        twin_side: Side::Egress as u8,
        exit: Exit::Stack as u8,
        tick: 0,
        _pad: 0,
        created: now,
        last_seen: now,
    };
    (key(connection), flow)
}

/// The record of the answers, which netfilter has translated before they are seen.
fn twin(key: &FlowKey, flow: &Flow) -> Flow {
    Flow {
        to: key.tuple.swapped(),
        role: FlowRole::Reverse as u8,
        twin_side: key.side,
        ..*flow
    }
}

/// What is said of a flow without a backend: whether its Service is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum IsOurs {
    Yes,
    No,
}

/// What the maps hold, by what is asked of them here.
struct Known {
    frontends: HashMap<FrontendKey, u32>,
    addresses: HashMap<Addr, AddressFlags>,
    backends: HashMap<(u32, Addr, Port), (u32, Backend)>,
}

impl Known {
    fn new(contents: &Contents) -> Self {
        let service = |(key, frontend): &(FrontendKey, Frontend)| (*key, frontend.service);
        let numbered = (0..).zip(&contents.backends);
        let in_use = numbered.filter(|(_, backend)| backend.state != BackendState::Gone as u8);
        Self {
            frontends: contents.frontends.iter().map(service).collect(),
            addresses: contents.addresses.iter().copied().collect(),
            backends: in_use
                .map(|(id, backend)| {
                    let place = (backend.service, backend.addr, backend.port);
                    (place, (id, *backend))
                })
                .collect(),
        }
    }

    /// The backend that kube-proxy chose for a connection.
    fn backend(&self, connection: &Connection) -> Result<(u32, Backend), IsOurs> {
        let key = key(connection);
        let exact = self.frontends.get(&FrontendKey::of(&key));
        let accepts = self.addresses.get(&key.tuple.dst);
        let accepts = accepts.is_some_and(|flags| flags.contains(AddressFlags::NODE_PORTS));
        let node_port = self.frontends.get(&FrontendKey::node_port_of(&key));
        let service = exact.or(node_port.filter(|_| accepts)).ok_or(IsOurs::No)?;
        let answer = &connection.answer;
        let backend = self.backends.get(&(*service, answer.src, answer.src_port));
        backend.copied().ok_or(IsOurs::Yes)
    }
}

#[cfg(test)]
mod tests {
    use proxy_common::abi::{BackendFlags, FrontendFlags, Tuple};

    use super::*;

    fn tuple(src: u32, dst: u32, src_port: u16, dst_port: u16) -> Tuple {
        Tuple {
            src: Addr::from_v4_word(src),
            dst: Addr::from_v4_word(dst),
            src_port: Port::new(src_port),
            dst_port: Port::new(dst_port),
        }
    }

    fn connection(dst: u32, dst_port: u16, backend: u32) -> Connection {
        Connection {
            protocol: 17,
            asked: tuple(1, dst, 4000, dst_port),
            answer: tuple(backend, 1, 8080, 4000),
            is_answered: true,
            is_assured: false,
            seconds: 30,
        }
    }

    #[test]
    fn both_directions_are_left_alone_and_know_each_other() {
        let known = known();
        let asked = connection(9, 80, 5);
        let (key, flow) = record(&asked, known.backend(&asked).unwrap(), 7);
        assert!(is_left_alone(&key, &flow));
        assert_eq!(flow.state, FlowState::UdpReplied as u8);
        let twin = twin(&key, &flow);
        let its_key = twin_key(&key, &flow);
        assert!(is_left_alone(&its_key, &twin));
        assert_eq!((its_key.tuple.src, its_key.side), (key.tuple.dst, 1));
        assert_eq!(twin_key(&its_key, &twin), key);
    }

    /// Service 3 with cluster IP 9 and a NodePort, and the backend 5.
    fn known() -> Known {
        let frontend = Frontend {
            service: 3,
            flags: FrontendFlags::NONE,
            first_slot: 0,
            n_local: 0,
            cluster_offset: 0,
            n_cluster: 1,
            affinity_seconds: 0,
        };
        let backend = |state: BackendState| Backend {
            addr: Addr::from_v4_word(5),
            service: 3,
            generation: 8,
            joined: 1,
            port: Port::new(8080),
            state: state as u8,
            flags: BackendFlags::NONE,
        };
        let [ip, port] = [Addr::from_v4_word(9), Addr::from_v4_word(20)];
        Known::new(&Contents {
            frontends: vec![
                (
                    FrontendKey::exact(ip, Port::new(80), Protocol::Udp),
                    frontend,
                ),
                (
                    FrontendKey::node_port(Family::Ipv4, Port::new(30080), Protocol::Udp),
                    frontend,
                ),
            ],
            backends: vec![backend(BackendState::Gone), backend(BackendState::Active)],
            addresses: vec![
                (ip, AddressFlags::CLUSTER_IP),
                (port, AddressFlags::NODE_PORTS),
            ],
            ..Contents::default()
        })
    }

    #[test]
    fn a_flow_keeps_the_backend_that_its_service_still_has() {
        let known = known();
        for asked in [connection(9, 80, 5), connection(20, 30080, 5)] {
            let (id, backend) = known.backend(&asked).unwrap();
            assert_eq!((id, backend.generation), (1, 8));
        }
        assert_eq!(known.backend(&connection(9, 80, 6)), Err(IsOurs::Yes));
        for other in [
            connection(9, 30080, 5),
            connection(21, 30080, 5),
            connection(9, 81, 5),
        ] {
            assert_eq!(known.backend(&other), Err(IsOurs::No));
        }
    }
}

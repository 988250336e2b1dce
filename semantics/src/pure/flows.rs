//! Flows against what is expected of them.
//!
//! A flow's first packet is sent many times over, each time from another port and in the same
//! state: so it shows whether every backend can be had, all equally likely, and no other. Then it
//! is sent once more, answered, and what it left behind stays.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;

use super::objects::Order;
use super::probe::{Client, Fate};
use super::proxy::Proxy;
use super::speech::{self, Ends, Round};
use crate::case::{self, Expect, Flow, Packet, Verdict};

/// Ports of packets that are sent only to see what becomes of them.
const PROBE_PORTS: std::ops::Range<u16> = 1024..50_000;

/// How often a packet is sent whose fate does not depend on its port.
const FEW: u32 = 16;

/// What earlier flows left.
pub(super) struct Flows {
    order: Order,
    next_port: u16,
    connections: BTreeMap<String, Connection>,
    /// The backends of flows that have an id.
    backends: BTreeMap<String, SocketAddr>,
}

struct Connection {
    port: u16,
    backend: Option<SocketAddr>,
}

/// A fate, and which connection it is of.
struct Sent {
    fate: Fate,
    port: u16,
}

impl Flows {
    pub(super) fn new(order: Order) -> Self {
        Self {
            order,
            next_port: PROBE_PORTS.end,
            connections: BTreeMap::new(),
            backends: BTreeMap::new(),
        }
    }

    /// Sends a flow's packet.
    ///
    /// # Errors
    /// What is not as expected.
    pub(super) fn send(&mut self, proxy: &mut Proxy, flow: &Flow) -> Result<(), String> {
        let ip = flow.from.ip;
        let is_new_ip = flow.from.kind == case::Kind::Node
            && !ip.is_loopback()
            && !proxy.network.is_node_ip(ip);
        if !is_new_ip {
            return self.send_one(proxy, flow);
        }
        // A node process can have no address that is not the node's.
        proxy.network.set_extra_ip(Some(ip));
        proxy.follow_node();
        let result = self.send_one(proxy, flow);
        proxy.network.set_extra_ip(None);
        proxy.follow_node();
        result
    }

    fn send_one(&mut self, proxy: &Proxy, flow: &Flow) -> Result<(), String> {
        let expected = self.expected(flow)?;
        let sent = match flow.packet {
            Packet::New => {
                let probed = self.probe(proxy, flow, &expected);
                let sent = self.open(proxy, flow, &expected);
                probed.and(sent)?
            }
            Packet::Established => self.go_on(proxy, flow, &expected)?,
        };
        self.remember(flow, &sent);
        Ok(())
    }

    fn expected<'a>(&self, flow: &'a Flow) -> Result<Expected<'a>, String> {
        let stuck_to = match &flow.expect.stick_to {
            None => None,
            Some(id) => {
                let backend = self.backends.get(id).copied();
                Some(backend.ok_or_else(|| format!("the flow '{id}' got no backend"))?)
            }
        };
        Ok(Expected {
            expect: &flow.expect,
            stuck_to,
        })
    }

    fn remember(&mut self, flow: &Flow, sent: &Sent) {
        let backend = sent.fate.backend();
        if let Some(id) = &flow.id
            && let Some(backend) = backend
        {
            let _before = self.backends.insert(id.clone(), backend);
        }
        if let Some(name) = &flow.conn {
            let connection = Connection {
                port: sent.port,
                backend,
            };
            let _before = self.connections.insert(name.clone(), connection);
        }
    }

    /// Sends the first packet again and again, each time as if it were the only one.
    fn probe(&self, proxy: &Proxy, flow: &Flow, expected: &Expected<'_>) -> Result<(), String> {
        let round = &speech::opening(flow.to.protocol.into())[0];
        let memory = &proxy.maps.memory;
        let (flows, affinity) = (
            memory.flows.borrow().clone(),
            memory.affinity.borrow().clone(),
        );
        let mut counts = BTreeMap::new();
        let n_tries = expected.n_tries(self.order);
        for port in PROBE_PORTS.take(n_tries as usize) {
            let result = probe_once(&client(proxy, flow, port), round, expected, &mut counts);
            *memory.flows.borrow_mut() = flows.clone();
            *memory.affinity.borrow_mut() = affinity.clone();
            result?;
        }
        expected.judge_counts(&counts, n_tries)
    }

    /// Sends the first packet for good, and what follows until the connection is open.
    fn open(
        &mut self,
        proxy: &Proxy,
        flow: &Flow,
        expected: &Expected<'_>,
    ) -> Result<Sent, String> {
        let known = flow
            .conn
            .as_ref()
            .and_then(|name| self.connections.get(name));
        let port = match known {
            Some(connection) => connection.port,
            None => {
                self.next_port += 1;
                self.next_port
            }
        };
        let client = client(proxy, flow, port);
        let rounds = speech::opening(flow.to.protocol.into());
        converse(&client, rounds, |fate| expected.judge(&client, fate))
            .map(|fate| Sent { fate, port })
    }

    /// Sends a further packet of a connection. An open one keeps its backend, unless it is of UDP
    /// (rules R140, R160).
    fn go_on(&self, proxy: &Proxy, flow: &Flow, expected: &Expected<'_>) -> Result<Sent, String> {
        let known = flow
            .conn
            .as_ref()
            .and_then(|name| self.connections.get(name));
        let connection = known.ok_or("the connection was not opened as expected")?;
        let port = connection.port;
        let client = client(proxy, flow, port);
        let rounds = speech::more(flow.to.protocol.into());
        let fate = converse(&client, rounds, |fate| expected.judge(&client, fate))?;
        if flow.to.protocol != case::Protocol::Udp
            && let (Some(before), Some(now)) = (connection.backend, fate.backend())
            && before != now
        {
            return Err(format!("an open connection went from {before} to {now}"));
        }
        Ok(Sent { fate, port })
    }
}

fn client<'a>(proxy: &'a Proxy, flow: &Flow, port: u16) -> Client<'a> {
    Client {
        network: &proxy.network,
        memory: &proxy.maps.memory,
        ends: Ends {
            from: SocketAddr::new(flow.from.ip, port),
            to: SocketAddr::new(flow.to.ip, flow.to.port),
        },
        place: proxy.network.client(&flow.from),
    }
}

/// One packet, and an answer if it is the first to get this backend.
fn probe_once(
    client: &Client<'_>,
    round: &Round,
    expected: &Expected<'_>,
    counts: &mut BTreeMap<SocketAddr, u32>,
) -> Result<(), String> {
    let fate = client.ask(round)?;
    expected.judge(client, &fate)?;
    if let Fate::Forward { backend, source } = fate {
        let count = counts.entry(backend).or_insert(0);
        *count += 1;
        if *count == 1 {
            client.answer(round, backend, source)?;
        }
    }
    Ok(())
}

/// Questions and answers; `judge` looks at the first question's fate, which the others share.
fn converse(
    client: &Client<'_>,
    rounds: &[Round],
    judge: impl Fn(&Fate) -> Result<(), String>,
) -> Result<Fate, String> {
    let mut first = None;
    for round in rounds {
        let fate = client.ask(round)?;
        match &first {
            None => judge(&fate)?,
            Some(first) if *first != fate => {
                return Err(format!("first it was {first}, then {fate}"));
            }
            Some(_) => {}
        }
        let Fate::Forward { backend, source } = fate else {
            return Ok(fate);
        };
        client.answer(round, backend, source)?;
        first = Some(fate);
    }
    first.ok_or_else(|| "nothing was said".into())
}

/// What is expected of a flow.
struct Expected<'a> {
    expect: &'a Expect,
    /// The backend that it has to get.
    stuck_to: Option<SocketAddr>,
}

impl Expected<'_> {
    /// How often the first packet is sent: enough to miss a member of the set with a probability
    /// below e⁻²⁵, and in one of the two runs to see one that is twice as likely as others.
    fn n_tries(&self, order: Order) -> u32 {
        let n = self.expect.backends.len();
        if n < 2 || self.stuck_to.is_some() {
            return FEW;
        }
        let n = n as f64;
        let to_see_all = n * (n.ln() + 25.0);
        let to_weigh = match order {
            Order::AsGiven => (64.0 * n).max(1024.0),
            Order::Reversed => 0.0,
        };
        (to_see_all.max(to_weigh) as u32).min(PROBE_PORTS.len() as u32)
    }

    fn judge(&self, client: &Client<'_>, fate: &Fate) -> Result<(), String> {
        if fate.verdict() != self.expect.verdict {
            return Err(format!("expected {}, found {fate}", self.words()));
        }
        let Fate::Forward { backend, source } = *fate else {
            return Ok(());
        };
        if !self.expect.backends.contains(&backend) {
            return Err(format!("expected {}, found {fate}", self.words()));
        }
        if let Some(stuck_to) = self.stuck_to.filter(|it| *it != backend) {
            return Err(format!("expected to stick to {stuck_to}, found {fate}"));
        }
        self.judge_source(client, backend, source)
    }

    fn judge_source(
        &self,
        client: &Client<'_>,
        backend: SocketAddr,
        source: SocketAddr,
    ) -> Result<(), String> {
        let is_hidden = if self.expect.snat_for.contains(&backend) {
            Some(true)
        } else {
            self.expect.snat
        };
        let (is_right, wanted) = match is_hidden {
            None => return Ok(()),
            Some(true) => (
                client.network.is_node_ip(source.ip()),
                "an address of this node".into(),
            ),
            Some(false) => (source == client.ends.from, client.ends.from.to_string()),
        };
        if is_right {
            return Ok(());
        }
        Err(format!(
            "{backend} sees {source} as source, expected {wanted}"
        ))
    }

    fn judge_counts(&self, counts: &BTreeMap<SocketAddr, u32>, n_tries: u32) -> Result<(), String> {
        if self.expect.verdict != Verdict::Forward || self.stuck_to.is_some() {
            return Ok(());
        }
        let backends: BTreeSet<_> = self.expect.backends.iter().collect();
        let missing: Vec<_> = backends
            .iter()
            .filter(|backend| !counts.contains_key(**backend))
            .map(ToString::to_string)
            .collect();
        if !missing.is_empty() {
            let missing = missing.join(", ");
            return Err(format!("never chosen in {n_tries} tries: {missing}"));
        }
        let share = 1.0 / backends.len() as f64;
        let mean = f64::from(n_tries) * share;
        // Seven standard deviations: once in 10^11 by chance.
        let bound = 7.0 * (mean * (1.0 - share)).sqrt();
        let uneven = counts
            .iter()
            .find(|(_, count)| (f64::from(**count) - mean).abs() > bound);
        match uneven {
            Some((backend, count)) => Err(format!(
                "not all backends are equally likely: {backend} was chosen {count} times in \
                 {n_tries}, not about {mean:.0}"
            )),
            None => Ok(()),
        }
    }

    fn words(&self) -> String {
        let mut words = name(self.expect.verdict).to_owned();
        for (index, backend) in self.expect.backends.iter().enumerate() {
            let before = if index == 0 { " to one of" } else { "," };
            write!(words, "{before} {backend}").expect("a string takes all");
        }
        words
    }
}

const fn name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Forward => "forward",
        Verdict::Reject => "reject",
        Verdict::Drop => "drop",
        Verdict::Pass => "pass",
    }
}

impl Fate {
    const fn verdict(&self) -> Verdict {
        match self {
            Self::Forward { .. } => Verdict::Forward,
            Self::Reject => Verdict::Reject,
            Self::Drop => Verdict::Drop,
            Self::Pass => Verdict::Pass,
        }
    }

    const fn backend(&self) -> Option<SocketAddr> {
        match self {
            Self::Forward { backend, .. } => Some(*backend),
            Self::Reject | Self::Drop | Self::Pass => None,
        }
    }
}

impl std::fmt::Display for Fate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(name(self.verdict()))?;
        match self {
            Self::Forward { backend, .. } => write!(f, " to {backend}"),
            Self::Reject | Self::Drop | Self::Pass => Ok(()),
        }
    }
}

impl From<case::Protocol> for proxy_common::abi::Protocol {
    fn from(protocol: case::Protocol) -> Self {
        match protocol {
            case::Protocol::Tcp => Self::Tcp,
            case::Protocol::Udp => Self::Udp,
            case::Protocol::Sctp => Self::Sctp,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backends(n: u8) -> Vec<SocketAddr> {
        (0..n).map(|it| ([10, 0, 0, it], 80).into()).collect()
    }

    /// What is said of so many choices of each backend, if `n` are expected.
    fn judged(n: u8, counts: &[u32]) -> Result<(), String> {
        let expect = Expect {
            verdict: Verdict::Forward,
            backends: backends(n),
            snat: None,
            snat_for: Vec::new(),
            stick_to: None,
        };
        let expected = Expected {
            expect: &expect,
            stuck_to: None,
        };
        let counts = backends(n).into_iter().zip(counts.iter().copied());
        let counts = counts.filter(|(_, count)| *count > 0).collect();
        let n_tries = expected.n_tries(Order::AsGiven);
        expected.judge_counts(&counts, n_tries)
    }

    #[test]
    fn every_backend_has_to_be_seen() {
        assert_eq!(judged(2, &[512, 512]), Ok(()));
        let missing = judged(2, &[1024, 0]).unwrap_err();
        assert_eq!(missing, "never chosen in 1024 tries: 10.0.0.1:80");
    }

    #[test]
    fn a_double_share_is_seen() {
        assert_eq!(judged(3, &[350, 330, 344]), Ok(()));
        assert!(judged(3, &[512, 256, 256]).is_err());
        let even = [64; 16];
        assert_eq!(judged(16, &even), Ok(()));
        let mut uneven = [60; 16];
        uneven[3] = 120;
        assert!(judged(16, &uneven).unwrap_err().contains("10.0.0.3:80"));
    }

    #[test]
    fn few_tries_are_enough_where_there_is_no_choice() {
        assert_eq!(judged(1, &[FEW]), Ok(()));
    }
}

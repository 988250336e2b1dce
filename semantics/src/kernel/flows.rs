//! Sends the packets of a case's flows, and holds what comes of them against what is expected.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use proxy_common::testing::Frame;

use super::clients::{self, home};
use super::conn::{Client, Conn, Fate};
use super::edge::EDGE;
use super::memory::Remembered;
use super::process::Heard;
use super::way::Way;
use super::world::{Place, Sighting, World, list};
use crate::case::{Expect, Flow, Packet, Protocol, Verdict};

/// How long something that should happen may take …
const PATIENCE: Duration = Duration::from_millis(700);
/// … and once something did not.
const LESS_PATIENCE: Duration = Duration::from_millis(200);
/// How long nothing must happen. Packets pass a node while they are being sent.
const SILENCE: Duration = Duration::from_millis(40);
/// How long it may take until a socket is told that its backend is gone.
const TELLING: Duration = Duration::from_secs(3);
/// Least number of connections by which it is looked what a flow may get.
const N_TRIES: usize = 6;
/// By how many it is looked whether sockets are refused, say, however they are used.
const N_MANNERS: usize = 4;
/// What has been sent and what has come of it, in one case.
#[derive(Debug)]
pub(super) struct Flows {
    conns: BTreeMap<String, Conn>,
    /// Backends by the flow's `id`.
    got: BTreeMap<String, SocketAddr>,
    n_talks: u32,
    has_affinity: bool,
    way: Way,
    patience: Duration,
    /// Seen, but not looked for yet.
    pending: Vec<Sighting>,
}

/// Where a connection ended up.
struct Peer {
    place: Place,
    backend: SocketAddr,
    /// The client, as the backend sees it.
    client: SocketAddr,
    /// Of the client's packet.
    seq: u32,
}

impl Flows {
    /// Nothing sent yet. With `has_affinity`, what is remembered of clients is put back before
    /// each try, so that all of them find what the first did.
    pub(super) fn new(has_affinity: bool, way: Way) -> Self {
        Self {
            conns: BTreeMap::new(),
            got: BTreeMap::new(),
            n_talks: 0,
            has_affinity,
            way,
            patience: PATIENCE,
            pending: Vec::new(),
        }
    }

    /// Sends a flow's packet, and whatever it takes to find out the same of its like.
    ///
    /// # Errors
    /// What is not as expected.
    pub(super) fn send(&mut self, world: &mut World, flow: &Flow) -> Result<()> {
        if let Some(device) = world.plan.client_device(flow) {
            world.house(flow.from.ip, device)?;
        }
        drop(world.look()?);
        let result = match flow.packet {
            Packet::New => self.open(world, flow),
            Packet::Established => self.go_on(world, flow),
        };
        if result.is_err() {
            self.patience = LESS_PATIENCE;
        }
        result
    }

    /// The first packets of connections.
    fn open(&mut self, world: &World, flow: &Flow) -> Result<()> {
        let remembered = match self.has_affinity {
            true => Some(Remembered::read(&world.testbed)?),
            false => None,
        };
        let restore = || match &remembered {
            Some(remembered) => remembered.restore(&world.testbed),
            None => Ok(()),
        };
        if flow.expect.verdict == Verdict::Forward {
            self.try_all(world, flow, restore)?;
            restore()?;
        } else if self.way.has_sockets() && clients::is_socket(world, flow) {
            for index in 1..N_MANNERS {
                let mut conn = self.conn(world, flow, index)?;
                self.first(world, flow, &mut conn, |_| true)?;
            }
        }
        let mut conn = self.conn(world, flow, 0)?;
        let result = self.first(world, flow, &mut conn, |_| true);
        if let Some(name) = &flow.conn {
            self.conns.insert(name.clone(), conn);
        }
        if let (Some(backend), Some(id)) = (result?, &flow.id) {
            self.got.insert(id.clone(), backend);
        }
        Ok(())
    }

    /// Repeats the flow with other connections until all backends were seen.
    fn try_all(
        &mut self,
        world: &World,
        flow: &Flow,
        restore: impl Fn() -> Result<()>,
    ) -> Result<()> {
        let mut missing: BTreeSet<_> = match &flow.expect.stick_to {
            Some(id) => BTreeSet::from([self.stuck(id)?]),
            None => flow.expect.backends.iter().copied().collect(),
        };
        let most = most_tries(missing.len());
        let mut n_tries = 0;
        while n_tries < N_TRIES || (!missing.is_empty() && n_tries < most) {
            restore()?;
            let mut conn = self.conn(world, flow, n_tries)?;
            let is_new = |backend: &SocketAddr| missing.contains(backend);
            let backend = self.first(world, flow, &mut conn, is_new)?;
            if let Some(backend) = backend {
                missing.remove(&backend);
            }
            n_tries += 1;
        }
        let missing: Vec<_> = missing.into_iter().collect();
        ensure!(
            missing.is_empty(),
            "not once in {n_tries} connections forwarded to {}",
            list(&missing)
        );
        Ok(())
    }

    fn stuck(&self, id: &str) -> Result<SocketAddr> {
        let backend = self.got.get(id).copied();
        backend.with_context(|| format!("the flow '{id}' has got no backend"))
    }

    /// A connection that nobody had before. Sockets are used in another manner for each `index`.
    fn conn(&mut self, world: &World, flow: &Flow, index: usize) -> Result<Conn> {
        self.n_talks += 1;
        clients::conn(world, flow, self.way, (self.n_talks, index))
    }

    /// A connection's first packet. If `is_answered` by the backend it got, on until the
    /// connection is open. Returns the backend if there is one.
    fn first(
        &mut self,
        world: &World,
        flow: &Flow,
        conn: &mut Conn,
        is_answered: impl Fn(&SocketAddr) -> bool,
    ) -> Result<Option<SocketAddr>> {
        let packet = conn.talk.first(conn.from, conn.to);
        self.begin(world, conn);
        let sent = match &conn.client {
            Client::Frames(device) => {
                world.send(*device, &packet)?;
                Ok(())
            }
            Client::Socket(_, process) => process.open(&packet),
        };
        self.note_pointed(world, conn)?;
        let fate = self.watch(world, conn, &packet, sent, true, &flow.expect)?;
        let Some(peer) = self.judge(world, flow, conn, fate)? else {
            return Ok(None);
        };
        conn.backend = Some(peer.backend);
        if is_answered(&peer.backend) {
            let answer = conn.talk.first_answer(peer.backend, peer.client, peer.seq);
            self.answer(world, conn, &peer, &answer, true)?;
            self.second(world, flow, conn, &peer)?;
        }
        Ok(Some(peer.backend))
    }

    /// What the client has to say when it is answered.
    fn second(&mut self, world: &World, flow: &Flow, conn: &mut Conn, peer: &Peer) -> Result<()> {
        let Some(packet) = conn.talk.second(conn.from, conn.to) else {
            return Ok(());
        };
        // A kernel has said it.
        if matches!(conn.client, Client::Socket(..)) && conn.talk.protocol == Protocol::Tcp {
            self.pending.extend(world.look()?);
            return Ok(());
        }
        self.begin(world, conn);
        let sent = send(world, conn, &packet)?;
        let fate = self.watch(world, conn, &packet, sent, false, &flow.expect)?;
        let same = matches!(
            &fate,
            Fate::Arrived(sighting) if sighting.place == peer.place
                && sighting.seen.to() == peer.backend
                && sighting.seen.from() == peer.client
        );
        ensure!(
            same,
            "the client's second packet should have followed the first from {} to {}, but {}",
            peer.client,
            peer.backend,
            self.tell(world, &fate)
        );
        match conn.talk.second_answer(peer.backend, peer.client) {
            Some(answer) => self.answer(world, conn, peer, &answer, false),
            None => Ok(()),
        }
    }

    /// A further packet of a connection.
    fn go_on(&mut self, world: &World, flow: &Flow) -> Result<()> {
        let name = flow.conn.as_ref().context("no connection is named")?;
        let mut conn = self
            .conns
            .remove(name)
            .with_context(|| format!("connection '{name}' was never begun"))?;
        let result = self.next(world, flow, &mut conn);
        self.conns.insert(name.clone(), conn);
        result
    }

    fn next(&mut self, world: &World, flow: &Flow, conn: &mut Conn) -> Result<()> {
        let packet = conn.talk.next(conn.from, conn.to);
        self.begin(world, conn);
        self.heed(world, conn, &flow.expect)?;
        let sent = send(world, conn, &packet)?;
        self.note_pointed(world, conn)?;
        let fate = self.watch(world, conn, &packet, sent, false, &flow.expect)?;
        let Some(peer) = self.judge(world, flow, conn, fate)? else {
            return Ok(());
        };
        conn.backend = Some(peer.backend);
        let answer = conn.talk.next_answer(peer.backend, peer.client, peer.seq);
        self.answer(world, conn, &peer, &answer, false)
    }

    /// What comes now has to do with this connection.
    fn begin(&mut self, world: &World, conn: &Conn) {
        self.pending.clear();
        world.listen(conn.ear());
    }

    /// Looks whether the socket edge has pointed a socket that has dialled.
    fn note_pointed(&self, world: &World, conn: &mut Conn) -> Result<()> {
        if let Client::Socket(_, process) = &conn.client
            && self.way.has_edge()
        {
            conn.is_pointed = EDGE.points(&world.testbed, process)?;
        }
        Ok(())
    }

    /// A connected UDP socket that was pointed at a backend which it must not have any more is
    /// told so. Its client takes another then.
    fn heed(&mut self, world: &World, conn: &mut Conn, expect: &Expect) -> Result<()> {
        let Client::Socket(device, process) = &mut conn.client else {
            return Ok(());
        };
        let is_gone = |backend: SocketAddr| !expect.backends.contains(&backend);
        if !process.is_connected_udp() || !conn.is_pointed || !conn.backend.is_some_and(is_gone) {
            return Ok(());
        }
        let deadline = Instant::now() + TELLING;
        loop {
            match process.hears(false)? {
                Heard::Closed | Heard::Refused => break,
                Heard::Nothing => {}
                Heard::Answer(_) => bail!("the client has heard something nobody said"),
            }
            ensure!(
                Instant::now() < deadline,
                "the client's socket was not told within {TELLING:?} that its backend is gone"
            );
            world.wait(Some(process.events(false)), deadline)?;
            self.pending.extend(world.look()?);
        }
        EDGE.has_told();
        xtask::testbed::in_namespace(home(world, *device), || process.reopen())
            .context("take another socket")
    }

    /// Waits for what becomes of a packet.
    fn watch(
        &mut self,
        world: &World,
        conn: &Conn,
        packet: &Frame,
        sent: io::Result<()>,
        is_first: bool,
        expect: &Expect,
    ) -> Result<Fate> {
        let patience = match expect.verdict {
            Verdict::Drop => SILENCE,
            Verdict::Forward | Verdict::Reject | Verdict::Pass => self.patience,
        };
        let mut told = sent.err().map(Fate::told);
        let deadline = Instant::now() + patience;
        loop {
            if let (Client::Socket(_, process), None) = (&conn.client, &told) {
                told = match process.hears(is_first) {
                    Ok(Heard::Refused) => Some(Fate::Refused("connection refused")),
                    Ok(Heard::Nothing | Heard::Answer(_)) => None,
                    Ok(Heard::Closed) => Some(Fate::Wrong("its socket was closed".to_owned())),
                    Err(error) => Some(Fate::told(error)),
                };
            }
            // Looked at last: what the client was told of has happened before.
            let sightings = world.look()?;
            let (mut ours, others): (Vec<_>, Vec<_>) = sightings
                .into_iter()
                .partition(|sighting| conn.is_packet(packet, is_first, &sighting.seen));
            if ours.len() > 1 {
                let lines: Vec<_> = ours.iter().map(|one| world.line(one)).collect();
                let lines = lines.join(" and ");
                return Ok(Fate::Wrong(format!("it came out more than once: {lines}")));
            }
            self.pending.extend(others);
            if let Some(sighting) = ours.pop() {
                return Ok(Fate::Arrived(sighting));
            }
            let mut refusals = self.pending.iter();
            if let Some(fate) = refusals.find_map(|one| conn.refusal(packet, one)) {
                return Ok(fate);
            }
            if let Some(fate) = told {
                return Ok(fate);
            }
            if Instant::now() >= deadline {
                return Ok(Fate::Silence);
            }
            world.wait(conn.events(is_first), deadline)?;
        }
    }

    /// Holds what became of a packet against what is expected. Returns the backend, if it went to
    /// one.
    fn judge(&self, world: &World, flow: &Flow, conn: &Conn, fate: Fate) -> Result<Option<Peer>> {
        let expect = &flow.expect;
        match (expect.verdict, &fate) {
            (Verdict::Forward, Fate::Arrived(sighting)) => {
                return self.check_forward(world, flow, conn, sighting).map(Some);
            }
            (Verdict::Pass, Fate::Arrived(sighting)) => {
                let seen = &sighting.seen;
                ensure!(
                    (seen.from(), seen.to()) == (conn.from, conn.to)
                        && sighting.place == world.place_of(conn.to.ip())
                        && seen.wrong.is_none(),
                    "expected to be left alone and come {}, but {}",
                    world
                        .name(world.place_of(conn.to.ip()))
                        .replace("out of", "out of device"),
                    self.tell(world, &fate)
                );
            }
            (Verdict::Reject, Fate::Refused(_)) | (Verdict::Drop, Fate::Silence) => {}
            (verdict, fate) => {
                let expected = match verdict {
                    Verdict::Forward => format!("to be forwarded to {}", list(&expect.backends)),
                    Verdict::Reject => "to be rejected".to_owned(),
                    Verdict::Drop => "to be dropped".to_owned(),
                    Verdict::Pass => "to be left alone".to_owned(),
                };
                bail!(
                    "{} > {} {:?}: expected {expected}, but {}",
                    conn.from,
                    conn.to,
                    conn.talk.protocol,
                    self.tell(world, fate)
                );
            }
        }
        Ok(None)
    }

    fn check_forward(
        &self,
        world: &World,
        flow: &Flow,
        conn: &Conn,
        sighting: &Sighting,
    ) -> Result<Peer> {
        let (expect, seen) = (&flow.expect, &sighting.seen);
        let (backend, client) = (seen.to(), seen.from());
        let line = world.line(sighting);
        ensure!(
            expect.backends.contains(&backend),
            "expected to be forwarded to {}, but came out as {line}",
            list(&expect.backends)
        );
        if let Some(id) = &expect.stick_to {
            let stuck = self.stuck(id)?;
            ensure!(
                backend == stuck,
                "expected the same as flow '{id}', {stuck}, but got {line}"
            );
        }
        let place = world.place_of(backend.ip());
        ensure!(
            sighting.place == place,
            "expected to come {}, but came out as {line}",
            world.name(place)
        );
        ensure!(seen.wrong.is_none(), "came out as {line}");
        let is_rewritten = expect
            .snat
            .map(|snat| snat || expect.snat_for.contains(&backend));
        match is_rewritten {
            Some(true) => ensure!(
                world.plan.is_on_node(client.ip()),
                "expected an address of this node as source, but came out as {line}"
            ),
            Some(false) => ensure!(
                client == conn.from,
                "expected {} as source, but came out as {line}",
                conn.from
            ),
            None => {}
        }
        Ok(Peer {
            place,
            backend,
            client,
            seq: seen.transport().map_or(0, |transport| transport.seq),
        })
    }

    /// Sends a backend's answer and waits until the client has it, from where it dialled.
    fn answer(
        &mut self,
        world: &World,
        conn: &mut Conn,
        peer: &Peer,
        answer: &Frame,
        is_first: bool,
    ) -> Result<()> {
        match peer.place {
            Place::Device(device) => {
                self.pending.clear();
                world.send(device, answer)?;
            }
            Place::Node => world
                .host
                .answer(conn.talk.protocol, answer)
                .context("answer from the node")?,
        }
        // The node's own TCP has nothing to say to content but that it got it.
        let is_kernels = peer.place == Place::Node && conn.talk.protocol == Protocol::Tcp;
        let deadline = Instant::now() + self.patience;
        loop {
            if conn.ear().is_some() {
                self.pending.extend(world.look()?);
            }
            let heard = match &conn.client {
                Client::Frames(device) => {
                    self.pending.extend(world.look()?);
                    let place = Place::Device(*device);
                    let sightings = std::mem::take(&mut self.pending);
                    let ours = |one: &&Sighting| one.place == place && conn.is_answer(&one.seen);
                    let found = sightings.iter().find(ours).map(|one| one.seen.clone());
                    self.pending = sightings;
                    match found {
                        Some(seen) => conn.check_answer(answer, &seen, is_kernels)?,
                        None => false,
                    }
                }
                Client::Socket(_, process) => match process.hears(is_first) {
                    Ok(Heard::Nothing) => is_kernels && !is_first,
                    Ok(Heard::Answer(bytes)) => {
                        let is_opened = is_first && conn.talk.protocol == Protocol::Tcp;
                        ensure!(
                            is_opened || bytes == answer.payload,
                            "the client has heard something else than the answer"
                        );
                        true
                    }
                    Ok(Heard::Refused) => bail!("the answer reached the client as a refusal"),
                    Ok(Heard::Closed) => bail!("the client's socket was closed before the answer"),
                    Err(error) => bail!("the client's socket says to the answer: {error}"),
                },
            };
            if heard {
                return Ok(());
            }
            if Instant::now() >= deadline {
                self.pending.extend(world.look()?);
                bail!(
                    "the answer of {} to {} did not reach {} from {}{}",
                    peer.backend,
                    peer.client,
                    conn.from,
                    conn.to,
                    self.beside(world)
                );
            }
            world.wait(conn.events(is_first), deadline)?;
        }
    }

    /// A fate in words, to follow a "but".
    fn tell(&self, world: &World, fate: &Fate) -> String {
        match fate {
            Fate::Arrived(sighting) => format!("it came out as {}", world.line(sighting)),
            Fate::Refused(how) => format!("it was rejected: {how}"),
            Fate::Wrong(what) => what.clone(),
            Fate::Silence => format!("nothing came of it{}", self.beside(world)),
        }
    }

    /// What else was seen.
    fn beside(&self, world: &World) -> String {
        let lines = self.pending.iter().rev().take(4).map(|one| world.line(one));
        let lines: Vec<_> = lines.collect();
        if lines.is_empty() {
            String::new()
        } else {
            format!("; seen beside: {}", lines.join(", "))
        }
    }
}

/// Sends a packet of a connection. The inner result is what the client is told.
fn send(world: &World, conn: &Conn, packet: &Frame) -> Result<io::Result<()>> {
    match &conn.client {
        Client::Frames(device) => world.send(*device, packet).map(Ok),
        Client::Socket(_, process) => Ok(process.send(packet)),
    }
}

/// So many that a backend of `n` is missed once in a million times, at most.
fn most_tries(n: usize) -> usize {
    let n = n as f64;
    (n * (n.ln().max(0.0) + 14.0)).ceil() as usize
}

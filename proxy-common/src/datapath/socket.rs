//! Every decision about a socket: where it is pointed, and what it is told of it.
//!
//! A socket that dials a frontend is pointed at a backend instead, once, and no packet of it needs
//! to be touched. Whatever cannot be done here exactly as it is done to packets is left to them:
//! the socket keeps the frontend's address, and its packets are translated where they leave.

use core::hint::black_box;

use super::fate::{self, Fate};
use super::find::{self, Found};
use super::policy::{self, Client};
use super::select::{self, Asker, Chosen, Refusal, select_backend};
use super::{Count, Hook, Sockets};
use crate::abi::{
    Addr, DatagramKey, DatagramSide, FlowKey, Frontend, FrontendFlags, Pass, Peer, PodFlags,
    Protocol, RefusalReason, Rewrite, SettingsFlags, Side, SocketFlags, SocketRecord, Tuple,
};

/// A socket that dials.
#[derive(Clone, Copy, Debug)]
pub struct Dial {
    /// The socket's cookie.
    pub cookie: u64,
    /// Cookie of its network namespace.
    pub netns: u64,
    /// That is this node's.
    pub is_node: bool,
    /// The protocol.
    pub protocol: Protocol,
    /// What is dialled.
    pub to: Peer,
    /// The address that the socket is bound to; unspecified: none.
    pub from: Addr,
    /// Index of the device that it is bound to; 0: none.
    pub device: u32,
    /// It is connected already, and sends to an address all the same.
    pub is_connected: bool,
}

/// What becomes of a dial.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Answer {
    /// It goes where it was to go.
    Leave(Pass),
    /// It goes there instead.
    Point(Rewrite, Peer),
    /// It fails: nobody answers there.
    Refuse,
}

/// How often a correspondence's time is written, at most: nanoseconds.
const REFRESH: u64 = 1_000_000_000;

/// A socket that connects.
#[inline(always)]
pub fn connect<S: Sockets>(sockets: &S, dial: &Dial) -> Answer {
    let dial = &dial.where_it_leads();
    let answer = match point(sockets, dial, Rewrite::Connect) {
        Ok(record) if sockets.put_connected(dial.cookie, &record) => {
            return Answer::Point(Rewrite::Connect, record.backend);
        }
        Ok(_) => Answer::Leave(Pass::SocketsFull),
        Err(answer) => answer,
    };
    // It may have been connected before. Mostly it was not, and a look is cheaper than a removal.
    if sockets.with_connected(dial.cookie, |_| ()).is_some() {
        sockets.remove_connected(dial.cookie);
    }
    if dial.protocol == Protocol::Udp {
        forget_answers(sockets, dial);
    }
    answer
}

/// A datagram that a socket sends to an address, which it need not be connected to.
#[inline(always)]
pub fn send<S: Sockets>(sockets: &S, dial: &Dial) -> Answer {
    let dial = &dial.where_it_leads();
    if dial.is_connected
        && let Some(backend) = connected_to(sockets, dial)
    {
        return Answer::Point(Rewrite::Datagram, backend);
    }
    let dialled = dial.key(dial.to, DatagramSide::Dialled);
    if let Some(backend) = go_on(sockets, dial, &dialled) {
        return Answer::Point(Rewrite::Datagram, backend);
    }
    match point(sockets, dial, Rewrite::Datagram) {
        Ok(record) => {
            let answers = dial.key(record.backend, DatagramSide::Answers);
            if sockets.put_datagrams(&answers, &record) && sockets.put_datagrams(&dialled, &record)
            {
                Answer::Point(Rewrite::Datagram, record.backend)
            } else {
                Answer::Leave(Pass::SocketsFull)
            }
        }
        Err(answer) => {
            forget_answers(sockets, dial);
            answer
        }
    }
}

/// Whom a datagram that a socket received is from, if not from whom it seems.
#[inline(always)]
pub fn receive<S: Sockets>(
    sockets: &S,
    cookie: u64,
    is_connected: bool,
    from: Peer,
) -> Option<Peer> {
    if is_connected && let Some(frontend) = peer(sockets, cookie, from) {
        return Some(frontend);
    }
    let key = DatagramKey {
        cookie,
        peer: from,
        side: DatagramSide::Answers as u32,
    };
    sockets.with_datagrams(&key, |record| {
        refresh(record, sockets.now());
        record.frontend
    })
}

/// Whom a socket that is connected to `to` dialled, if that was somebody else.
#[inline(always)]
pub fn peer<S: Sockets>(sockets: &S, cookie: u64, to: Peer) -> Option<Peer> {
    sockets.with_connected(cookie, |record| {
        (record.backend == to).then_some(record.frontend)
    })?
}

/// A socket that is closed.
#[inline(always)]
pub fn close<S: Sockets>(sockets: &S, cookie: u64) {
    sockets.remove_connected(cookie);
}

impl Dial {
    /// A socket of this node that dials no address at all means itself, as the kernel has it.
    #[inline(always)]
    fn where_it_leads(self) -> Self {
        const LOCALHOST: u32 = 0x7f00_0001_u32.to_be();
        let addr = &self.to.addr;
        if !self.is_node {
            return self;
        }
        let addr = if addr.is_unspecified() {
            Addr::from_words([0, 0, 0, 1_u32.to_be()])
        } else if addr.is_v4() && addr.v4_word() == 0 {
            Addr::from_v4_word(LOCALHOST)
        } else {
            return self;
        };
        Self {
            to: Peer::new(addr, self.to.port),
            ..self
        }
    }

    #[inline(always)]
    const fn key(&self, peer: Peer, side: DatagramSide) -> DatagramKey {
        DatagramKey {
            cookie: self.cookie,
            peer,
            side: side as u32,
        }
    }

    /// Its first packet, as far as it is known.
    #[inline(always)]
    const fn flow(&self) -> FlowKey {
        FlowKey {
            tuple: Tuple {
                src: self.from,
                dst: self.to.addr,
                src_port: crate::abi::Port::ZERO,
                dst_port: self.to.port,
            },
            protocol: self.protocol.number(),
            side: Side::Ingress as u8,
            _pad: 0,
        }
    }
}

/// The backend that the socket is pointed at, if it dials what it is connected to.
#[inline(always)]
fn connected_to<S: Sockets>(sockets: &S, dial: &Dial) -> Option<Peer> {
    sockets.with_connected(dial.cookie, |record| {
        (record.frontend == dial.to).then_some(record.backend)
    })?
}

/// The backend of a correspondence that goes on.
#[inline(always)]
fn go_on<S: Sockets>(sockets: &S, dial: &Dial, dialled: &DatagramKey) -> Option<Peer> {
    let record = sockets.with_datagrams(dialled, |record| {
        black_box(lives(sockets, dial, record)).then(|| {
            refresh(record, sockets.now());
            *record
        })
    })??;
    // Another frontend's datagrams may have gone to the same backend meanwhile.
    let answers = dial.key(record.backend, DatagramSide::Answers);
    let is_ours = sockets.with_datagrams(&answers, |other| {
        let is_ours = other.frontend == record.frontend;
        if is_ours {
            refresh(other, sockets.now());
        }
        is_ours
    });
    let is_ready = is_ours == Some(true) || sockets.put_datagrams(&answers, &record);
    is_ready.then_some(record.backend)
}

/// Whether a correspondence of who dials goes on.
#[inline(never)]
fn lives<S: Sockets>(sockets: &S, dial: &Dial, record: &SocketRecord) -> bool {
    let may_move = || fate::has_backends(find_for(sockets, dial));
    let backend = (record.id, record.generation);
    fate::with_backend(sockets, backend, true, false, may_move) == Fate::Lives
}

#[inline(always)]
fn refresh(record: &mut SocketRecord, now: u64) {
    if now.wrapping_sub(record.last_seen) > REFRESH {
        record.last_seen = now;
    }
}

/// What is dialled is spoken to directly from now on: its datagrams are its own.
#[inline(always)]
fn forget_answers<S: Sockets>(sockets: &S, dial: &Dial) {
    let answers = dial.key(dial.to, DatagramSide::Answers);
    if sockets.with_datagrams(&answers, |_| ()).is_some() {
        sockets.remove_datagrams(&answers);
    }
}

#[inline(always)]
fn find_for<'a, S: Sockets>(sockets: &'a S, dial: &Dial) -> Found<'a> {
    let key = dial.flow();
    if dial.is_node {
        find::frontend_of_socket(sockets, &key)
    } else if key.tuple.dst.is_loopback() {
        // A pod's own.
        Found::Nothing
    } else {
        find::frontend(sockets, &key)
    }
}

/// Chooses a backend; or else what becomes of the dial. `how` it would be pointed tells what it does.
#[inline(always)]
fn point<S: Sockets>(sockets: &S, dial: &Dial, how: Rewrite) -> Result<SocketRecord, Answer> {
    let found = find_for(sockets, dial);
    if found == Found::Nothing || !is_served(sockets, dial) {
        return Err(Answer::Leave(Pass::NoService));
    }
    let flags = sockets.settings().flags;
    if flags.contains(SettingsFlags::HANDED_BACK) {
        return Err(Answer::Leave(Pass::HandedBack));
    }
    let frontend = match found {
        Found::Frontend(frontend) => frontend,
        // Resolvers connect to port 0 to find out which address they have themselves. Datagrams
        // that do follow are refused.
        Found::UnusedPort if how == Rewrite::Connect && dial.protocol == Protocol::Udp => {
            return Err(Answer::Leave(Pass::ByPacket));
        }
        Found::UnusedPort => return Err(Answer::Refuse),
        Found::Unallocated | Found::Nothing => return Err(Answer::Leave(Pass::ByPacket)),
    };
    let record = judge(sockets, dial, frontend);
    match record {
        Ok(_) => sockets.count(frontend.service, 0, Count::Flow),
        Err(Answer::Refuse) => {
            sockets.count(
                frontend.service,
                0,
                Count::Refused(RefusalReason::NoEndpoint),
            );
        }
        Err(_) => {}
    }
    record
}

/// Whether the socket is one of those that this edge is for.
///
/// One that is bound to a device could not reach a backend behind another one. A pod has only one;
/// but who is not known to be a pod might be the node, where the kernel does not tell.
#[inline(always)]
fn is_served<S: Sockets>(sockets: &S, dial: &Dial) -> bool {
    let flags = sockets.socket_settings().flags;
    if dial.is_node {
        return flags.contains(SocketFlags::NODE) && dial.device == 0;
    }
    flags.contains(SocketFlags::PODS)
        && (dial.device == 0 || sockets.client(dial.netns).is_some())
        && (!flags.contains(SocketFlags::KNOWN_PODS)
            || sockets
                .pod()
                .is_some_and(|pod| !pod.contains(PodFlags::SKIP)))
}

/// Where the packets of a socket will come from, as far as that is known.
struct Origin {
    /// Their source address; unspecified: not known.
    addr: Addr,
    /// Index of the device by which they come to this node; 0: not known.
    device: u32,
}

impl Origin {
    const UNKNOWN: Self = Self {
        addr: Addr::UNSPECIFIED,
        device: 0,
    };
}

#[inline(always)]
fn find_origin<S: Sockets>(sockets: &S, dial: &Dial) -> Origin {
    if dial.is_node {
        // What it dials on this node, it dials from there.
        let is_here = dial.to.addr.is_loopback() || policy::is_here(sockets, &dial.to.addr);
        let addr = if dial.from.is_unspecified() && is_here {
            dial.to.addr
        } else {
            dial.from
        };
        return Origin { addr, device: 0 };
    }
    let Some(client) = sockets.client(dial.netns) else {
        return Origin {
            addr: dial.from,
            device: 0,
        };
    };
    let addr = if !dial.from.is_unspecified() {
        dial.from
    } else if dial.to.addr.is_v4() {
        client.v4
    } else {
        client.v6
    };
    Origin {
        addr,
        device: client.device,
    }
}

/// What rules can depend on the kind of client that a pod is, and on its address.
#[inline(always)]
fn hides_clients<S: Sockets>(sockets: &S) -> bool {
    let flags = sockets.settings().flags;
    flags.contains(SettingsFlags::SOURCE_NAT_LIKE_KUBE_PROXY)
        || flags.contains(SettingsFlags::MASQUERADE_ALL)
}

#[inline(always)]
fn judge<S: Sockets>(
    sockets: &S,
    dial: &Dial,
    frontend: &Frontend,
) -> Result<SocketRecord, Answer> {
    const BY_PACKET: Answer = Answer::Leave(Pass::ByPacket);
    let is_external = frontend.flags.contains(FrontendFlags::EXTERNAL);
    let has_ranges = frontend.flags.contains(FrontendFlags::SOURCE_RANGES);
    let needs_addr = has_ranges || frontend.affinity_seconds != 0;
    let needs_kind = !dial.is_node
        && (hides_clients(sockets)
            || (is_external && frontend.flags.contains(FrontendFlags::LOCAL_ONLY)));
    let mut origin = Origin::UNKNOWN;
    if needs_addr || needs_kind {
        origin = find_origin(sockets, dial);
        if origin.addr.is_unspecified() || (needs_kind && origin.device == 0) {
            return Err(BY_PACKET);
        }
    }
    if has_ranges && !sockets.is_in_source_ranges(frontend.service, &origin.addr) {
        return Err(BY_PACKET);
    }
    let client = match (dial.is_node, needs_kind) {
        (true, _) => Client::Node,
        (false, true) => policy::client(sockets, Hook::PodIngress, origin.device, &origin.addr),
        (false, false) => Client::LocalPod,
    };
    let now = sockets.now();
    let asker = Asker {
        client: &origin.addr,
        hash: select::hash_of_socket(dial.cookie, frontend.service),
    };
    let local_only = policy::is_local_only(frontend, client);
    let chosen = select_backend(sockets, frontend, local_only, asker, now);
    let chosen = chosen.map_err(|refusal| match refusal {
        Refusal::NoEndpoints => Answer::Refuse,
        Refusal::NoLocalEndpoint | Refusal::Inconsistent => BY_PACKET,
    })?;
    if !is_reachable(sockets, dial, frontend, (client, &origin.addr), &chosen) {
        return Err(BY_PACKET);
    }
    Ok(SocketRecord {
        frontend: dial.to,
        backend: Peer::new(chosen.backend.addr, chosen.backend.port),
        id: chosen.id,
        generation: chosen.backend.generation,
        service: frontend.service,
        protocol: dial.protocol.number(),
        _pad: [0; 3],
        netns: dial.netns,
        last_seen: now,
    })
}

/// Whether the socket may, and can, talk to this backend with its own address.
#[inline(always)]
fn is_reachable<S: Sockets>(
    sockets: &S,
    dial: &Dial,
    frontend: &Frontend,
    client: (Client, &Addr),
    chosen: &Chosen<'_>,
) -> bool {
    let keeps_address = if dial.is_node {
        !dial.from.is_loopback()
    } else {
        !hides_clients(sockets)
            || !policy::hides_client(sockets, Hook::PodIngress, frontend, client, chosen.backend)
    };
    keeps_address || policy::is_here(sockets, &chosen.backend.addr)
}

//! A connection as its client sees it, and what it makes of the packets that are seen.

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use anyhow::{Result, ensure};
use nix::poll::PollFlags;
use proxy_common::testing::Frame;

use super::packet::{ACK, Body, RST, Seen};
use super::pods::Ear;
use super::process::Process;
use super::talk::{Talk, is_same};
use super::world::{Place, Sighting};
use crate::case::Protocol;

/// A connection as its client sees it.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) talk: Talk,
    pub(super) client: Client,
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    /// The backend that it had last.
    pub(super) backend: Option<SocketAddr>,
    /// Whether the socket edge has pointed it there.
    pub(super) is_pointed: bool,
}

/// Who sends.
#[derive(Debug)]
pub(super) enum Client {
    /// Nobody: frames by this device.
    Frames(usize),
    /// A process of a pod behind this device or, if `None`, of the node.
    Socket(Option<usize>, Process),
}

/// What became of a packet.
pub(super) enum Fate {
    /// It came out somewhere.
    Arrived(Sighting),
    /// The client was told so, in this way.
    Refused(&'static str),
    /// Something that must never be.
    Wrong(String),
    /// Nothing came out.
    Silence,
}

impl Conn {
    /// Its socket, if it is one of a pod's.
    pub(super) fn ear(&self) -> Option<Ear> {
        let Client::Socket(Some(device), _) = self.client else {
            return None;
        };
        Some(Ear {
            device,
            protocol: self.talk.protocol,
            at: self.from,
        })
    }

    /// Whether what was seen is this packet of the client's, on its way to wherever.
    pub(super) fn is_packet(&self, packet: &Frame, is_first: bool, seen: &Seen) -> bool {
        let Some(transport) = seen.transport() else {
            return false;
        };
        if transport.protocol != self.talk.protocol {
            return false;
        }
        match &self.client {
            // Its sequence numbers are the kernel's.
            Client::Socket(..) if self.talk.protocol == Protocol::Tcp => {
                if is_first {
                    transport.is_syn()
                } else {
                    transport.payload == packet.payload
                }
            }
            Client::Frames(_) | Client::Socket(..) => is_same(packet, transport),
        }
    }

    /// What was seen, if it tells a client without a socket that its packet is refused.
    pub(super) fn refusal(&self, packet: &Frame, sighting: &Sighting) -> Option<Fate> {
        let Client::Frames(device) = self.client else {
            return None;
        };
        let seen = &sighting.seen;
        if sighting.place != Place::Device(device) || seen.dst != self.from.ip() {
            return None;
        }
        let wrong = |why: &str| Some(Fate::Wrong(format!("the client was sent [{seen}]: {why}")));
        if let Some(transport) = seen.transport() {
            let is_reset = transport.protocol == Protocol::Tcp && transport.flags & RST != 0;
            if !is_reset || seen.to() != self.from {
                return None;
            }
            // RFC 9293, 3.5.2.
            let fits = if packet.flags & ACK == 0 {
                transport.flags & ACK != 0 && transport.ack == packet.seq.wrapping_add(1)
            } else {
                transport.seq == packet.ack
            };
            return match (&seen.wrong, fits) {
                _ if seen.from() != self.to => wrong("not from where it dialled"),
                (None, true) => Some(Fate::Refused("a reset")),
                (None, false) => wrong("numbers do not fit"),
                (Some(_), _) => wrong("checksum"),
            };
        }
        let quoted = seen.quoted()?;
        if quoted.from().port() != self.from.port() {
            return None;
        }
        if (quoted.from(), quoted.to()) != (self.from, self.to) || !quotes(seen, packet) {
            return wrong("it does not quote the client's packet");
        }
        if seen.wrong.is_some() {
            return wrong("checksum");
        }
        if !seen.is_port_unreachable() {
            return wrong("not port unreachable");
        }
        Some(Fate::Refused("port unreachable"))
    }

    /// Whether a packet at the client is an answer, or ought to be one: from the wrong place, say.
    pub(super) fn is_answer(&self, seen: &Seen) -> bool {
        let protocol = seen.transport().map(|transport| transport.protocol);
        protocol == Some(self.talk.protocol) && seen.to() == self.from
    }

    /// Holds a packet that came to the client against the backend's answer. False: it is not
    /// that one yet.
    pub(super) fn check_answer(
        &mut self,
        answer: &Frame,
        seen: &Seen,
        is_kernels: bool,
    ) -> Result<bool> {
        ensure!(
            seen.from() == self.to,
            "the answer should come from {}, but came as [{seen}]",
            self.to
        );
        ensure!(seen.wrong.is_none(), "the answer came as [{seen}]");
        let Some(transport) = seen.transport() else {
            return Ok(false);
        };
        if is_kernels {
            ensure!(
                transport.flags & (RST | ACK) == ACK,
                "the answer came as [{seen}]"
            );
            self.talk.follow(transport);
        } else {
            ensure!(
                is_same(answer, transport),
                "the answer was changed to [{seen}]"
            );
        }
        Ok(true)
    }

    /// What to wait for besides packets.
    pub(super) fn events(&self, is_first: bool) -> Option<(BorrowedFd<'_>, PollFlags)> {
        match &self.client {
            Client::Frames(_) => None,
            Client::Socket(_, process) => Some(process.events(is_first)),
        }
    }
}

impl Fate {
    /// What a client's socket says in place of sending.
    pub(super) fn told(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::ConnectionRefused {
            Self::Refused("connection refused")
        } else {
            Self::Wrong(format!("the client's socket says: {error}"))
        }
    }
}

/// Whether an ICMP error quotes a packet as it was sent; hop counts may differ.
fn quotes(error: &Seen, packet: &Frame) -> bool {
    let Body::Error { quote, .. } = &error.body else {
        return false;
    };
    let sent = packet.packet();
    let (header, hops): (usize, &[usize]) = if packet.src.is_ipv4() {
        (20, &[8, 10, 11])
    } else {
        (40, &[7])
    };
    let same = |(at, (ours, theirs)): (usize, (&u8, &u8))| ours == theirs || hops.contains(&at);
    quote.len() >= header + 8 && sent.iter().zip(quote).enumerate().all(same)
}

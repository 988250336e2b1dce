//! One side of an SCTP association, without any I/O: packets in, packets out.
//!
//! One piece of data is under way at a time; that is slow, and enough to show that packets
//! arrive intact.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};

use super::packet::{Chunk, Init, Packet};

/// Longest piece of a message in one packet, in bytes: fits an MTU of 1280.
const PIECE: usize = 1_200;

/// One side of an association.
#[derive(Debug)]
pub(super) struct Association {
    local_port: u16,
    remote_port: u16,
    local: Init,
    remote: Init,
    state: State,
    /// Pieces of data that the other side has not confirmed yet.
    unconfirmed: VecDeque<Chunk>,
    next_tsn: u32,
    /// Number of the last piece that arrived.
    received: u32,
    message: Vec<u8>,
    inbox: VecDeque<Vec<u8>>,
}

/// How far an association is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// INIT is sent.
    Opening,
    /// The cookie is sent back.
    CookieEchoed(Vec<u8>),
    /// Up.
    Open,
    /// SHUTDOWN is sent.
    Closing,
    /// SHUTDOWN is confirmed.
    CloseConfirmed,
    /// Ended as it should.
    Closed,
    /// Ended by the other side's ABORT.
    Aborted,
}

impl Association {
    /// The side that opens.
    pub(super) fn client(local_port: u16, remote_port: u16) -> Self {
        let local = Init {
            tag: random(),
            tsn: random(),
        };
        Self::new(
            local_port,
            remote_port,
            local,
            Init { tag: 0, tsn: 0 },
            State::Opening,
        )
    }

    fn new(local_port: u16, remote_port: u16, local: Init, remote: Init, state: State) -> Self {
        Self {
            local_port,
            remote_port,
            local,
            remote,
            state,
            unconfirmed: VecDeque::new(),
            next_tsn: local.tsn,
            received: remote.tsn.wrapping_sub(1),
            message: Vec::new(),
            inbox: VecDeque::new(),
        }
    }

    /// How far it is.
    pub(super) fn state(&self) -> &State {
        &self.state
    }

    /// Takes a message that has arrived.
    pub(super) fn receive(&mut self) -> Option<Vec<u8>> {
        self.inbox.pop_front()
    }

    /// Whether everything sent has arrived.
    pub(super) fn is_confirmed(&self) -> bool {
        self.unconfirmed.is_empty()
    }

    /// Puts a message on its way.
    pub(super) fn send(&mut self, message: &[u8]) {
        let pieces = message.chunks(PIECE).count();
        for (at, piece) in message.chunks(PIECE).enumerate() {
            self.unconfirmed.push_back(Chunk::Data {
                tsn: self.next_tsn,
                begins: at == 0,
                ends: at + 1 == pieces,
                payload: piece.to_vec(),
            });
            self.next_tsn = self.next_tsn.wrapping_add(1);
        }
    }

    /// A packet with a message of one piece, as it would be sent next.
    pub(super) fn packet_of(&self, message: &[u8]) -> Packet {
        self.packet(vec![Chunk::Data {
            tsn: self.next_tsn,
            begins: true,
            ends: true,
            payload: message.to_vec(),
        }])
    }

    /// Ends it.
    pub(super) fn close(&mut self) {
        self.state = State::Closing;
    }

    /// What is to be sent now, and again until something changes.
    pub(super) fn due(&self) -> Option<Packet> {
        match &self.state {
            State::Opening => Some(self.packet(vec![Chunk::Init(self.local)])),
            State::CookieEchoed(cookie) => {
                Some(self.packet(vec![Chunk::CookieEcho(cookie.clone())]))
            }
            State::Open => self
                .unconfirmed
                .front()
                .map(|data| self.packet(vec![data.clone()])),
            State::Closing => Some(self.packet(vec![Chunk::Shutdown { tsn: self.received }])),
            State::CloseConfirmed => Some(self.packet(vec![Chunk::ShutdownAck])),
            State::Closed | State::Aborted => None,
        }
    }

    /// Whether a packet carries this association's tag.
    pub(super) fn is_addressed(&self, packet: &Packet) -> bool {
        packet
            .chunks
            .iter()
            .any(|chunk| self.accepts(packet.tag, chunk))
    }

    /// Takes a packet in; returns the answers to it. [`Self::due`] may have changed, too.
    pub(super) fn handle(&mut self, packet: Packet) -> Option<Packet> {
        let mut answers = Vec::new();
        for chunk in packet.chunks {
            if self.accepts(packet.tag, &chunk) {
                answers.extend(self.handle_chunk(chunk));
            }
        }
        (!answers.is_empty()).then(|| self.packet(answers))
    }

    fn packet(&self, chunks: Vec<Chunk>) -> Packet {
        Packet {
            source: self.local_port,
            destination: self.remote_port,
            tag: self.remote.tag,
            chunks,
        }
    }

    /// The rules for verification tags (RFC 9260, section 8.5).
    fn accepts(&self, tag: u32, chunk: &Chunk) -> bool {
        let reflected = matches!(
            chunk,
            Chunk::Abort { reflected: true } | Chunk::ShutdownComplete { reflected: true }
        );
        tag == if reflected {
            self.remote.tag
        } else {
            self.local.tag
        }
    }

    fn handle_chunk(&mut self, chunk: Chunk) -> Option<Chunk> {
        match chunk {
            Chunk::InitAck(init, cookie) if self.state == State::Opening => {
                self.remote = init;
                self.received = init.tsn.wrapping_sub(1);
                self.state = State::CookieEchoed(cookie);
                None
            }
            Chunk::CookieAck if matches!(self.state, State::CookieEchoed(_)) => {
                self.state = State::Open;
                None
            }
            // The first one may have been lost.
            Chunk::CookieEcho(_) => Some(Chunk::CookieAck),
            Chunk::Data {
                tsn,
                begins,
                ends,
                payload,
            } => Some(self.handle_data(tsn, begins, ends, &payload)),
            Chunk::Sack { tsn } => {
                let first = self.unconfirmed.front();
                if matches!(first, Some(Chunk::Data { tsn: sent, .. }) if *sent == tsn) {
                    self.unconfirmed.pop_front();
                }
                None
            }
            Chunk::Heartbeat(body) => Some(Chunk::HeartbeatAck(body)),
            Chunk::Shutdown { .. } => {
                self.state = State::CloseConfirmed;
                None
            }
            Chunk::ShutdownAck => {
                self.state = State::Closed;
                Some(Chunk::ShutdownComplete { reflected: false })
            }
            Chunk::ShutdownComplete { .. } => {
                self.state = State::Closed;
                None
            }
            Chunk::Abort { .. } => {
                self.state = State::Aborted;
                None
            }
            Chunk::Init(_)
            | Chunk::InitAck(..)
            | Chunk::CookieAck
            | Chunk::HeartbeatAck(_)
            | Chunk::Other(_) => None,
        }
    }

    fn handle_data(&mut self, tsn: u32, begins: bool, ends: bool, payload: &[u8]) -> Chunk {
        if tsn == self.received.wrapping_add(1) {
            self.received = tsn;
            if begins {
                self.message.clear();
            }
            self.message.extend(payload);
            if ends {
                self.inbox.push_back(std::mem::take(&mut self.message));
            }
        }
        Chunk::Sack { tsn: self.received }
    }
}

/// A side that waits for others to open. Keeps nothing about them before they bring their
/// cookie back.
#[derive(Debug)]
pub(super) struct Door {
    port: u16,
    secret: RandomState,
}

impl Door {
    /// A door at a port.
    pub(super) fn new(port: u16) -> Self {
        Self {
            port,
            secret: RandomState::new(),
        }
    }

    /// Answers a packet that belongs to no association.
    pub(super) fn handle(&self, packet: &Packet) -> Answer {
        let reply = |tag, chunk| {
            let (source, destination) = (self.port, packet.source);
            Answer::Reply(Packet {
                source,
                destination,
                tag,
                chunks: vec![chunk],
            })
        };
        match packet.chunks.first() {
            Some(Chunk::Init(init)) => {
                let local = Init {
                    tag: random(),
                    tsn: random(),
                };
                reply(
                    init.tag,
                    Chunk::InitAck(local, self.cookie(packet.source, local, *init)),
                )
            }
            Some(Chunk::CookieEcho(cookie)) => match self.open(packet.source, cookie) {
                Some(association) if association.local.tag == packet.tag => {
                    Answer::Open(Box::new(association))
                }
                Some(_) | None => Answer::Nothing,
            },
            Some(Chunk::ShutdownAck) => {
                reply(packet.tag, Chunk::ShutdownComplete { reflected: true })
            }
            Some(Chunk::Abort { .. } | Chunk::ShutdownComplete { .. }) | None => Answer::Nothing,
            Some(_) => reply(packet.tag, Chunk::Abort { reflected: true }),
        }
    }

    fn cookie(&self, port: u16, local: Init, remote: Init) -> Vec<u8> {
        let words = [local.tag, local.tsn, remote.tag, remote.tsn].map(u32::to_be_bytes);
        let signature = self.secret.hash_one((port, words)).to_be_bytes();
        [words.as_flattened(), &signature].concat()
    }

    fn open(&self, port: u16, cookie: &[u8]) -> Option<Association> {
        let word = |at: usize| {
            cookie
                .get(4 * at..)?
                .first_chunk()
                .map(|word| u32::from_be_bytes(*word))
        };
        let local = Init {
            tag: word(0)?,
            tsn: word(1)?,
        };
        let remote = Init {
            tag: word(2)?,
            tsn: word(3)?,
        };
        (self.cookie(port, local, remote) == cookie)
            .then(|| Association::new(self.port, port, local, remote, State::Open))
    }
}

/// What becomes of a packet that belongs to no association.
#[derive(Debug)]
pub(super) enum Answer {
    /// It is answered.
    Reply(Packet),
    /// A new association is up; the packet is to be handled by it.
    Open(Box<Association>),
    /// It is dropped.
    Nothing,
}

/// A number that nobody can guess, never 0 (a tag of 0 has a meaning of its own).
pub(super) fn random() -> u32 {
    RandomState::new().hash_one(0) as u32 | 1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets two sides talk until both are silent. `lose` says which packet is lost, by number.
    fn talk(client: &mut Association, lose: impl Fn(usize) -> bool) -> Option<Association> {
        let door = Door::new(7);
        let mut server: Option<Association> = None;
        let mut count = 0;
        for _ in 0..100 {
            let Some(packet) = client.due() else { break };
            let mut to_server = VecDeque::from([packet]);
            while let Some(packet) = to_server.pop_front() {
                count += 1;
                if lose(count) {
                    continue;
                }
                let reply = match &mut server {
                    Some(server) => server.handle(packet),
                    None => match door.handle(&packet) {
                        Answer::Reply(reply) => Some(reply),
                        Answer::Open(new) => server.insert(*new).handle(packet),
                        Answer::Nothing => None,
                    },
                };
                let due = server.as_ref().and_then(Association::due);
                for packet in reply.into_iter().chain(due) {
                    count += 1;
                    if !lose(count) {
                        to_server.extend(client.handle(packet));
                    }
                }
            }
        }
        server
    }

    #[test]
    fn a_message_of_several_pieces_arrives() {
        let mut client = Association::client(5, 7);
        let message: Vec<u8> = (0..5_000).map(|at| at as u8).collect();
        client.send(&message);
        let mut server = talk(&mut client, |_| false).unwrap();
        assert_eq!(*client.state(), State::Open);
        assert_eq!(server.receive(), Some(message));
        assert!(client.is_confirmed());
    }

    #[test]
    fn lost_packets_are_sent_again() {
        for lost in 1..12 {
            let mut client = Association::client(5, 7);
            client.send(&[1; 2_000]);
            let mut server = talk(&mut client, |count| count == lost).unwrap();
            assert_eq!(server.receive(), Some(vec![1; 2_000]), "packet {lost} lost");
            assert_eq!(server.receive(), None, "packet {lost} lost");
        }
    }

    #[test]
    fn a_forged_cookie_opens_nothing() {
        let chunks = vec![Chunk::CookieEcho(vec![0; 24])];
        let packet = Packet {
            source: 5,
            destination: 7,
            tag: 0,
            chunks,
        };
        assert!(matches!(Door::new(7).handle(&packet), Answer::Nothing));
    }

    #[test]
    fn data_out_of_the_blue_is_answered_with_an_abort() {
        let chunks = vec![Chunk::Data {
            tsn: 1,
            begins: true,
            ends: true,
            payload: vec![1],
        }];
        let packet = Packet {
            source: 5,
            destination: 7,
            tag: 99,
            chunks,
        };
        let Answer::Reply(reply) = Door::new(7).handle(&packet) else {
            panic!("no reply")
        };
        assert_eq!(
            (reply.tag, reply.chunks),
            (99, vec![Chunk::Abort { reflected: true }])
        );
    }
}

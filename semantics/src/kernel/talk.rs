//! What a client and a backend say to each other, packet by packet.

use std::net::SocketAddr;

use proxy_common::abi;
use proxy_common::testing::Frame;

use super::packet::{ACK, PSH, SYN, Transport};
use crate::case::Protocol;

/// A conversation: each packet of it can be told from all others.
#[derive(Clone, Debug)]
pub(super) struct Talk {
    pub(super) protocol: Protocol,
    /// TCP's first sequence number, SCTP's tags, UDP's content: nobody else's.
    token: u32,
    /// TCP's next sequence number of the backend.
    backend_seq: u32,
    /// Bytes that the client has sent.
    n_sent: u32,
}

/// Bytes of content in one packet.
const CONTENT: u32 = 8;

impl Talk {
    /// The conversation with this number.
    pub(super) const fn new(protocol: Protocol, number: u32) -> Self {
        Self {
            protocol,
            token: number << 12,
            backend_seq: !(number << 12),
            n_sent: 0,
        }
    }

    /// The client's first packet.
    pub(super) fn first(&self, from: SocketAddr, to: SocketAddr) -> Frame {
        let frame = frame(self.protocol, from, to);
        match self.protocol {
            Protocol::Tcp => Frame {
                flags: SYN,
                seq: self.token,
                ack: 0,
                ..frame
            },
            Protocol::Udp => frame.with_payload(self.content(b'q')),
            Protocol::Sctp => Frame {
                tag: 0,
                // Initial tag, window, streams both ways, initial TSN.
                payload: chunk(1, &[self.token, 0x10000, 0x000a_000a, 1]),
                ..frame
            },
        }
    }

    /// The backend's answer to the first packet.
    pub(super) fn first_answer(&self, from: SocketAddr, to: SocketAddr, seq: u32) -> Frame {
        let frame = frame(self.protocol, from, to);
        match self.protocol {
            Protocol::Tcp => Frame {
                flags: SYN | ACK,
                seq: self.backend_seq.wrapping_sub(1),
                ack: seq.wrapping_add(1),
                ..frame
            },
            Protocol::Udp => frame.with_payload(self.content(b'a')),
            Protocol::Sctp => Frame {
                tag: self.token,
                // The same and a cookie (type 7).
                payload: chunk(
                    2,
                    &[self.token, 0x10000, 0x000a_000a, 1, 0x0007_0008, self.token],
                ),
                ..frame
            },
        }
    }

    /// What the client says when it has had the first answer, if it has to say something.
    pub(super) fn second(&self, from: SocketAddr, to: SocketAddr) -> Option<Frame> {
        let frame = frame(self.protocol, from, to);
        match self.protocol {
            Protocol::Tcp => Some(Frame {
                flags: ACK,
                seq: self.token.wrapping_add(1),
                ack: self.backend_seq,
                ..frame
            }),
            Protocol::Udp => None,
            Protocol::Sctp => Some(Frame {
                tag: self.token,
                payload: chunk(10, &[self.token]),
                ..frame
            }),
        }
    }

    /// What the backend says to that.
    pub(super) fn second_answer(&self, from: SocketAddr, to: SocketAddr) -> Option<Frame> {
        (self.protocol == Protocol::Sctp).then(|| Frame {
            tag: self.token,
            payload: chunk(11, &[]),
            ..frame(self.protocol, from, to)
        })
    }

    /// A further packet of the client's.
    pub(super) fn next(&mut self, from: SocketAddr, to: SocketAddr) -> Frame {
        self.n_sent += CONTENT;
        let frame = frame(self.protocol, from, to);
        match self.protocol {
            Protocol::Tcp => Frame {
                flags: PSH | ACK,
                seq: self.token.wrapping_add(1 + self.n_sent - CONTENT),
                ack: self.backend_seq,
                ..frame
            }
            .with_payload(self.content(b'q')),
            Protocol::Udp => frame.with_payload(self.content(b'q')),
            Protocol::Sctp => Frame {
                tag: self.token,
                payload: data(self.n_sent / CONTENT, &self.content(b'q')),
                ..frame
            },
        }
    }

    /// The backend's answer to a further packet.
    pub(super) fn next_answer(&mut self, from: SocketAddr, to: SocketAddr, seq: u32) -> Frame {
        let frame = frame(self.protocol, from, to);
        match self.protocol {
            Protocol::Tcp => {
                let at = self.backend_seq;
                self.backend_seq = at.wrapping_add(CONTENT);
                Frame {
                    flags: PSH | ACK,
                    seq: at,
                    ack: seq.wrapping_add(CONTENT),
                    ..frame
                }
                .with_payload(self.content(b'a'))
            }
            Protocol::Udp => frame.with_payload(self.content(b'a')),
            Protocol::Sctp => Frame {
                tag: self.token,
                payload: data(self.n_sent / CONTENT, &self.content(b'a')),
                ..frame
            },
        }
    }

    /// Takes note of the sequence numbers of a backend that has its own.
    pub(super) const fn follow(&mut self, answer: &Transport) {
        if answer.flags & (SYN | ACK) == SYN | ACK {
            self.backend_seq = answer.seq.wrapping_add(1);
        }
    }

    /// Content that is this conversation's alone, and each time new.
    fn content(&self, who: u8) -> Vec<u8> {
        let mut content = vec![who];
        content.extend(self.token.to_be_bytes());
        content.extend(&self.n_sent.to_be_bytes()[1..]);
        content
    }
}

/// Whether a packet is this one, whatever became of its addresses and ports.
pub(super) fn is_same(sent: &Frame, seen: &Transport) -> bool {
    if seen.payload != sent.payload {
        return false;
    }
    match seen.protocol {
        Protocol::Tcp => (seen.flags, seen.seq, seen.ack) == (sent.flags, sent.seq, sent.ack),
        Protocol::Udp => true,
        Protocol::Sctp => seen.seq == sent.tag,
    }
}

/// The kernel's number of a protocol.
pub(super) const fn protocol(protocol: Protocol) -> abi::Protocol {
    match protocol {
        Protocol::Tcp => abi::Protocol::Tcp,
        Protocol::Udp => abi::Protocol::Udp,
        Protocol::Sctp => abi::Protocol::Sctp,
    }
}

fn frame(of: Protocol, from: SocketAddr, to: SocketAddr) -> Frame {
    Frame::new(protocol(of), &from.to_string(), &to.to_string())
}

fn chunk(kind: u8, words: &[u32]) -> Vec<u8> {
    let len = u16::try_from(4 + 4 * words.len()).expect("chunks are short");
    let mut bytes = vec![kind, 0];
    bytes.extend(len.to_be_bytes());
    bytes.extend(words.iter().flat_map(|word| word.to_be_bytes()));
    bytes
}

/// An SCTP DATA chunk with a whole message of eight bytes.
fn data(tsn: u32, content: &[u8]) -> Vec<u8> {
    let mut bytes = chunk(0, &[tsn, 0, 0]);
    bytes[1] = 3;
    bytes[3] += CONTENT as u8;
    bytes.extend(content);
    bytes
}

#[cfg(test)]
mod tests {
    use super::super::packet::Seen;
    use super::*;

    const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

    fn ends() -> (SocketAddr, SocketAddr) {
        (
            "192.0.2.1:1".parse().unwrap(),
            "192.0.2.2:2".parse().unwrap(),
        )
    }

    fn seen(frame: &Frame) -> Transport {
        let seen = Seen::frame(&frame.bytes()).unwrap();
        assert_eq!(seen.wrong, None);
        seen.transport().unwrap().clone()
    }

    #[test]
    fn packets_are_told_apart_whatever_their_addresses() {
        let (a, b) = ends();
        for protocol in PROTOCOLS {
            let (mut one, other) = (Talk::new(protocol, 1), Talk::new(protocol, 2));
            let first = one.first(a, b);
            assert!(is_same(&first, &seen(&one.first(b, a))));
            assert!(!is_same(&first, &seen(&other.first(a, b))));
            assert!(!is_same(&first, &seen(&one.first_answer(b, a, 7))));
            let next = one.next(a, b);
            assert!(!is_same(&first, &seen(&next)));
            assert!(!is_same(&next, &seen(&one.next(a, b))));
        }
    }

    #[test]
    fn tcp_numbers_fit_together() {
        let (a, b) = ends();
        let mut talk = Talk::new(Protocol::Tcp, 3);
        let syn = seen(&talk.first(a, b));
        let answer = seen(&talk.first_answer(b, a, syn.seq));
        let ack = seen(&talk.second(a, b).unwrap());
        assert_eq!(answer.ack, syn.seq.wrapping_add(1));
        assert_eq!((ack.seq, ack.ack), (answer.ack, answer.seq.wrapping_add(1)));
        let data = seen(&talk.next(a, b));
        let reply = seen(&talk.next_answer(b, a, data.seq));
        let more = seen(&talk.next(a, b));
        assert_eq!((data.seq, reply.ack), (ack.seq, data.seq.wrapping_add(8)));
        assert_eq!((more.seq, more.ack), (reply.ack, reply.seq.wrapping_add(8)));
    }
}

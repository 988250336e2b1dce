//! What client and server say: the packets of a flow, and how they are read.

use std::net::{IpAddr, SocketAddr};

use proxy_common::abi::Protocol;
use proxy_common::testing::{Frame, verify};

/// Addresses and ports of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Ends {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
}

impl Ends {
    pub(super) const fn swapped(self) -> Self {
        Self {
            from: self.to,
            to: self.from,
        }
    }
}

/// One question and its answer.
#[derive(Clone, Copy)]
pub(super) struct Round {
    question: fn() -> Frame,
    answer: fn() -> Frame,
}

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const DATA: u8 = 0;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const SACK: u8 = 3;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;

const ANY: &str = "0.0.0.0:0";

const TCP: [Round; 2] = [
    Round {
        question: || Frame::tcp(SYN, ANY, ANY),
        answer: || Frame::tcp(SYN | ACK, ANY, ANY),
    },
    Round {
        question: || Frame::tcp(ACK, ANY, ANY).with_payload(*b"GET / HTTP/1.1"),
        answer: || Frame::tcp(ACK, ANY, ANY).with_payload(*b"HTTP/1.1 200"),
    },
];
const UDP: [Round; 1] = [Round {
    question: || Frame::udp(ANY, ANY).with_payload(*b"a question"),
    answer: || Frame::udp(ANY, ANY).with_payload(*b"the answer"),
}];
const SCTP: [Round; 3] = [
    Round {
        question: || Frame::sctp(INIT, ANY, ANY),
        answer: || Frame::sctp(INIT_ACK, ANY, ANY),
    },
    Round {
        question: || Frame::sctp(COOKIE_ECHO, ANY, ANY),
        answer: || Frame::sctp(COOKIE_ACK, ANY, ANY),
    },
    Round {
        question: || Frame::sctp(DATA, ANY, ANY),
        answer: || Frame::sctp(SACK, ANY, ANY),
    },
];

/// What opens a connection: each question awaits its answer.
pub(super) const fn opening(protocol: Protocol) -> &'static [Round] {
    match protocol {
        Protocol::Tcp => &TCP,
        Protocol::Udp => &UDP,
        Protocol::Sctp => SCTP.split_at(2).0,
    }
}

/// What is said on an open connection.
pub(super) const fn more(protocol: Protocol) -> &'static [Round] {
    match protocol {
        Protocol::Tcp => TCP.split_at(1).1,
        Protocol::Udp => &UDP,
        Protocol::Sctp => SCTP.split_at(2).1,
    }
}

impl Round {
    pub(super) fn question(&self, ends: Ends) -> Vec<u8> {
        between((self.question)(), ends).bytes()
    }

    pub(super) fn answer(&self, ends: Ends) -> Vec<u8> {
        between((self.answer)(), ends).bytes()
    }
}

fn between(frame: Frame, ends: Ends) -> Frame {
    Frame {
        src: ends.from.ip(),
        dst: ends.to.ip(),
        src_port: ends.from.port(),
        dst_port: ends.to.port(),
        ..frame
    }
}

/// Where the transport header begins, in a frame without options and extension headers.
const fn transport_at(frame: &[u8]) -> usize {
    if is_v4(frame) { 34 } else { 54 }
}

const fn is_v4(frame: &[u8]) -> bool {
    frame[12] == 0x08
}

/// The IP protocol's number.
fn protocol_of(frame: &[u8]) -> u8 {
    if is_v4(frame) { frame[23] } else { frame[20] }
}

/// Source and destination address.
pub(super) fn addresses(frame: &[u8]) -> (IpAddr, IpAddr) {
    let ip = &frame[14..];
    if is_v4(frame) {
        let at = |at: usize| <[u8; 4]>::try_from(&ip[at..at + 4]).expect("four bytes");
        (at(12).into(), at(16).into())
    } else {
        let at = |at: usize| <[u8; 16]>::try_from(&ip[at..at + 16]).expect("sixteen bytes");
        (at(8).into(), at(24).into())
    }
}

/// Addresses and ports of a TCP, UDP or SCTP packet.
pub(super) fn ends(frame: &[u8]) -> Ends {
    let (src, dst) = addresses(frame);
    let at = transport_at(frame);
    let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    Ends {
        from: SocketAddr::new(src, port(at)),
        to: SocketAddr::new(dst, port(at + 2)),
    }
}

/// Checks that a packet is the one expected, but for what changes at every hop: link-layer
/// addresses and time to live.
pub(super) fn same(expected: &[u8], found: &[u8]) -> Result<(), String> {
    verify(found).map_err(|wrong| format!("wrong {wrong}"))?;
    if without_hops(expected) == without_hops(found) {
        return Ok(());
    }
    let (expected, found) = (ends(expected), ends(found));
    if expected == found {
        return Err("more of the packet was changed than addresses and ports".into());
    }
    Err(format!(
        "the packet goes from {} to {}, not from {} to {}",
        found.from, found.to, expected.from, expected.to
    ))
}

fn without_hops(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[..12].fill(0);
    if is_v4(&frame) {
        frame[22] = 0;
        frame[24..26].fill(0);
    } else {
        frame[21] = 0;
    }
    frame
}

/// Checks that `answer` tells the sender of `question` that nobody takes it (rule R67): a TCP
/// reset from where it was sent to, or an ICMP port unreachable that quotes it.
pub(super) fn refuses(question: &[u8], answer: &[u8]) -> Result<(), String> {
    verify(answer).map_err(|wrong| format!("wrong {wrong} in the answer"))?;
    if protocol_of(answer) == Protocol::Tcp.number() {
        return is_reset(question, answer);
    }
    let unreachable = if is_v4(answer) {
        (1, [3, 3])
    } else {
        (58, [1, 4])
    };
    let at = transport_at(answer);
    let found = (protocol_of(answer), [answer[at], answer[at + 1]]);
    if found != unreachable {
        return Err(format!(
            "the answer is protocol {}, type and code {:?}, no port unreachable",
            found.0, found.1
        ));
    }
    if addresses(answer).1 != addresses(question).0 {
        return Err(format!("the answer goes to {}", addresses(answer).1));
    }
    let quote = &answer[at + 8..];
    let shortest = transport_at(question) - 14 + 8;
    if quote.len() < shortest || !question[14..].starts_with(quote) {
        return Err("the answer does not quote the client's own packet".into());
    }
    Ok(())
}

fn is_reset(question: &[u8], answer: &[u8]) -> Result<(), String> {
    const RST: u8 = 0x04;
    if answer[transport_at(answer) + 13] & RST == 0 {
        return Err("the answer is TCP but no reset".into());
    }
    let (expected, found) = (ends(question).swapped(), ends(answer));
    if expected != found {
        return Err(format!(
            "the reset goes from {} to {}, not from {} to {}",
            found.from, found.to, expected.from, expected.to
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proxy_common::testing::Icmp;

    use super::*;

    fn socket(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn two(from: &str, to: &str) -> Ends {
        Ends {
            from: socket(from),
            to: socket(to),
        }
    }

    #[test]
    fn packets_are_compared_but_for_hops() {
        for (from, to) in [("10.0.0.1:1", "10.0.0.2:2"), ("[fd00::1]:1", "[fd00::2]:2")] {
            for round in [TCP[0], UDP[0], SCTP[0]] {
                let sent = round.question(two(from, to));
                assert_eq!(ends(&sent), two(from, to));
                assert_eq!(same(&sent, &sent), Ok(()));
                let mut damaged = sent.clone();
                *damaged.last_mut().unwrap() ^= 1;
                assert!(same(&sent, &damaged).unwrap_err().contains("checksum"));
                let other = round.answer(two(from, to));
                assert!(same(&sent, &other).is_err());
                let turned = round.question(two(to, from));
                assert!(same(&sent, &turned).unwrap_err().contains("goes from"));
            }
        }
    }

    #[test]
    fn a_refusal_is_a_reset_or_quotes_the_packet() {
        let ends = two("10.0.0.1:1", "10.0.0.2:2");
        let sent = TCP[0].question(ends);
        let reset = between(Frame::tcp(0x14, ANY, ANY), ends.swapped()).bytes();
        assert_eq!(refuses(&sent, &reset), Ok(()));
        let acked = TCP[0].answer(ends.swapped());
        assert!(refuses(&sent, &acked).is_err());
        let stray = between(Frame::tcp(0x14, ANY, ANY), ends).bytes();
        assert!(refuses(&sent, &stray).is_err());
        let icmp = |kind, to, quote: &[u8]| Icmp::new(kind, "10.0.0.2", to, quote.into()).bytes();
        assert_eq!(
            refuses(&sent, &icmp([3, 3], "10.0.0.1", &sent[14..])),
            Ok(())
        );
        assert_eq!(
            refuses(&sent, &icmp([3, 3], "10.0.0.1", &sent[14..42])),
            Ok(())
        );
        for wrong in [
            icmp([3, 1], "10.0.0.1", &sent[14..]),
            icmp([3, 3], "10.0.0.9", &sent[14..]),
            icmp([3, 3], "10.0.0.1", &sent[14..40]),
            icmp([3, 3], "10.0.0.1", &acked[14..]),
        ] {
            assert!(refuses(&sent, &wrong).is_err());
        }
    }
}

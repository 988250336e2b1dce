//! Packets of any kind, for properties.

use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;
use proptest::sample::select;

use crate::abi::{Protocol, Verdict};
use crate::datapath::{Hook, decide};
use crate::testing::{Extension, Frame, Memory, Skb};

/// Flags and chunks that open nothing.
const LATER_FLAGS: [u8; 6] = [0x10, 0x18, 0x11, 0x12, 0x04, 0x31];
const LATER_CHUNKS: [u8; 6] = [0, 2, 3, 10, 11, 9];

pub(super) fn protocol() -> impl Strategy<Value = Protocol> {
    select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp])
}

/// An address; those that are special do not matter to the datapath, v4-mapped ones would.
pub(super) fn ip(is_v4: bool) -> BoxedStrategy<IpAddr> {
    if is_v4 {
        any::<[u8; 4]>().prop_map(IpAddr::from).boxed()
    } else {
        any::<[u8; 16]>()
            .prop_map(|octets| {
                let mut octets = octets;
                octets[0] |= 0x20;
                IpAddr::from(octets)
            })
            .boxed()
    }
}

fn ports() -> impl Strategy<Value = u16> {
    prop_oneof![any::<u16>(), select(vec![0, 1, 80, 0x8000, u16::MAX])]
}

pub(super) fn end(is_v4: bool) -> impl Strategy<Value = SocketAddr> {
    (ip(is_v4), ports()).prop_map(SocketAddr::from)
}

/// Client, Service and backend: three different addresses of one family.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    pub(super) client: SocketAddr,
    pub(super) frontend: SocketAddr,
    pub(super) backend: SocketAddr,
}

impl Ends {
    /// One Service with one backend.
    pub(super) fn serving(&self, protocol: Protocol) -> Memory {
        let mut memory = Memory::default();
        let _service = memory.serve(self.frontend, protocol, &[self.backend]);
        memory
    }
}

pub(super) fn ends() -> impl Strategy<Value = Ends> {
    any::<bool>()
        .prop_flat_map(|is_v4| (end(is_v4), end(is_v4), end(is_v4)))
        .prop_map(|(client, frontend, backend)| Ends {
            client,
            frontend,
            backend,
        })
        .prop_filter("three hosts", |ends| {
            let [client, frontend, backend] =
                [ends.client, ends.frontend, ends.backend].map(|end| end.ip());
            client != frontend && client != backend && frontend != backend
        })
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..200)
}

fn options() -> impl Strategy<Value = Vec<u8>> {
    (0..=10_usize).prop_map(|words| vec![1; words * 4])
}

fn extensions() -> impl Strategy<Value = Vec<Extension>> {
    let extension =
        (select(vec![0, 43, 51, 60]), 0..4_usize).prop_map(|(kind, eights)| Extension {
            kind,
            content: vec![0; eights * 8 + 6 + if kind == 51 { 8 } else { 0 }],
        });
    prop::collection::vec(extension, 0..=5)
}

/// A packet between nobody in particular; `opens` says whether it opens a flow.
pub(super) fn frame(protocol: Protocol, opens: bool) -> impl Strategy<Value = Frame> {
    let numbers = (any::<u32>(), any::<u32>(), any::<u32>(), any::<u8>());
    let kind = select(vec![0, 1, 2, 3, 4, 5]);
    (
        numbers,
        kind,
        payload(),
        options(),
        options(),
        extensions(),
        any::<bool>(),
    )
        .prop_map(
            move |(
                (seq, ack, tag, ttl),
                kind,
                payload,
                options,
                tcp_options,
                extensions,
                blank,
            )| {
                let chunk = if opens { 1 } else { LATER_CHUNKS[kind] };
                Frame {
                    flags: if opens { 0x02 } else { LATER_FLAGS[kind] },
                    payload: match protocol {
                        Protocol::Tcp | Protocol::Udp => payload,
                        Protocol::Sctp => [vec![chunk, 0, 0, 4], payload].concat(),
                    },
                    seq,
                    ack,
                    tag,
                    ttl,
                    options,
                    tcp_options,
                    extensions,
                    no_checksum: blank && protocol == Protocol::Udp,
                    ..Frame::new(protocol, "0.0.0.0:0", "0.0.0.0:0")
                }
            },
        )
}

/// The frame between these two. IPv6 knows neither options nor UDP without checksum.
pub(super) fn between(frame: &Frame, from: SocketAddr, to: SocketAddr) -> Frame {
    Frame {
        src: from.ip(),
        dst: to.ip(),
        src_port: from.port(),
        dst_port: to.port(),
        no_checksum: frame.no_checksum && from.is_ipv4(),
        ..frame.clone()
    }
}

/// A protocol, its ends, a packet that opens a flow, one that carries it on and an answer.
pub(super) fn conversation() -> impl Strategy<Value = (Protocol, Ends, [Frame; 3])> {
    (protocol(), ends()).prop_flat_map(|(protocol, ends)| {
        let frames = [
            frame(protocol, true).boxed(),
            frame(protocol, false).boxed(),
            frame(protocol, false).boxed(),
        ];
        (Just(protocol), Just(ends), frames)
    })
}

/// The verdict about a frame, and the frame afterwards.
pub(super) fn send(hook: Hook, bytes: Vec<u8>, memory: &Memory) -> (Verdict, Vec<u8>) {
    let mut skb = Skb::new(bytes);
    let verdict = decide(&mut skb, memory, hook);
    (verdict, skb.bytes)
}

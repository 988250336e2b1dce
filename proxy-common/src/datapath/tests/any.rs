//! Packets of any kind, for properties.

use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;
use proptest::sample::select;

use crate::abi::{Addr, AddressFlags, Device, DeviceFlags, FlowRole, Port, Protocol, Verdict};
use crate::datapath::{Hook, decide};
use crate::testing::{Extension, Frame, Memory, Sent, Skb, network};

/// The device that leads everywhere.
pub(super) const UPLINK: u32 = 7;

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

/// Where clients' packets are seen: pods', other machines', this node's own.
pub(super) fn client_hook() -> impl Strategy<Value = Hook> {
    select(vec![Hook::PodIngress, Hook::NodeIngress, Hook::NodeEgress])
}

/// Where the answers are seen to what clients send at `hook`, by backends elsewhere.
pub(super) fn answer_hook(hook: Hook) -> Hook {
    if hook == Hook::PodIngress {
        Hook::PodEgress
    } else {
        Hook::NodeIngress
    }
}

/// Makes a node of it, whose own these clients are if they are seen at its egress.
pub(super) fn place(memory: &mut Memory, hook: Hook, clients: &[IpAddr]) {
    memory
        .routes
        .extend([(network("0.0.0.0/0"), UPLINK), (network("::/0"), UPLINK)]);
    let device = Device {
        v4: "203.0.113.7".parse::<IpAddr>().expect("an address").into(),
        v6: "2001:db8::7".parse::<IpAddr>().expect("an address").into(),
        mtu: u32::from(u16::MAX),
        mac: [1, 2, 3],
        flags: DeviceFlags::NONE,
    };
    memory
        .devices
        .extend([(Skb::DEVICE, device), (UPLINK, device)]);
    memory.settings.host_device = Skb::DEVICE;
    if hook == Hook::NodeEgress {
        let own = clients.iter().map(|&ip| (ip.into(), AddressFlags::NODE));
        memory.addresses.extend(own);
    }
}

/// Whom the backend of the only flow takes for its client.
pub(super) fn seen_as(memory: &Memory) -> Option<SocketAddr> {
    let flows = memory.flows.borrow();
    let is_answer = |role: u8| role == FlowRole::Reverse as u8;
    let mut answers = flows.iter().filter(|(_, flow)| is_answer(flow.role));
    let (addr, port): (Addr, Port) = answers
        .next()
        .map(|(key, _)| (key.tuple.dst, key.tuple.dst_port))?;
    Some(SocketAddr::new(addr.into(), port.number()))
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
            let ips = [ends.client, ends.frontend, ends.backend].map(|end| end.ip());
            let [client, frontend, backend] = ips;
            // Nothing is routed from or to a loopback address.
            ips.iter().all(|ip| !ip.is_loopback())
                && client != frontend
                && client != backend
                && frontend != backend
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
    let (verdict, bytes, _) = send_on(hook, Skb::new(bytes), memory);
    (verdict, bytes)
}

/// The verdict about a packet, the frame afterwards, and where it goes.
pub(super) fn send_on(hook: Hook, skb: Skb, memory: &Memory) -> (Verdict, Vec<u8>, Sent) {
    let mut skb = Skb {
        routes: memory.routes.clone(),
        ..skb
    };
    let verdict = decide(&mut skb, memory, hook);
    (verdict, skb.bytes, skb.sent)
}

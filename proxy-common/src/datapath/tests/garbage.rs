//! Bytes that nobody honest sends: random ones, and packets with faults built in.

use proptest::prelude::*;
use proptest::sample::{Index, select};

use std::net::SocketAddr;

use super::any::{
    Ends, answer_hook, between, client_hook, conversation, place, seen_as, send, send_on,
};
use crate::abi::{Drop, NetworkFlags, Protocol, SettingsFlags, Verdict};
use crate::datapath::Hook;
use crate::testing::{Frame, Icmp, Memory, Sent, Skb, network};

/// What may happen to a packet.
#[derive(Clone, Debug)]
enum Fault {
    /// A byte has another value.
    Set(Index, u8),
    /// A byte of the headers, where lengths and numbers stand, has another value.
    SetEarly(Index, u8),
    /// The end is missing.
    Cut(Index),
    /// Bytes are put in.
    Insert(Index, Vec<u8>),
    /// Bytes are missing.
    Remove(Index, u8),
    /// Something follows.
    Append(Vec<u8>),
    /// A part is overwritten with another part.
    Copy(Index, Index, u8),
}

impl Fault {
    fn befall(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        match self {
            Self::Set(at, value) => *at.get_mut(bytes) = *value,
            Self::SetEarly(at, value) => {
                let end = bytes.len().min(80);
                *at.get_mut(&mut bytes[..end]) = *value;
            }
            Self::Cut(at) => bytes.truncate(at.index(bytes.len())),
            Self::Insert(at, more) => {
                let at = at.index(bytes.len());
                bytes.splice(at..at, more.iter().copied()).for_each(drop);
            }
            Self::Remove(at, len) => {
                let at = at.index(bytes.len());
                let end = bytes.len().min(at + usize::from(*len));
                bytes.drain(at..end).for_each(drop);
            }
            Self::Append(more) => bytes.extend(more),
            Self::Copy(from, to, len) => {
                let (from, to) = (from.index(bytes.len()), to.index(bytes.len()));
                let len = usize::from(*len).min(bytes.len() - from.max(to));
                bytes.copy_within(from..from + len, to);
            }
        }
    }
}

fn fault() -> impl Strategy<Value = Fault> {
    // Numbers that mean something: lengths, protocols, types, the ends of ranges.
    let telling = || {
        select(vec![
            0, 1, 4, 6, 8, 17, 20, 43, 44, 50, 51, 58, 59, 60, 0x40, 0x45, 0x4f, 0x60, 127, 128,
            132, 255,
        ])
    };
    let bytes = || prop::collection::vec(any::<u8>(), 1..40);
    prop_oneof![
        3 => (any::<Index>(), any::<u8>()).prop_map(|(at, value)| Fault::Set(at, value)),
        6 => (any::<Index>(), telling()).prop_map(|(at, value)| Fault::SetEarly(at, value)),
        2 => any::<Index>().prop_map(Fault::Cut),
        1 => (any::<Index>(), bytes()).prop_map(|(at, more)| Fault::Insert(at, more)),
        1 => (any::<Index>(), any::<u8>()).prop_map(|(at, len)| Fault::Remove(at, len)),
        1 => bytes().prop_map(Fault::Append),
        1 => (any::<Index>(), any::<Index>(), any::<u8>())
            .prop_map(|(from, to, len)| Fault::Copy(from, to, len)),
    ]
}

/// A packet that the datapath knows what to do with, before anything happens to it.
#[derive(Clone, Copy, Debug)]
enum Seed {
    Opening,
    More,
    Answer,
    Piece,
    ErrorToClient,
    ErrorFromClient,
}

const SEEDS: [Seed; 6] = [
    Seed::Opening,
    Seed::More,
    Seed::Answer,
    Seed::Piece,
    Seed::ErrorToClient,
    Seed::ErrorFromClient,
];

impl Seed {
    /// Where it is seen, if those of the client are seen at `client`.
    fn hook(self, client: Hook) -> Hook {
        match self {
            Self::Opening | Self::More | Self::Piece | Self::ErrorFromClient => client,
            Self::Answer | Self::ErrorToClient => answer_hook(client),
        }
    }

    /// The backend takes the client for `seen_as`.
    fn bytes(
        self,
        ends: &Ends,
        seen_as: SocketAddr,
        [opening, more, answer]: &[Frame; 3],
    ) -> Vec<u8> {
        let Ends {
            client,
            frontend,
            backend,
        } = *ends;
        let error = |from: std::net::SocketAddr, to: std::net::SocketAddr, about: Frame| {
            let kind = if from.is_ipv4() { [3, 4] } else { [2, 0] };
            let (from, to) = (from.ip().to_string(), to.ip().to_string());
            Icmp::new(kind, &from, &to, about.packet()).bytes()
        };
        match self {
            Self::Opening => between(opening, client, frontend).bytes(),
            Self::More => between(more, client, frontend).bytes(),
            Self::Answer => between(answer, backend, seen_as).bytes(),
            Self::Piece => between(more, client, frontend).piece(7, 0, 24).bytes(),
            Self::ErrorToClient => error(backend, seen_as, between(more, seen_as, backend)),
            Self::ErrorFromClient => error(client, frontend, between(answer, frontend, client)),
        }
    }
}

/// What passes is as it was, and how the packet lies in memory does not matter.
fn check(hook: Hook, bytes: &[u8], memory: &Memory) -> Result<(), TestCaseError> {
    let scattered_memory = memory.clone();
    let got = send_on(hook, Skb::new(bytes.to_vec()), memory);
    let (verdict, after, sent) = &got;
    if let Verdict::Pass(_) = verdict {
        prop_assert_eq!(after, bytes);
        prop_assert_eq!(*sent, Sent::Stack);
    }
    prop_assert_ne!(*verdict, Verdict::Drop(Drop::Write));
    let scattered = Skb::new(bytes.to_vec()).scattered();
    prop_assert_eq!(&send_on(hook, scattered, &scattered_memory), &got);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn random_bytes_do_no_harm(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        hook in select(Hook::ALL.to_vec()),
    ) {
        check(hook, &bytes, &Memory::default())?;
    }

    /// Of a node where every address is of some consequence.
    #[test]
    fn faulty_packets_do_no_harm(
        (protocol, ends, frames) in conversation(),
        client in client_hook(),
        elsewhere in select(Hook::ALL.to_vec()),
        is_elsewhere in select(vec![true, false, false, false]),
        has_flow: bool,
        has_backend in select(vec![true, true, false]),
        has_services: bool,
        seed in select(SEEDS.to_vec()),
        faults in prop::collection::vec(fault(), 0..4),
    ) {
        let mut memory = ends.serving(protocol);
        place(&mut memory, client, &[ends.client.ip()]);
        if has_services {
            memory.settings.flags = SettingsFlags::SERVICE_CIDRS;
            let all = ["0.0.0.0/0", "::/0"].map(|net| (network(net), NetworkFlags::SERVICES));
            memory.networks.extend(all);
        }
        if has_flow {
            let opening = Seed::Opening.bytes(&ends, ends.client, &frames);
            prop_assert!(matches!(send(client, opening, &memory).0, Verdict::Rewrite(_)));
        }
        if !has_backend {
            memory.point(ends.frontend, protocol, &[]);
            memory.remove_backends_at(ends.backend.ip());
        }
        let seen_as = seen_as(&memory).unwrap_or(ends.client);
        let mut bytes = seed.bytes(&ends, seen_as, &frames);
        for fault in &faults {
            fault.befall(&mut bytes);
        }
        let hook = if is_elsewhere { elsewhere } else { seed.hook(client) };
        check(hook, &bytes, &memory)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Of a node that hands its traffic back. Whoever has no record is left alone, and no record
    /// is made.
    #[test]
    fn handed_back_nothing_without_a_record_is_touched(
        (protocol, ends, frames) in conversation(),
        client in client_hook(),
        hook in select(Hook::ALL.to_vec()),
        has_flow: bool,
        has_backend: bool,
        flags in select(vec![
            SettingsFlags::NONE,
            SettingsFlags::ADOPT_MID_FLOW,
            SettingsFlags::KEEP_GONE,
        ]),
        seed in select(SEEDS.to_vec()),
        faults in prop::collection::vec(fault(), 0..4),
    ) {
        let mut memory = ends.serving(protocol);
        place(&mut memory, client, &[ends.client.ip()]);
        let all = ["0.0.0.0/0", "::/0"].map(|net| (network(net), NetworkFlags::SERVICES));
        memory.networks.extend(all);
        if has_flow {
            let opening = Seed::Opening.bytes(&ends, ends.client, &frames);
            prop_assert!(matches!(send(client, opening, &memory).0, Verdict::Rewrite(_)));
        }
        if !has_backend {
            memory.point(ends.frontend, protocol, &[]);
            memory.remove_backends_at(ends.backend.ip());
        }
        let given = SettingsFlags::SERVICE_CIDRS.union(SettingsFlags::HANDED_BACK);
        memory.settings.flags = given.union(flags);
        let seen_as = seen_as(&memory).unwrap_or(ends.client);
        let mut bytes = seed.bytes(&ends, seen_as, &frames);
        for fault in &faults {
            fault.befall(&mut bytes);
        }
        let n_records = memory.flows.borrow().len();
        let (verdict, after, sent) = send_on(hook, Skb::new(bytes.clone()), &memory);
        prop_assert!(memory.flows.borrow().len() <= n_records);
        if n_records == 0 {
            prop_assert!(matches!(verdict, Verdict::Pass(_)), "{verdict:?}");
        }
        if let Verdict::Pass(_) = verdict {
            prop_assert_eq!(after, bytes);
            prop_assert_eq!(sent, Sent::Stack);
        }
    }
}

/// Every byte of the headers of every kind of packet takes every value.
#[test]
fn any_header_byte_may_have_any_value() {
    let parse = |text: &str| text.parse().expect("address and port");
    let ends = Ends {
        client: parse("10.0.1.5:40000"),
        frontend: parse("10.96.0.10:80"),
        backend: parse("10.0.2.7:8080"),
    };
    let frames = [0x02, 0x10, 0x12].map(|flags| Frame::tcp(flags, "0.0.0.0:0", "0.0.0.0:0"));
    for client in [Hook::PodIngress, Hook::NodeIngress] {
        for seed in SEEDS {
            let mut memory = ends.serving(Protocol::Tcp);
            place(&mut memory, client, &[ends.client.ip()]);
            let opening = Seed::Opening.bytes(&ends, ends.client, &frames);
            let (verdict, _) = send(client, opening, &memory);
            assert!(matches!(verdict, Verdict::Rewrite(_)));
            let seen_as = seen_as(&memory).expect("a flow");
            let whole = seed.bytes(&ends, seen_as, &frames);
            for at in 0..whole.len() {
                for value in 0..=u8::MAX {
                    let mut bytes = whole.clone();
                    bytes[at] = value;
                    check(seed.hook(client), &bytes, &memory).expect("no harm");
                }
            }
        }
    }
}

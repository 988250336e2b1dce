//! There and back again.

use std::collections::HashMap;
use std::net::SocketAddr;

use proptest::prelude::*;
use proptest::sample::select;

use super::any::{
    UPLINK, answer_hook, between, client_hook, conversation, ends, place, protocol, seen_as, send,
    send_on,
};
use crate::abi::{Drop, FlowRole, Port, Protocol, Rewrite, Verdict};
use crate::datapath::Hook;
use crate::testing::{Frame, Memory, Sent, Skb, verify};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn an_answer_comes_from_where_the_question_went(
        (protocol, ends, [opening, more, answer]) in conversation()
    ) {
        let memory = ends.serving(protocol);
        let to_backend = |frame: &Frame| between(frame, ends.client, ends.backend).bytes();

        let sent = between(&opening, ends.client, ends.frontend).bytes();
        let (verdict, got) = send(Hook::PodIngress, sent, &memory);
        prop_assert_eq!(verdict, Verdict::Rewrite(Rewrite::NewFlow));
        prop_assert_eq!(&got, &to_backend(&opening));
        prop_assert_eq!(verify(&got), Ok(()));

        let sent = between(&more, ends.client, ends.frontend).bytes();
        let (verdict, got) = send(Hook::PodIngress, sent, &memory);
        prop_assert_eq!(verdict, Verdict::Rewrite(Rewrite::Forward));
        prop_assert_eq!(&got, &to_backend(&more));
        prop_assert_eq!(verify(&got), Ok(()));

        let sent = between(&answer, ends.backend, ends.client).bytes();
        let (verdict, got) = send(Hook::PodEgress, sent, &memory);
        prop_assert_eq!(verdict, Verdict::Rewrite(Rewrite::Reverse));
        prop_assert_eq!(&got, &between(&answer, ends.frontend, ends.client).bytes());
        prop_assert_eq!(verify(&got), Ok(()));
    }

    /// The same past the stack, where the backend knows another client.
    #[test]
    fn an_answer_finds_its_way_back_through_source_nat(
        (protocol, ends, [opening, more, answer]) in conversation(),
        hook in select(vec![Hook::NodeIngress, Hook::NodeEgress]),
    ) {
        let mut memory = ends.serving(protocol);
        place(&mut memory, hook, &[ends.client.ip()]);
        for (frame, rewrite) in [(&opening, Rewrite::NewFlow), (&more, Rewrite::Forward)] {
            let sent = between(frame, ends.client, ends.frontend).bytes();
            let (verdict, got, to) = send_on(hook, Skb::new(sent), &memory);
            prop_assert_eq!(verdict, Verdict::Rewrite(rewrite));
            prop_assert_eq!(to, Sent::Neighbour(UPLINK));
            let seen_as = seen_as(&memory).expect("a flow");
            prop_assert_ne!(seen_as.ip(), ends.client.ip());
            prop_assert!((10_000..30_000).contains(&seen_as.port()));
            prop_assert_eq!(&got, &between(frame, seen_as, ends.backend).bytes());
            prop_assert_eq!(verify(&got), Ok(()));
        }
        let seen_as = seen_as(&memory).expect("a flow");
        let sent = between(&answer, ends.backend, seen_as).bytes();
        let (verdict, got, to) = send_on(Hook::NodeIngress, Skb::new(sent), &memory);
        prop_assert_eq!(verdict, Verdict::Rewrite(Rewrite::Reverse));
        let back = if hook == Hook::NodeIngress {
            Sent::Neighbour(UPLINK)
        } else {
            Sent::In(Skb::DEVICE)
        };
        prop_assert_eq!(to, back);
        let expected = between(&answer, ends.frontend, ends.client).bytes();
        // With the link-layer addresses that it takes to be let in.
        prop_assert_eq!(&got[12..], &expected[12..]);
        prop_assert_eq!(verify(&got), Ok(()));
    }

    /// The choice does not depend on what the records say.
    #[test]
    fn a_lost_record_leads_to_the_same_backend(
        protocol in protocol(),
        ends in ends(),
        n_backends in 1..40_u16,
    ) {
        let mut memory = ends.serving(protocol);
        let backends: Vec<_> = (1..=n_backends)
            .map(|port| SocketAddr::new(ends.backend.ip(), port))
            .collect();
        memory.point(ends.frontend, protocol, &backends);
        let opening = between(&opening(protocol), ends.client, ends.frontend).bytes();
        let first = send(Hook::PodIngress, opening.clone(), &memory);
        prop_assert_eq!(first.0, Verdict::Rewrite(Rewrite::NewFlow));
        memory.flows.borrow_mut().retain(|_, flow| flow.role == FlowRole::Reverse as u8);
        prop_assert_eq!(&send(Hook::PodIngress, opening.clone(), &memory), &first);
        memory.flows.borrow_mut().clear();
        prop_assert_eq!(&send(Hook::PodIngress, opening, &memory), &first);
        prop_assert_eq!(memory.flows.borrow().len(), 2);
    }

    /// Few clients, Services, backends and spare ports, so that they clash all the time.
    #[test]
    fn no_two_flows_look_the_same_to_their_backend(
        is_v4: bool,
        hook in client_hook(),
        spare in 1..12_u16,
        flows in prop::collection::vec(
            (protocol(), 0..2_u8, 0..3_u16, 0..4_u16, select(vec![true, true, true, false])),
            1..60,
        ),
    ) {
        let mut memory = crowded(is_v4, spare);
        place(&mut memory, hook, &[0, 1].map(|client| client_at(is_v4, client, 0).ip()));
        let mut seen = HashMap::new();
        for (protocol, client, port, service, is_kept) in flows {
            let (client, frontend) = (client_at(is_v4, client, port), frontend_at(is_v4, service));
            let opening = between(&opening(protocol), client, frontend);
            let (verdict, got) = send(hook, opening.bytes(), &memory);
            if verdict == Verdict::Drop(Drop::PortsExhausted) {
                continue;
            }
            prop_assert!(matches!(verdict, Verdict::Rewrite(Rewrite::NewFlow | Rewrite::Forward)));
            let (src, dst) = ends_of(&got, is_v4);
            let owner = *seen.entry((protocol, src, dst)).or_insert((client, frontend));
            prop_assert_eq!(owner, (client, frontend));

            let answer = between(&answer(protocol), dst, src);
            let (verdict, got) = send(answer_hook(hook), answer.bytes(), &memory);
            prop_assert_eq!(verdict, Verdict::Rewrite(Rewrite::Reverse));
            prop_assert_eq!(&got[12..], &between(&answer, frontend, client).bytes()[12..]);
            if !is_kept {
                memory.flows.borrow_mut().retain(|_, flow| {
                    flow.role == FlowRole::Reverse as u8 || flow.to.dst != dst.ip().into()
                });
            }
        }
    }
}

fn opening(protocol: Protocol) -> Frame {
    const NOBODY: &str = "0.0.0.0:0";
    match protocol {
        Protocol::Tcp => Frame::tcp(0x02, NOBODY, NOBODY),
        Protocol::Udp => Frame::udp(NOBODY, NOBODY),
        Protocol::Sctp => Frame::sctp(1, NOBODY, NOBODY),
    }
}

fn answer(protocol: Protocol) -> Frame {
    const NOBODY: &str = "0.0.0.0:0";
    match protocol {
        Protocol::Tcp => Frame::tcp(0x12, NOBODY, NOBODY),
        Protocol::Udp => Frame::udp(NOBODY, NOBODY),
        Protocol::Sctp => Frame::sctp(2, NOBODY, NOBODY),
    }
}

fn host(is_v4: bool, net: u8, host: u8, port: u16) -> SocketAddr {
    if is_v4 {
        SocketAddr::from(([10, net, 0, host], port))
    } else {
        SocketAddr::from(([0xfd00, net.into(), 0, 0, 0, 0, 0, host.into()], port))
    }
}

fn client_at(is_v4: bool, client: u8, port: u16) -> SocketAddr {
    host(is_v4, 1, client, 40_000 + port)
}

fn frontend_at(is_v4: bool, service: u16) -> SocketAddr {
    host(is_v4, 96, 1, 80 + service)
}

/// Four Services of each protocol with the same two backends, and few ports to map to.
fn crowded(is_v4: bool, spare: u16) -> Memory {
    let mut memory = Memory::default();
    let backends = [host(is_v4, 2, 1, 8_080), host(is_v4, 2, 2, 8_080)];
    for service in 0..4 {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            let _id = memory.serve(frontend_at(is_v4, service), protocol, &backends);
        }
    }
    memory.settings.first_port = Port::new(61_000);
    memory.settings.last_port = Port::new(61_000 + spare);
    memory
}

/// Source and destination of a frame without options.
fn ends_of(frame: &[u8], is_v4: bool) -> (SocketAddr, SocketAddr) {
    let (len, l3, l4) = if is_v4 { (4, 26, 34) } else { (16, 22, 54) };
    let end = |at: usize, port: usize| {
        let octets = &frame[at..at + len];
        let ip = match <[u8; 4]>::try_from(octets) {
            Ok(octets) => octets.into(),
            Err(_) => <[u8; 16]>::try_from(octets).expect("16 bytes").into(),
        };
        SocketAddr::new(ip, u16::from_be_bytes([frame[port], frame[port + 1]]))
    };
    (end(l3, l4), end(l3 + len, l4 + 2))
}

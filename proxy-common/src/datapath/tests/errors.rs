//! ICMP errors about packets of any kind.

use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;

use super::any::{between, conversation, ip, send};
use crate::abi::{Protocol, Rewrite, Verdict};
use crate::datapath::Hook;
use crate::testing::{Frame, Icmp, Memory, verify};

/// Where the error comes from.
#[derive(Clone, Copy, Debug)]
enum Sender {
    Backend,
    Router(IpAddr),
}

fn sender() -> impl Strategy<Value = (bool, [IpAddr; 2])> {
    (any::<bool>(), [ip(true), ip(false)])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_client_finds_quoted_what_it_sent(
        (protocol, ends, [opening, more, _]) in conversation(),
        (is_router, [router_v4, router_v6]) in sender(),
        len in 8..260_usize,
        parameter: u32,
    ) {
        let is_v4 = ends.client.is_ipv4();
        let router = if is_v4 { router_v4 } else { router_v6 };
        prop_assume!(router != ends.backend.ip());
        let sender = if is_router { Sender::Router(router) } else { Sender::Backend };
        let memory = ends.serving(protocol);
        let opening = between(&opening, ends.client, ends.frontend).bytes();
        prop_assert_eq!(send(Hook::PodIngress, opening, &memory).0, Verdict::Rewrite(Rewrite::NewFlow));

        let sent = between(&more, ends.client, ends.frontend);
        let translated = between(&more, ends.client, ends.backend);
        prop_assume!(!cuts_checksum(&sent, len));
        let (from, to) = match sender {
            Sender::Backend => (ends.backend.ip(), ends.frontend.ip()),
            Sender::Router(router) => (router, router),
        };
        let error = |from, quote| error(from, ends.client.ip(), parameter, quote);
        check(
            &memory,
            Hook::PodEgress,
            &error(from, beginning(&translated, len)),
            &error(to, as_sent(&sent, &translated, len)),
        )?;
    }

    #[test]
    fn the_backend_finds_quoted_what_it_answered(
        (protocol, ends, [opening, _, answer]) in conversation(),
        len in 8..260_usize,
        parameter: u32,
    ) {
        let memory = ends.serving(protocol);
        let opening = between(&opening, ends.client, ends.frontend).bytes();
        prop_assert_eq!(send(Hook::PodIngress, opening, &memory).0, Verdict::Rewrite(Rewrite::NewFlow));

        let answered = between(&answer, ends.backend, ends.client);
        let translated = between(&answer, ends.frontend, ends.client);
        prop_assume!(!cuts_checksum(&answered, len));
        let error = |to: SocketAddr, quote| error(ends.client.ip(), to.ip(), parameter, quote);
        check(
            &memory,
            Hook::PodIngress,
            &error(ends.frontend, beginning(&translated, len)),
            &error(ends.backend, as_sent(&answered, &translated, len)),
        )?;
    }
}

fn check(memory: &Memory, hook: Hook, error: &Icmp, expected: &Icmp) -> Result<(), TestCaseError> {
    let (verdict, got) = send(hook, error.bytes(), memory);
    prop_assert_eq!(verdict, Verdict::Rewrite(Rewrite::IcmpError));
    prop_assert_eq!(verify(&got), Ok(()));
    prop_assert_eq!(got, expected.bytes());
    Ok(())
}

fn error(from: IpAddr, to: IpAddr, parameter: u32, quote: Vec<u8>) -> Icmp {
    let kind = if from.is_ipv4() { [3, 4] } else { [2, 0] };
    Icmp {
        parameter,
        ..Icmp::new(kind, &from.to_string(), &to.to_string(), quote)
    }
}

/// The IP header and `len` bytes.
fn beginning(frame: &Frame, len: usize) -> Vec<u8> {
    let mut packet = frame.packet();
    packet.truncate(l4(frame) + len);
    packet
}

fn l4(frame: &Frame) -> usize {
    let extensions: usize = frame
        .extensions
        .iter()
        .map(|each| each.content.len() + 2)
        .sum();
    match frame.src {
        IpAddr::V4(_) => 20 + frame.options.len(),
        IpAddr::V6(_) => 40 + extensions,
    }
}

/// Half a checksum cannot be translated.
fn cuts_checksum(frame: &Frame, len: usize) -> bool {
    frame.protocol == Protocol::Tcp && len == 17
}

/// The quote as its sender knows it, but for SCTP's checksum: that covers what is not quoted.
fn as_sent(sent: &Frame, translated: &Frame, len: usize) -> Vec<u8> {
    let mut quote = beginning(sent, len);
    if sent.protocol == Protocol::Sctp {
        let (from, to) = (
            quote.len().min(l4(sent) + 8),
            quote.len().min(l4(sent) + 12),
        );
        quote[from..to].copy_from_slice(&translated.packet()[from..to]);
    }
    quote
}

//! Packets as the kernel keeps them.

use std::net::SocketAddr;

use crate::abi::{Pass, Protocol, Verdict};
use crate::datapath::{Hook, decide};
use crate::testing::{Frame, Memory, Skb};

const CLIENT: &str = "10.0.1.5:40000";
const FRONTEND: &str = "10.96.0.10:38412";

/// Several SCTP packets in one have their chunks in a list of buffers, which must stay as it is.
#[test]
fn nothing_behind_an_sctp_header_is_pulled() {
    const DATA: u8 = 0;
    let backend: SocketAddr = "10.0.2.7:3868".parse().unwrap();
    let mut memory = Memory::default();
    let _service = memory.serve(FRONTEND.parse().unwrap(), Protocol::Sctp, &[backend]);
    for chunk in [1, 10, DATA, 7] {
        let frame = Frame::sctp(chunk, CLIENT, FRONTEND);
        let mut skb = Skb::new(frame.bytes()).scattered();
        let verdict = decide(&mut skb, &memory, Hook::PodIngress);
        assert_eq!(verdict.kind(), "rewrite");
        assert_eq!(skb.n_linear, 14 + 20 + 12, "chunk {chunk}");
    }
}

/// It comes to the device of its virtual LAN next, or comes from there.
#[test]
fn a_tagged_packet_is_left_alone() {
    let backend: SocketAddr = "10.0.2.7:3868".parse().unwrap();
    let mut memory = Memory::default();
    let _service = memory.serve(FRONTEND.parse().unwrap(), Protocol::Sctp, &[backend]);
    for hook in Hook::ALL {
        let mut skb = Skb::new(Frame::sctp(1, CLIENT, FRONTEND).bytes());
        skb.is_tagged = true;
        let verdict = decide(&mut skb, &memory, hook);
        assert_eq!(verdict, Verdict::Pass(Pass::Tagged), "{hook:?}");
    }
}

//! Who takes part in the scenes, and what they say.

use std::net::{IpAddr, SocketAddr};

use crate::abi::{AddressFlags, Drop, FlowState, Pass, Protocol, Reply, Rewrite, Verdict};
use crate::testing::{Frame, Icmp, Memory};

pub(super) const NEW_FLOW: Verdict = Verdict::Rewrite(Rewrite::NewFlow);
pub(super) const FORWARD: Verdict = Verdict::Rewrite(Rewrite::Forward);
pub(super) const REVERSE: Verdict = Verdict::Rewrite(Rewrite::Reverse);
pub(super) const HAIRPIN_FORWARD: Verdict = Verdict::Rewrite(Rewrite::HairpinForward);
pub(super) const HAIRPIN_REVERSE: Verdict = Verdict::Rewrite(Rewrite::HairpinReverse);
pub(super) const ICMP_ERROR: Verdict = Verdict::Rewrite(Rewrite::IcmpError);
pub(super) const NO_ENDPOINT_RESET: Verdict = Verdict::Reply(Reply::NoEndpointReset);
pub(super) const NO_ENDPOINT_UNREACHABLE: Verdict = Verdict::Reply(Reply::NoEndpointUnreachable);
pub(super) const GONE_RESET: Verdict = Verdict::Reply(Reply::GoneReset);
pub(super) const GONE_ABORT: Verdict = Verdict::Reply(Reply::GoneAbort);
pub(super) const SCTP_FRAGMENT: Verdict = Verdict::Drop(Drop::SctpFragment);
pub(super) const NO_SERVICE: Pass = Pass::NoService;

pub(super) const SYN: u8 = 0x02;
pub(super) const SYN_ACK: u8 = 0x12;
pub(super) const ACK: u8 = 0x10;
pub(super) const FIN_ACK: u8 = 0x11;
pub(super) const RST: u8 = 0x04;
pub(super) const RST_ACK: u8 = 0x14;

pub(super) const DATA: u8 = 0;
pub(super) const INIT: u8 = 1;
pub(super) const INIT_ACK: u8 = 2;
pub(super) const ABORT: u8 = 6;
pub(super) const SHUTDOWN: u8 = 7;
pub(super) const SHUTDOWN_ACK: u8 = 8;
pub(super) const COOKIE_ECHO: u8 = 10;
pub(super) const COOKIE_ACK: u8 = 11;
pub(super) const SHUTDOWN_COMPLETE: u8 = 14;

/// Nanoseconds in a second.
pub(super) const SECOND: u64 = 1_000_000_000;

pub(super) const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// The addresses of one family.
#[derive(Clone, Copy)]
pub(super) struct Stage {
    /// `IPv4` or `IPv6`.
    pub(super) family: &'static str,
    /// A pod with its port.
    pub(super) client: &'static str,
    /// Another pod, or another port of the same.
    pub(super) other_client: &'static str,
    /// A Service.
    pub(super) frontend: &'static str,
    /// Another Service.
    pub(super) other_frontend: &'static str,
    /// Where the Service leads to; the port is another than the Service's.
    pub(super) backend: &'static str,
    /// Another backend.
    pub(super) other_backend: &'static str,
    /// The client pod as a backend of the Service.
    pub(super) self_backend: &'static str,
    /// An address of the node, which takes NodePorts.
    pub(super) node: &'static str,
    /// Another one, that of the device that leads to other machines.
    pub(super) uplink: &'static str,
    /// Somebody outside the cluster, with a port.
    pub(super) outside: &'static str,
    /// A backend on this node.
    pub(super) local_backend: &'static str,
    /// A router on the way.
    pub(super) router: &'static str,
}

pub(super) const V4: Stage = Stage {
    family: "IPv4",
    client: "10.0.1.5:40000",
    other_client: "10.0.1.5:40001",
    frontend: "10.96.0.10:80",
    other_frontend: "10.96.0.11:443",
    backend: "10.0.2.7:8080",
    other_backend: "10.0.2.8:8081",
    self_backend: "10.0.1.5:8080",
    node: "192.168.7.1",
    uplink: "172.31.0.1",
    outside: "198.51.100.9:40000",
    local_backend: "10.0.1.7:8080",
    router: "172.16.9.9",
};

pub(super) const V6: Stage = Stage {
    family: "IPv6",
    client: "[fd00:1::5]:40000",
    other_client: "[fd00:1::5]:40001",
    frontend: "[fd00:96::10]:80",
    other_frontend: "[fd00:96::11]:443",
    backend: "[fd00:2::7]:8080",
    other_backend: "[fd00:2::8]:8081",
    self_backend: "[fd00:1::5]:8080",
    node: "2001:db8:7::1",
    uplink: "2001:db8:31::1",
    outside: "[2001:db8:51::9]:40000",
    local_backend: "[fd00:1::7]:8080",
    router: "2001:db8:9::9",
};

pub(super) const STAGES: [Stage; 2] = [V4, V6];

impl Stage {
    /// One Service of this protocol with one backend.
    pub(super) fn serving(&self, protocol: Protocol) -> Memory {
        self.serving_by(protocol, &[self.backend])
    }

    /// One Service of this protocol with one backend, at an external address: the other ports and
    /// protocols of a cluster IP would refuse.
    pub(super) fn external(&self, protocol: Protocol) -> Memory {
        let mut memory = self.serving(protocol);
        let _cluster_ip = memory
            .addresses
            .insert(ip(self.frontend).into(), AddressFlags::EXTERNAL);
        memory
    }

    /// One Service of this protocol with these backends.
    pub(super) fn serving_by(&self, protocol: Protocol, backends: &[&str]) -> Memory {
        let mut memory = Memory::default();
        let backends: Vec<_> = backends.iter().map(|backend| at(backend)).collect();
        let _service = memory.serve(at(self.frontend), protocol, &backends);
        memory
    }

    /// The packet that opens a flow from client to Service: TCP SYN, UDP datagram, SCTP INIT.
    pub(super) fn opening(&self, protocol: Protocol) -> Frame {
        opening(protocol).between(self.client, self.frontend)
    }

    /// A later packet from client to Service.
    pub(super) fn more(&self, protocol: Protocol) -> Frame {
        more(protocol).between(self.client, self.frontend)
    }

    /// An answer from backend to client.
    pub(super) fn answer(&self, protocol: Protocol) -> Frame {
        answer(protocol).between(self.backend, self.client)
    }

    /// From client to Service as it goes to the backend.
    pub(super) fn forward(&self, frame: &Frame) -> Frame {
        frame.between(self.client, self.backend)
    }

    /// From backend to client as it reaches the client.
    pub(super) fn reverse(&self, frame: &Frame) -> Frame {
        frame.between(self.frontend, self.client)
    }
}

fn opening(protocol: Protocol) -> Frame {
    const ANY: &str = "0.0.0.0:0";
    match protocol {
        Protocol::Tcp => Frame::tcp(SYN, ANY, ANY),
        Protocol::Udp => Frame::udp(ANY, ANY),
        Protocol::Sctp => Frame::sctp(INIT, ANY, ANY),
    }
}

fn more(protocol: Protocol) -> Frame {
    const ANY: &str = "0.0.0.0:0";
    match protocol {
        Protocol::Tcp => Frame::tcp(ACK, ANY, ANY).with_payload(*b"GET / HTTP/1.1"),
        Protocol::Udp => Frame::udp(ANY, ANY).with_payload(*b"another question"),
        Protocol::Sctp => Frame::sctp(DATA, ANY, ANY),
    }
}

fn answer(protocol: Protocol) -> Frame {
    const ANY: &str = "0.0.0.0:0";
    match protocol {
        Protocol::Tcp => Frame::tcp(SYN_ACK, ANY, ANY),
        Protocol::Udp => Frame::udp(ANY, ANY).with_payload(*b"the answer"),
        Protocol::Sctp => Frame::sctp(INIT_ACK, ANY, ANY),
    }
}

/// Address and port.
pub(super) fn at(text: &str) -> SocketAddr {
    text.parse().expect("address and port")
}

/// An address with a port.
pub(super) fn with_port(host: &str, port: u16) -> String {
    let ip: IpAddr = host.parse().expect("an address");
    SocketAddr::new(ip, port).to_string()
}

/// The address alone.
pub(super) fn host(text: &str) -> String {
    at(text).ip().to_string()
}

/// The address alone.
pub(super) fn ip(text: &str) -> IpAddr {
    at(text).ip()
}

/// All flows are in this state, both records of each.
pub(super) fn all_in(state: FlowState) -> impl Fn(&Memory) {
    move |memory| {
        let flows = memory.flows.borrow();
        assert!(!flows.is_empty(), "no flow");
        flows.iter().for_each(|(key, flow)| {
            let found = FlowState::from_number(flow.state);
            assert_eq!(found, Some(state), "{key:?}");
        });
    }
}

/// What a host sends of its own accord in answer to `frame`: bare, and with link-layer addresses
/// swapped.
pub(super) fn reply_to(frame: &Frame) -> Frame {
    Frame {
        src: frame.dst,
        dst: frame.src,
        src_port: frame.dst_port,
        dst_port: frame.src_port,
        window: 0,
        tcp_options: Vec::new(),
        payload: Vec::new(),
        options: Vec::new(),
        extensions: Vec::new(),
        piece: None,
        dont_fragment: true,
        ttl: 64,
        ..frame.turned()
    }
}

/// The port unreachable that `frame` is refused with, quoting its first `quoted` bytes.
pub(super) fn unreachable(frame: &Frame, quoted: usize) -> Icmp {
    let quote = frame.packet()[..quoted].to_vec();
    let kind = port_unreachable(frame);
    let (from, to) = (frame.dst.to_string(), frame.src.to_string());
    Icmp {
        dont_fragment: true,
        ..Icmp::new(kind, &from, &to, quote).turned()
    }
}

/// Type and code.
pub(super) fn port_unreachable(frame: &Frame) -> [u8; 2] {
    if frame.src.is_ipv4() { [3, 3] } else { [1, 4] }
}

/// The IP header and eight bytes.
pub(super) fn header_of(frame: &Frame) -> Vec<u8> {
    let header = if frame.src.is_ipv4() { 20 } else { 40 };
    frame.packet()[..header + 8].to_vec()
}

//! A socket and an address, at a hook of a cgroup.

use core::ffi::c_void;
use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use aya_ebpf::programs::SockAddrContext;
use proxy_common::abi::{Addr, Family, Peer, Port, Protocol};
use proxy_common::datapath::Sockets as _;
use proxy_common::datapath::socket::Dial;

use crate::kernel;
use crate::maps::Maps;

/// A socket, and the address that its system call is about.
///
/// Fields are read one by one, as they are asked for: the kernel replaces each load, and takes no
/// wider one in its place.
pub(crate) struct SockAddr {
    raw: *mut bpf_sock_addr,
    family: Family,
}

macro_rules! field {
    ($pointer:expr, $($field:tt)+) => {{
        // SAFETY: a field of the context that the verifier lets this program read.
        unsafe { read_volatile(&raw const (*$pointer).$($field)+) }
    }};
}

impl SockAddr {
    /// With the family of the hook, which need not be the socket's.
    #[inline(always)]
    pub(crate) fn new(context: &SockAddrContext, family: Family) -> Self {
        Self {
            raw: context.sock_addr,
            family,
        }
    }

    #[inline(always)]
    fn context(&self) -> *mut c_void {
        SockAddrContext::new(self.raw).as_ptr()
    }

    #[inline(always)]
    fn socket(&self) -> *mut bpf_sock {
        field!(self.raw, __bindgen_anon_1.sk)
    }

    /// The protocol, if it is one that this edge knows: SCTP never comes by here.
    #[inline(always)]
    pub(crate) fn protocol(&self) -> Option<Protocol> {
        let protocol = field!(self.raw, protocol);
        if protocol == Protocol::Tcp.number().into() {
            Some(Protocol::Tcp)
        } else if protocol == Protocol::Udp.number().into() {
            Some(Protocol::Udp)
        } else {
            None
        }
    }

    /// The socket's cookie.
    #[inline(always)]
    pub(crate) fn cookie(&self) -> u64 {
        kernel::socket_cookie(self.context())
    }

    /// Whether the socket is connected.
    #[inline(always)]
    pub(crate) fn is_connected(&self) -> bool {
        field!(self.socket(), dst_port) != 0
    }

    /// The address that the system call is about.
    #[inline(always)]
    pub(crate) fn address(&self) -> Peer {
        let addr = match self.family {
            Family::Ipv4 => Addr::from_v4_word(field!(self.raw, user_ip4)),
            Family::Ipv6 => Addr::from_words([
                field!(self.raw, user_ip6[0]),
                field!(self.raw, user_ip6[1]),
                field!(self.raw, user_ip6[2]),
                field!(self.raw, user_ip6[3]),
            ]),
        };
        let port = field!(self.raw, user_port) as u16;
        Peer::new(addr, Port::from_network(port))
    }

    /// Replaces that address. One of the other family would be no answer to this system call: the
    /// caller never has one.
    #[inline(always)]
    pub(crate) fn set_address(&self, peer: &Peer) {
        let port = u32::from(peer.port.network());
        // SAFETY: fields of the context that the verifier lets this program write.
        unsafe {
            match self.family {
                Family::Ipv4 => {
                    write_volatile(&raw mut (*self.raw).user_ip4, peer.addr.v4_word());
                }
                Family::Ipv6 => {
                    let [a, b, c, d] = peer.addr.words();
                    write_volatile(&raw mut (*self.raw).user_ip6[0], a);
                    write_volatile(&raw mut (*self.raw).user_ip6[1], b);
                    write_volatile(&raw mut (*self.raw).user_ip6[2], c);
                    write_volatile(&raw mut (*self.raw).user_ip6[3], d);
                }
            }
            write_volatile(&raw mut (*self.raw).user_port, port);
        }
    }

    /// The address that a datagram is sent from, if the sender said one or is bound to it.
    #[inline(always)]
    pub(crate) fn datagram_source(&self) -> Addr {
        match self.family {
            Family::Ipv4 => known(Addr::from_v4_word(field!(self.raw, msg_src_ip4))),
            Family::Ipv6 => known(Addr::from_words([
                field!(self.raw, msg_src_ip6[0]),
                field!(self.raw, msg_src_ip6[1]),
                field!(self.raw, msg_src_ip6[2]),
                field!(self.raw, msg_src_ip6[3]),
            ])),
        }
    }

    /// The address that the socket is bound to.
    #[inline(always)]
    pub(crate) fn bound_address(&self) -> Addr {
        let socket = self.socket();
        match self.family {
            Family::Ipv4 => known(Addr::from_v4_word(field!(socket, src_ip4))),
            Family::Ipv6 => known(Addr::from_words([
                field!(socket, src_ip6[0]),
                field!(socket, src_ip6[1]),
                field!(socket, src_ip6[2]),
                field!(socket, src_ip6[3]),
            ])),
        }
    }

    /// The socket as one that dials the address, from the address `from`.
    #[inline(always)]
    pub(crate) fn dial(&self, protocol: Protocol, from: Addr) -> Dial {
        let netns = kernel::netns_cookie(self.context());
        let of_node = match Maps.socket_settings().node_netns {
            0 => kernel::first_netns_cookie(),
            cookie => cookie,
        };
        Dial {
            cookie: self.cookie(),
            netns,
            is_node: netns == of_node,
            protocol,
            to: self.address(),
            from,
            device: field!(self.socket(), bound_dev_if),
            is_connected: self.is_connected(),
        }
    }
}

/// Unspecified addresses of both families are one.
#[inline(always)]
fn known(addr: Addr) -> Addr {
    if addr.is_v4() && addr.v4_word() == 0 {
        Addr::UNSPECIFIED
    } else {
        addr
    }
}

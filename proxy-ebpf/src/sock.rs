//! Programs at hooks of cgroups, where sockets dial.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr};
use aya_ebpf::programs::{SockAddrContext, SockContext};
use proxy_common::abi::{Family, Pass, Protocol, Reply, Verdict};
use proxy_common::datapath::socket::{self, Answer};

use crate::context::SockAddr;
use crate::kernel;
use crate::maps::{self, Maps};

/// The system call goes on.
const GO_ON: i32 = 1;
/// It fails, with `EPERM` unless another error is set.
const FAIL: i32 = 0;

macro_rules! hooks {
    ($($(#[$doc:meta])* $name:ident: $run:ident($family:ident);)*) => {
        $($(#[$doc])*
        #[cgroup_sock_addr($name)]
        pub(crate) fn $name(context: SockAddrContext) -> i32 {
            $run(&SockAddr::new(&context, Family::$family))
        })*
    };
}

hooks! {
    /// `connect()` to an IPv4 address.
    connect4: connect(Ipv4);
    /// `connect()` to an IPv6 address, which may be a mapped IPv4 one.
    connect6: connect(Ipv6);
    /// `sendto()` and `sendmsg()` of UDP to an IPv4 address, also by an IPv6 socket.
    sendmsg4: send(Ipv4);
    /// `sendto()` and `sendmsg()` of UDP to an IPv6 address.
    sendmsg6: send(Ipv6);
    /// `recvfrom()` and `recvmsg()` of UDP by an IPv4 socket.
    recvmsg4: receive(Ipv4);
    /// `recvfrom()` and `recvmsg()` of UDP by an IPv6 socket.
    recvmsg6: receive(Ipv6);
    /// `getpeername()` of an IPv4 socket.
    getpeername4: peer(Ipv4);
    /// `getpeername()` of an IPv6 socket.
    getpeername6: peer(Ipv6);
}

/// The end of a socket.
#[cgroup_sock(sock_release)]
pub(crate) fn sock_release(context: SockContext) -> i32 {
    socket::close(&Maps, kernel::socket_cookie(context.as_ptr()));
    GO_ON
}

#[inline(always)]
fn connect(address: &SockAddr) -> i32 {
    let Some(protocol) = address.protocol() else {
        return GO_ON;
    };
    let dial = address.dial(protocol, address.bound_address());
    let answer = socket::connect(&Maps, &dial);
    if answer == Answer::Refuse && !kernel::refuse_connection() {
        // The packets of the connection are refused then, with the same error.
        return GO_ON;
    }
    conclude(address, answer)
}

#[inline(always)]
fn send(address: &SockAddr) -> i32 {
    if address.protocol() != Some(Protocol::Udp) {
        return GO_ON;
    }
    let dial = address.dial(Protocol::Udp, address.datagram_source());
    let answer = socket::send(&Maps, &dial);
    if answer == Answer::Refuse {
        let _is_set = kernel::refuse_connection();
    }
    conclude(address, answer)
}

#[inline(always)]
fn conclude(address: &SockAddr, answer: Answer) -> i32 {
    match answer {
        Answer::Leave(Pass::NoService) => GO_ON,
        Answer::Leave(reason) => {
            let _before = maps::count_outcome(Verdict::Pass(reason));
            GO_ON
        }
        Answer::Point(how, backend) => {
            let _before = maps::count_outcome(Verdict::Rewrite(how));
            address.set_address(&backend);
            GO_ON
        }
        Answer::Refuse => {
            let _before = maps::count_outcome(Verdict::Reply(Reply::SocketRefused));
            FAIL
        }
    }
}

#[inline(always)]
fn receive(address: &SockAddr) -> i32 {
    if address.protocol() == Some(Protocol::Udp) {
        let (cookie, from) = (address.cookie(), address.address());
        let is_connected = address.is_connected();
        if let Some(frontend) = socket::receive(&Maps, cookie, is_connected, from) {
            address.set_address(&frontend);
        }
    }
    GO_ON
}

#[inline(always)]
fn peer(address: &SockAddr) -> i32 {
    if address.protocol().is_some()
        && let Some(frontend) = socket::peer(&Maps, address.cookie(), address.address())
    {
        address.set_address(&frontend);
    }
    GO_ON
}

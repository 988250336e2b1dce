//! Pods whose processes are clients: each a namespace in a control group, with a real stack.
//!
//! ```text
//!   node: veth1 ── eth0 ┐ pod
//!     outside: p1 ── in ┘
//! ```
//!
//! Its sockets' packets leave by the far end of the pod's device. Of what comes in there, the
//! stack takes no notice: the pod might be a backend, too, and the stack answer. Only what is for
//! the socket is handed to it, by a second device.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use xtask::testbed::{Namespace, Offload, Testbed, in_namespace, set_offload};

use super::packet::Seen;
use super::wire::Wire;
use super::world::{GATEWAYS, text, whole};
use crate::case::Protocol;

/// A pod's end of its device.
pub(super) const DEVICE: &str = "eth0";

/// A pod.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) namespace: Namespace,
    /// Index, in the outside, of the device by which its stack gets frames.
    entry: u32,
    device: usize,
}

/// A socket to which its pod's packets are handed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Ear {
    /// The pod's device.
    pub(super) device: usize,
    pub(super) protocol: Protocol,
    /// The socket's address.
    pub(super) at: SocketAddr,
}

impl Ear {
    /// Whether a packet is for the socket, or an error about one of its packets.
    pub(super) fn hears(&self, seen: &Seen) -> bool {
        let is_its = |seen: &Seen, end: SocketAddr| {
            let protocol = seen.transport().map(|transport| transport.protocol);
            protocol == Some(self.protocol) && end == self.at
        };
        match seen.quoted() {
            Some(quoted) => seen.dst == self.at.ip() && is_its(&quoted, quoted.from()),
            None => is_its(seen, seen.to()),
        }
    }
}

impl Pod {
    /// Gives a namespace, which the device of this number leads to, addresses and a way in. What
    /// it sends goes to `gateway`.
    pub(super) fn connect(
        testbed: &Testbed,
        namespace: Namespace,
        device: usize,
        addresses: &BTreeSet<IpAddr>,
        gateway: [u8; 6],
    ) -> Result<Self> {
        let outside = testbed.outside();
        let entry = format!("p{device}");
        outside.ip([
            format!(
                "link add {entry} type veth peer name in address {} netns {}",
                text(mac(device)),
                namespace.name()
            ),
            format!("link set {entry} addrgenmode none up"),
        ])?;
        // What leaves the pod is to have whole checksums.
        set_offload(&namespace, DEVICE, Offload::TransmitChecksum, false)?;
        // A socket would be found before its packet's way.
        namespace.set("net/ipv4/ip_early_demux", "0")?;
        // What is dialled answers by another device than the one that leads there.
        for device in ["all", "default"] {
            namespace.set(&format!("net/ipv4/conf/{device}/rp_filter"), "0")?;
        }
        for family in ["-4", "-6"] {
            for rule in [
                "add pref 1 lookup local".to_owned(),
                "del pref 0".to_owned(),
                format!("add pref 0 iif {DEVICE} blackhole"),
            ] {
                let _nothing = namespace.ask_ip(&format!("{family} rule {rule}"))?;
            }
        }
        namespace.ip(addresses_and_routes(addresses, gateway))?;
        let entry = in_namespace(outside, || nix::net::if_::if_nametoindex(entry.as_str()))
            .context("find a pod's entry")?;
        Ok(Self {
            namespace,
            entry,
            device,
        })
    }

    /// Hands a frame to its stack.
    pub(super) fn give(&self, outside: &Wire, mut frame: Vec<u8>) -> Result<()> {
        frame[..6].copy_from_slice(&mac(self.device));
        outside
            .send(self.entry, &frame)
            .context("hand a frame to a pod")
    }
}

/// The hardware address of a pod's second device.
const fn mac(device: usize) -> [u8; 6] {
    [0x02, 0, 0, 0xd, (device >> 8) as u8, device as u8]
}

fn addresses_and_routes(addresses: &BTreeSet<IpAddr>, gateway: [u8; 6]) -> Vec<String> {
    let up = |device| format!("link set {device} addrgenmode none up");
    let mut commands = vec![up(DEVICE), up("in")];
    for address in addresses {
        let nodad = if address.is_ipv6() { " nodad" } else { "" };
        let address = whole(*address);
        commands.push(format!("address add {address} dev {DEVICE}{nodad}"));
    }
    let mac = text(gateway);
    for gateway in GATEWAYS {
        commands.push(format!(
            "neigh replace {gateway} lladdr {mac} dev {DEVICE} nud permanent"
        ));
        commands.push(format!(
            "route add default via {gateway} dev {DEVICE} onlink"
        ));
    }
    commands
}

#[cfg(test)]
mod tests {
    use proxy_common::abi;
    use proxy_common::testing::Frame;

    use super::*;

    const CLIENT: &str = "10.0.0.2:4000";

    fn hears(from: &str, to: &str, protocol: abi::Protocol) -> bool {
        let ear = Ear {
            device: 1,
            protocol: Protocol::Tcp,
            at: CLIENT.parse().unwrap(),
        };
        ear.hears(&Seen::frame(&Frame::new(protocol, from, to).bytes()).unwrap())
    }

    #[test]
    fn only_what_is_for_the_socket_is_handed_in() {
        let tcp = abi::Protocol::Tcp;
        assert!(hears("10.0.0.9:80", CLIENT, tcp));
        assert!(!hears("10.0.0.9:80", CLIENT, abi::Protocol::Udp));
        assert!(!hears("10.0.0.9:80", "10.0.0.2:8080", tcp));
        assert!(!hears(CLIENT, "10.0.0.9:80", tcp));
    }
}

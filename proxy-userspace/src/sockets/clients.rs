//! What the kernel is told of the pods' network namespaces: the client that a socket there is.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use proxy_common::abi::{Addr, Family, SocketClient};
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_DUMP};
use rtnetlink::packet_route::RouteNetlinkMessage as Message;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::nsid::{NsidAttribute, NsidMessage};
use rtnetlink::sys::Socket;

use super::namespaces::{self, Namespace};
use super::{KeeperError, netlink};
use crate::loader::pins::Pins;
use crate::maps::{Held, MapFailure, Table};
use crate::setting::Setting;

/// The map of clients.
pub(super) struct Clients {
    map: Table<u64, SocketClient>,
    /// For how many there was no room at last.
    n_left_out: usize,
}

/// What matters of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Device {
    index: u32,
    is_loopback: bool,
    /// One end of a pair: the index of the other, and the id of the namespace that has it.
    peer: Option<(u32, i32)>,
}

/// An address, and the index of its device.
type Address = (u32, IpAddr);

impl Clients {
    /// Opens the pinned map.
    ///
    /// # Errors
    /// If it is not there.
    pub(super) fn open(pins: &Pins) -> Result<Self, MapFailure> {
        let map = Table::open(pins, "CLIENTS")?;
        Ok(Self { map, n_left_out: 0 })
    }

    /// Looks at every namespace, and tells the kernel of those that are connected to the caller's
    /// by a pair of devices. Says how many entries had to be written.
    ///
    /// # Errors
    /// If a map refuses, or there are no namespaces to be found.
    pub(super) fn update(&mut self, proc: &Path) -> Result<usize, KeeperError> {
        let wanted = read(proc).map_err(KeeperError::Namespaces)?;
        Ok(self.write(&wanted)?)
    }

    fn write(&mut self, wanted: &BTreeMap<u64, SocketClient>) -> Result<usize, MapFailure> {
        let Held { n_writes, left_out } = self.map.hold(wanted, |_| false)?;
        if self.n_left_out != left_out.len() {
            self.n_left_out = left_out.len();
            if self.n_left_out > 0 {
                tracing::warn!(
                    "map CLIENTS is full: {} of {} network namespaces of pods do not fit into \
                     {} entries, and sockets there are served by packet where rules ask who they \
                     are; raise {}",
                    self.n_left_out,
                    wanted.len(),
                    self.map.size(),
                    Setting("--max-clients")
                );
            }
        }
        Ok(n_writes)
    }
}

/// The clients by the cookies of their namespaces; none if the kernel does not tell cookies.
fn read(proc: &Path) -> io::Result<BTreeMap<u64, SocketClient>> {
    let own = namespaces::own()?;
    let mut clients = BTreeMap::new();
    namespaces::each(proc, |namespace| {
        let Some(cookie) = namespace.cookie else {
            return ControlFlow::Break(());
        };
        match look(namespace, &own) {
            Ok(Some(client)) => {
                let _none = clients.insert(cookie, client);
            }
            Ok(None) => {}
            Err(error) => tracing::debug!("cannot read a namespace's devices: {error}"),
        }
        ControlFlow::Continue(())
    })?;
    Ok(clients)
}

fn look(namespace: &Namespace, node: &File) -> io::Result<Option<SocketClient>> {
    if namespace.is_own {
        return Ok(None);
    }
    let route = &namespace.route;
    let Some(node_id) = id_of(route, node)? else {
        return Ok(None);
    };
    Ok(client(&devices(route)?, &addresses(route)?, node_id))
}

/// By which number the namespace of a socket knows another one, if it does.
fn id_of(socket: &Socket, namespace: &File) -> io::Result<Option<i32>> {
    let mut question = NsidMessage::default();
    let fd = NsidAttribute::Fd(namespace.as_raw_fd().cast_unsigned());
    question.attributes.push(fd);
    let mut id = None;
    netlink::ask(socket, Message::GetNsId(question), NLM_F_ACK, |answer| {
        if let Message::NewNsId(answer) = answer {
            id = answer.attributes.iter().find_map(|attribute| {
                if let NsidAttribute::Id(id) = attribute {
                    Some(*id)
                } else {
                    None
                }
            });
        }
    })?;
    Ok(id.filter(|&id| id >= 0))
}

fn devices(socket: &Socket) -> io::Result<Vec<Device>> {
    let mut devices = Vec::new();
    let all = Message::GetLink(LinkMessage::default());
    netlink::ask(socket, all, NLM_F_DUMP, |answer| {
        if let Message::NewLink(link) = answer {
            devices.push(device(&link));
        }
    })?;
    Ok(devices)
}

fn device(link: &LinkMessage) -> Device {
    let (mut is_pair, mut peer, mut namespace) = (false, None, None);
    for attribute in &link.attributes {
        if let LinkAttribute::LinkInfo(infos) = attribute {
            is_pair = infos
                .iter()
                .any(|info| matches!(info, LinkInfo::Kind(InfoKind::Veth | InfoKind::Netkit)));
        } else if let LinkAttribute::Link(index) = attribute {
            peer = Some(*index);
        } else if let LinkAttribute::LinkNetNsId(id) = attribute {
            namespace = Some(*id);
        }
    }
    Device {
        index: link.header.index,
        is_loopback: link.header.flags.contains(LinkFlags::Loopback),
        peer: peer.zip(namespace).filter(|_| is_pair),
    }
}

fn addresses(socket: &Socket) -> io::Result<Vec<Address>> {
    let mut addresses = Vec::new();
    let all = Message::GetAddress(AddressMessage::default());
    netlink::ask(socket, all, NLM_F_DUMP, |answer| {
        if let Message::NewAddress(message) = answer {
            addresses.extend(address(&message));
        }
    })?;
    Ok(addresses)
}

/// An address that packets to elsewhere may have as source.
fn address(message: &AddressMessage) -> Option<Address> {
    if message.header.scope != AddressScope::Universe {
        return None;
    }
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        if let AddressAttribute::Local(ip) = attribute {
            local = Some(*ip);
        } else if let AddressAttribute::Address(ip) = attribute {
            address = Some(*ip);
        }
    }
    // On a point-to-point link `Address` is the peer's.
    Some((message.header.index, local.or(address)?))
}

/// The client that sockets of a namespace are; `None` if no pair of devices connects it to the
/// node's, which it knows by the number `node`.
fn client(devices: &[Device], addresses: &[Address], node: i32) -> Option<SocketClient> {
    let to_node = devices.iter().filter_map(|device| device.peer);
    let mut to_node = to_node.filter(|&(_, namespace)| namespace == node);
    let (first, _) = to_node.next()?;
    let is_outward = |index: u32| {
        let device = devices.iter().find(|device| device.index == index);
        device.is_none_or(|device| !device.is_loopback)
    };
    let only = |family| {
        let mut of_family = addresses
            .iter()
            .filter(|(index, ip)| Family::of(*ip) == family && is_outward(*index));
        match (of_family.next(), of_family.next()) {
            (Some((_, ip)), None) => Addr::from(*ip),
            _ => Addr::UNSPECIFIED,
        }
    };
    Some(SocketClient {
        v4: only(Family::Ipv4),
        v6: only(Family::Ipv6),
        device: if to_node.next().is_none() { first } else { 0 },
        _pad: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: i32 = 0;
    const LO: Device = Device {
        index: 1,
        is_loopback: true,
        peer: None,
    };

    fn pair(index: u32, peer: u32, namespace: i32) -> Device {
        Device {
            index,
            is_loopback: false,
            peer: Some((peer, namespace)),
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_pod_has_an_address_of_each_family_and_a_device_on_the_node() {
        let addresses = [(2, ip("10.244.0.7")), (2, ip("fd00::7"))];
        let expected = SocketClient {
            v4: ip("10.244.0.7").into(),
            v6: ip("fd00::7").into(),
            device: 70,
            _pad: 0,
        };
        let devices = [LO, pair(2, 70, NODE)];
        assert_eq!(client(&devices, &addresses, NODE), Some(expected));
    }

    #[test]
    fn what_is_not_unique_is_not_told() {
        let addresses = [
            (2, ip("10.244.0.7")),
            (3, ip("10.245.0.7")),
            (2, ip("fd00::7")),
        ];
        let devices = [LO, pair(2, 70, NODE), pair(3, 71, NODE)];
        let client = client(&devices, &addresses, NODE).unwrap();
        assert_eq!(client.v4, Addr::UNSPECIFIED);
        assert_eq!(client.v6, ip("fd00::7").into());
        assert_eq!(client.device, 0);
    }

    #[test]
    fn addresses_of_loopback_do_not_count() {
        let addresses = [(1, ip("192.0.2.1")), (2, ip("10.244.0.7"))];
        let client = client(&[LO, pair(2, 70, NODE)], &addresses, NODE).unwrap();
        assert_eq!(client.v4, ip("10.244.0.7").into());
        assert_eq!(client.v6, Addr::UNSPECIFIED);
    }

    #[test]
    fn a_pair_that_ends_elsewhere_makes_no_client() {
        let addresses = [(2, ip("10.244.0.7"))];
        assert_eq!(client(&[LO, pair(2, 70, 1)], &addresses, NODE), None);
        assert_eq!(client(&[LO], &addresses, NODE), None);
        let devices = [LO, pair(2, 70, 1), pair(3, 71, NODE)];
        assert_eq!(client(&devices, &addresses, NODE).unwrap().device, 71);
    }
}

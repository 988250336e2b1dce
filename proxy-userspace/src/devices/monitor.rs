//! Links, addresses and default routes of this network namespace, by rtnetlink.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use futures::channel::mpsc::UnboundedReceiver;
use futures::{StreamExt as _, TryStreamExt as _};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressScope,
};
use rtnetlink::packet_route::link::{
    InfoKind, InfoPortKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::sys::SocketAddr;
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder, new_multicast_connection};
use tokio::sync::mpsc;

use super::{Assigned, Event, Everything, Link, LinkKind, Port, Standing, routes};

const GROUPS: [MulticastGroup; 5] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];

/// Until a lost connection is made anew.
const PAUSE: Duration = Duration::from_secs(1);

/// rtnetlink is in trouble.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// No connection.
    #[error("cannot open a connection to rtnetlink")]
    Connect(#[source] io::Error),
    /// A question was not answered.
    #[error("cannot read the {what} of this network namespace")]
    Read {
        /// What was asked for.
        what: &'static str,
        /// Why.
        source: Box<rtnetlink::Error>,
    },
}

type Messages = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// Opens a connection for questions and requests.
///
/// # Errors
/// If there is none to be had.
pub fn connect() -> Result<Handle, MonitorError> {
    let (connection, handle, _messages) =
        rtnetlink::new_connection().map_err(MonitorError::Connect)?;
    // It ends with its last handle.
    drop(tokio::spawn(connection));
    Ok(handle)
}

/// Reads everything there is.
///
/// # Errors
/// If the kernel does not answer.
pub async fn read(handle: &Handle) -> Result<Everything, MonitorError> {
    let failed = |what| {
        move |source| MonitorError::Read {
            what,
            source: Box::new(source),
        }
    };
    let links: Vec<_> = handle
        .link()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(failed("links"))?;
    let addresses: Vec<_> = handle
        .address()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(failed("addresses"))?;
    let mut uplinks = BTreeSet::new();
    let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
    for question in [v4, v6] {
        let mut routes = handle.route().get(question).execute();
        while let Some(route) = routes.try_next().await.map_err(failed("routes"))? {
            uplinks.extend(uplink(&route));
        }
    }
    Ok(Everything {
        links: links.iter().filter_map(link).collect(),
        addresses: addresses.iter().filter_map(usable_address).collect(),
        uplinks,
    })
}

/// Sends all changes to `events`, beginning with everything there is, until the receiver goes.
///
/// # Errors
/// If the first connection fails; later ones are tried again.
pub async fn run(events: mpsc::Sender<Event>) -> Result<(), MonitorError> {
    let mut watch = Watch::begin(&events).await?;
    loop {
        watch.follow(&events).await;
        if events.is_closed() {
            return Ok(());
        }
        watch = loop {
            tokio::time::sleep(PAUSE).await;
            match Watch::begin(&events).await {
                Ok(watch) => break watch,
                Err(error) => tracing::warn!("{error}; trying again"),
            }
        };
    }
}

/// A connection that hears of changes.
struct Watch {
    handle: Handle,
    messages: Messages,
}

impl Watch {
    async fn begin(events: &mpsc::Sender<Event>) -> Result<Self, MonitorError> {
        let (connection, handle, messages) =
            new_multicast_connection(&GROUPS).map_err(MonitorError::Connect)?;
        drop(tokio::spawn(connection));
        // Changes that come in between are in `messages`, and harmless if seen twice.
        let everything = read(&handle).await?;
        let _is_heard = events.send(Event::Everything(everything)).await.is_ok();
        Ok(Self { handle, messages })
    }

    /// Passes changes on until the connection or the receiver is gone.
    async fn follow(&mut self, events: &mpsc::Sender<Event>) {
        while let Some((message, _)) = self.messages.next().await {
            for event in self.events(message.payload).await {
                if events.send(event).await.is_err() {
                    return;
                }
            }
        }
    }

    async fn events(&self, payload: NetlinkPayload<RouteNetlinkMessage>) -> Vec<Event> {
        use RouteNetlinkMessage as Message;
        if matches!(payload, NetlinkPayload::Overrun(_)) {
            return Vec::from_iter(self.everything().await);
        }
        let NetlinkPayload::InnerMessage(message) = payload else {
            return Vec::new();
        };
        if let Message::NewLink(port) | Message::DelLink(port) = &message
            && port.header.interface_family != AddressFamily::Unspec
        {
            // A bridge's word about its ports: it leaves out what kind of device they are, and
            // tells of one that leaves the bridge as of one that is gone.
            return Vec::new();
        }
        if let Message::NewLink(message) = &message {
            return Vec::from_iter(link(message).map(Event::Link));
        }
        if let Message::DelLink(message) = &message {
            let gone = Event::LinkGone(message.header.index);
            return [gone]
                .into_iter()
                .chain(self.peer_left_behind(message).await)
                .collect();
        }
        if let Message::NewAddress(message) = &message {
            let usable = usable_address(message).map(|(index, ip)| Event::Address(index, ip));
            return Vec::from_iter(usable.or_else(|| address_gone(message)));
        }
        if let Message::DelAddress(message) = &message {
            return Vec::from_iter(address_gone(message));
        }
        if let Message::DelRoute(route) = &message
            && routes::is_ours(route)
        {
            return vec![Event::RouteGone];
        }
        if let Message::NewRoute(route) | Message::DelRoute(route) = &message
            && uplink(route).is_some()
        {
            return Vec::from_iter(self.everything().await);
        }
        Vec::new()
    }

    /// A link that moves to another network namespace may leave its peer here, whose role changes
    /// by that without any message of its own as long as it is down.
    async fn peer_left_behind(&self, gone: &LinkMessage) -> Option<Event> {
        let has_moved = gone
            .attributes
            .iter()
            .any(|attr| matches!(attr, LinkAttribute::NewNetnsId(_)));
        if !has_moved {
            return None;
        }
        let peer = gone.attributes.iter().find_map(|attribute| {
            if let LinkAttribute::Link(peer) = attribute {
                Some(*peer)
            } else {
                None
            }
        })?;
        let mut answers = self.handle.link().get().match_index(peer).execute();
        let answer = answers.try_next().await.ok()??;
        link(&answer).map(Event::Link)
    }

    async fn everything(&self) -> Option<Event> {
        match read(&self.handle).await {
            Ok(everything) => Some(Event::Everything(everything)),
            Err(error) => {
                tracing::warn!("{error}");
                None
            }
        }
    }
}

/// The facts of a link that matter.
fn link(message: &LinkMessage) -> Option<Link> {
    let name = message.attributes.iter().find_map(|attribute| {
        if let LinkAttribute::IfName(name) = attribute {
            Some(name)
        } else {
            None
        }
    })?;
    let header = &message.header;
    let mut link = Link::new(header.index, name, LinkKind::Other);
    link.has_ethernet = matches!(
        header.link_layer_type,
        LinkLayerType::Ether | LinkLayerType::Loopback
    );
    link.is_up = header.flags.contains(LinkFlags::Up);
    let mut master = None;
    let mut port_kind = None;
    for attribute in &message.attributes {
        if let LinkAttribute::LinkInfo(infos) = attribute {
            for info in infos {
                if let LinkInfo::Kind(kind) = info {
                    link.kind = link_kind(kind);
                } else if let LinkInfo::PortKind(kind) = info {
                    port_kind = Some(kind);
                }
            }
        } else if let LinkAttribute::LinkNetNsId(_) = attribute {
            link.is_peer_elsewhere = true;
        } else if let LinkAttribute::Controller(index) = attribute {
            master = Some(*index);
        } else if let LinkAttribute::Mtu(mtu) = attribute {
            link.mtu = *mtu;
        } else if let LinkAttribute::Address(bytes) = attribute {
            link.mac = bytes.as_slice().try_into().unwrap_or_default();
        }
    }
    if header.flags.contains(LinkFlags::Loopback) {
        link.kind = LinkKind::Loopback;
    }
    // A VRF takes no packets from its ports, it only has routes of its own for them.
    link.port = master
        .filter(|_| port_kind != Some(&InfoPortKind::Vrf))
        .map(|master| Port {
            master,
            is_bridge: port_kind == Some(&InfoPortKind::Bridge),
        });
    Some(link)
}

fn link_kind(kind: &InfoKind) -> LinkKind {
    if matches!(kind, InfoKind::Veth | InfoKind::Netkit) {
        LinkKind::Pair
    } else if matches!(kind, InfoKind::Bridge) {
        LinkKind::Bridge
    } else if matches!(
        kind,
        InfoKind::Dummy | InfoKind::Ifb | InfoKind::Nlmon | InfoKind::Vrf
    ) {
        LinkKind::Internal
    } else {
        LinkKind::Other
    }
}

/// An address with the link that has it.
fn address(message: &AddressMessage) -> Option<(u32, IpAddr)> {
    // On a point-to-point link `Address` is the peer's.
    let local = message.attributes.iter().find_map(|attribute| {
        if let AddressAttribute::Local(ip) = attribute {
            Some(*ip)
        } else {
            None
        }
    });
    let address = message.attributes.iter().find_map(|attribute| {
        if let AddressAttribute::Address(ip) = attribute {
            Some(*ip)
        } else {
            None
        }
    });
    Some((message.header.index, local.or(address)?))
}

fn address_gone(message: &AddressMessage) -> Option<Event> {
    address(message).map(|(index, ip)| Event::AddressGone(index, ip))
}

/// The same with what it is good for; nothing if packets to it would not be taken.
fn usable_address(message: &AddressMessage) -> Option<(u32, Assigned)> {
    let (index, ip) = address(message)?;
    let flags = message.attributes.iter().find_map(|attribute| {
        if let AddressAttribute::Flags(flags) = attribute {
            Some(*flags)
        } else {
            None
        }
    });
    let flags = flags.unwrap_or(AddressFlags::empty());
    let standing = standing(ip, message.header.scope, flags)?;
    Some((index, Assigned { ip, standing }))
}

fn standing(ip: IpAddr, scope: AddressScope, flags: AddressFlags) -> Option<Standing> {
    if flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed) {
        None
    } else if scope != AddressScope::Universe {
        Some(Standing::Narrow)
    } else if flags.contains(AddressFlags::Deprecated) {
        Some(Standing::Deprecated)
    } else if !flags.contains(AddressFlags::Secondary) {
        Some(Standing::Preferred)
    } else if ip.is_ipv4() {
        Some(Standing::Secondary)
    } else {
        // The kernel has one bit for both.
        Some(Standing::Temporary)
    }
}

/// The device of a default route.
fn uplink(route: &RouteMessage) -> Option<u32> {
    if route.header.destination_prefix_length != 0 {
        return None;
    }
    route.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Oif(index) = attribute {
            Some(*index)
        } else {
            None
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_counts_when_it_is_sure_and_stands_by_its_flags() {
        let none = AddressFlags::empty();
        let (v4, v6): (IpAddr, IpAddr) = ([192, 0, 2, 1].into(), Ipv6Addr::LOCALHOST.into());
        let universe = AddressScope::Universe;
        for (ip, scope, flags, expected) in [
            (
                v4,
                universe,
                AddressFlags::Permanent,
                Some(Standing::Preferred),
            ),
            (
                v4,
                universe,
                AddressFlags::Secondary,
                Some(Standing::Secondary),
            ),
            (
                v6,
                universe,
                AddressFlags::Secondary,
                Some(Standing::Temporary),
            ),
            (
                v6,
                universe,
                AddressFlags::Deprecated,
                Some(Standing::Deprecated),
            ),
            (v6, AddressScope::Link, none, Some(Standing::Narrow)),
            (v6, universe, AddressFlags::Tentative, None),
            (
                v6,
                universe,
                AddressFlags::Tentative | AddressFlags::Optimistic,
                None,
            ),
            (
                v6,
                universe,
                AddressFlags::Permanent | AddressFlags::Dadfailed,
                None,
            ),
        ] {
            assert_eq!(standing(ip, scope, flags), expected, "{ip} {flags:?}");
        }
    }
}

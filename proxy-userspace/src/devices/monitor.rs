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
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::sys::SocketAddr;
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder, new_multicast_connection};
use tokio::sync::mpsc;

use super::{Event, Everything, Link};

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
        addresses: addresses.iter().filter_map(address).collect(),
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
            return Vec::from_iter(address(message).map(|(index, ip)| Event::Address(index, ip)));
        }
        if let Message::DelAddress(message) = &message {
            let gone = address(message).map(|(index, ip)| Event::AddressGone(index, ip));
            return Vec::from_iter(gone);
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
    let kinds = message.attributes.iter().filter_map(|attribute| {
        if let LinkAttribute::LinkInfo(infos) = attribute {
            Some(infos)
        } else {
            None
        }
    });
    let is_pair = kinds
        .flatten()
        .any(|info| matches!(info, LinkInfo::Kind(InfoKind::Veth | InfoKind::Netkit)));
    let is_peer_elsewhere = message
        .attributes
        .iter()
        .any(|attribute| matches!(attribute, LinkAttribute::LinkNetNsId(_)));
    Some(Link::new(
        message.header.index,
        name,
        is_pair,
        is_peer_elsewhere,
    ))
}

/// A global address and the link that has it.
fn address(message: &AddressMessage) -> Option<(u32, IpAddr)> {
    if message.header.scope != AddressScope::Universe {
        return None;
    }
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

//! Routes by which packets of this node's own processes to Services reach `beeline0`.
//!
//! They are in the main table, marked with a protocol number of their own: no others are touched.
//! Their metric is worse than any that is usual, so that a route that somebody else has for the
//! same network wins.

use std::collections::BTreeSet;
use std::net::IpAddr;

use futures::TryStreamExt as _;
use ipnet::IpNet;
use proxy_common::abi::Family;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType,
};
use rtnetlink::{Handle, RouteMessageBuilder};

/// Tells our routes from others': a number that nobody has registered.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(0xbe);

/// Worse than what people and routing daemons write.
const METRIC: u32 = 32_000;

/// A route to Services.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Route {
    /// The destination.
    pub network: IpNet,
    /// The source of packets whose sender has not chosen one.
    pub source: Option<IpAddr>,
    /// Index of the device.
    pub device: u32,
}

/// A route cannot be read, added or removed.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// The kernel does not tell.
    #[error("cannot read the routes of this network namespace")]
    Read(#[source] Box<rtnetlink::Error>),
    /// The kernel refuses.
    #[error("route to {network}: {action} failed: {source}")]
    Change {
        /// Of the route.
        network: IpNet,
        /// What was tried.
        action: &'static str,
        /// Why.
        source: Box<rtnetlink::Error>,
    },
}

/// Whether a route is one of ours.
pub(super) fn is_ours(message: &RouteMessage) -> bool {
    message.header.protocol == PROTOCOL
}

/// Sees to it that `wanted` are our routes; says how many it changed. What is wanted and cannot be
/// had does not keep the others from being made.
///
/// # Errors
/// The last thing that failed.
pub async fn set(netlink: &Handle, wanted: &BTreeSet<Route>) -> Result<usize, RouteError> {
    let held = read(netlink).await?;
    let mut n_changes = 0;
    let mut failure = None;
    let mut note = |result| match result {
        Ok(()) => n_changes += 1,
        Err(error) => failure = Some(error),
    };
    // A route that only changes its source is replaced: there is no moment without one.
    let stays = |old: &Route| wanted.iter().any(|new| is_same_place(old, new));
    for old in held.difference(wanted).filter(|old| !stays(old)) {
        note(remove(netlink, old).await);
    }
    for new in wanted.difference(&held) {
        let is_replaced = held.iter().any(|old| is_same_place(old, new));
        note(add(netlink, new, is_replaced).await);
    }
    failure.map_or(Ok(n_changes), Err)
}

fn is_same_place(a: &Route, b: &Route) -> bool {
    (a.network, a.device) == (b.network, b.device)
}

/// Our routes.
///
/// # Errors
/// If the kernel does not answer.
pub async fn read(netlink: &Handle) -> Result<BTreeSet<Route>, RouteError> {
    let mut held = BTreeSet::new();
    for family in Family::ALL {
        let question = match family {
            Family::Ipv4 => RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
            Family::Ipv6 => RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
        };
        let mut answers = netlink.route().get(question).execute();
        loop {
            match answers.try_next().await {
                Ok(Some(message)) => {
                    held.extend(is_ours(&message).then(|| route(&message)).flatten())
                }
                Ok(None) => break,
                // A kernel without IPv6 has no routes of it.
                Err(rtnetlink::Error::NetlinkError(_)) if family == Family::Ipv6 => break,
                Err(error) => return Err(RouteError::Read(Box::new(error))),
            }
        }
    }
    Ok(held)
}

fn route(message: &RouteMessage) -> Option<Route> {
    let mut network = None;
    let mut source = None;
    let mut device = None;
    for attribute in &message.attributes {
        if let RouteAttribute::Destination(address) = attribute {
            network = ip(address);
        } else if let RouteAttribute::PrefSource(address) = attribute {
            source = ip(address);
        } else if let RouteAttribute::Oif(index) = attribute {
            device = Some(*index);
        }
    }
    let length = message.header.destination_prefix_length;
    Some(Route {
        network: IpNet::new(network?, length).ok()?,
        source,
        device: device?,
    })
}

const fn ip(address: &RouteAddress) -> Option<IpAddr> {
    if let RouteAddress::Inet(v4) = address {
        Some(IpAddr::V4(*v4))
    } else if let RouteAddress::Inet6(v6) = address {
        Some(IpAddr::V6(*v6))
    } else {
        None
    }
}

async fn add(netlink: &Handle, route: &Route, is_replaced: bool) -> Result<(), RouteError> {
    let request = netlink.route().add(message(route));
    let request = if is_replaced {
        request.replace()
    } else {
        request
    };
    let action = "adding it";
    request.execute().await.map_err(failed(route, action))
}

async fn remove(netlink: &Handle, route: &Route) -> Result<(), RouteError> {
    let request = netlink.route().del(message(route));
    request
        .execute()
        .await
        .map_err(failed(route, "removing it"))
}

fn failed(route: &Route, action: &'static str) -> impl FnOnce(rtnetlink::Error) -> RouteError {
    let network = route.network;
    move |source| RouteError::Change {
        network,
        action,
        source: Box::new(source),
    }
}

fn message(route: &Route) -> RouteMessage {
    let mut message = match route.network {
        IpNet::V4(network) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
            .destination_prefix(network.network(), network.prefix_len())
            .scope(rtnetlink::packet_route::route::RouteScope::Link)
            .build(),
        IpNet::V6(network) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
            .destination_prefix(network.network(), network.prefix_len())
            .build(),
    };
    message.header.protocol = PROTOCOL;
    message.header.kind = RouteType::Unicast;
    let source = route.source.map(|ip| RouteAttribute::PrefSource(ip.into()));
    message.attributes.extend(source);
    message.attributes.push(RouteAttribute::Oif(route.device));
    message.attributes.push(RouteAttribute::Priority(METRIC));
    message
}

/// The routes to `networks` by `device`, with the sources that this node has.
pub fn wanted(
    networks: impl IntoIterator<Item = IpNet>,
    sources: &[IpAddr],
    device: u32,
) -> BTreeSet<Route> {
    let route = |network: IpNet| {
        let is_v4 = matches!(network, IpNet::V4(_));
        let mut sources = sources.iter().copied();
        Route {
            network: network.trunc(),
            source: sources.find(|source| source.is_ipv4() == is_v4),
            device,
        }
    };
    networks.into_iter().map(route).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_has_the_source_of_its_family_and_reads_as_it_was_written() {
        let networks = ["10.96.0.1/16", "fd00:10:96::/112"].map(|text| text.parse().unwrap());
        let source: IpAddr = [192, 0, 2, 1].into();
        let routes = wanted(networks, &[source], 7);
        let texts: Vec<_> = routes
            .iter()
            .map(|it| (it.network.to_string(), it.source))
            .collect();
        let expected = [
            ("10.96.0.0/16".to_owned(), Some(source)),
            ("fd00:10:96::/112".to_owned(), None),
        ];
        assert_eq!(texts, expected);
        for wanted in &routes {
            let message = message(wanted);
            assert!(is_ours(&message));
            assert_eq!(route(&message), Some(*wanted));
        }
    }
}

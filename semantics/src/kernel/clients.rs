//! Who sends a flow's packets: nobody, but frames, or a socket of a pod's or of the node's.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use xtask::testbed::{Namespace, in_namespace};

use super::conn::{Client, Conn};
use super::process::{Manner, Process};
use super::talk::Talk;
use super::way::Way;
use super::world::World;
use crate::case::{Flow, Kind, Protocol};

/// The first source port of those that are used in turn.
const FIRST_PORT: u16 = 32_768;

/// Whether the client of a flow is a socket.
pub(super) fn is_socket(world: &World, flow: &Flow) -> bool {
    match world.plan.client_device(flow) {
        Some(device) => {
            let can_be = flow.from.kind == Kind::Pod && flow.to.protocol != Protocol::Sctp;
            can_be && world.pod(device).is_some()
        }
        None => true,
    }
}

/// The connection of this number, which nobody had before. Sockets are used in another manner for
/// each `index`.
pub(super) fn conn(
    world: &World,
    flow: &Flow,
    way: Way,
    (number, index): (u32, usize),
) -> Result<Conn> {
    let port = FIRST_PORT + u16::try_from(number % 28_000)?;
    let to = SocketAddr::new(flow.to.ip, flow.to.port);
    let (client, from) = match world.plan.client_device(flow) {
        Some(device) if !is_socket(world, flow) => {
            (Client::Frames(device), SocketAddr::new(flow.from.ip, port))
        }
        device => {
            let process = process(world, flow, way, device, (port, index))?;
            let from = process.from;
            (Client::Socket(device, process), from)
        }
    };
    Ok(Conn {
        talk: Talk::new(flow.to.protocol, number),
        client,
        from,
        to,
        backend: None,
        is_pointed: false,
    })
}

fn process(
    world: &World,
    flow: &Flow,
    way: Way,
    device: Option<usize>,
    (port, index): (u16, usize),
) -> Result<Process> {
    let manner = manner(world, flow, way, device, index);
    // Processes of the node share its ports with others.
    let own = device.map_or(0, |_| port);
    let from = SocketAddr::new(flow.from.ip, own);
    let to = SocketAddr::new(flow.to.ip, flow.to.port);
    in_namespace(home(world, device), || {
        Process::new(flow.to.protocol, manner, from, port, to)
    })
    .with_context(|| format!("be a client at {}", flow.from.ip))
}

fn manner(world: &World, flow: &Flow, way: Way, device: Option<usize>, index: usize) -> Manner {
    if !way.has_sockets() || flow.to.protocol == Protocol::Sctp {
        return Manner::default();
    }
    let from = flow.from.ip;
    Manner {
        is_unconnected: way.is_unconnected,
        is_mapped: from.is_ipv4() && index % 3 == 1,
        is_unbound: match device {
            Some(device) => index % 2 == 1 && world.plan.is_only_address(device, from),
            // Who is bound to loopback can't talk to anybody else.
            None => from.is_loopback(),
        },
    }
}

/// The namespace of a client behind a device, or of the node's.
pub(super) fn home(world: &World, device: Option<usize>) -> &Namespace {
    let pod = device.and_then(|device| world.pod(device));
    pod.unwrap_or(&world.testbed.node().namespace)
}

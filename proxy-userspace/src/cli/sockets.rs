//! `beeline sockets`.

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use proxy_common::abi::{DatagramSide, Family, Peer, Protocol, SocketClient, SocketRecord};
use serde::Serialize;

use super::progress::Progress;
use super::{Error, Paths, ReadArgs, print, table};
use crate::conntrack_gc;
use crate::maps::{List, Maps, Table};

#[derive(Args, Debug)]
pub(super) struct SocketsArgs {
    #[command(flatten)]
    read: ReadArgs,
    /// Only sockets at Services whose `namespace/name:port` contains this.
    #[arg(long, value_name = "TEXT")]
    service: Option<String>,
    /// Show at most this many.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: usize,
}

/// What is shown, and whether that is all.
#[derive(Serialize, Debug)]
struct SocketsView {
    sockets: Vec<SocketView>,
    /// There are more than the limit allows.
    truncated: bool,
}

/// One socket and one Service that it dialled.
#[derive(PartialEq, Eq, PartialOrd, Ord, Serialize, Debug)]
struct SocketView {
    service: String,
    protocol: &'static str,
    /// Whether the socket is connected; if not, it may talk to others, too.
    connected: bool,
    /// The pod's addresses or `node`; if they are not known, the cookie of the network namespace.
    client: String,
    frontend: String,
    backend: String,
    cookie: u64,
    /// Milliseconds since it was connected or, if it is not, since it was used last.
    age: u64,
}

/// What records are read with.
struct Reader<'a> {
    maps: &'a Maps,
    clients: Table<u64, SocketClient>,
    node_netns: u64,
    now: u64,
}

/// Shows the sockets that are pointed at backends.
pub(super) fn sockets(paths: &Paths, args: &SocketsArgs) -> Result<ExitCode, Error> {
    let maps = paths.maps()?;
    let pins = paths.pins();
    let settings: List<proxy_common::abi::SocketSettings> = List::open(&pins, "SOCKET_SETTINGS")?;
    let reader = Reader {
        maps: &maps,
        clients: Table::open(&pins, "CLIENTS")?,
        node_netns: settings.get(0)?.node_netns,
        now: conntrack_gc::now(),
    };
    let view = reader.read(args)?;
    print(args.read.output, &view, text);
    Ok(ExitCode::SUCCESS)
}

impl Reader<'_> {
    fn read(&self, args: &SocketsArgs) -> Result<SocketsView, Error> {
        let mut progress = Progress::new("reading socket records");
        let mut view = SocketsView {
            sockets: Vec::new(),
            truncated: false,
        };
        let connected = self.maps.sockets.entries();
        let connected = connected.map(|entry| entry.map(|(key, record)| (key, record, true)));
        let datagrams = self.maps.datagrams.entries().filter(|entry| {
            let is_dialled = |side| side == DatagramSide::Dialled as u32;
            !matches!(entry, Ok((key, _)) if !is_dialled(key.side))
        });
        let datagrams =
            datagrams.map(|entry| entry.map(|(key, record)| (key.cookie, record, false)));
        for entry in connected.chain(datagrams) {
            progress.step();
            let (cookie, record, is_connected) = entry?;
            let service = self.service(record.service)?;
            let is_wanted = args.service.as_ref();
            if is_wanted.is_some_and(|wanted| !service.contains(wanted)) {
                continue;
            }
            if view.sockets.len() == args.limit {
                view.truncated = true;
                break;
            }
            let client = self.client(&record)?;
            let socket = socket_view(service, client, (cookie, is_connected), &record, self.now);
            view.sockets.push(socket);
        }
        view.sockets.sort_unstable();
        Ok(view)
    }

    /// The name of a service port, or its number if it has gone.
    fn service(&self, id: u32) -> Result<String, Error> {
        let name = self.maps.services.get(&id)?;
        Ok(name.map_or_else(|| format!("#{id}"), |name| name.text().to_owned()))
    }

    fn client(&self, record: &SocketRecord) -> Result<String, Error> {
        if record.netns == self.node_netns {
            return Ok("node".to_owned());
        }
        let known = self.clients.get(&record.netns)?;
        let address = known.map(|client| match record.backend.addr.family() {
            Family::Ipv4 => client.v4,
            Family::Ipv6 => client.v6,
        });
        let address = address.filter(|address| !address.is_unspecified());
        Ok(address.map_or_else(
            || format!("netns {}", record.netns),
            |address| IpAddr::from(address).to_string(),
        ))
    }
}

fn socket_view(
    service: String,
    client: String,
    (cookie, connected): (u64, bool),
    record: &SocketRecord,
    now: u64,
) -> SocketView {
    SocketView {
        service,
        protocol: Protocol::from_number(record.protocol).map_or("?", Protocol::name),
        connected,
        client,
        frontend: peer(&record.frontend),
        backend: peer(&record.backend),
        cookie,
        age: now.saturating_sub(record.last_seen) / 1_000_000,
    }
}

fn peer(peer: &Peer) -> String {
    SocketAddr::new(peer.addr.into(), peer.port.number()).to_string()
}

fn text(view: &SocketsView) -> String {
    if view.sockets.is_empty() {
        return "no sockets\n".to_owned();
    }
    let header = [
        "PROTO", "CLIENT", "FRONTEND", "BACKEND", "SERVICE", "COOKIE", "AGE",
    ];
    let rows = view.sockets.iter().map(row).collect();
    let mut text = table::render(&header, &[5, 6], rows);
    if view.truncated {
        text.push_str("… and more: see --limit and --service\n");
    }
    text
}

fn row(socket: &SocketView) -> Vec<String> {
    let protocol = if socket.connected {
        socket.protocol.to_owned()
    } else {
        format!("{} (not connected)", socket.protocol)
    };
    vec![
        protocol,
        socket.client.clone(),
        socket.frontend.clone(),
        socket.backend.clone(),
        socket.service.clone(),
        socket.cookie.to_string(),
        table::duration(Duration::from_millis(socket.age)),
    ]
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proxy_common::abi::Port;

    use super::*;

    #[test]
    fn a_socket_tells_what_it_dialled_and_whom_it_talks_to() {
        let peer = |last, port| Peer::new(Ipv4Addr::new(10, 0, 0, last).into(), Port::new(port));
        let record = SocketRecord {
            frontend: peer(96, 53),
            backend: peer(2, 1053),
            id: 1,
            generation: 1,
            service: 3,
            protocol: 17,
            _pad: [0; 3],
            netns: 7,
            last_seen: 100_000_000_000,
        };
        let view = |is_connected| {
            socket_view(
                "kube-system/dns".to_owned(),
                "10.0.0.1".to_owned(),
                (4711, is_connected),
                &record,
                103_000_000_000,
            )
        };
        assert_eq!(view(true).frontend, "10.0.0.96:53");
        assert_eq!(view(true).backend, "10.0.0.2:1053");
        assert_eq!(view(true).age, 3_000);
        let text = text(&SocketsView {
            sockets: vec![view(true), view(false)],
            truncated: true,
        });
        for part in ["4711", "not connected", "kube-system/dns", "--limit"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}

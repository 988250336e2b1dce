//! `beeline flows`.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use proxy_common::abi::{Addr, Exit, Flow, FlowKey, FlowRole, FlowState, Port, Protocol};
use serde::Serialize;

use super::progress::Progress;
use super::{Error, Paths, ReadArgs, print, table};
use crate::conntrack_gc::{self, Timeouts};
use crate::maps::Maps;
use crate::status::Status;

#[derive(Args, Debug)]
pub(super) struct FlowsArgs {
    #[command(flatten)]
    read: ReadArgs,
    /// Only flows of Services whose `namespace/name:port` contains this.
    #[arg(long, value_name = "TEXT")]
    service: Option<String>,
    /// Only flows of this protocol.
    #[arg(long, value_enum)]
    protocol: Option<ProtocolArg>,
    /// Show at most this many.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
enum ProtocolArg {
    Tcp,
    Udp,
    Sctp,
}

impl From<ProtocolArg> for Protocol {
    fn from(arg: ProtocolArg) -> Self {
        match arg {
            ProtocolArg::Tcp => Self::Tcp,
            ProtocolArg::Udp => Self::Udp,
            ProtocolArg::Sctp => Self::Sctp,
        }
    }
}

/// What is shown, and whether that is all.
#[derive(Serialize, Debug)]
struct FlowsView {
    flows: Vec<FlowView>,
    /// There are more than the limit allows.
    truncated: bool,
}

/// One conversation. Times are in milliseconds.
#[derive(PartialEq, Eq, PartialOrd, Ord, Serialize, Debug)]
struct FlowView {
    service: String,
    protocol: &'static str,
    client: String,
    frontend: String,
    backend: String,
    state: &'static str,
    hairpin: bool,
    age: u64,
    idle: u64,
    expires_in: u64,
}

/// Shows the flows that are tracked.
pub(super) fn flows(paths: &Paths, args: &FlowsArgs) -> Result<ExitCode, Error> {
    let maps = paths.maps()?;
    let status = Status::read(&paths.state_dir).ok().flatten();
    let timeouts = status.map_or_else(Timeouts::default, |status| {
        Timeouts::from_names(&status.timeouts)
    });
    let view = read(&maps, args, &timeouts)?;
    print(args.read.output, &view, text);
    Ok(ExitCode::SUCCESS)
}

fn read(maps: &Maps, args: &FlowsArgs, timeouts: &Timeouts) -> Result<FlowsView, Error> {
    let mut progress = Progress::new("reading flow records");
    let protocol = args
        .protocol
        .map(|protocol| Protocol::from(protocol).number());
    let now = conntrack_gc::now();
    let mut view = FlowsView {
        flows: Vec::new(),
        truncated: false,
    };
    for entry in maps.flows.entries() {
        progress.step();
        let (key, flow) = entry?;
        let is_wanted = FlowRole::from_number(flow.role) == Some(FlowRole::Forward)
            && protocol.is_none_or(|protocol| protocol == key.protocol);
        if !is_wanted {
            continue;
        }
        let service = service(maps, flow.service)?;
        if args
            .service
            .as_ref()
            .is_some_and(|wanted| !service.contains(wanted))
        {
            continue;
        }
        if view.flows.len() == args.limit {
            view.truncated = true;
            break;
        }
        let twin = maps.flows.get(&conntrack_gc::twin_key(&key, &flow))?;
        view.flows.push(flow_view(
            service,
            &key,
            &flow,
            twin.as_ref(),
            now,
            timeouts,
        ));
    }
    view.flows.sort_unstable();
    Ok(view)
}

/// The name of a service port, or its number if it has gone.
fn service(maps: &Maps, id: u32) -> Result<String, Error> {
    let name = maps.services.get(&id)?;
    Ok(name.map_or_else(|| format!("#{id}"), |name| name.text().to_owned()))
}

fn flow_view(
    service: String,
    key: &FlowKey,
    flow: &Flow,
    twin: Option<&Flow>,
    now: u64,
    timeouts: &Timeouts,
) -> FlowView {
    let last_seen = twin.map_or(flow.last_seen, |twin| twin.last_seen.max(flow.last_seen));
    let end = conntrack_gc::expires_at(flow, twin, timeouts).unwrap_or(now);
    let millis = |from: u64, to: u64| to.saturating_sub(from) / 1_000_000;
    FlowView {
        service,
        protocol: Protocol::from_number(key.protocol).map_or("?", Protocol::name),
        client: socket(key.tuple.src, key.tuple.src_port),
        frontend: socket(key.tuple.dst, key.tuple.dst_port),
        backend: socket(flow.to.dst, flow.to.dst_port),
        state: FlowState::from_number(flow.state).map_or("?", FlowState::name),
        hairpin: flow.exit == Exit::Back as u8,
        age: millis(flow.created, now),
        idle: millis(last_seen, now),
        expires_in: millis(now, end),
    }
}

fn socket(address: Addr, port: Port) -> String {
    std::net::SocketAddr::new(address.into(), port.number()).to_string()
}

fn text(view: &FlowsView) -> String {
    if view.flows.is_empty() {
        return "no flows\n".to_owned();
    }
    let header = [
        "PROTO",
        "CLIENT",
        "FRONTEND",
        "BACKEND",
        "SERVICE",
        "STATE",
        "AGE",
        "IDLE",
        "EXPIRES IN",
    ];
    let rows = view.flows.iter().map(row).collect();
    let mut text = table::render(&header, &[6, 7, 8], rows);
    if view.truncated {
        text.push_str("… and more: see --limit, --service and --protocol\n");
    }
    text
}

fn row(flow: &FlowView) -> Vec<String> {
    let time = |millis| table::duration(Duration::from_millis(millis));
    vec![
        flow.protocol.to_owned(),
        flow.client.clone(),
        flow.frontend.clone(),
        flow.backend.clone(),
        flow.service.clone(),
        if flow.hairpin {
            format!("{} (hairpin)", flow.state)
        } else {
            flow.state.to_owned()
        },
        time(flow.age),
        time(flow.idle),
        time(flow.expires_in),
    ]
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proxy_common::abi::{Side, Tuple};

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_flow_tells_who_talks_to_whom_and_for_how_long() {
        let ip = |last| Addr::from(Ipv4Addr::new(10, 0, 0, last));
        let client = |dst, port| Tuple {
            src: ip(1),
            dst,
            src_port: Port::new(40_000),
            dst_port: Port::new(port),
        };
        let key = FlowKey {
            tuple: client(ip(96), 80),
            protocol: 6,
            side: Side::Ingress as u8,
            _pad: 0,
        };
        let flow = Flow {
            to: client(ip(2), 8080),
            backend: 1,
            generation: 1,
            service: 3,
            state: FlowState::TcpSynSent as u8,
            role: FlowRole::Forward as u8,
            twin_side: Side::Egress as u8,
            device: 0,
            exit: 0,
            _pad: 0,
            tick: 0,
            created: 100 * SECOND,
            last_seen: 100 * SECOND,
        };
        let twin = Flow {
            last_seen: 110 * SECOND,
            ..flow
        };
        let view = flow_view(
            "shop/web".to_owned(),
            &key,
            &flow,
            Some(&twin),
            120 * SECOND,
            &Timeouts::default(),
        );
        assert_eq!(view.client, "10.0.0.1:40000");
        assert_eq!(view.frontend, "10.0.0.96:80");
        assert_eq!(view.backend, "10.0.0.2:8080");
        assert_eq!(
            (view.age, view.idle, view.expires_in),
            (20_000, 10_000, 113_000)
        );
        let text = text(&FlowsView {
            flows: vec![view],
            truncated: true,
        });
        assert!(
            text.contains("syn-sent") && text.contains("--limit"),
            "{text}"
        );
    }
}

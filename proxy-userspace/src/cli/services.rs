//! `beeline services`, from the maps alone.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::Args;
use proxy_common::abi::{
    Backend, BackendState, Frontend, FrontendFlags, FrontendKey, Protocol, ServiceCounters,
    ServiceName,
};
use serde::Serialize;

use super::progress::Progress;
use super::{Error, ReadArgs, print, table};
use crate::maps::Maps;

#[derive(Args, Debug)]
pub(super) struct ServicesArgs {
    #[command(flatten)]
    read: ReadArgs,
    /// Only Services whose `namespace/name:port` contains this.
    #[arg(long, value_name = "TEXT")]
    service: Option<String>,
}

/// A service port in one family.
#[derive(PartialEq, Eq, Serialize, Debug)]
struct ServiceView {
    /// `namespace/name:port`.
    service: String,
    protocol: &'static str,
    family: u8,
    /// Seconds; 0: none.
    affinity: u32,
    frontends: Vec<FrontendView>,
    /// Those of the service port that take no new flows.
    idle_backends: Vec<BackendView>,
    counters: CountersView,
}

#[derive(PartialEq, Eq, Serialize, Debug)]
struct FrontendView {
    address: String,
    port: u16,
    policy: &'static str,
    /// No endpoint anywhere: new connections are rejected.
    rejects: bool,
    backends: Vec<BackendView>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Debug)]
struct BackendView {
    address: String,
    port: u16,
    state: &'static str,
    local: bool,
}

#[derive(PartialEq, Eq, Default, Serialize, Debug)]
struct CountersView {
    flows: u64,
    packets: u64,
    bytes: u64,
    refused: u64,
}

/// Shows every Service.
pub(super) fn services(args: &ServicesArgs) -> Result<ExitCode, Error> {
    let maps = args.read.paths.maps()?;
    let mut services = read(&maps)?;
    if let Some(wanted) = &args.service {
        services.retain(|service| service.service.contains(wanted));
    }
    print(args.read.output, &services, |services| text(services));
    Ok(ExitCode::SUCCESS)
}

fn read(maps: &Maps) -> Result<Vec<ServiceView>, Error> {
    let mut progress = Progress::new("reading Services");
    let contents = maps.contents()?;
    let mut frontends: BTreeMap<u32, Vec<(FrontendKey, Frontend)>> = BTreeMap::new();
    for (key, frontend) in contents.frontends {
        frontends
            .entry(frontend.service)
            .or_default()
            .push((key, frontend));
    }
    let mut backends: BTreeMap<u32, Vec<(u32, Backend)>> = BTreeMap::new();
    for (id, backend) in (0..).zip(contents.backends) {
        if backend.state != BackendState::Gone as u8 {
            backends
                .entry(backend.service)
                .or_default()
                .push((id, backend));
        }
    }
    let mut views = Vec::new();
    for (id, name) in contents.services {
        progress.step();
        let service = ServiceMaps {
            frontends: frontends.remove(&id).unwrap_or_default(),
            backends: backends.remove(&id).unwrap_or_default(),
            slots: &contents.slots,
        };
        views.push(service.view(&name, maps.counters(id)?));
    }
    views.sort_by(|a, b| {
        (&a.service, a.protocol, a.family).cmp(&(&b.service, b.protocol, b.family))
    });
    Ok(views)
}

/// What the maps say of one service port.
struct ServiceMaps<'a> {
    frontends: Vec<(FrontendKey, Frontend)>,
    backends: Vec<(u32, Backend)>,
    slots: &'a [u32],
}

impl ServiceMaps<'_> {
    fn view(mut self, name: &ServiceName, counters: ServiceCounters) -> ServiceView {
        self.frontends.sort_by_key(|(key, _)| *key);
        let is_used = |id: &u32| {
            self.frontends
                .iter()
                .any(|(_, f)| self.block(f).contains(id))
        };
        let idle = self.backends.iter().filter(|(id, _)| !is_used(id));
        ServiceView {
            service: name.text().to_owned(),
            protocol: Protocol::from_number(name.protocol).map_or("?", Protocol::name),
            family: name.family,
            affinity: self
                .frontends
                .first()
                .map_or(0, |(_, f)| f.affinity_seconds),
            frontends: self
                .frontends
                .iter()
                .map(|(key, f)| self.frontend(key, f))
                .collect(),
            idle_backends: idle.map(|(_, backend)| backend_view(backend)).collect(),
            counters: CountersView {
                flows: counters.flows,
                packets: counters.packets,
                bytes: counters.bytes,
                refused: counters.refused,
            },
        }
    }

    fn frontend(&self, key: &FrontendKey, frontend: &Frontend) -> FrontendView {
        let is_local = frontend.flags.contains(FrontendFlags::LOCAL_ONLY);
        let known = |id: &u32| self.backends.iter().find(|(known, _)| known == id);
        let backends = self.block(frontend).iter().filter_map(known);
        FrontendView {
            address: key.addr.to_string(),
            port: key.port.number(),
            policy: if is_local { "local" } else { "cluster" },
            rejects: frontend.flags.contains(FrontendFlags::REJECT),
            backends: backends.map(|(_, backend)| backend_view(backend)).collect(),
        }
    }

    /// Ids of the backends that get new flows through `frontend`.
    fn block(&self, frontend: &Frontend) -> &[u32] {
        let first = frontend.first_slot as usize;
        let range = if frontend.flags.contains(FrontendFlags::LOCAL_ONLY) {
            first..first + frontend.n_local as usize
        } else {
            let first = first + frontend.cluster_offset as usize;
            first..first + frontend.n_cluster as usize
        };
        self.slots.get(range).unwrap_or_default()
    }
}

fn backend_view(backend: &Backend) -> BackendView {
    BackendView {
        address: backend.addr.to_string(),
        port: backend.port.number(),
        state: BackendState::from_number(backend.state).map_or("?", BackendState::name),
        local: backend.is_local != 0,
    }
}

/// `address:port`, with brackets around IPv6.
fn socket(address: &str, port: u16) -> String {
    if address.contains(':') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    }
}

fn text(services: &[ServiceView]) -> String {
    if services.is_empty() {
        return "no Services\n".to_owned();
    }
    let header = [
        "SERVICE", "PROTO", "FRONTEND", "BACKEND", "STATE", "WHERE", "FLOWS", "PACKETS", "BYTES",
        "REFUSED",
    ];
    let rows = services.iter().flat_map(rows).collect();
    table::render(&header, &[6, 7, 8, 9], rows)
}

/// A row for each backend of each frontend; what is as in the row above is left out.
fn rows(service: &ServiceView) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for frontend in &service.frontends {
        let mut dialled = socket(&frontend.address, frontend.port);
        if frontend.policy == "local" {
            dialled.push_str(" (local)");
        }
        if frontend.backends.is_empty() {
            let why = if frontend.rejects { "rejects" } else { "drops" };
            rows.push([
                dialled.clone(),
                "none".to_owned(),
                why.to_owned(),
                String::new(),
            ]);
        }
        for backend in &frontend.backends {
            rows.push(backend_row(std::mem::take(&mut dialled), backend));
        }
    }
    for backend in &service.idle_backends {
        rows.push(backend_row("no new flows".to_owned(), backend));
    }
    if rows.is_empty() {
        rows.push(std::array::from_fn(|_| String::new()));
    }
    let counters = &service.counters;
    let first = [service.service.clone(), service.protocol.to_owned()];
    let figures = [
        counters.flows.to_string(),
        counters.packets.to_string(),
        table::bytes(counters.bytes),
        counters.refused.to_string(),
    ];
    let blank = |n| vec![String::new(); n];
    let complete = |(index, row): (usize, [String; 4])| {
        let (before, after) = if index == 0 {
            (first.to_vec(), figures.to_vec())
        } else {
            (blank(2), blank(4))
        };
        [before, row.to_vec(), after].concat()
    };
    rows.into_iter().enumerate().map(complete).collect()
}

fn backend_row(frontend: String, backend: &BackendView) -> [String; 4] {
    let place = if backend.local { "local" } else { "remote" };
    [
        frontend,
        socket(&backend.address, backend.port),
        backend.state.to_owned(),
        place.to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proxy_common::abi::{Addr, Port};

    use super::*;

    fn backend(last: u8, state: BackendState, is_local: bool) -> Backend {
        Backend {
            addr: Ipv4Addr::new(10, 0, 0, last).into(),
            service: 1,
            generation: 1,
            port: Port::new(8080),
            state: state as u8,
            is_local: u8::from(is_local),
        }
    }

    fn frontend(flags: FrontendFlags) -> (FrontendKey, Frontend) {
        let addr: Addr = Ipv4Addr::new(10, 96, 0, 1).into();
        let key = FrontendKey::exact(addr, Port::new(80), Protocol::Tcp);
        let frontend = Frontend {
            service: 1,
            flags,
            first_slot: 1,
            n_local: 1,
            cluster_offset: 0,
            n_cluster: 2,
            affinity_seconds: 0,
        };
        (key, frontend)
    }

    fn view(flags: FrontendFlags) -> ServiceView {
        let maps = ServiceMaps {
            frontends: vec![frontend(flags)],
            backends: vec![
                (4, backend(4, BackendState::Active, true)),
                (5, backend(5, BackendState::Active, false)),
                (6, backend(6, BackendState::Terminating, false)),
            ],
            slots: &[9, 4, 5, 9],
        };
        let name = ServiceName::new("shop/web:http", 6, 4).unwrap();
        maps.view(
            &name,
            ServiceCounters {
                packets: 7,
                bytes: 2048,
                flows: 2,
                refused: 1,
            },
        )
    }

    #[test]
    fn a_service_is_read_from_the_maps() {
        let text = text(&[view(FrontendFlags::NONE)]);
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            lines[1],
            [
                "shop/web:http",
                "TCP",
                "10.96.0.1:80",
                "10.0.0.4:8080",
                "active",
                "local",
                "2",
                "7",
                "2.0",
                "KiB",
                "1"
            ]
        );
        assert_eq!(lines[2], ["10.0.0.5:8080", "active", "remote"]);
        assert_eq!(
            lines[3],
            [
                "no",
                "new",
                "flows",
                "10.0.0.6:8080",
                "terminating",
                "remote"
            ]
        );
        assert_eq!(lines.len(), 4);
    }

    #[test]
    fn a_local_policy_shows_local_backends_only() {
        let view = view(FrontendFlags::LOCAL_ONLY);
        assert_eq!(view.frontends[0].policy, "local");
        assert_eq!(view.frontends[0].backends.len(), 1);
        assert_eq!(view.idle_backends.len(), 2);
    }

    #[test]
    fn a_service_without_endpoints_says_what_clients_get() {
        let mut view = view(FrontendFlags::REJECT);
        view.frontends[0].backends.clear();
        assert!(text(&[view]).contains("none"));
    }

    #[test]
    fn addresses_of_ipv6_are_in_brackets() {
        assert_eq!(socket("fd00::1", 80), "[fd00::1]:80");
    }
}

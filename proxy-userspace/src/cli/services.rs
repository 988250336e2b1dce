//! `beeline services`, from the maps alone.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::Args;
use proxy_common::abi::{
    Backend, BackendFlags, BackendState, Frontend, FrontendFlags, FrontendKey, Protocol, Scope,
    ServiceCounters,
};
use serde::Serialize;

use super::progress::Progress;
use super::{Error, Paths, ReadArgs, print, table};
use crate::maps::Maps;

#[derive(Args, Debug)]
pub(super) struct ServicesArgs {
    #[command(flatten)]
    read: ReadArgs,
    /// Only Services whose `namespace/name:port` contains this.
    #[arg(long, value_name = "TEXT")]
    service: Option<String>,
}

/// A frontend, with what is known of its service port.
#[derive(PartialEq, Eq, Serialize, Debug)]
struct FrontendView {
    /// `namespace/name:port`.
    service: String,
    /// `0.0.0.0` or `::` if it is a NodePort.
    address: String,
    port: u16,
    protocol: &'static str,
    kind: &'static str,
    policy: &'static str,
    /// No endpoint anywhere: new connections are rejected.
    rejects: bool,
    /// Session affinity in seconds; 0: none.
    affinity: u32,
    /// Where new flows go.
    backends: Vec<BackendView>,
    /// Where new flows of pods and of this node go besides, if others get local backends only
    /// (rules R54, R55).
    inside: Vec<BackendView>,
    /// Where flows are that began earlier.
    draining: Vec<BackendView>,
    /// Of the service port, all its frontends together.
    flows: u64,
    packets: u64,
    bytes: u64,
    refused: u64,
}

#[derive(Clone, PartialEq, Eq, Serialize, Debug)]
struct BackendView {
    address: String,
    port: u16,
    state: &'static str,
    local: bool,
}

/// Shows every Service.
pub(super) fn services(paths: &Paths, args: &ServicesArgs) -> Result<ExitCode, Error> {
    let maps = paths.maps()?;
    let mut frontends = read(&maps)?;
    if let Some(wanted) = &args.service {
        frontends.retain(|frontend| frontend.service.contains(wanted));
    }
    print(args.read.output, &frontends, |frontends| text(frontends));
    Ok(ExitCode::SUCCESS)
}

fn read(maps: &Maps) -> Result<Vec<FrontendView>, Error> {
    let mut progress = Progress::new("reading Services");
    let contents = maps.contents()?;
    let mut frontends: BTreeMap<u32, Vec<(FrontendKey, Frontend)>> = BTreeMap::new();
    for (key, frontend) in contents.frontends {
        let of_service = frontends.entry(frontend.service).or_default();
        of_service.push((key, frontend));
    }
    let mut backends: BTreeMap<u32, Vec<(u32, Backend)>> = BTreeMap::new();
    for (id, backend) in (0..).zip(contents.backends) {
        if backend.state != BackendState::Gone as u8 {
            let of_service = backends.entry(backend.service).or_default();
            of_service.push((id, backend));
        }
    }
    let mut views = Vec::new();
    for (id, name) in contents.services {
        progress.step();
        let service = ServiceMaps {
            name: name.text(),
            frontends: frontends.remove(&id).unwrap_or_default(),
            backends: backends.remove(&id).unwrap_or_default(),
            slots: &contents.slots,
            counters: maps.counters(id)?,
        };
        views.extend(service.views());
    }
    views.sort_by(|a, b| {
        let key = |view: &FrontendView| (view.protocol, view.address.len(), view.port);
        (&a.service, key(a), &a.address).cmp(&(&b.service, key(b), &b.address))
    });
    Ok(views)
}

/// What the maps say of one service port.
struct ServiceMaps<'a> {
    name: &'a str,
    frontends: Vec<(FrontendKey, Frontend)>,
    backends: Vec<(u32, Backend)>,
    slots: &'a [u32],
    counters: ServiceCounters,
}

impl ServiceMaps<'_> {
    fn views(&self) -> impl Iterator<Item = FrontendView> {
        let frontends = self.frontends.iter();
        frontends.map(|(key, frontend)| self.view(key, frontend))
    }

    fn view(&self, key: &FrontendKey, frontend: &Frontend) -> FrontendView {
        let is_local = frontend.flags.contains(FrontendFlags::LOCAL_ONLY);
        let block = self.block(frontend);
        let known = |id: &u32| self.backends.iter().find(|(known, _)| known == id);
        let backends = block.iter().filter_map(known);
        let is_member = |backend: &Backend| {
            let sets = [BackendFlags::IN_LOCAL_SET, BackendFlags::IN_CLUSTER_SET];
            sets.into_iter().any(|set| backend.flags.contains(set))
        };
        let has_inside = is_local && frontend.flags.contains(FrontendFlags::EXTERNAL);
        let others = self.backends.iter().filter(|(id, _)| !block.contains(id));
        let (inside, draining): (Vec<_>, Vec<_>) =
            others.partition(|(_, backend)| is_member(backend));
        let inside = if has_inside { inside } else { Vec::new() };
        FrontendView {
            service: self.name.to_owned(),
            address: key.addr.to_string(),
            port: key.port.number(),
            protocol: Protocol::from_number(key.protocol).map_or("?", Protocol::name),
            kind: kind(key, frontend),
            policy: if is_local { "local" } else { "cluster" },
            rejects: frontend.flags.contains(FrontendFlags::REJECT),
            affinity: frontend.affinity_seconds,
            backends: backends.map(|(_, backend)| backend_view(backend)).collect(),
            inside: inside
                .into_iter()
                .map(|(_, it)| backend_view(&it))
                .collect(),
            draining: draining
                .into_iter()
                .map(|(_, it)| backend_view(&it))
                .collect(),
            flows: self.counters.flows,
            packets: self.counters.packets,
            bytes: self.counters.bytes,
            refused: self.counters.n_refused(),
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

fn kind(key: &FrontendKey, frontend: &Frontend) -> &'static str {
    if key.scope == Scope::NodePort as u8 {
        "node-port"
    } else if frontend.flags.contains(FrontendFlags::EXTERNAL) {
        "external"
    } else {
        "cluster-ip"
    }
}

fn backend_view(backend: &Backend) -> BackendView {
    BackendView {
        address: backend.addr.to_string(),
        port: backend.port.number(),
        state: BackendState::from_number(backend.state).map_or("?", BackendState::name),
        local: backend.flags.contains(BackendFlags::IS_LOCAL),
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

const HEADER: [&str; 10] = [
    "SERVICE", "PROTO", "FRONTEND", "BACKEND", "STATE", "WHERE", "FLOWS", "PACKETS", "BYTES",
    "REFUSED",
];

fn text(frontends: &[FrontendView]) -> String {
    if frontends.is_empty() {
        return "no Services\n".to_owned();
    }
    let rows = frontends.iter().flat_map(rows).collect();
    table::render(&HEADER, &[6, 7, 8, 9], rows)
}

/// A row for each backend; what is as in the row above is left out.
fn rows(frontend: &FrontendView) -> Vec<Vec<String>> {
    let mut dialled = socket(&frontend.address, frontend.port);
    let special = [
        (frontend.kind != "cluster-ip").then_some(frontend.kind),
        (frontend.policy == "local").then_some("local"),
    ];
    let special: Vec<_> = special.into_iter().flatten().collect();
    if !special.is_empty() {
        dialled.push_str(&format!(" ({})", special.join(", ")));
    }
    let mut backends: Vec<_> = frontend.backends.iter().map(backend_row).collect();
    if backends.is_empty() {
        let fate = if frontend.rejects { "rejects" } else { "drops" };
        backends.push(["none", fate, ""].map(str::to_owned));
    }
    let others = [
        (&frontend.inside, "from inside"),
        (&frontend.draining, "draining"),
    ];
    for (others, why) in others {
        backends.extend(others.iter().map(|backend| {
            let [address, state, place] = backend_row(backend);
            [address, format!("{state}, {why}"), place]
        }));
    }
    let blank = || vec![String::new(); 4];
    let mut rows = backends
        .into_iter()
        .map(|row| [blank()[..3].to_vec(), row.to_vec(), blank()].concat());
    let mut first = rows.next().unwrap_or_default();
    let left = [
        frontend.service.clone(),
        frontend.protocol.to_owned(),
        dialled,
    ];
    first[..3].clone_from_slice(&left);
    first[6..].clone_from_slice(&[
        frontend.flows.to_string(),
        frontend.packets.to_string(),
        table::bytes(frontend.bytes),
        frontend.refused.to_string(),
    ]);
    [first].into_iter().chain(rows).collect()
}

fn backend_row(backend: &BackendView) -> [String; 3] {
    let place = if backend.local { "local" } else { "remote" };
    [
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
            joined: 1,
            flags: match (state, is_local) {
                (BackendState::Active, true) => {
                    BackendFlags::IS_LOCAL.union(BackendFlags::IN_LOCAL_SET)
                }
                (BackendState::Active, false) => BackendFlags::IN_CLUSTER_SET,
                _ => BackendFlags::NONE,
            },
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

    fn view(flags: FrontendFlags, slots: &[u32]) -> FrontendView {
        let maps = ServiceMaps {
            name: "shop/web:http",
            frontends: vec![frontend(flags)],
            backends: vec![
                (4, backend(4, BackendState::Active, true)),
                (5, backend(5, BackendState::Active, false)),
                (6, backend(6, BackendState::Terminating, false)),
            ],
            slots,
            counters: ServiceCounters {
                packets: 7,
                bytes: 2048,
                flows: 2,
                refused: [1, 0, 0, 0, 0, 0],
            },
        };
        maps.views().next().unwrap()
    }

    #[test]
    fn a_service_is_read_from_the_maps() {
        let text = text(&[view(FrontendFlags::NONE, &[9, 4, 5, 9])]);
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        let first = "shop/web:http TCP 10.96.0.1:80 10.0.0.4:8080 active local 2 7 2.0 KiB 1";
        assert_eq!(lines[1].join(" "), first);
        assert_eq!(lines[2], ["10.0.0.5:8080", "active", "remote"]);
        assert_eq!(
            lines[3],
            ["10.0.0.6:8080", "terminating,", "draining", "remote"]
        );
        assert_eq!(lines.len(), 4);
    }

    #[test]
    fn a_local_policy_shows_local_backends_only() {
        let local = FrontendFlags::LOCAL_ONLY;
        let numbers = |view: &FrontendView| {
            [&view.backends, &view.inside, &view.draining].map(|backends| backends.len())
        };
        let of_cluster_ip = view(local, &[9, 4, 5, 9]);
        assert_eq!(of_cluster_ip.policy, "local");
        assert_eq!(numbers(&of_cluster_ip), [1, 0, 1]);
        let external = view(local.union(FrontendFlags::EXTERNAL), &[9, 4, 5, 9]);
        assert_eq!(numbers(&external), [1, 1, 1]);
        assert!(text(&[external]).contains("active, from inside"));
    }

    #[test]
    fn what_is_no_cluster_ip_says_what_it_is() {
        let (mut key, frontend) =
            frontend(FrontendFlags::EXTERNAL.union(FrontendFlags::LOCAL_ONLY));
        assert_eq!(kind(&key, &frontend), "external");
        key.scope = Scope::NodePort as u8;
        assert_eq!(kind(&key, &frontend), "node-port");
        let mut view = view(FrontendFlags::LOCAL_ONLY, &[9, 4, 5, 9]);
        assert!(text(std::slice::from_ref(&view)).contains("10.96.0.1:80 (local)"));
        view.kind = "external";
        assert!(text(&[view]).contains("10.96.0.1:80 (external, local)"));
    }

    #[test]
    fn a_service_without_endpoints_says_what_clients_get() {
        let text = |flags| text(&[view(flags, &[])]);
        assert!(text(FrontendFlags::REJECT).contains("rejects"));
        assert!(text(FrontendFlags::LOCAL_ONLY).contains("drops"));
    }

    #[test]
    fn addresses_of_ipv6_are_in_brackets() {
        assert_eq!(socket("fd00::1", 80), "[fd00::1]:80");
    }
}

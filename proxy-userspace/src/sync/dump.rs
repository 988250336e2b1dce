//! The maps' contents as text, for people and for tests.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use proxy_common::abi::{
    Addr, Backend, BackendState, Frontend, FrontendFlags, FrontendKey, Port, Protocol, Scope,
};

use super::actual::is_live;
use super::blocks::Block;
use super::target::Contents;

/// Writes the maps' contents down without ids: a line for each frontend, ordered by address.
///
/// ```text
/// 10.96.0.1:80/TCP shop/web:http local 10.0.0.1:8080 cluster 10.0.0.1:8080 10.0.1.1:8080
/// 10.96.0.2:53/UDP kube-system/dns:dns local-only affinity=60s local - cluster 10.0.1.2:53
/// 192.0.2.1:80/TCP shop/web:http external from=10.0.0.0/8 local 10.0.0.1:8080 cluster 10.0.0.1:8080 10.0.1.1:8080
/// IPv4-NodePort:30080/TCP shop/web:http external local 10.0.0.1:8080 cluster 10.0.0.1:8080 10.0.1.1:8080
/// 10.96.0.3:80/TCP shop/idle reject local - cluster - idle 10.0.1.4:80(not-ready)
/// ```
///
/// Backends stand in the order of their slots, those that get no new flows at the end. States
/// other than active are in brackets; what should not be there is marked with `!`.
pub fn dump(contents: &Contents) -> String {
    let mut frontends: Vec<_> = contents.frontends.iter().collect();
    frontends.sort_by_key(|(key, _)| {
        let ip = IpAddr::from(key.addr);
        (ip, key.port.number(), key.protocol, key.scope)
    });
    let by_service = live_backends(contents);
    let names: BTreeMap<_, _> = contents
        .services
        .iter()
        .map(|(id, name)| (*id, name))
        .collect();
    let mut text = String::new();
    for (key, value) in frontends {
        let name = names
            .get(&value.service)
            .map_or("!no-service", |name| name.text());
        text.push_str(&format!("{} {name}{}", describe(key), properties(value)));
        if value.flags.contains(FrontendFlags::SOURCE_RANGES) {
            text.push_str(&ranges(contents, value.service));
        }
        let block = Block::of(value);
        let ids = block.of_slots(&contents.slots).unwrap_or_default();
        let n_local = value.n_local as usize;
        push_set(&mut text, "local", ids.get(..n_local), contents);
        push_set(
            &mut text,
            "cluster",
            ids.get(value.cluster_offset as usize..),
            contents,
        );
        let own = by_service
            .get(&value.service)
            .map_or(&[][..], Vec::as_slice);
        let idle: Vec<u32> = own.iter().copied().filter(|id| !ids.contains(id)).collect();
        if !idle.is_empty() {
            push_set(&mut text, "idle", Some(&idle), contents);
        }
        text.push('\n');
    }
    text
}

/// ` from=10.0.0.0/8,192.0.2.0/24`.
fn ranges(contents: &Contents, service: u32) -> String {
    let own = contents
        .source_ranges
        .iter()
        .filter(|(owner, _)| *owner == service);
    let mut nets: Vec<_> = own.map(|(_, net)| *net).collect();
    nets.sort_unstable();
    let nets: Vec<_> = nets.iter().map(ToString::to_string).collect();
    format!(" from={}", nets.join(","))
}

/// `10.96.0.1:80/TCP`, or `IPv4-NodePort:30080/TCP`.
pub(super) fn describe(key: &FrontendKey) -> String {
    let socket = if key.scope == Scope::NodePort as u8 {
        format!("{}-NodePort:{}", key.addr.family(), key.port)
    } else {
        socket(key.addr, key.port).to_string()
    };
    match Protocol::from_number(key.protocol) {
        Some(protocol) => format!("{socket}/{protocol}"),
        None => format!("{socket}/{}", key.protocol),
    }
}

fn socket(addr: Addr, port: Port) -> SocketAddr {
    SocketAddr::new(addr.into(), port.number())
}

/// Backends of each service id, ordered by address and port.
fn live_backends(contents: &Contents) -> BTreeMap<u32, Vec<u32>> {
    let mut by_service: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    let mut live: Vec<_> = (0..)
        .zip(&contents.backends)
        .filter(|(_, backend)| is_live(backend))
        .collect();
    live.sort_by_key(|(id, backend)| (socket(backend.addr, backend.port), *id));
    for (id, backend) in live {
        by_service.entry(backend.service).or_default().push(id);
    }
    by_service
}

fn properties(value: &Frontend) -> String {
    let mut text = String::new();
    let flags = [
        (FrontendFlags::EXTERNAL, " external"),
        (FrontendFlags::LOCAL_ONLY, " local-only"),
        (FrontendFlags::REJECT, " reject"),
    ];
    for (flag, word) in flags {
        if value.flags.contains(flag) {
            text.push_str(word);
        }
    }
    if value.affinity_seconds > 0 {
        text.push_str(&format!(" affinity={}s", value.affinity_seconds));
    }
    text
}

fn push_set(text: &mut String, name: &str, ids: Option<&[u32]>, contents: &Contents) {
    text.push(' ');
    text.push_str(name);
    match ids {
        Some([]) => text.push_str(" -"),
        Some(ids) => ids.iter().for_each(|&id| {
            text.push(' ');
            text.push_str(&describe_backend(contents.backends.get(id as usize)));
        }),
        None => text.push_str(" !no-slots"),
    }
}

fn describe_backend(backend: Option<&Backend>) -> String {
    let Some(backend) = backend else {
        return "!no-backend".to_owned();
    };
    let socket = socket(backend.addr, backend.port);
    match BackendState::from_number(backend.state) {
        Some(BackendState::Active) => socket.to_string(),
        Some(state @ BackendState::Gone) => format!("!{socket}({})", state.name()),
        Some(state) => {
            format!("{socket}({})", state.name())
        }
        None => format!("!{socket}({})", backend.state),
    }
}

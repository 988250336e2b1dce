//! One test a rule of `desired`; for the endpoints' short form see [`build::endpoint`].

use std::collections::BTreeSet;

use beeline::desired::{DesiredBackend, DesiredFrontend, DesiredPort, compile};
use beeline::model::{EndpointSlice, Service, TrafficPolicy};
use beeline::node::GoneBackends;
use proxy_common::abi::{BackendFlags, BackendState, Family, FrontendFlags, Protocol};

use super::build::{self, Build, facts};

fn service(cluster_ips: &[&str]) -> Service {
    build::service("shop/web", &cluster_ips.join(" ")).ports("http:80/TCP")
}

fn slice(family: Family, endpoints: &[&str]) -> EndpointSlice {
    build::slice("shop/web-1", "shop/web", family, endpoints).ports("http:8080/TCP")
}

fn socket(backend: &DesiredBackend) -> String {
    std::net::SocketAddr::new(backend.addr.into(), backend.port.number()).to_string()
}

fn local(port: &DesiredPort) -> Vec<String> {
    port.backends[..port.n_local as usize]
        .iter()
        .map(socket)
        .collect()
}

fn cluster(port: &DesiredPort) -> Vec<String> {
    let first = port.cluster_offset as usize;
    port.backends[first..first + port.n_cluster as usize]
        .iter()
        .map(socket)
        .collect()
}

fn others(port: &DesiredPort) -> Vec<String> {
    port.backends[port.n_slots() as usize..]
        .iter()
        .map(socket)
        .collect()
}

fn rejects(port: &DesiredPort) -> bool {
    port.frontends
        .iter()
        .all(|frontend| frontend.flags.contains(FrontendFlags::REJECT))
}

/// Compiles one IPv4 port on a node in `zone`.
fn compile_in(zone: Option<&str>, endpoints: &[&str]) -> DesiredPort {
    let service = service(&["10.96.0.1"]);
    let mut ports = compile(&service, &[slice(Family::Ipv4, endpoints)], &facts(zone));
    assert_eq!(ports.len(), 1);
    ports.remove(0)
}

fn assert_sets(port: &DesiredPort, local_ips: &[&str], cluster_ips: &[&str]) {
    let with_port = |ips: &[&str]| {
        ips.iter()
            .map(|ip| format!("{ip}:8080"))
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(
        BTreeSet::from_iter(local(port)),
        with_port(local_ips),
        "local set"
    );
    assert_eq!(
        BTreeSet::from_iter(cluster(port)),
        with_port(cluster_ips),
        "cluster set"
    );
}

#[test]
fn r6_a_family_exists_only_with_a_cluster_ip_of_its_own() {
    let slices = [
        slice(Family::Ipv4, &["10.0.0.1"]),
        slice(Family::Ipv6, &["fd00::1"]),
    ];
    let families = |ips: &[&str]| {
        let ports = compile(&service(ips), &slices, &facts(None));
        ports
            .iter()
            .map(|port| (port.family, cluster(port)))
            .collect::<Vec<_>>()
    };
    let v4 = (Family::Ipv4, vec!["10.0.0.1:8080".to_owned()]);
    let v6 = (Family::Ipv6, vec!["[fd00::1]:8080".to_owned()]);
    assert_eq!(families(&["fd00:96::1"]), std::slice::from_ref(&v6));
    assert_eq!(families(&["fd00:96::1", "10.96.0.1"]), [v4, v6]);
    assert_eq!(families(&[]), []);
}

#[test]
fn r21_an_address_of_the_other_family_is_ignored() {
    assert_sets(
        &compile_in(None, &["fd00::1", "10.0.0.1"]),
        &[],
        &["10.0.0.1"],
    );
    let slices = [slice(Family::Ipv6, &["10.0.0.9", "::ffff:10.0.0.9"])];
    let ports = compile(&service(&["fd00:96::1"]), &slices, &facts(None));
    assert!(ports[0].backends.is_empty() && rejects(&ports[0]));
}

#[test]
fn r10_r11_ports_match_by_name_and_protocol() {
    let mut service = service(&["10.96.0.1"]);
    service.ports.clear();
    let service = service.ports("dns:53/UDP dns:53/TCP metrics:9153/TCP");
    let mut slice = slice(Family::Ipv4, &["10.0.0.1"]);
    slice.ports.clear();
    let slice = slice.ports("dns:1053/UDP dns:2053/TCP");
    let ports = compile(&service, &[slice], &facts(None));
    assert_eq!(cluster(&ports[0]), ["10.0.0.1:1053"]);
    assert_eq!(cluster(&ports[1]), ["10.0.0.1:2053"]);
    assert!(cluster(&ports[2]).is_empty() && rejects(&ports[2]));
    let keys: BTreeSet<_> = ports
        .iter()
        .flat_map(|port| &port.frontends)
        .map(|f| f.key)
        .collect();
    assert_eq!(keys.len(), 3);
}

#[test]
fn r12_the_number_is_each_slices_own() {
    let mut other = slice(Family::Ipv4, &["10.0.0.1", "10.0.0.2"]);
    other.ports[0].port = 9090;
    let slices = [slice(Family::Ipv4, &["10.0.0.1"]), other];
    let ports = compile(&service(&["10.96.0.1"]), &slices, &facts(None));
    assert_eq!(
        cluster(&ports[0]),
        ["10.0.0.1:8080", "10.0.0.1:9090", "10.0.0.2:9090"]
    );
}

#[test]
fn r13_the_unnamed_port_matches_the_unnamed_port() {
    let mut service = service(&["10.96.0.1"]);
    service.ports[0].name = "".into();
    let named = slice(Family::Ipv4, &["10.0.0.1"]);
    let mut unnamed = slice(Family::Ipv4, &["10.0.0.2"]);
    unnamed.ports[0].name = "".into();
    let ports = compile(&service, &[named, unnamed], &facts(None));
    assert_sets(&ports[0], &[], &["10.0.0.2"]);
}

#[test]
fn of_two_ports_with_the_same_name_or_number_the_first_counts() {
    let mut service = service(&["10.96.0.1"]);
    service.ports.clear();
    let service = service.ports("http:80/TCP http:81/TCP web:80/TCP late:81/TCP http:80/UDP");
    let ports = compile(&service, &[], &facts(None));
    let names: Vec<_> = ports
        .iter()
        .map(|port| (&*port.name, port.protocol))
        .collect();
    assert_eq!(
        names,
        [
            ("http", Protocol::Tcp),
            ("late", Protocol::Tcp),
            ("http", Protocol::Udp)
        ]
    );
}

#[test]
fn r22_an_endpoint_listed_twice_counts_once() {
    let slices = [
        slice(Family::Ipv4, &["10.0.0.1", "10.0.0.2"]),
        slice(Family::Ipv4, &["10.0.0.2", "10.0.0.3"]),
    ];
    let ports = compile(&service(&["10.96.0.1"]), &slices, &facts(None));
    assert_eq!(
        cluster(&ports[0]),
        ["10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8080"]
    );
}

#[test]
fn r23_an_entry_that_is_not_terminating_wins_in_either_order() {
    for lines in [
        ["10.0.0.1 terminating", "10.0.0.1"],
        ["10.0.0.1", "10.0.0.1 terminating"],
    ] {
        let port = compile_in(None, &lines);
        assert_eq!(port.backends.len(), 1);
        assert_eq!(port.backends[0].state, BackendState::Active);
    }
    for lines in [
        ["10.0.0.1 leaving", "10.0.0.1 unready"],
        ["10.0.0.1 unready", "10.0.0.1 leaving"],
    ] {
        assert_eq!(
            compile_in(None, &lines).backends[0].state,
            BackendState::NotReady
        );
    }
}

#[test]
fn r25_local_is_who_names_this_node() {
    let port = compile_in(None, &["10.0.0.1@here", "10.0.0.2@Here", "10.0.0.3"]);
    assert_sets(&port, &["10.0.0.1"], &["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
    let locals: Vec<_> = port
        .backends
        .iter()
        .map(|backend| backend.is_local)
        .collect();
    assert_eq!(locals, [true, false, false]);
}

#[test]
fn r31_without_a_ready_endpoint_terminating_ones_stand_in() {
    let port = compile_in(
        Some("a"),
        &["10.0.0.1 terminating zone=b", "10.0.0.2 unready"],
    );
    assert_sets(&port, &[], &["10.0.0.1"]);
    assert!(!rejects(&port));
    let port = compile_in(None, &["10.0.0.1 terminating", "10.0.0.2"]);
    assert_sets(&port, &[], &["10.0.0.2"]);
    assert_eq!(others(&port), ["10.0.0.1:8080"]);
}

#[test]
fn r32_r33_r39_the_local_set_falls_back_on_its_own() {
    let port = compile_in(None, &["10.0.0.1@here terminating", "10.0.0.2@there"]);
    assert_sets(&port, &["10.0.0.1"], &["10.0.0.2"]);
    let port = compile_in(None, &["10.0.0.1@here terminating", "10.0.0.2@here"]);
    assert_sets(&port, &["10.0.0.2"], &["10.0.0.2"]);
    let port = compile_in(None, &["10.0.0.1@here unready", "10.0.0.2@there"]);
    assert_sets(&port, &[], &["10.0.0.2"]);
}

#[test]
fn r34_r71_what_is_neither_ready_nor_serving_its_end_is_never_used() {
    let port = compile_in(
        None,
        &["10.0.0.1 unready", "10.0.0.2 terminating unserving"],
    );
    assert_sets(&port, &[], &[]);
    assert!(rejects(&port));
    assert_eq!(
        others(&port),
        ["10.0.0.1:8080", "10.0.0.2:8080"],
        "they keep their flows"
    );
    let states: Vec<_> = port.backends.iter().map(|it| it.state).collect();
    assert_eq!(states, [BackendState::NotReady, BackendState::NotServing]);
}

#[test]
fn r38_ready_counts_even_while_terminating() {
    let port = compile_in(None, &["10.0.0.1 leaving", "10.0.0.2 leaving unserving"]);
    assert_sets(&port, &[], &["10.0.0.1", "10.0.0.2"]);
    assert!(
        port.backends
            .iter()
            .all(|backend| backend.state == BackendState::Active)
    );
}

#[test]
fn r35_r52_r66_local_policy_without_local_endpoints_drops_but_does_not_reject() {
    let mut service = service(&["10.96.0.1"]);
    service.internal_policy = TrafficPolicy::Local;
    let flags = |endpoints: &[&str]| {
        let ports = compile(&service, &[slice(Family::Ipv4, endpoints)], &facts(None));
        assert!(local(&ports[0]).is_empty());
        ports[0].frontends[0].flags
    };
    assert_eq!(flags(&["10.0.0.1@there"]), FrontendFlags::LOCAL_ONLY);
    assert_eq!(
        flags(&["10.0.0.1@there terminating"]),
        FrontendFlags::LOCAL_ONLY
    );
    let both = FrontendFlags::LOCAL_ONLY.union(FrontendFlags::REJECT);
    assert_eq!(flags(&[]), both);
    assert_eq!(flags(&["10.0.0.1@here unready"]), both);
}

#[test]
fn r40_node_hints_come_first() {
    let port = compile_in(
        Some("a"),
        &["10.0.0.1 node=here zone=b", "10.0.0.2 node=there zone=a"],
    );
    assert_sets(&port, &[], &["10.0.0.1"]);
    let port = compile_in(None, &["10.0.0.1 node=here", "10.0.0.2 node=there"]);
    assert_sets(&port, &[], &["10.0.0.1"]);
}

#[test]
fn r41_zone_hints_come_next() {
    let port = compile_in(
        Some("a"),
        &[
            "10.0.0.1 node=x zone=b",
            "10.0.0.2 node=there zone=a",
            "10.0.0.3 zone=a",
        ],
    );
    assert_sets(&port, &[], &["10.0.0.2", "10.0.0.3"]);
}

#[test]
fn r42_one_missing_hint_switches_its_kind_off() {
    let port = compile_in(Some("a"), &["10.0.0.1 zone=a", "10.0.0.2"]);
    assert_sets(&port, &[], &["10.0.0.1", "10.0.0.2"]);
    let port = compile_in(Some("c"), &["10.0.0.1 zone=a", "10.0.0.2 zone=b"]);
    assert_sets(&port, &[], &["10.0.0.1", "10.0.0.2"]);
    let port = compile_in(Some("a"), &["10.0.0.1 node=here zone=b", "10.0.0.2 zone=a"]);
    assert_sets(&port, &[], &["10.0.0.2"]);
}

#[test]
fn r43_only_ready_endpoints_judge_hints() {
    let port = compile_in(
        Some("a"),
        &[
            "10.0.0.1 unready zone=a",
            "10.0.0.2 zone=b",
            "10.0.0.3 terminating",
            "10.0.0.4 zone=c",
        ],
    );
    assert_sets(&port, &[], &["10.0.0.2", "10.0.0.4"]);
    let port = compile_in(
        Some("a"),
        &["10.0.0.1 zone=a", "10.0.0.2 zone=b", "10.0.0.3 unready"],
    );
    assert_sets(&port, &[], &["10.0.0.1"]);
}

#[test]
fn r48_no_zone_or_an_empty_one_is_no_zone() {
    for zone in [None, Some("")] {
        let port = compile_in(zone, &["10.0.0.1 zone=a", "10.0.0.2 zone="]);
        assert_sets(&port, &[], &["10.0.0.1", "10.0.0.2"]);
    }
}

#[test]
fn r49_an_endpoint_may_have_several_hints() {
    let port = compile_in(
        Some("b"),
        &["10.0.0.1 zone=a zone=b", "10.0.0.2 zone=a zone=c"],
    );
    assert_sets(&port, &[], &["10.0.0.1"]);
}

#[test]
fn r45_without_the_gate_only_zones_count() {
    let endpoints = ["10.0.0.1 node=here zone=b", "10.0.0.2 node=there zone=a"];
    let service = service(&["10.96.0.1"]);
    let mut facts = facts(Some("a"));
    facts.same_node_hints = false;
    let ports = compile(&service, &[slice(Family::Ipv4, &endpoints)], &facts);
    assert_sets(&ports[0], &[], &["10.0.0.2"]);
}

#[test]
fn r141_r143_who_does_not_serve_matters_only_if_another_does() {
    use BackendState::{Active, NotReady, NotServing, Terminating};
    for (endpoints, states) in [
        (
            ["unready unserving", "unready unserving"],
            [NotReady, NotReady],
        ),
        (["unready unserving", "unready"], [NotServing, NotReady]),
        (
            ["unready unserving", "terminating"],
            [NotServing, Terminating],
        ),
        (["terminating unserving", "leaving"], [NotServing, Active]),
        (
            ["terminating unserving", "unready unserving"],
            [NotReady, NotReady],
        ),
        // It gets new flows, so nothing is gained by moving those that it has.
        (["leaving unserving", "leaving"], [Active, Active]),
    ] {
        let lines = [
            format!("10.0.0.1 {}", endpoints[0]),
            format!("10.0.0.2 {}", endpoints[1]),
        ];
        let mut backends = compile_in(None, &lines.each_ref().map(String::as_str)).backends;
        backends.sort_by_key(|backend| backend.addr);
        let found: Vec<_> = backends.iter().map(|it| it.state).collect();
        assert_eq!(found, states, "{endpoints:?}");
    }
}

/// The frontends of the first port, `address:port flags`, NodePorts at the unspecified address.
fn frontends(service: &Service, endpoints: &[&str]) -> Vec<String> {
    let ports = compile(service, &[slice(Family::Ipv4, endpoints)], &facts(None));
    let line = |frontend: &DesiredFrontend| {
        let names = [
            (FrontendFlags::EXTERNAL, " external"),
            (FrontendFlags::LOCAL_ONLY, " local"),
            (FrontendFlags::REJECT, " reject"),
            (FrontendFlags::SOURCE_RANGES, " ranges"),
        ];
        let set = names
            .iter()
            .filter(|(flag, _)| frontend.flags.contains(*flag));
        let flags: String = set.map(|(_, name)| *name).collect();
        format!("{}:{}{flags}", frontend.key.addr, frontend.key.port)
    };
    ports[0].frontends.iter().map(line).collect()
}

#[test]
fn r52_r53_r65_each_frontend_has_the_policy_of_its_kind() {
    let mut service = service(&["10.96.0.1"]);
    service.ports[0].node_port = Some(30080);
    service.external_ips = build::ips("192.0.2.1");
    service.load_balancer_ips = build::ips("192.0.2.2");
    for (internal, external, cluster_ip, outside) in [
        (TrafficPolicy::Cluster, TrafficPolicy::Cluster, "", ""),
        (TrafficPolicy::Local, TrafficPolicy::Cluster, " local", ""),
        (TrafficPolicy::Cluster, TrafficPolicy::Local, "", " local"),
    ] {
        (service.internal_policy, service.external_policy) = (internal, external);
        for (endpoint, fate) in [("10.0.0.1@there", ""), ("10.0.0.1@here unready", " reject")] {
            let expected = [
                format!("10.96.0.1:80{cluster_ip}{fate}"),
                format!("192.0.2.2:80 external{outside}{fate}"),
                format!("192.0.2.1:80 external{outside}{fate}"),
                format!("0.0.0.0:30080 external{outside}{fate}"),
            ];
            assert_eq!(frontends(&service, &[endpoint]), expected);
        }
    }
}

#[test]
fn an_address_in_several_roles_is_a_cluster_ip_before_a_vip_before_an_external_ip() {
    let mut service = service(&["10.96.0.1"]);
    service.external_ips = build::ips("192.0.2.1 192.0.2.1 10.96.0.1 192.0.2.2");
    service.load_balancer_ips = build::ips("10.96.0.1 192.0.2.2 192.0.2.2");
    service.source_ranges = build::nets("10.0.0.0/8");
    assert_eq!(
        frontends(&service, &["10.0.0.1"]),
        [
            "10.96.0.1:80",
            "192.0.2.2:80 external ranges",
            "192.0.2.1:80 external"
        ]
    );
}

#[test]
fn r6_r152_r153_a_family_without_cluster_ip_has_nothing_from_outside() {
    let mut service = service(&["10.96.0.1"]);
    service.ports[0].node_port = Some(30080);
    service.external_ips = build::ips("2001:db8::1");
    service.load_balancer_ips = build::ips("2001:db8::2");
    service.source_ranges = build::nets("2001:db8::/32");
    assert_eq!(
        frontends(&service, &["10.0.0.1"]),
        ["10.96.0.1:80", "0.0.0.0:30080 external"]
    );
    service.cluster_ips = build::ips("fd00:96::1");
    assert_eq!(
        frontends(&service, &[]),
        [
            "fd00:96::1:80 reject",
            "2001:db8::2:80 external reject ranges",
            "2001:db8::1:80 external reject",
            ":::30080 external reject",
        ]
    );
}

#[test]
fn r102_r105_source_ranges_are_of_the_family_and_only_for_vips() {
    let mut service = service(&["10.96.0.1", "fd00:96::1"]);
    let mut facts = facts(None);
    facts.primary = build::ips("192.0.2.9 2001:db8::9");
    let ranges = |service: &Service| {
        let ports = compile(service, &[], &facts);
        let text = |port: &DesiredPort| {
            let ranges = port.source_ranges.iter().map(ToString::to_string);
            ranges.collect::<Vec<_>>().join(" ")
        };
        ports.iter().map(text).collect::<Vec<_>>()
    };
    service.source_ranges = build::nets("203.0.113.7/24 192.0.2.0/28 192.0.2.0/28");
    assert_eq!(ranges(&service), ["", ""]);
    service.load_balancer_ips = build::ips("198.51.100.1 2001:db8::1");
    assert_eq!(
        ranges(&service),
        ["192.0.2.0/28 198.51.100.1/32 203.0.113.0/24", ""]
    );
    service.source_ranges = build::nets("203.0.113.0/24 fd00::/8");
    assert_eq!(ranges(&service), ["203.0.113.0/24", "fd00::/8"]);
    service.source_ranges = build::nets("0.0.0.0/0 2001:db8::9/128");
    assert_eq!(
        ranges(&service),
        [
            "0.0.0.0/0 198.51.100.1/32",
            "2001:db8::1/128 2001:db8::9/128"
        ]
    );
}

#[test]
fn both_sets_are_contiguous_in_one_block() {
    let port = compile_in(
        Some("a"),
        &[
            "10.0.0.1@there zone=a",
            "10.0.0.2@here zone=b",
            "10.0.0.3@here zone=a",
            "10.0.0.4@there zone=b",
            "10.0.0.5@there unready",
        ],
    );
    assert_sets(&port, &["10.0.0.2", "10.0.0.3"], &["10.0.0.1", "10.0.0.3"]);
    let sockets: Vec<_> = port.backends.iter().map(socket).collect();
    let expected = ["10.0.0.2", "10.0.0.3", "10.0.0.1", "10.0.0.4", "10.0.0.5"];
    assert_eq!(sockets, expected.map(|ip| format!("{ip}:8080")));
    assert_eq!(
        (port.n_local, port.cluster_offset, port.n_cluster),
        (2, 1, 2)
    );
    assert_eq!(port.n_slots(), 3);
    let (local, cluster, here) = (
        BackendFlags::IN_LOCAL_SET,
        BackendFlags::IN_CLUSTER_SET,
        BackendFlags::IS_LOCAL,
    );
    let flags: Vec<_> = (0..5).map(|index| port.backend_flags(index)).collect();
    let both = here.union(local).union(cluster);
    let none = BackendFlags::NONE;
    assert_eq!(flags, [here.union(local), both, cluster, none, none]);
}

#[test]
fn what_a_service_says_of_gone_backends_is_noted_at_each() {
    let mut service = service(&["10.96.0.1"]);
    let slice = slice(Family::Ipv4, &["10.0.0.1"]);
    for (word, expected) in [
        (None, BackendFlags::NONE),
        (Some(GoneBackends::Reset), BackendFlags::RESET_WHEN_GONE),
        (Some(GoneBackends::Keep), BackendFlags::KEEP_WHEN_GONE),
    ] {
        service.gone_backends = word;
        let port = &compile(&service, std::slice::from_ref(&slice), &facts(None))[0];
        let flags = port.backend_flags(0);
        assert_eq!(flags.when_gone(), expected);
        assert!(flags.contains(BackendFlags::IN_CLUSTER_SET));
    }
}

#[test]
fn r111_affinity_seconds_are_handed_on() {
    let mut service = service(&["10.96.0.1"]);
    let seconds = |service: &Service| compile(service, &[], &facts(None))[0].affinity_seconds;
    assert_eq!(seconds(&service), 0);
    service.affinity_seconds = Some(10_800);
    assert_eq!(seconds(&service), 10_800);
}

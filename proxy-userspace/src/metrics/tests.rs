mod documents;
#[path = "../../tests/support/exposition.rs"]
mod exposition;
mod promql;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proxy_common::abi::{Protocol, ServiceName, Verdict};

use self::exposition::Text;
use super::*;
use crate::desired::{DesiredPort, NodeFacts, compile};
use crate::model::{
    Endpoint, EndpointSlice, ObjectName, Service, ServicePort, SlicePort,
    TrafficPolicy::{self, Cluster, Local},
};
use crate::sync::Capacity;

/// The names of all labels but that of buckets.
fn label_names(family: &exposition::Family) -> BTreeSet<String> {
    let names = family.samples.iter().flat_map(|it| it.labels.keys());
    names.filter(|name| *name != "le").cloned().collect()
}

fn object(name: &str) -> ObjectName {
    ObjectName {
        namespace: "shop".into(),
        name: name.into(),
    }
}

fn service(internal: TrafficPolicy, external: TrafficPolicy) -> Service {
    Service {
        name: object("web"),
        cluster_ips: vec![IpAddr::from([172, 30, 1, 1])],
        ports: vec![ServicePort {
            name: "".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: Some(30123),
        }],
        internal_policy: internal,
        external_policy: external,
        external_ips: vec![IpAddr::from([192, 0, 2, 1])],
        load_balancer_ips: vec![],
        source_ranges: vec![],
        affinity_seconds: None,
        gone_backends: None,
        health_check_node_port: Some(30123),
    }
}

/// One endpoint on each of these nodes.
fn slice(nodes: &[&'static str]) -> EndpointSlice {
    let endpoint = |(n, &node): (u8, &&'static str)| Endpoint {
        address: IpAddr::from([10, 0, 1, n]),
        ready: true,
        serving: true,
        terminating: false,
        node: Some(node.into()),
        hints: None,
    };
    EndpointSlice {
        name: object("web-1"),
        service: object("web"),
        family: Family::Ipv4,
        ports: vec![SlicePort {
            name: "".into(),
            protocol: Protocol::Tcp,
            port: 80,
        }],
        endpoints: (1..).zip(nodes).map(endpoint).collect(),
        changed_at: Default::default(),
    }
}

fn ports(
    internal: TrafficPolicy,
    external: TrafficPolicy,
    nodes: &[&'static str],
) -> Vec<DesiredPort> {
    compile(&service(internal, external), &[slice(nodes)], &here())
}

fn here() -> NodeFacts {
    NodeFacts {
        name: "here".into(),
        zone: None,
        primary: vec![],
        same_node_hints: true,
    }
}

fn counts(ports: &[DesiredPort]) -> (u32, u32) {
    let of_family = no_local(ports).of(Family::Ipv4);
    assert_eq!(
        no_local(ports).of(Family::Ipv6),
        NoLocal::default().of(Family::Ipv6)
    );
    (of_family.internal, of_family.external)
}

#[test]
fn r176_ports_without_a_local_endpoint_count_by_policy() {
    let away = &["node0", "node1", "node2"];
    assert_eq!(counts(&ports(Local, Cluster, away)), (1, 0));
    // Two frontends, but one port.
    assert_eq!(counts(&ports(Cluster, Local, away)), (0, 1));
    assert_eq!(counts(&ports(Local, Local, away)), (1, 1));
    assert_eq!(counts(&ports(Cluster, Cluster, away)), (0, 0));
    let some_here = &["here", "node1", "node2"];
    assert_eq!(counts(&ports(Local, Local, some_here)), (0, 0));
}

#[test]
fn r176_ports_without_any_endpoint_do_not_count() {
    assert_eq!(counts(&ports(Local, Local, &[])), (0, 0));
}

#[test]
fn r37_without_an_external_address_its_policy_means_nothing() {
    let mut service = service(Cluster, Local);
    service.ports[0].node_port = None;
    service.external_ips.clear();
    let ports = compile(&service, &[slice(&["away"])], &here());
    assert_eq!(counts(&ports), (0, 0));
}

#[test]
fn totals_follow_each_service() {
    let one = no_local(&ports(Local, Cluster, &["away"]));
    let internal = |totals: &NoLocalTotals| totals.total().of(Family::Ipv4).internal;
    let mut totals = NoLocalTotals::default();
    totals.set(&object("a"), one);
    totals.set(&object("b"), one);
    totals.set(&object("b"), one);
    assert_eq!(internal(&totals), 2);
    totals.set(&object("a"), NoLocal::default());
    assert_eq!(internal(&totals), 1);
    totals.set(&object("b"), NoLocal::default());
    assert_eq!(totals.total(), NoLocal::default());
}

/// Everything has a value, and every row that there may be.
pub(super) fn filled() -> Arc<Metrics> {
    let metrics = Metrics::new();
    metrics.set_no_local(no_local(&ports(Local, Cluster, &["away"])));
    metrics.count_probe(Probe::Healthz, StatusCode::OK);
    metrics.count_probe(Probe::Livez, StatusCode::SERVICE_UNAVAILABLE);
    metrics.count_change(Change::Service);
    metrics.set_pending(Change::Endpoints, 3);
    let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_500);
    metrics.queued(now);
    for is_full in [true, false] {
        let synced = Synced {
            took: Duration::from_millis(3),
            is_full,
            n_writes: 7,
            n_pending: 2,
            is_success: true,
        };
        metrics.synced(&synced, now);
    }
    metrics.programmed(Family::Ipv6, Duration::from_millis(700));
    metrics.set_configured(now);
    metrics.set_socket_edge(&SocketEdgeView {
        serves: "all".to_owned(),
        is_attached: true,
    });
    let problem = |subject: &str| Problem {
        subject: subject.to_owned(),
        message: String::new(),
    };
    metrics.set_problems(&["Service a/b", "Service a/c", "what?"].map(problem));
    let mut source = SourceState::new(["services"], std::time::Instant::now());
    for state in source.resources.values_mut() {
        state.is_connected = true;
    }
    metrics.watch_source(watch::channel(source).1);
    metrics.set_in_force(true);
    metrics.watch_parted(watch::channel(Counts::default()).1);
    let room = Capacity {
        frontends: 1,
        slots: 2,
        backends: 3,
        services: 4,
        addresses: 5,
        source_ranges: 6,
    };
    metrics.set_fill(Fill {
        used: room,
        capacity: room,
    });
    metrics.watch_passes(watch::channel(Some(passed())).1);
    metrics.set_readings(readings());
    metrics
}

fn passed() -> Passed {
    Passed {
        at: std::time::Instant::now(),
        n_records: 8,
        capacity: 16,
        by_state: std::array::from_fn(|state| state as u64),
        n_expired_flows: 1,
        n_expired_affinities: 2,
    }
}

/// Of three service ports, one has no row of its own.
fn readings() -> Readings {
    let mut rows = Rows::new(2);
    let port = |(n, name): (u64, &str)| {
        let name = ServiceName::new(name, 6, 4).unwrap();
        let totals = Totals {
            packets: 10 * n,
            bytes: 1_000 * n,
            connections: n,
            refused: [n; 6],
        };
        (Key::new(&name), totals)
    };
    let names = ["shop/web:http", "shop/web", "default/kubernetes:https"];
    rows.update((1..).zip(names).map(port).collect());
    let map = MapCount {
        name: "SOCKETS",
        entries: Some((5, std::time::Instant::now())),
        capacity: 9,
    };
    Readings {
        rows,
        verdicts: Verdict::all().map(|verdict| (verdict, 1)).collect(),
        maps: vec![map],
        n_failures: 0,
        took: Duration::from_millis(2),
    }
}

#[test]
fn both_formats_are_valid_and_say_the_same() {
    let metrics = filled();
    let open = exposition::read(&metrics.text_as(Format::OpenMetrics), Text::OpenMetrics);
    let plain = exposition::read(&metrics.text_as(Format::Plain), Text::Plain);
    let samples = |families: &BTreeMap<String, exposition::Family>| -> Vec<_> {
        let mut all: Vec<_> = families
            .values()
            .flat_map(|family| &family.samples)
            .map(|it| (it.name.clone(), it.labels.clone()))
            .map(|(name, mut labels)| {
                if let Some(bound) = labels.get_mut("le") {
                    *bound = bound.trim_end_matches(".0").to_owned();
                }
                (name, labels)
            })
            .collect();
        all.sort();
        all
    };
    assert_eq!(samples(&open), samples(&plain));
    let all = plain.values().chain(open.values());
    for family in all {
        assert!(!family.samples.is_empty(), "{} has no row", family.name);
    }
    // And so is one that knows nothing yet.
    let nothing = Metrics::new();
    let _open = exposition::read(&nothing.text_as(Format::OpenMetrics), Text::OpenMetrics);
    let _plain = exposition::read(&nothing.text_as(Format::Plain), Text::Plain);
}

#[test]
fn label_values_are_escaped() {
    let metrics = Metrics::new();
    let serves = "a \\ \"b\"\nc";
    metrics.set_socket_edge(&SocketEdgeView {
        serves: serves.to_owned(),
        is_attached: false,
    });
    let families = exposition::read(&metrics.text_as(Format::Plain), Text::Plain);
    let labels = [("serves", serves)];
    let value = exposition::value(&families, "beeline_socket_edge_attached", &labels);
    assert_eq!(value, Some(0.0));
}

#[test]
fn r175_names_labels_and_buckets_are_kube_proxys() {
    let families = exposition::read(&filled().text_as(Format::Plain), Text::Plain);
    let value = |name: &str, labels: &[_]| exposition::value(&families, name, labels).unwrap();
    let family = |name: &str| &families[&format!("kubeproxy_{name}")];
    let by_family = BTreeSet::from(["ip_family".to_owned()]);
    let bounds = |name: &str| -> Vec<String> {
        let first = family(name).samples.iter().filter(|it| {
            it.labels.get("ip_family").is_some_and(|it| it == "IPv4") && it.name.ends_with("bucket")
        });
        first.map(|it| it.labels["le"].clone()).collect()
    };
    let sync = bounds("sync_proxy_rules_duration_seconds");
    assert_eq!((sync.len(), &*sync[0], &*sync[14]), (16, "0.001", "16.384"));
    let programming = bounds("network_programming_duration_seconds");
    assert_eq!(programming.len(), 81);
    let some = [0, 1, 2, 60, 61, 72, 73, 74, 79].map(|n| &*programming[n]);
    let expected = ["0.25", "0.5", "1", "59", "60", "115", "120", "150", "300"];
    assert_eq!(some, expected);
    for name in ["sync", "sync_full", "sync_partial"] {
        let name = format!("{name}_proxy_rules_duration_seconds");
        assert_eq!(label_names(family(&name)), by_family);
        let count = format!("kubeproxy_{name}_count");
        let expected = if name.starts_with("sync_proxy") {
            2.0
        } else {
            1.0
        };
        assert_eq!(value(&count, &[("ip_family", "IPv6")]), expected);
    }
    for name in ["last_queued_timestamp", "last_timestamp"] {
        let name = format!("kubeproxy_sync_proxy_rules_{name}_seconds");
        assert_eq!(value(&name, &[("ip_family", "IPv4")]), 1.5);
    }
    let no_local = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
    let labels = [("ip_family", "IPv4"), ("traffic_policy", "internal")];
    assert_eq!(value(no_local, &labels), 1.0);
    assert_eq!(families[no_local].kind, "gauge");
    for (name, labels, expected) in [
        ("proxy_healthz_total", &[("code", "200")][..], 1.0),
        ("proxy_healthz_total", &[("code", "503")], 0.0),
        ("proxy_livez_total", &[("code", "503")], 1.0),
        ("sync_proxy_rules_service_changes_total", &[], 1.0),
        ("sync_proxy_rules_endpoint_changes_total", &[], 0.0),
        ("sync_proxy_rules_service_changes_pending", &[], 0.0),
        ("sync_proxy_rules_endpoint_changes_pending", &[], 3.0),
    ] {
        assert_eq!(
            value(&format!("kubeproxy_{name}"), labels),
            expected,
            "{name}"
        );
    }
    let took = "kubeproxy_network_programming_duration_seconds";
    let buckets = [("0.5", 0.0), ("1", 1.0)];
    for (bound, expected) in buckets {
        let labels = [("ip_family", "IPv6"), ("le", bound)];
        assert_eq!(value(&format!("{took}_bucket"), &labels), expected);
    }
}

#[test]
fn a_failed_synchronisation_is_none_that_succeeded() {
    let metrics = Metrics::new();
    let synced = Synced {
        took: Duration::from_millis(3),
        is_full: true,
        n_writes: 1,
        n_pending: 1,
        is_success: false,
    };
    metrics.synced(&synced, crate::clock::wall());
    let families = exposition::read(&metrics.text_as(Format::Plain), Text::Plain);
    let value = |name: &str, labels: &[_]| exposition::value(&families, name, labels).unwrap();
    let name = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";
    assert_eq!(value(name, &[("ip_family", "IPv4")]), 0.0);
    assert_eq!(value("beeline_sync_failing", &[]), 1.0);
    assert_eq!(value("beeline_sync_pending", &[]), 1.0);
}

#[test]
fn beelines_own_tell_what_was_told_and_read() {
    let families = exposition::read(&filled().text_as(Format::Plain), Text::Plain);
    let value = |name: &str, labels: &[_]| {
        exposition::value(&families, &format!("beeline_{name}"), labels).unwrap()
    };
    assert_eq!(value("ready", &[]), 1.0);
    assert_eq!(value("problems", &[("kind", "service")]), 2.0);
    assert_eq!(value("problems", &[("kind", "other")]), 1.0);
    assert_eq!(value("sync_writes_total", &[]), 14.0);
    assert_eq!(value("map_entries", &[("map", "SLOTS")]), 2.0);
    assert_eq!(value("map_capacity", &[("map", "FLOWS")]), 16.0);
    assert_eq!(value("map_entries", &[("map", "SOCKETS")]), 5.0);
    let state = [("protocol", "SCTP"), ("state", "established")];
    assert_eq!(value("flows", &state), 12.0);
    let verdict = [("outcome", "drop"), ("reason", "no-route")];
    assert_eq!(value("verdicts_total", &verdict), 1.0);
    assert_eq!(value("service_ports", &[("row", "other")]), 1.0);
    let rows = &families["beeline_service_packets_total"].samples;
    let sum: f64 = rows.iter().map(|row| row.value).sum();
    assert_eq!((rows.len(), sum), (3, 60.0));
    let other = [
        ("service", "other"),
        ("namespace", ""),
        ("reason", "source-range"),
    ];
    assert!(value("service_refused_total", &other) > 0.0);
    assert_eq!(value("service_packets_total", &other[..2]) % 10.0, 0.0);
}

#[test]
fn problems_are_told_apart_by_their_subjects() {
    for (subject, kind) in [
        ("Service shop/web", "service"),
        ("EndpointSlice shop/web-1", "endpoint-slice"),
        ("API server", "source"),
        ("file a.yaml", "source"),
        ("metrics address 127.0.0.1:10249", "address"),
        ("socket edge's pods", "socket-edge"),
        ("device beeline0", "devices"),
        ("start", "source"),
        ("kube-proxy", "take-over"),
        ("ServiceCIDR kubernetes", "other"),
    ] {
        assert_eq!(ProblemKind::of(subject).name(), kind, "{subject}");
    }
}

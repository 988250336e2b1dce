use std::net::IpAddr;

use proxy_common::abi::Protocol;

use super::*;
use crate::desired::{DesiredPort, NodeFacts, compile};
use crate::model::{
    Endpoint, EndpointSlice, ObjectName, Service, ServicePort, SlicePort,
    TrafficPolicy::{self, Cluster, Local},
};

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
        zone_hints: vec![],
        node_hints: vec![],
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

#[test]
fn r175_names_and_labels_are_kube_proxys() {
    let metrics = Metrics::new();
    metrics.set_no_local(no_local(&ports(Local, Cluster, &["away"])));
    metrics.count_probe(Probe::Healthz, StatusCode::OK);
    metrics.count_probe(Probe::Healthz, StatusCode::OK);
    metrics.count_probe(Probe::Livez, StatusCode::SERVICE_UNAVAILABLE);
    let text = metrics.text();
    let mut samples: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    samples.sort_unstable();
    let name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
    let gauge = |family, policy, value| {
        format!(r#"{name}{{ip_family="{family}",traffic_policy="{policy}"}} {value}"#)
    };
    let expected = [
        r#"kubeproxy_proxy_healthz_total{code="200"} 2"#.to_owned(),
        r#"kubeproxy_proxy_livez_total{code="503"} 1"#.to_owned(),
        gauge("IPv4", "external", 0),
        gauge("IPv4", "internal", 1),
        gauge("IPv6", "external", 0),
        gauge("IPv6", "internal", 0),
    ];
    assert_eq!(samples, expected);
    assert!(text.contains(&format!("# TYPE {name} gauge\n")));
}

//! The daemon tells load balancers, the kubelet and Prometheus what it knows.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};
use xtask::testbed::{NODE_IPV4, NODE_IPV6, NODE_NAME, in_namespace};

use crate::client::PATIENCE;
use crate::cluster::{Cluster, Plan, beeline, put};
use crate::socket_world::until;

const CHECK: u16 = 30_100;
const HEALTHZ: u16 = 10_256;
const METRICS: u16 = 10_249;
/// Until what the daemon follows at once must be so.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// Status and body, `None` if nobody listens.
pub(crate) fn get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\n\r\n").unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    let (head, body) = reply.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Some((status, body.to_owned()))
}

/// A request of a pod to the node.
fn ask(cluster: &Cluster, node: impl Into<IpAddr>, port: u16, path: &str) -> Option<u16> {
    let address = SocketAddr::new(node.into(), port);
    let answer = cluster.client.run(|| get(address, path));
    answer.map(|(status, _)| status)
}

fn node(taint: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": NODE_NAME},
        "spec": {"taints": [{"key": taint, "effect": "NoSchedule"}]},
    })
}

/// A load-balanced Service of one family, and its one endpoint, on `node`.
fn balanced(node: &str) -> [Value; 2] {
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "lb", "namespace": "default"},
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": "10.96.0.77",
            "clusterIPs": ["10.96.0.77"],
            "ipFamilies": ["IPv4"],
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "nodePort": 30_001}],
            "internalTrafficPolicy": "Local",
            "externalTrafficPolicy": "Local",
            "healthCheckNodePort": CHECK,
        },
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "lb-1",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": "lb"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": 80}],
        "endpoints": [{"addresses": ["10.99.0.1"], "nodeName": node}],
    });
    [service, slice]
}

#[test]
fn health_checks_and_metrics_follow_the_cluster() {
    let mut cluster = Cluster::new(Plan::default());
    let healthz = |cluster: &Cluster, path| ask(cluster, NODE_IPV4, HEALTHZ, path);
    // Its Node object was never seen (rule R134).
    assert_eq!(healthz(&cluster, "/healthz"), Some(503));
    assert_eq!(healthz(&cluster, "/livez"), Some(200));
    assert_eq!(ask(&cluster, NODE_IPV6, HEALTHZ, "/livez"), Some(200));

    put(&cluster.testbed, "node.json", &[node("other")]);
    until("an ordinary node", SOON, || {
        healthz(&cluster, "/healthz") == Some(200)
    });
    let taint = node("ToBeDeletedByClusterAutoscaler");
    put(&cluster.testbed, "node.json", &[taint]);
    until("a node to go", SOON, || {
        healthz(&cluster, "/healthz") == Some(503)
    });
    assert_eq!(healthz(&cluster, "/livez"), Some(200));

    let check = |cluster: &Cluster| ask(cluster, NODE_IPV4, CHECK, "/any/path");
    assert_eq!(check(&cluster), None);
    put(&cluster.testbed, "lb.json", &balanced(NODE_NAME));
    until("a local endpoint", SOON, || check(&cluster) == Some(200));
    put(&cluster.testbed, "lb.json", &balanced("elsewhere"));
    until("no local endpoint", SOON, || check(&cluster) == Some(503));

    let metrics = SocketAddr::from((Ipv4Addr::LOCALHOST, METRICS));
    let node_namespace = &cluster.testbed.node().namespace;
    let (status, text) = in_namespace(node_namespace, || get(metrics, "/metrics")).unwrap();
    assert_eq!(status, 200);
    let name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
    let sample = format!(r#"{name}{{ip_family="IPv4",traffic_policy="internal"}} 1"#);
    assert!(text.contains(&sample), "{text}");
    assert_eq!(ask(&cluster, NODE_IPV4, METRICS, "/metrics"), None);

    std::fs::remove_file(cluster.testbed.manifests().join("lb.json")).unwrap();
    until("no Service", SOON, || check(&cluster).is_none());

    cluster.daemon.stop();
    let arguments = ["--healthz-bind-address", "", "--metrics-bind-address", ""];
    cluster.daemon = beeline(&cluster.testbed).run(arguments).unwrap();
    assert_eq!(healthz(&cluster, "/livez"), None);
    assert_eq!(
        in_namespace(&cluster.testbed.node().namespace, || get(
            metrics, "/healthz"
        )),
        None
    );
}

#[test]
fn a_port_that_is_taken_is_named_and_had_later() {
    let cluster = Cluster::new(Plan::default());
    let port = CHECK + 1;
    let listen = || std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
    let taken = in_namespace(&cluster.testbed.node().namespace, listen);
    let [mut service, slice] = balanced(NODE_NAME);
    service["spec"]["healthCheckNodePort"] = port.into();
    put(&cluster.testbed, "lb.json", &[service, slice]);
    let is_named = |status: &Value| {
        let problems = status["problems"].as_array().into_iter().flatten();
        let mut messages = problems.filter(|it| it["subject"] == "Service default/lb");
        messages.any(|it| it["message"].as_str().unwrap().contains(&port.to_string()))
    };
    cluster.daemon.wait_until("the problem", is_named).unwrap();
    drop(taken);
    until("the port", SOON, || {
        ask(&cluster, NODE_IPV4, port, "/") == Some(200)
    });
    let is_solved = |status: &Value| !is_named(status);
    cluster.daemon.wait_until("its end", is_solved).unwrap();
}

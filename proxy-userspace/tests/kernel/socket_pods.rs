//! Pods that the socket edge leaves alone: their packets carry the addresses of Services, which
//! are translated at the pod edge.

use proxy_common::abi::Family;
use serde_json::{Value, json};
use xtask::testbed::{Beeline, Daemon, Layout, NODE_NAME, Pod, PodOptions, Server, Testbed};

use crate::client::Connection;
use crate::cluster::{self, Service, serve_all};

/// What leaves pods out.
const SKIP: [&str; 4] = [
    "--socket-lb-skip-namespaces",
    "istio-system,mesh",
    "--socket-lb-skip-pods",
    "sidecar.istio.io/inject=true,app notin (a,b)",
];

/// Pods with these uids, a Service that they dial, and Beeline. Dropped in this order.
struct Node {
    daemon: Daemon,
    _servers: Vec<Server>,
    service: Service,
    testbed: Testbed,
}

impl Node {
    /// With one backend, which is no Pod of this node that is known.
    fn new(testbed: Testbed) -> Self {
        let backend = testbed.pod("web").unwrap();
        let servers = serve_all(&backend);
        let service = Service::new("web", 10, &[backend]);
        service.write(&testbed);
        Self {
            daemon: beeline(&testbed).run(SKIP).unwrap(),
            _servers: servers,
            service,
            testbed,
        }
    }

    /// Waits until so many pods are served, left out, and not found.
    fn wait_until(&self, [served, left_out, not_found]: [u64; 3]) {
        let pods = json!({"served": served, "left_out": left_out, "not_found": not_found});
        let are_so = |status: &Value| status["socket_edge"]["pods"] == pods;
        self.daemon.wait_until(&pods.to_string(), are_so).unwrap();
    }

    /// Whether the socket edge serves a pod: it dials the Service, in both families.
    fn serves(&self, pod: &Pod) -> bool {
        let [v4, v6] = Family::ALL.map(|family| self.serves_in(pod, family));
        assert_eq!(v4, v6, "{}: the families differ", pod.name);
        v4
    }

    fn serves_in(&self, pod: &Pod, family: Family) -> bool {
        let address = self.service.address(family);
        let connection = pod.run(|| {
            let mut connection = Connection::open(address).unwrap();
            connection.echo(b"hello").unwrap();
            connection
        });
        // It sees what it dialled, whoever has translated.
        assert_eq!(connection.stream.peer_addr().unwrap(), address);
        let client = connection.stream.local_addr().unwrap().to_string();
        let flows = beeline(&self.testbed).json(["flows"]).unwrap();
        let flows = flows["flows"].as_array().unwrap();
        // A flow is what the pod edge makes of packets with the Service's address.
        !flows.iter().any(|flow| flow["client"] == client)
    }
}

fn beeline(testbed: &Testbed) -> Beeline<'_> {
    cluster::beeline(testbed).socket_lb("all")
}

fn pod(testbed: &Testbed, uid: &'static str) -> Pod {
    let options = PodOptions {
        uid: Some(uid),
        ..PodOptions::default()
    };
    testbed.pod_with(uid, &options).unwrap()
}

/// Writes the manifest of a Pod.
fn declare(testbed: &Testbed, namespace: &str, uid: &str, labels: Value) {
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": uid, "namespace": namespace, "uid": uid, "labels": labels},
        "spec": {"nodeName": NODE_NAME},
    });
    let folder = testbed.manifests();
    let (draft, file) = (folder.join(".pod"), folder.join(format!("pod-{uid}.json")));
    std::fs::write(&draft, pod.to_string()).unwrap();
    std::fs::rename(&draft, &file).unwrap();
}

#[test]
fn pods_are_left_out_by_namespace_and_by_label() {
    let testbed = Testbed::new(Layout::Routed).unwrap();
    let uids = ["mesh", "injected", "excepted", "plain", "unknown"];
    let [mesh, injected, excepted, plain, unknown] = uids.map(|uid| pod(&testbed, uid));
    let inject = |app: &str| json!({"sidecar.istio.io/inject": "true", "app": app});
    declare(&testbed, "mesh", "mesh", json!({}));
    declare(&testbed, "shop", "injected", inject("c"));
    declare(&testbed, "shop", "excepted", inject("a"));
    declare(&testbed, "shop", "plain", json!({"app": "c"}));
    let node = Node::new(testbed);
    node.wait_until([2, 2, 0]);
    assert!(node.serves(&plain) && node.serves(&excepted));
    assert!(!node.serves(&mesh) && !node.serves(&injected));
    // Of a pod that is not known nobody can tell.
    assert!(!node.serves(&unknown));

    // Labels of running pods may change, and unknown ones become known.
    declare(&node.testbed, "shop", "plain", inject("c"));
    declare(&node.testbed, "shop", "injected", inject("b"));
    declare(&node.testbed, "shop", "unknown", json!({}));
    node.wait_until([3, 2, 0]);
    assert!(!node.serves(&plain));
    assert!(node.serves(&injected) && node.serves(&unknown));
}

#[test]
fn a_pod_is_served_as_soon_as_it_is_there() {
    let node = Node::new(Testbed::new(Layout::Bridge).unwrap());
    declare(&node.testbed, "shop", "late", json!({}));
    declare(&node.testbed, "mesh", "later", json!({}));
    node.wait_until([0, 0, 2]);
    let late = pod(&node.testbed, "late");
    node.wait_until([1, 0, 1]);
    assert!(node.serves(&late));
    let later = pod(&node.testbed, "later");
    node.wait_until([1, 1, 0]);
    assert!(!node.serves(&later));
    // Gone, it is not counted any more.
    std::fs::remove_file(node.testbed.manifests().join("pod-late.json")).unwrap();
    node.wait_until([0, 1, 0]);
    assert!(!node.serves(&late));
}

#[test]
fn a_restart_brings_other_options_into_force() {
    let testbed = Testbed::new(Layout::Routed).unwrap();
    let [mesh, plain] = ["mesh", "plain"].map(|uid| pod(&testbed, uid));
    declare(&testbed, "mesh", "mesh", json!({}));
    declare(&testbed, "shop", "plain", json!({}));
    let mut node = Node::new(testbed);
    node.wait_until([1, 1, 0]);
    assert!(node.daemon.stop().is_some());
    // What is in force stays so without the daemon.
    assert!(node.serves(&plain) && !node.serves(&mesh));

    node.daemon = beeline(&node.testbed).run::<&str>([]).unwrap();
    assert!(node.serves(&plain) && node.serves(&mesh));
    assert!(node.daemon.stop().is_some());

    let other = ["--socket-lb-skip-namespaces", "shop"];
    node.daemon = beeline(&node.testbed).run(other).unwrap();
    node.wait_until([1, 1, 0]);
    assert!(!node.serves(&plain) && node.serves(&mesh));
}

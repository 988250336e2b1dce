//! The real `beeline run` on the node, and the objects that it reads.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;

use anyhow::{Context, Result};
use beeline::loader::pins::Pins;
use beeline::maps::Table;
use beeline::node::SocketLb;
use ipnet::IpNet;
use proxy_common::abi::{Addr, Frontend, FrontendKey, Port, Protocol};
use serde_json::{Value, json};
use xtask::testbed::{Beeline, Daemon, Testbed};

use super::plan::Plan;
use super::way::Way;
use crate::case::{Case, Config, DetectLocal, Manifest, NodePortAddresses, ObjectKind, Reference};

/// Kind, namespace and name.
type Key = (String, String, String);

/// The daemon and its objects.
#[derive(Debug)]
pub(super) struct Proxy {
    daemon: Option<Daemon>,
    node_name: String,
    args: Vec<String>,
    socket_lb: SocketLb,
    service_cidrs: Vec<IpNet>,
    objects: BTreeMap<Key, Manifest>,
    /// How many changes there were.
    n_changes: u16,
}

impl Proxy {
    /// Starts it with a case's first objects, and waits until they are in force.
    pub(super) fn start(testbed: &Testbed, plan: &Plan, case: &Case, way: Way) -> Result<Self> {
        let objects = &case.objects;
        let all = [&objects.services, &objects.endpoint_slices, &objects.nodes];
        let mut proxy = Self {
            daemon: None,
            node_name: case.config.node_name.clone(),
            args: args(&case.config, plan, way),
            socket_lb: way.socket_lb.unwrap_or(SocketLb::Off),
            service_cidrs: case.config.service_cidrs.clone(),
            objects: all.into_iter().flatten().map(keyed).collect(),
            n_changes: 0,
        };
        proxy.restart(testbed)?;
        Ok(proxy)
    }

    /// Ends it.
    pub(super) fn stop(&mut self) {
        self.daemon = None;
    }

    /// Starts it again.
    pub(super) fn restart(&mut self, testbed: &Testbed) -> Result<()> {
        self.write(testbed)?;
        let beeline = Beeline::new(testbed, binary()?)
            .with_node_name(&self.node_name)
            .socket_lb(self.socket_lb.name());
        self.daemon = Some(beeline.run(&self.args)?);
        self.settle(testbed)
    }

    /// Changes objects, in one step for those who read them.
    pub(super) fn change(&mut self, delete: &[Reference], apply: &[Manifest]) {
        for reference in delete {
            let kind = match reference.kind {
                ObjectKind::Service => "Service",
                ObjectKind::EndpointSlice => "EndpointSlice",
                ObjectKind::Node => "Node",
            };
            let namespace = reference.metadata.namespace.clone().unwrap_or_default();
            let key = (kind.to_owned(), namespace, reference.metadata.name.clone());
            self.objects.remove(&key);
        }
        self.objects.extend(apply.iter().map(keyed));
    }

    /// Waits until what the objects say now is in force.
    ///
    /// The sign is a Service of nobody's, which has another port after each change. The daemon
    /// follows changes one after the other: when the second port is there, all that came with
    /// the first is done.
    pub(super) fn settle(&mut self, testbed: &Testbed) -> Result<()> {
        for _ in 0..2 {
            self.n_changes += 1;
            self.write(testbed)?;
            self.wait(testbed)?;
        }
        Ok(())
    }

    fn wait(&self, testbed: &Testbed) -> Result<()> {
        let pins = Pins::new(&testbed.bpffs());
        let frontends: Table<FrontendKey, Frontend> = Table::open(&pins, "FRONTENDS")?;
        let address = Addr::from(IpAddr::V6(SIGN));
        let sign = FrontendKey::exact(address, Port::new(self.n_changes), Protocol::Tcp);
        let daemon = self.daemon.as_ref().context("the daemon does not run")?;
        let is_there = |_: &Value| matches!(frontends.get(&sign), Ok(Some(_)));
        daemon.wait_until("a change in force", is_there)
    }

    fn write(&self, testbed: &Testbed) -> Result<()> {
        let objects = self.objects.values().cloned().map(Value::Object);
        let cidrs = self.service_cidrs.iter().enumerate().map(service_cidr);
        let items: Vec<_> = objects.chain(cidrs).chain([sign(self.n_changes)]).collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        let folder = testbed.manifests();
        let new = folder.join(".objects.json");
        std::fs::write(&new, list.to_string()).context("write the objects")?;
        std::fs::rename(&new, folder.join("objects.json")).context("replace the objects")
    }
}

/// An address that is only there to be discarded (RFC 6666).
const SIGN: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1);

fn sign(port: u16) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "sign", "namespace": "zzz-runner"},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": SIGN.to_string(),
            "clusterIPs": [SIGN.to_string()],
            "ipFamilies": ["IPv6"],
            "ipFamilyPolicy": "SingleStack",
            "ports": [{"name": "sign", "protocol": "TCP", "port": port.max(1)}],
        },
    })
}

fn service_cidr((index, cidr): (usize, &IpNet)) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": format!("cidr-{index}")},
        "spec": {"cidrs": [cidr.to_string()]},
    })
}

fn keyed(manifest: &Manifest) -> (Key, Manifest) {
    let text = |value: Option<&Value>| {
        let text = value.and_then(Value::as_str);
        text.unwrap_or_default().to_owned()
    };
    let metadata = manifest.get("metadata");
    let of = |field: &str| text(metadata.and_then(|metadata| metadata.get(field)));
    let key = (text(manifest.get("kind")), of("namespace"), of("name"));
    (key, manifest.clone())
}

/// The daemon beside this program.
fn binary() -> Result<PathBuf> {
    let own = std::env::current_exe().context("find this program")?;
    Ok(own.with_file_name("beeline"))
}

fn args(config: &Config, plan: &Plan, way: Way) -> Vec<String> {
    let mut args = vec![format!("--localhost-nodeports={}", way.has_localhost)];
    let foreign = plan.devices.iter().skip(1).filter(|device| !device.is_pods);
    let foreign: Vec<_> = foreign.map(|device| format!("!{}", device.name)).collect();
    if !foreign.is_empty() {
        args.push(format!("--pod-devices={}", foreign.join(",")));
    }
    let ranges = |ranges: &[IpNet]| {
        let texts: Vec<_> = ranges.iter().map(ToString::to_string).collect();
        texts.join(",")
    };
    args.push(match &config.node_port_addresses {
        NodePortAddresses::Primary => "--nodeport-addresses=primary".to_owned(),
        NodePortAddresses::Ranges(list) => format!("--nodeport-addresses={}", ranges(list)),
    });
    match &config.detect_local {
        DetectLocal::ClusterCidr(list) => {
            args.push("--detect-local-mode=ClusterCIDR".to_owned());
            if !list.is_empty() {
                args.push(format!("--cluster-cidr={}", ranges(list)));
            }
        }
        DetectLocal::NodeCidr => args.push("--detect-local-mode=NodeCIDR".to_owned()),
        DetectLocal::BridgeInterface(name) => {
            args.push("--detect-local-mode=BridgeInterface".to_owned());
            args.push(format!("--pod-bridge-interface={name}"));
        }
        DetectLocal::InterfaceNamePrefix(prefix) => {
            args.push("--detect-local-mode=InterfaceNamePrefix".to_owned());
            args.push(format!("--pod-interface-name-prefix={prefix}"));
        }
    }
    args.push("--source-nat=like-kube-proxy".to_owned());
    args.push("--gone-backends=keep".to_owned());
    if config.masquerade_all {
        args.push("--masquerade-all".to_owned());
    }
    let gates = config.feature_gates.iter();
    let gates: Vec<_> = gates.map(|(gate, on)| format!("{gate}={on}")).collect();
    if !gates.is_empty() {
        args.push(format!("--feature-gates={}", gates.join(",")));
    }
    args
}

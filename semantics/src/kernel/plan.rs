//! What a case's node looks like: its devices, and where every address is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::case::{Case, DetectLocal, Flow, Kind, Manifest, Protocol};

/// The device that leads to everything that is not on this node.
pub(super) const UPLINK: &str = "eth0";

/// A node's devices and addresses.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Plan {
    /// The first is the uplink.
    pub(super) devices: Vec<Device>,
    /// A bridge that joins pods' devices.
    pub(super) bridge: Option<String>,
    /// The node's addresses, on its uplink.
    pub(super) node: Vec<IpAddr>,
    /// Addresses that the node is a client by although no device has them: on loopback.
    pub(super) loopback: Vec<IpAddr>,
    /// Where other addresses are at first, by index of their device; all others are beyond the
    /// uplink.
    pub(super) homes: BTreeMap<IpAddr, usize>,
    /// Clients on this node's pods that can be sockets, by device.
    pub(super) clients: BTreeMap<usize, BTreeSet<IpAddr>>,
    /// Backends in the node's own network namespace.
    pub(super) servers: BTreeSet<(Protocol, SocketAddr)>,
    /// Devices of single pods.
    own: BTreeMap<IpAddr, usize>,
}

/// A device of the node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Device {
    /// Its name.
    pub(super) name: String,
    /// Whether it is a port of the bridge.
    pub(super) is_port: bool,
    /// Whether it leads to a pod of this node.
    pub(super) is_pods: bool,
}

impl Plan {
    /// The plan for a case.
    pub(super) fn new(case: &Case) -> Self {
        let mut plan = Self {
            bridge: match &case.config.detect_local {
                DetectLocal::BridgeInterface(name) => Some(name.clone()),
                DetectLocal::ClusterCidr(_)
                | DetectLocal::NodeCidr
                | DetectLocal::InterfaceNamePrefix(_) => None,
            },
            node: node_addresses(case),
            ..Self::default()
        };
        let _uplink = plan.device(UPLINK, false);
        for flow in flows(case) {
            plan.add_client(case, flow);
            plan.add_servers(flow);
        }
        for address in local_endpoints(case) {
            if !plan.is_on_node(address) && !plan.homes.contains_key(&address) {
                let device = plan.pod(case, address);
                plan.homes.insert(address, device);
            }
        }
        plan
    }

    /// Whether an address is assigned to the node.
    pub(super) fn is_on_node(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.node.contains(&address) || self.loopback.contains(&address)
    }

    /// By which device a flow comes in; `None` if it comes from the node itself.
    pub(super) fn client_device(&self, flow: &Flow) -> Option<usize> {
        let by_name = |name: &String| self.devices.iter().position(|device| device.name == *name);
        match (flow.from.kind, &flow.from.iface) {
            (Kind::Node, _) => None,
            (Kind::Pod, Some(name)) if self.bridge.as_ref() != Some(name) => by_name(name),
            (Kind::Pod, _) => self.own.get(&flow.from.ip).copied(),
            (Kind::PodOtherNode | Kind::OtherNode | Kind::External, Some(name)) => by_name(name),
            (Kind::PodOtherNode | Kind::OtherNode | Kind::External, None) => Some(0),
        }
    }

    /// Whether a client behind a device has no other address of the family.
    pub(super) fn is_only_address(&self, device: usize, address: IpAddr) -> bool {
        let addresses = self.clients.get(&device).into_iter().flatten();
        let of_family = addresses.filter(|other| other.is_ipv4() == address.is_ipv4());
        of_family.eq([&address])
    }

    fn add_client(&mut self, case: &Case, flow: &Flow) {
        let ip = flow.from.ip;
        let device = match (flow.from.kind, &flow.from.iface) {
            (Kind::Node, _) => {
                if !self.is_on_node(ip) {
                    self.loopback.push(ip);
                }
                return;
            }
            (Kind::Pod, Some(name)) if self.bridge.as_ref() != Some(name) => {
                self.device(name, true)
            }
            (Kind::Pod, _) => self.pod(case, ip),
            (Kind::PodOtherNode | Kind::OtherNode | Kind::External, Some(name)) => {
                self.device(name, false)
            }
            (Kind::PodOtherNode | Kind::OtherNode | Kind::External, None) => return,
        };
        self.homes.entry(ip).or_insert(device);
        // The socket edge has nothing to do with SCTP.
        if flow.from.kind == Kind::Pod && flow.to.protocol != Protocol::Sctp {
            self.clients.entry(device).or_default().insert(ip);
        }
    }

    fn add_servers(&mut self, flow: &Flow) {
        let backends = &flow.expect.backends;
        let own = backends
            .iter()
            .filter(|backend| self.node.contains(&backend.ip()));
        self.servers
            .extend(own.map(|backend| (flow.to.protocol, *backend)));
    }

    /// The device of this name.
    fn device(&mut self, name: &str, is_pods: bool) -> usize {
        let found = self.devices.iter().position(|device| device.name == name);
        found.unwrap_or_else(|| {
            self.devices.push(Device {
                name: name.to_owned(),
                is_port: false,
                is_pods,
            });
            self.devices.len() - 1
        })
    }

    /// The device of a pod's own.
    fn pod(&mut self, case: &Case, address: IpAddr) -> usize {
        if let Some(device) = self.own.get(&address) {
            return *device;
        }
        let number = self.devices.len();
        let name = match &case.config.detect_local {
            DetectLocal::InterfaceNamePrefix(prefix) => format!("{prefix}{number}"),
            DetectLocal::ClusterCidr(_)
            | DetectLocal::NodeCidr
            | DetectLocal::BridgeInterface(_) => format!("veth{number}"),
        };
        self.devices.push(Device {
            name,
            is_port: self.bridge.is_some(),
            is_pods: true,
        });
        self.own.insert(address, number);
        number
    }
}

/// All flows of a case.
pub(super) fn flows(case: &Case) -> impl Iterator<Item = &Flow> {
    let later = case.steps.iter().flat_map(|step| &step.flows);
    case.flows.iter().chain(later)
}

/// The primary ones first.
fn node_addresses(case: &Case) -> Vec<IpAddr> {
    let config = &case.config;
    let mut addresses = config.primary_node_ips.clone();
    let others = config.node_ips.iter();
    addresses.extend(others.filter(|ip| !config.primary_node_ips.contains(ip)));
    addresses
}

fn local_endpoints(case: &Case) -> Vec<IpAddr> {
    let applied = case.steps.iter().flat_map(|step| &step.apply);
    let slices = case.objects.endpoint_slices.iter().chain(applied);
    let endpoints = slices.flat_map(endpoints_of);
    endpoints
        .filter(|endpoint| endpoint["nodeName"] == *case.config.node_name)
        .filter_map(|endpoint| address(endpoint["addresses"][0].as_str()?))
        .collect()
}

fn endpoints_of(manifest: &Manifest) -> Vec<&serde_json::Value> {
    let is_slice = manifest
        .get("kind")
        .is_some_and(|kind| kind == "EndpointSlice");
    let endpoints = manifest.get("endpoints").filter(|_| is_slice);
    let endpoints = endpoints.and_then(serde_json::Value::as_array);
    endpoints.into_iter().flatten().collect()
}

/// Old objects may have leading zeros (rule R27).
fn address(text: &str) -> Option<IpAddr> {
    let decimal = || {
        let octets: Vec<u8> = text
            .split('.')
            .map(|octet| octet.parse().ok())
            .collect::<Option<_>>()?;
        Some(Ipv4Addr::from(<[u8; 4]>::try_from(octets).ok()?).into())
    };
    text.parse().ok().or_else(decimal)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn case(detect: Value, flows: Value) -> Case {
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": "s-1", "namespace": "n"},
            "addressType": "IPv4",
            "endpoints": [
                {"addresses": ["10.0.0.07"], "nodeName": "here"},
                {"addresses": ["10.0.0.8"], "nodeName": "there"},
                {"addresses": ["192.0.2.1"], "nodeName": "here"},
            ],
            "ports": [],
        });
        serde_json::from_value(json!({
            "formatVersion": 1, "id": "x", "topic": "topology", "title": "x", "rules": [],
            "source": [], "basis": "upstream-code",
            "config": {
                "nodeName": "here", "zone": null,
                "nodeIPs": ["192.0.2.9", "192.0.2.1"], "primaryNodeIPs": ["192.0.2.1"],
                "detectLocal": detect, "nodePortAddresses": [],
            },
            "objects": {"endpointSlices": [slice]},
            "flows": flows,
        }))
        .unwrap()
    }

    fn flow(kind: &str, ip: &str, iface: Option<&str>) -> Value {
        json!({
            "name": "f",
            "from": {"kind": kind, "ip": ip, "iface": iface},
            "to": {"ip": "172.30.0.1", "port": 80, "protocol": "TCP"},
            "expect": {"verdict": "forward", "backends": ["192.0.2.1:8080"]},
        })
    }

    fn names(plan: &Plan) -> Vec<&str> {
        plan.devices.iter().map(|device| &*device.name).collect()
    }

    #[test]
    fn everybody_on_the_node_has_a_device() {
        let flows = json!([
            flow("pod", "10.0.0.1", None),
            flow("external", "203.0.113.1", None),
            flow("node", "198.51.100.1", None),
        ]);
        let cidr = json!({"mode": "ClusterCIDR", "clusterCIDRs": []});
        let plan = Plan::new(&case(cidr, flows));
        assert_eq!(names(&plan), [UPLINK, "veth1", "veth2"]);
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(plan.homes[&address("10.0.0.1")], 1);
        assert_eq!(plan.homes[&address("10.0.0.7")], 2);
        assert_eq!(plan.homes.len(), 2);
        assert_eq!(plan.node, [address("192.0.2.1"), address("192.0.2.9")]);
        assert_eq!(plan.loopback, [address("198.51.100.1")]);
        assert_eq!(plan.servers.len(), 1);
    }

    #[test]
    fn interfaces_have_the_names_that_count() {
        let flows = json!([
            flow("pod", "10.0.0.1", Some("br0")),
            flow("pod-other-node", "10.0.0.1", Some("br01")),
        ]);
        let bridge = json!({"mode": "BridgeInterface", "bridgeInterface": "br0"});
        let case = case(bridge, flows);
        let plan = Plan::new(&case);
        assert_eq!(names(&plan), [UPLINK, "veth1", "br01", "veth3"]);
        let ports: Vec<_> = plan.devices.iter().map(|device| device.is_port).collect();
        assert_eq!(ports, [false, true, false, true]);
        let by: Vec<_> = case
            .flows
            .iter()
            .map(|flow| plan.client_device(flow))
            .collect();
        assert_eq!(by, [Some(1), Some(2)]);
    }
}

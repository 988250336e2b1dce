use super::*;
use crate::node::{SourcePorts, networks};

fn ips(text: &str) -> Vec<IpAddr> {
    let parts = text.split(' ').filter(|part| !part.is_empty());
    parts.map(|part| part.parse().unwrap()).collect()
}

fn nets(text: &str) -> Vec<IpNet> {
    networks(text).unwrap()
}

fn node(addresses: &str, pod_cidrs: &str) -> Node {
    Node {
        name: "node-1".into(),
        zone: None,
        addresses: ips(addresses),
        pod_cidrs: nets(pod_cidrs),
        to_be_deleted: false,
    }
}

fn device(index: u32, name: &str, addresses: &str) -> LocalDevice {
    LocalDevice {
        index,
        name: name.into(),
        master: None,
        mtu: 1500,
        mac: [2, 0, 0, 0, 0, 1],
        addresses: ips(addresses),
        is_loopback: name == "lo",
        leads_to_pod: name.starts_with("cali"),
    }
}

/// The node of the cases, with a bridge, a tunnel and a VIP that it has on loopback.
fn devices() -> Vec<LocalDevice> {
    vec![
        device(2, "eth0", "192.168.0.2 2001:db8::1 fe80::1"),
        device(3, "eth1", "192.168.1.2 169.254.20.10"),
        device(4, "vxlan0", "10.244.0.0"),
        device(1, "lo", "127.0.0.1 ::1 203.0.113.7"),
    ]
}

fn config() -> NodeConfig {
    NodeConfig::new("node-1")
}

/// The addresses that accept NodePorts.
fn accepting(accepted: &str, node: Option<&Node>) -> Vec<String> {
    let config = NodeConfig {
        node_port_addresses: accepted.parse().unwrap(),
        ..config()
    };
    let tables = tables(&config, node, &[], &devices(), 0);
    let accepts = |flags: &AddressFlags| flags.contains(AddressFlags::NODE_PORTS);
    let accepting = tables.addresses.iter().filter(|(_, flags)| accepts(flags));
    accepting.map(|(addr, _)| addr.to_string()).collect()
}

#[test]
fn node_ports_are_accepted_at_addresses_in_the_ranges() {
    const V4: [&str; 4] = ["10.244.0.0", "192.168.0.2", "192.168.1.2", "203.0.113.7"];
    const V6: [&str; 1] = ["2001:db8::1"];
    let both = node("192.168.0.2 2001:db8::1", "");
    let v4_only = node("192.168.0.2", "");
    let loopback = node("127.0.0.1", "");
    let none: &[&str] = &[];
    type Case<'a> = (&'a str, Option<&'a Node>, &'a [&'a [&'a str]]);
    let cases: [Case<'_>; 12] = [
        // R90: everything but loopback.
        ("", None, &[&V6, &V4]),
        // R86: a family without range is not limited.
        ("192.168.0.0/24", None, &[&V6, &["192.168.0.2"]]),
        ("2001:db8::/64", None, &[&V6, &V4]),
        (
            "192.168.0.0/16,2001:db8:1::/64",
            None,
            &[&["192.168.0.2", "192.168.1.2"]],
        ),
        // R86: a zero range is none.
        ("192.168.0.0/24,0.0.0.0/0", None, &[&V6, &V4]),
        ("198.51.100.0/24,::/0", None, &[&V6]),
        // R86: ranges that match nothing.
        ("198.51.100.0/24,2001:db8:9::/64", None, &[none]),
        // R88: loopback does not, even if listed.
        ("127.0.0.0/8,::1/128", None, &[none]),
        // R87.
        ("primary", Some(&both), &[&V6, &["192.168.0.2"]]),
        ("primary", Some(&v4_only), &[&V6, &["192.168.0.2"]]),
        ("primary", Some(&loopback), &[&V6, &V4]),
        ("primary", None, &[&V6, &V4]),
    ];
    for (accepted, node, expected) in cases {
        let mut found = accepting(accepted, node);
        let mut expected = expected.concat();
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected, "{accepted:?} {node:?}");
    }
}

#[test]
fn every_address_but_loopback_and_ipv6_link_local_ones_is_the_nodes() {
    let tables = tables(&config(), None, &[], &devices(), 0);
    let is_node = |flags: &AddressFlags| flags.contains(AddressFlags::NODE);
    assert!(tables.addresses.values().all(is_node));
    let flags = |text: &str| {
        let address: IpAddr = text.parse().unwrap();
        tables.addresses.get(&Addr::from(address)).copied()
    };
    for shown in ["192.168.0.2", "192.168.1.2", "2001:db8::1", "203.0.113.7"] {
        assert!(flags(shown).is_some(), "{shown}");
    }
    assert_eq!(flags("169.254.20.10"), Some(AddressFlags::NODE));
    for hidden in ["127.0.0.1", "::1", "fe80::1"] {
        assert_eq!(flags(hidden), None, "{hidden}");
    }
}

#[test]
fn the_nodes_addresses_are_the_first_of_each_family() {
    for (addresses, expected) in [
        ("192.168.0.2 198.51.100.1", "192.168.0.2"),
        (
            "2001:db8::1 192.168.0.2 2001:db8::9",
            "2001:db8::1 192.168.0.2",
        ),
        ("", ""),
    ] {
        assert_eq!(primary_addresses(Some(&node(addresses, ""))), ips(expected));
    }
    assert_eq!(primary_addresses(None), ips(""));
}

#[test]
fn the_source_is_the_nodes_own_address_or_a_devices() {
    let source = |node: Option<&Node>, devices: &[LocalDevice]| {
        let settings = tables(&config(), node, &[], devices, 0).settings;
        [settings.node_v4.to_string(), settings.node_v6.to_string()]
    };
    let behind_nat = node("198.51.100.1 2001:db8::1", "");
    let second = node("192.168.1.2", "");
    for (node, expected) in [
        (None, ["192.168.0.2", "2001:db8::1"]),
        (Some(&second), ["192.168.1.2", "2001:db8::1"]),
        (Some(&behind_nat), ["192.168.0.2", "2001:db8::1"]),
    ] {
        assert_eq!(source(node, &devices()), expected, "{node:?}");
    }
    assert_eq!(
        source(Some(&behind_nat), &[]),
        ["198.51.100.1", "2001:db8::1"]
    );
    assert_eq!(
        source(None, &[device(2, "eth0", "fe80::1 169.254.0.1")]),
        ["::", "::"]
    );
}

#[test]
fn a_devices_own_addresses_are_the_source_of_what_leaves_by_it() {
    let tables = tables(&config(), None, &[], &devices(), 7);
    let source = |index: u32| {
        let device = tables.devices[&index];
        [device.v4.to_string(), device.v6.to_string()]
    };
    assert_eq!(source(2), ["192.168.0.2", "2001:db8::1"]);
    assert_eq!(source(3), ["192.168.1.2", "::"]);
    assert_eq!(source(1), ["::", "::"]);
    assert_eq!(tables.devices[&2].mtu, 1500);
    assert_eq!(
        bytemuck::cast::<_, [u8; 6]>(tables.devices[&2].mac),
        [2, 0, 0, 0, 0, 1]
    );
    assert_eq!(tables.settings.host_device, 7);
}

/// Flags of the settings, networks of local pods and devices that lead to them.
fn detection(detect_local: DetectLocal, node: Option<&Node>) -> (SettingsFlags, String, Vec<u32>) {
    let port = LocalDevice {
        master: Some("cni0".into()),
        ..device(11, "veth1", "")
    };
    let devices = [
        device(10, "cni0", "10.0.0.1"),
        port,
        device(12, "cali7", ""),
    ];
    let config = NodeConfig {
        detect_local,
        ..config()
    };
    let tables = tables(&config, node, &[], &devices, 0);
    let is_local =
        |(_, flags): &(&NetworkKey, &NetworkFlags)| flags.contains(NetworkFlags::LOCAL_PODS);
    let networks = tables.networks.iter().filter(is_local);
    let networks: Vec<_> = networks
        .map(|(key, _)| format!("{}/{}", key.addr, key.prefix_len))
        .collect();
    let leads = |(_, device): &(&u32, &Device)| device.flags.contains(DeviceFlags::LOCAL_PODS);
    let pods = tables.devices.iter().filter(leads).map(|(index, _)| *index);
    (tables.settings.flags, networks.join(" "), pods.collect())
}

#[test]
fn local_pods_are_told_by_the_configured_mode() {
    use DetectLocal::{BridgeInterface, ClusterCidr, InterfaceNamePrefix, NodeCidr, PodDevices};
    const V4: SettingsFlags = SettingsFlags::DETECT_V4;
    const V6: SettingsFlags = SettingsFlags::DETECT_V6;
    const DEVICE: SettingsFlags = SettingsFlags::DETECT_DEVICE;
    let node = node("", "10.1.2.0/24,10.9.0.0/16,fd00:1::/64");
    let cases = [
        (ClusterCidr(nets("")), SettingsFlags::NONE, "", vec![]),
        (ClusterCidr(nets("10.0.0.0/8")), V4, "10.0.0.0/104", vec![]),
        (
            ClusterCidr(nets("fd00::/64,10.3.0.0/8")),
            V4.union(V6),
            "10.0.0.0/104 fd00::/64",
            vec![],
        ),
        (NodeCidr, V4.union(V6), "10.1.2.0/120 fd00:1::/64", vec![]),
        (BridgeInterface("cni0".into()), DEVICE, "", vec![10, 11]),
        (BridgeInterface("cni".into()), DEVICE, "", vec![]),
        (InterfaceNamePrefix("cali".into()), DEVICE, "", vec![12]),
        (InterfaceNamePrefix("veth".into()), DEVICE, "", vec![11]),
        (InterfaceNamePrefix("cni".into()), DEVICE, "", vec![10, 11]),
        (PodDevices, DEVICE, "", vec![12]),
    ];
    for (mode, flags, networks, devices) in cases {
        let shown = mode.to_string();
        let mut found = detection(mode, Some(&node));
        let mut sorted: Vec<_> = found.1.split(' ').collect();
        sorted.sort_unstable();
        found.1 = sorted.join(" ");
        assert_eq!(found, (flags, networks.to_owned(), devices), "{shown}");
    }
    // A Node object that is not there has no podCIDRs: no detection.
    assert_eq!(
        detection(NodeCidr, None),
        (SettingsFlags::NONE, String::new(), vec![])
    );
}

/// Networks with their flags, as the trie would be asked for them.
fn look_up(networks: &BTreeMap<NetworkKey, NetworkFlags>, address: &str) -> NetworkFlags {
    let address = Addr::from(address.parse::<IpAddr>().unwrap());
    let bits = |addr: Addr| u128::from_be_bytes(bytemuck::cast(addr.words()));
    let matches = |key: &NetworkKey| {
        let shift = 128 - key.prefix_len;
        let prefix = |addr| bits(addr).checked_shr(shift).unwrap_or(0);
        prefix(key.addr) == prefix(address)
    };
    let found = networks.iter().filter(|(key, _)| matches(key));
    let longest = found.max_by_key(|(key, _)| key.prefix_len);
    longest.map_or(NetworkFlags::NONE, |(_, flags)| *flags)
}

#[test]
fn a_network_inside_another_has_that_ones_flags_too() {
    const SERVICES: NetworkFlags = NetworkFlags::SERVICES;
    const PODS: NetworkFlags = NetworkFlags::LOCAL_PODS;
    let config = NodeConfig {
        detect_local: DetectLocal::ClusterCidr(nets("10.0.0.0/8,::/0")),
        service_cidrs: nets("10.96.0.0/16,fd00:10:96::/112"),
        ..config()
    };
    let cluster = nets("10.97.0.5/24,10.0.0.0/4");
    let networks = tables(&config, None, &cluster, &[], 0).networks;
    for (address, expected) in [
        ("10.96.0.1", SERVICES.union(PODS)),
        ("10.97.0.1", SERVICES.union(PODS)),
        ("10.1.0.1", SERVICES.union(PODS)),
        ("0.1.0.1", SERVICES),
        ("fd00:10:96::1", SERVICES.union(PODS)),
        ("fd00:10:97::1", PODS),
        // ::/0 is about IPv6 alone.
        ("192.0.2.1", NetworkFlags::NONE),
    ] {
        assert_eq!(look_up(&networks, address), expected, "{address}");
    }
    assert_eq!(tables(&config, None, &cluster, &[], 0).networks, networks);
}

#[test]
fn settings_follow_the_configuration() {
    let all = NodeConfig {
        masquerade_all: true,
        source_nat: SourceNat::LikeKubeProxy,
        gone_backends: GoneBackends::Keep,
        mid_flow: MidFlow::Adopt,
        source_ports: SourcePorts {
            first: 2000,
            last: 3000,
        },
        ..config()
    };
    let settings = tables(&all, None, &nets("10.96.0.0/16"), &[], 0).settings;
    let expected = [
        SettingsFlags::MASQUERADE_ALL,
        SettingsFlags::SOURCE_NAT_LIKE_KUBE_PROXY,
        SettingsFlags::KEEP_GONE,
        SettingsFlags::ADOPT_MID_FLOW,
        SettingsFlags::SERVICE_CIDRS,
        SettingsFlags::DETECT_DEVICE,
    ];
    let expected = expected
        .into_iter()
        .fold(SettingsFlags::NONE, SettingsFlags::union);
    assert_eq!(settings.flags, expected);
    assert_eq!(
        (settings.first_port.number(), settings.last_port.number()),
        (2000, 3000)
    );
    let by_default = Settings {
        flags: SettingsFlags::DETECT_DEVICE,
        ..Settings::DEFAULT
    };
    assert_eq!(tables(&config(), None, &[], &[], 0).settings, by_default);
}

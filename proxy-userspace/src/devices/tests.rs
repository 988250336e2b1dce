use proxy_common::abi::Family;

use super::*;

fn auto() -> Devices {
    Devices::new(Patterns::default())
}

/// One end of a pair whose other end is elsewhere.
fn veth(index: u32, name: &str) -> Link {
    Link {
        is_peer_elsewhere: true,
        ..Link::new(index, name, LinkKind::Pair)
    }
}

fn other(index: u32, name: &str) -> Link {
    Link::new(index, name, LinkKind::Other)
}

fn port_of(master: u32, link: Link) -> Link {
    let port = Some(Port {
        master,
        is_bridge: true,
    });
    Link { port, ..link }
}

fn everything(links: Vec<Link>) -> Everything {
    Everything {
        links,
        ..Everything::default()
    }
}

/// The roles of some links, by name.
fn roles_of(links: &[Link], uplinks: &[u32], pods: &str, nodes: &str) -> Vec<(String, Role)> {
    let read = |text: &str| match text {
        "" => DevicePatterns::default(),
        text => text.parse().unwrap(),
    };
    let patterns = Patterns {
        pods: read(pods),
        nodes: read(nodes),
    };
    let links = links.iter().map(|link| (link.device.index, link.clone()));
    let links: BTreeMap<_, _> = links.collect();
    let uplinks = uplinks.iter().copied().collect();
    let roles = roles(&links, &uplinks, &patterns).into_iter();
    roles
        .map(|(index, role)| (links[&index].device.name.to_string(), role))
        .collect()
}

fn role_of(link: Link, is_uplink: bool) -> Role {
    let uplinks = Vec::from_iter(is_uplink.then_some(link.device.index));
    roles_of(&[link], &uplinks, "", "")[0].1
}

#[test]
fn a_device_is_what_its_link_looks_like() {
    let no_ethernet = |link| Link {
        has_ethernet: false,
        ..link
    };
    let bond_port = Link {
        port: Some(Port {
            master: 9,
            is_bridge: false,
        }),
        ..other(2, "eth1")
    };
    let macvlan = Link {
        is_peer_elsewhere: true,
        ..other(2, "mac0")
    };
    let cases = [
        (veth(2, "veth1"), false, Role::PodEdge),
        // Both ends are here.
        (Link::new(2, "veth1", LinkKind::Pair), false, Role::Other),
        // The way out of a node that is a container.
        (veth(2, "eth0"), true, Role::NodeEdge),
        (other(2, "eth0"), true, Role::NodeEdge),
        (other(2, "eth0"), false, Role::NodeEdge),
        (other(2, "vxlan.calico"), false, Role::NodeEdge),
        // On a device of another namespace.
        (macvlan, false, Role::NodeEdge),
        (no_ethernet(other(2, "wg0")), false, Role::Other),
        (bond_port, false, Role::Other),
        (port_of(9, other(2, "eth1")), false, Role::Other),
        (
            Link::new(2, "dummy0", LinkKind::Internal),
            false,
            Role::Other,
        ),
        (
            Link::new(2, "docker0", LinkKind::Bridge),
            false,
            Role::Other,
        ),
        (Link::new(2, "br0", LinkKind::Bridge), true, Role::NodeEdge),
        (
            Link::new(1, "lo", LinkKind::Loopback),
            false,
            Role::Loopback,
        ),
        (
            Link::new(2, "beeline0", LinkKind::Pair),
            false,
            Role::HostEdge,
        ),
        (Link::new(2, "beeline1", LinkKind::Pair), false, Role::Other),
        // Somebody else's, and no reason to touch it.
        (other(2, "beeline0"), false, Role::Other),
    ];
    for (link, is_uplink, expected) in cases {
        assert_eq!(role_of(link.clone(), is_uplink), expected, "{link:?}");
    }
}

#[test]
fn a_bridge_is_an_edge_if_it_joins_more_than_pods() {
    let cni0 = Link::new(9, "cni0", LinkKind::Bridge);
    let pods = [
        cni0.clone(),
        port_of(9, veth(2, "veth1")),
        port_of(9, veth(3, "veth2")),
    ];
    let roles = roles_of(&pods, &[], "", "");
    let expected = [
        ("veth1", Role::PodEdge),
        ("veth2", Role::PodEdge),
        ("cni0", Role::Other),
    ];
    assert_eq!(roles, expected.map(|(name, role)| (name.to_owned(), role)));
    let mixed = [
        cni0,
        port_of(9, veth(2, "veth1")),
        port_of(9, other(3, "eth0")),
    ];
    let roles = roles_of(&mixed, &[], "", "");
    let expected = [
        ("veth1", Role::PodEdge),
        ("eth0", Role::Other),
        ("cni0", Role::NodeEdge),
    ];
    assert_eq!(roles, expected.map(|(name, role)| (name.to_owned(), role)));
}

#[test]
fn names_override_what_links_look_like() {
    let links = [
        other(2, "tap7"),
        veth(3, "veth7"),
        veth(4, "veth-infra"),
        other(5, "eth0"),
    ];
    let role = |pods: &str, nodes: &str| {
        let roles = roles_of(&links, &[], pods, nodes).into_iter();
        roles.map(|(_, role)| role).collect::<Vec<_>>()
    };
    use Role::{NodeEdge, Other, PodEdge};
    assert_eq!(role("", ""), [NodeEdge, PodEdge, PodEdge, NodeEdge]);
    assert_eq!(
        role("tap*,!veth-infra", ""),
        [PodEdge, NodeEdge, NodeEdge, NodeEdge]
    );
    assert_eq!(
        role("!veth-infra", "!veth-infra"),
        [NodeEdge, PodEdge, Other, NodeEdge]
    );
    assert_eq!(role("", "eth*"), [Other, PodEdge, PodEdge, NodeEdge]);
    assert_eq!(role("", "veth-infra"), [Other, PodEdge, NodeEdge, Other]);
}

#[test]
fn a_veth_becomes_an_edge_when_its_peer_moves_to_a_pod() {
    let mut devices = auto();
    let here = Link::new(5, "veth5", LinkKind::Pair);
    assert_eq!(devices.apply(Event::Link(here)), []);
    let link = veth(5, "veth5");
    let device = link.device.clone();
    let attach = Task::Attach(device.clone(), Role::PodEdge);
    assert_eq!(devices.apply(Event::Link(link.clone())), [attach]);
    assert_eq!(devices.apply(Event::Link(link)), []);
    assert_eq!(devices.apply(Event::LinkGone(5)), [Task::Forget(device)]);
    assert_eq!(devices.apply(Event::LinkGone(5)), []);
}

#[test]
fn an_edge_that_is_none_any_more_is_detached() {
    let mut devices = auto();
    let _tasks = devices.apply(Event::Link(veth(5, "veth5")));
    let changed = Link::new(5, "veth5", LinkKind::Pair);
    let device = changed.device.clone();
    assert_eq!(devices.apply(Event::Link(changed)), [Task::Detach(device)]);
    assert_eq!(devices.edges().count(), 0);
}

#[test]
fn a_port_changes_what_its_bridge_is() {
    let mut devices = auto();
    let bridge = Link::new(9, "br0", LinkKind::Bridge);
    let device = bridge.device.clone();
    let eth0 = other(2, "eth0");
    let port = eth0.device.clone();
    let _tasks = devices.apply(Event::Link(bridge));
    let attached = [Task::Attach(port.clone(), Role::NodeEdge)];
    assert_eq!(devices.apply(Event::Link(eth0.clone())), attached);
    let joined = [
        Task::Detach(port.clone()),
        Task::Attach(device.clone(), Role::NodeEdge),
    ];
    assert_eq!(devices.apply(Event::Link(port_of(9, eth0.clone()))), joined);
    let left = [
        Task::Attach(port, Role::NodeEdge),
        Task::Detach(device.clone()),
    ];
    assert_eq!(devices.apply(Event::Link(eth0.clone())), left);
    let _tasks = devices.apply(Event::Link(port_of(9, eth0)));
    assert_eq!(devices.apply(Event::LinkGone(2)), [Task::Detach(device)]);
}

#[test]
fn after_missed_changes_all_edges_are_attached_and_lost_ones_forgotten() {
    let mut devices = auto();
    for link in [veth(5, "veth5"), veth(6, "veth6"), veth(7, "veth7")] {
        let _tasks = devices.apply(Event::Link(link));
    }
    let links = vec![
        veth(6, "veth6"),
        Link::new(7, "veth7", LinkKind::Pair),
        Link::new(1, "lo", LinkKind::Loopback),
    ];
    let lo = links[2].device.clone();
    let tasks = devices.apply(Event::Everything(everything(links)));
    let expected = [
        Task::Forget(veth(5, "veth5").device),
        Task::Detach(veth(7, "veth7").device),
        Task::Attach(lo, Role::Loopback),
        Task::Attach(veth(6, "veth6").device, Role::PodEdge),
    ];
    assert_eq!(tasks, expected);
}

fn assigned(text: &str, standing: Standing) -> Assigned {
    let ip = text.parse().unwrap();
    Assigned { ip, standing }
}

#[test]
fn ways_out_come_first_and_pods_last() {
    let mut devices = auto();
    let links = vec![
        Link::new(1, "lo", LinkKind::Loopback),
        veth(2, "veth2"),
        other(3, "eth1"),
        Link::new(4, "dummy0", LinkKind::Internal),
        other(7, "eth0"),
    ];
    let uplinks = BTreeSet::from([7]);
    let _tasks = devices.apply(Event::Everything(Everything {
        links,
        uplinks,
        addresses: vec![(7, assigned("192.0.2.7", Standing::Preferred))],
    }));
    let order: Vec<_> = devices
        .local()
        .into_iter()
        .map(|device| device.index)
        .collect();
    assert_eq!(order, [7, 3, 1, 2, 4]);
    assert_eq!(
        devices.local()[0].addresses,
        ["192.0.2.7".parse::<IpAddr>().unwrap()]
    );
    assert!(devices.local()[2].is_loopback);
}

#[test]
fn addresses_are_in_order_of_standing_then_of_the_kernel() {
    let mut devices = auto();
    let _tasks = devices.apply(Event::Link(other(2, "eth0")));
    let note = |devices: &mut Devices, text: &str, standing| {
        let _tasks = devices.apply(Event::Address(2, assigned(text, standing)));
    };
    note(&mut devices, "fe80::1", Standing::Narrow);
    note(&mut devices, "2001:db8::9", Standing::Deprecated);
    note(&mut devices, "2001:db8::7", Standing::Temporary);
    note(&mut devices, "192.0.2.9", Standing::Preferred);
    note(&mut devices, "192.0.2.1", Standing::Preferred);
    note(&mut devices, "2001:db8::1", Standing::Preferred);
    let addresses = |devices: &Devices, family| {
        let device = devices.local().remove(0);
        let of_family = device.addresses.into_iter();
        let of_family = of_family.filter(|ip| Family::of(*ip) == family);
        of_family.map(|ip| ip.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(
        addresses(&devices, Family::Ipv4),
        ["192.0.2.9", "192.0.2.1"]
    );
    let v6 = ["2001:db8::1", "2001:db8::7", "2001:db8::9", "fe80::1"];
    assert_eq!(addresses(&devices, Family::Ipv6), v6);
    // It grows old.
    note(&mut devices, "2001:db8::1", Standing::Deprecated);
    assert_eq!(addresses(&devices, Family::Ipv6)[0], "2001:db8::7");
    let gone = Event::AddressGone(2, "192.0.2.9".parse().unwrap());
    let _tasks = devices.apply(gone);
    assert_eq!(addresses(&devices, Family::Ipv4), ["192.0.2.1"]);
    let _tasks = devices.apply(Event::LinkGone(2));
    let _tasks = devices.apply(Event::Link(other(2, "eth9")));
    assert_eq!(addresses(&devices, Family::Ipv4), Vec::<String>::new());
}

#[test]
fn a_port_of_a_bridge_knows_its_name() {
    let mut devices = auto();
    let _tasks = devices.apply(Event::Link(Link::new(9, "cni0", LinkKind::Bridge)));
    let _tasks = devices.apply(Event::Link(port_of(9, veth(2, "veth2"))));
    let bond = Some(Port {
        master: 9,
        is_bridge: false,
    });
    let enslaved = Link {
        port: bond,
        ..other(3, "eth0")
    };
    let _tasks = devices.apply(Event::Link(enslaved));
    let master = |index| {
        let mut local = devices.local().into_iter();
        local.find(|it| it.index == index).unwrap().master
    };
    assert_eq!(master(2).as_deref(), Some("cni0"));
    assert_eq!(master(3), None);
}

#[test]
fn the_host_edge_is_as_wide_as_the_way_out() {
    let mut devices = auto();
    assert!(!devices.has_host_edge());
    let host = Link::new(5, "beeline0", LinkKind::Pair);
    let _tasks = devices.apply(Event::Everything(Everything {
        links: vec![other(2, "eth0"), host.clone()],
        uplinks: BTreeSet::from([2]),
        ..Everything::default()
    }));
    assert!(devices.has_host_edge());
    assert_eq!(devices.host_device(), Some(5));
    let narrow = Link {
        mtu: 1400,
        ..other(2, "eth0")
    };
    let _tasks = devices.apply(Event::Link(narrow));
    assert!(!devices.has_host_edge());
    let mut fitting = Link { mtu: 1400, ..host };
    let _tasks = devices.apply(Event::Link(fitting.clone()));
    assert!(devices.has_host_edge());
    fitting.is_up = false;
    let _tasks = devices.apply(Event::Link(fitting));
    assert!(!devices.has_host_edge());
}

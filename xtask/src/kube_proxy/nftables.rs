//! The table of the nftables mode, in the form of `nft list`.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::io::{self, Write};
use std::net::IpAddr;

use proxy_common::abi::Family;

use super::{Node, Port, endpoints, lower, names};

/// Writes the whole table.
pub(super) fn write(node: &Node, ports: &[Port], out: &mut impl Write) -> io::Result<()> {
    write_base(node, &Elements::of(node, ports), out)?;
    for port in ports {
        write_chains(node, port, out)?;
    }
    writeln!(out, "}}")
}

/// Writes the same in parts, to be loaded one after the other: first all that does not depend on
/// Services, then their chains, at most `n_ports` at a time, and in the end what leads there.
pub(super) fn parts<'a>(
    node: &'a Node,
    ports: &'a [Port],
    n_ports: usize,
) -> impl Iterator<Item = io::Result<Vec<u8>>> + 'a {
    let base = move || {
        let mut part = Vec::new();
        write_base(node, &Elements::default(), &mut part)?;
        writeln!(part, "}}")?;
        Ok(part)
    };
    let chains = ports.chunks(n_ports).map(move |ports| {
        let mut part = Vec::new();
        write_head(node, &mut part)?;
        for port in ports {
            write_chains(node, port, &mut part)?;
        }
        writeln!(part, "}}")?;
        Ok(part)
    });
    let elements = move || {
        let mut part = Vec::new();
        write_head(node, &mut part)?;
        write_sets(node, &Elements::of(node, ports), &mut part)?;
        writeln!(part, "}}")?;
        Ok(part)
    };
    std::iter::once_with(base)
        .chain(chains)
        .chain(std::iter::once_with(elements))
}

/// What is in sets and maps, each as it is written.
#[derive(Default)]
struct Elements {
    hairpin_connections: BTreeSet<String>,
    cluster_ips: BTreeSet<IpAddr>,
    node_port_ips: Vec<IpAddr>,
    no_endpoint_services: Vec<String>,
    no_endpoint_node_ports: Vec<String>,
    service_ips: Vec<String>,
    service_node_ports: Vec<String>,
}

impl Elements {
    fn of(node: &Node, ports: &[Port]) -> Self {
        let mut all = Self {
            node_port_ips: node.addresses.clone().unwrap_or_default(),
            ..Self::default()
        };
        for port in ports {
            all.add(node, port);
        }
        all
    }

    fn add(&mut self, node: &Node, port: &Port) {
        let protocol = lower(port.protocol);
        let cluster_ip = format!("{} . {protocol} . {}", port.cluster_ip, port.port);
        let node_port = port.node_port.map(|port| format!("{protocol} . {port}"));
        let _is_new = self.cluster_ips.insert(port.cluster_ip);
        if port.endpoints.is_empty() {
            let refused = |key| format!("{key} comment \"{}\" : goto reject-chain", port.name);
            self.no_endpoint_services.push(refused(cluster_ip));
            self.no_endpoint_node_ports.extend(node_port.map(refused));
            return;
        }
        let name = names::in_nftables(port);
        self.service_ips
            .push(format!("{cluster_ip} : goto service-{name}"));
        self.service_node_ports
            .extend(node_port.map(|key| format!("{key} : goto external-{name}")));
        let own = port
            .endpoints
            .iter()
            .filter(|it| node.own_pods.contains(&it.ip()));
        self.hairpin_connections.extend(own.map(|it| {
            let ip = it.ip();
            format!("{ip} . {ip} . {protocol} . {}", it.port())
        }));
    }
}

/// Words that differ between the families.
struct Words {
    ip: &'static str,
    address: &'static str,
    loopback: &'static str,
}

fn words(node: &Node) -> Words {
    match node.family() {
        Family::Ipv4 => Words {
            ip: "ip",
            address: "ipv4_addr",
            loopback: "127.0.0.0/8",
        },
        Family::Ipv6 => Words {
            ip: "ip6",
            address: "ipv6_addr",
            loopback: "::1",
        },
    }
}

fn write_head(node: &Node, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "table {} kube-proxy {{", words(node).ip)
}

/// Sets, maps and chains that are there whatever the Services.
fn write_base(node: &Node, elements: &Elements, out: &mut impl Write) -> io::Result<()> {
    write_head(node, out)?;
    writeln!(out, "\tcomment \"rules for kube-proxy\"")?;
    write_sets(node, elements, out)?;
    write_base_chains(node, out)
}

fn write_sets(node: &Node, elements: &Elements, out: &mut impl Write) -> io::Result<()> {
    let address = words(node).address;
    let service = format!("{address} . inet_proto . inet_service");
    let map = format!("{service} : verdict");
    let node_port_map = "inet_proto . inet_service : verdict";
    write_set(
        out,
        "set hairpin-connections",
        &format!("{address} . {service}"),
        "service hairpin connections",
        &elements.hairpin_connections,
    )?;
    writeln!(out)?;
    write_set(
        out,
        "set cluster-ips",
        address,
        "Active ClusterIPs",
        &elements.cluster_ips,
    )?;
    if node.addresses.is_some() {
        writeln!(out)?;
        write_set(
            out,
            "set nodeport-ips",
            address,
            "IPs that accept NodePort traffic",
            &elements.node_port_ips,
        )?;
    }
    let nothing = Vec::new();
    for (name, of, comment, elements) in [
        (
            "no-endpoint-services",
            &*map,
            "vmap to drop or reject packets to services with no endpoints",
            &elements.no_endpoint_services,
        ),
        (
            "no-endpoint-nodeports",
            node_port_map,
            "vmap to drop or reject packets to service nodeports with no endpoints",
            &elements.no_endpoint_node_ports,
        ),
        (
            "firewall-ips",
            &map,
            "destinations that are subject to LoadBalancerSourceRanges",
            &nothing,
        ),
        (
            "service-ips",
            &map,
            "ClusterIP, ExternalIP and LoadBalancer IP traffic",
            &elements.service_ips,
        ),
        (
            "service-nodeports",
            node_port_map,
            "NodePort traffic",
            &elements.service_node_ports,
        ),
    ] {
        writeln!(out)?;
        write_set(out, &format!("map {name}"), of, comment, elements)?;
    }
    Ok(())
}

fn write_set<T: Display>(
    out: &mut impl Write,
    name: &str,
    of: &str,
    comment: &str,
    elements: impl IntoIterator<Item = T>,
) -> io::Result<()> {
    writeln!(out, "\t{name} {{\n\t\ttype {of}\n\t\tcomment \"{comment}\"")?;
    let mut lead = "\t\telements = { ";
    let mut end = "";
    for element in elements {
        write!(out, "{lead}{element}")?;
        (lead, end) = (",\n\t\t\t     ", " }\n");
    }
    writeln!(out, "{end}\t}}")
}

fn write_base_chains(node: &Node, out: &mut impl Write) -> io::Result<()> {
    let Words { ip, loopback, .. } = words(node);
    let (pods, services) = (node.pods, node.services);
    let (with_node_ports, arriving) = match node.addresses {
        Some(_) => {
            let text = format!("{ip} daddr @nodeport-ips");
            (text.clone(), text)
        }
        None => {
            let text = format!("{ip} daddr != {loopback}");
            (format!("fib daddr type local {text}"), text)
        }
    };
    write!(
        out,
        r#"
	chain filter-prerouting-pre-dnat {{
		type filter hook prerouting priority dstnat - 10; policy accept;
		ct state new jump firewall-check
	}}

	chain filter-output-pre-dnat {{
		type filter hook output priority -110; policy accept;
		ct state new jump firewall-check
	}}

	chain filter-input {{
		type filter hook input priority filter; policy accept;
		ct state new jump nodeport-endpoints-check
		ct state new jump service-endpoints-check
	}}

	chain filter-forward {{
		type filter hook forward priority filter; policy accept;
		ct state new jump service-endpoints-check
		ct state new jump cluster-ips-check
	}}

	chain filter-output {{
		type filter hook output priority filter; policy accept;
		ct state new jump service-endpoints-check
		ct state new jump cluster-ips-check
	}}

	chain nat-prerouting {{
		type nat hook prerouting priority dstnat; policy accept;
		jump services
	}}

	chain nat-output {{
		type nat hook output priority -100; policy accept;
		jump services
	}}

	chain nat-postrouting {{
		type nat hook postrouting priority srcnat; policy accept;
		jump masquerading
	}}

	chain nodeport-endpoints-check {{
		{arriving} meta l4proto . th dport vmap @no-endpoint-nodeports
	}}

	chain service-endpoints-check {{
		{ip} daddr . meta l4proto . th dport vmap @no-endpoint-services
	}}

	chain firewall-check {{
		{ip} daddr . meta l4proto . th dport vmap @firewall-ips
	}}

	chain services {{
		{ip} daddr @cluster-ips {ip} saddr != {pods} meta mark set meta mark | 0x00004000 comment "masquerade clusterIP traffic from outside cluster"
		{ip} daddr . meta l4proto . th dport vmap @service-ips
		{with_node_ports} meta l4proto . th dport vmap @service-nodeports
	}}

	chain masquerading {{
		meta mark & 0x00004000 != 0x00000000 meta mark set meta mark ^ 0x00004000 masquerade fully-random
		ct status dnat {ip} saddr . {ip} daddr . meta l4proto . th dport @hairpin-connections masquerade fully-random
	}}

	chain cluster-ips-check {{
		{ip} daddr @cluster-ips reject comment "Reject traffic to invalid ports of ClusterIPs"
		{ip} daddr {services} drop comment "Drop traffic to unallocated ClusterIPs"
	}}

	chain reject-chain {{
		comment "helper for @no-endpoint-services / @no-endpoint-nodeports"
		reject
	}}
"#
    )
}

/// The chain of a port that chooses an endpoint, and the one in front of it for its NodePort: that
/// masquerades, since the endpoint may be on another node.
fn write_chains(node: &Node, port: &Port, out: &mut impl Write) -> io::Result<()> {
    let endpoints = endpoints(port);
    if endpoints.is_empty() {
        return Ok(());
    }
    let name = names::in_nftables(port);
    let choices: Vec<_> = endpoints
        .iter()
        .enumerate()
        .map(|(at, it)| format!("{at} : {} . {}", it.ip(), it.port()))
        .collect();
    write!(
        out,
        "\n\tchain service-{name} {{\n\t\tmeta l4proto {} dnat {} to numgen random mod {} map {{ \
         {} }}\n\t}}\n",
        lower(port.protocol),
        words(node).ip,
        choices.len(),
        choices.join(", ")
    )?;
    if port.node_port.is_some() {
        write!(
            out,
            "\n\tchain external-{name} {{\n\t\tmeta mark set meta mark | 0x00004000\n\t\t\
             goto service-{name}\n\t}}\n"
        )?;
    }
    Ok(())
}

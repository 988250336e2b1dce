//! The generator against what the real kube-proxy had written.
//!
//! Of 100, 1,000 and 5,000 Services with five endpoints each, on a node without pods. Where the
//! order is one of chance, lines are sorted first: rules of Services in `KUBE-SERVICES` and chains
//! of Services in nftables, which are in the order of a Go map, and elements of nftables' sets,
//! which are in the order of a hash in the kernel.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;

use proxy_common::abi::Protocol;

use super::{Flavour, Node, Port, v4, v6, write_rules};

const NUMBERS: [u32; 3] = [100, 1_000, 5_000];

/// Reads a dump. `mode` is a part of its name.
fn dump(mode: &str, services: u32) -> String {
    let file = format!(
        "{}/data/kube-proxy/{mode}-{services}.txt.gz",
        env!("CARGO_MANIFEST_DIR")
    );
    let output = Command::new("zcat").arg(&file).output().unwrap();
    assert!(output.status.success(), "{file}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn node() -> Node {
    Node {
        pods: v4([10, 244, 0, 0], 16),
        services: v4([10, 96, 0, 0], 16),
        own_pods: v4([198, 51, 100, 0], 24),
        addresses: Some(Vec::new()),
        counts: true,
    }
}

fn address(base: [u8; 4], number: u32) -> IpAddr {
    Ipv4Addr::from_bits(Ipv4Addr::from(base).to_bits() + number).into()
}

fn ports(services: u32) -> Vec<Port> {
    let kubernetes = Port {
        name: "default/kubernetes:https".to_owned(),
        protocol: Protocol::Tcp,
        cluster_ip: address([10, 96, 0, 1], 0),
        port: 443,
        node_port: None,
        endpoints: vec![SocketAddr::new(address([192, 0, 2, 1], 0), 6443)],
    };
    let service = |number| Port {
        name: format!("bench/svc-{number:05}:p80"),
        protocol: Protocol::Tcp,
        cluster_ip: address([10, 96, 1, 0], number),
        port: 80,
        node_port: None,
        endpoints: (0..5)
            .map(|at| SocketAddr::new(address([10, 244, 1, 0], 5 * number + at), 8080))
            .collect(),
    };
    (0..services)
        .map(service)
        .chain(std::iter::once(kubernetes))
        .collect()
}

fn generated(flavour: Flavour, node: &Node, ports: &[Port]) -> String {
    let mut text = Vec::new();
    write_rules(flavour, node, ports, &mut text).unwrap();
    String::from_utf8(text).unwrap()
}

/// Compares line by line; what is different is shown, not everything.
fn expect_equal(generated: &[String], real: &[String]) {
    for (at, (generated, real)) in generated.iter().zip(real).enumerate() {
        assert_eq!(generated, real, "line or block {at}");
    }
    assert_eq!(generated.len(), real.len());
}

/// Lines without comments; of the rules that lead to Services, one after the other, sorted ones.
fn iptables_lines(text: &str) -> Vec<String> {
    let is_rule = |line: &&str| !line.starts_with('#');
    let mut lines: Vec<String> = text.lines().filter(is_rule).map(str::to_owned).collect();
    let is_service = |line: &String| line.starts_with("-A KUBE-SERVICES -d ");
    let first = lines.iter().position(is_service).unwrap();
    let after = lines.iter().rposition(is_service).unwrap() + 1;
    lines[first..after].sort_unstable();
    lines
}

#[test]
fn iptables_rules_are_those_that_kube_proxy_writes() {
    for services in NUMBERS {
        let text = generated(Flavour::Iptables, &node(), &ports(services));
        let real = dump("iptables", services);
        expect_equal(&iptables_lines(&text), &iptables_lines(&real));
        assert!(real.lines().count() > 23 * services as usize);
    }
}

/// The sets, maps and chains of a table, with sorted elements; those of Services last, sorted.
fn nftables_blocks(text: &str) -> Vec<String> {
    let (mut services, mut others): (Vec<_>, Vec<_>) = text
        .trim_end()
        .strip_suffix("\n}")
        .unwrap()
        .split("\n\n")
        .map(|block| with_sorted_elements(block.trim_end()))
        .partition(|block| is_of_service(block));
    services.sort_unstable();
    others.append(&mut services);
    others
}

fn is_of_service(block: &str) -> bool {
    let name = block.trim_start().strip_prefix("chain service-");
    name.is_some_and(|name| name.split(' ').next().unwrap().contains('/'))
}

fn with_sorted_elements(block: &str) -> String {
    let Some((head, rest)) = block.split_once("elements = {") else {
        return block.to_owned();
    };
    let (elements, tail) = rest.split_once('}').unwrap();
    let mut elements: Vec<_> = elements.split(',').map(str::trim).collect();
    elements.sort_unstable();
    format!("{head}elements = {{\n{}\n}}{tail}", elements.join("\n"))
}

#[test]
fn the_nftables_table_is_the_one_that_kube_proxy_writes() {
    for services in NUMBERS {
        let text = generated(Flavour::Nftables, &node(), &ports(services));
        let real = dump("nftables", services);
        let (real, _) = real.split_once("table ip6 ").unwrap();
        let real = nftables_blocks(real);
        expect_equal(&nftables_blocks(&text), &real);
        assert!(real.len() > services as usize);
    }
}

#[test]
fn the_nftables_table_of_ipv6_is_the_one_that_kube_proxy_writes() {
    let node = Node {
        pods: v6([0xfd00, 0x244, 0, 0, 0, 0, 0, 0], 64),
        services: v6([0xfd00, 0x96, 0, 0, 0, 0, 0, 0], 112),
        own_pods: v6([0xfd00, 0x244, 0, 0, 0, 0, 0, 0], 80),
        addresses: None,
        counts: true,
    };
    let real = dump("nftables", 100);
    let at = real.find("table ip6 ").unwrap();
    assert_eq!(generated(Flavour::Nftables, &node, &[]), real[at..]);
}

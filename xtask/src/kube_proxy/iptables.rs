//! Rules of the iptables mode, in the form of `iptables-save`: chains of a table by their names,
//! then all rules in the order of the chains.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};

use proxy_common::abi::Family;

use super::{Node, Port, endpoints, lower, names};

const MANGLE: &str = "\
*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-PROXY-CANARY - [0:0]
COMMIT
";

const FILTER: &str = r#"*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
-A INPUT -j KUBE-FIREWALL
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -j KUBE-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
"#;

/// For IPv4 alone: there NodePorts are served at loopback addresses, which lets others in.
const FIREWALL: &str = r#"-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment "block incoming localnet connections" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
"#;

const FORWARD: &str = r#"-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
"#;

const NAT: &str = "\
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
";

const NAT_RULES: &str = r#"-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
"#;

const MARK_MASQ: &str = "-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n";

const POSTROUTING: &str = r#"-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
"#;

const LAST_OF_SERVICES: &str = r#"-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
"#;

/// With more endpoints than this, rules that each of them has go without comments.
const COMMENTED_ENDPOINTS: usize = 1_000;

/// A port that somebody serves.
struct Served<'a> {
    port: &'a Port,
    is_commented: bool,
    /// The end of its chains' names.
    name: String,
    /// The end of the chain's name of each.
    endpoints: Vec<(String, SocketAddr)>,
}

pub(super) fn write(node: &Node, ports: &[Port], out: &mut impl Write) -> io::Result<()> {
    let n_endpoints: usize = ports.iter().map(|port| port.endpoints.len()).sum();
    let is_commented = n_endpoints <= COMMENTED_ENDPOINTS;
    let (served, unserved): (Vec<_>, Vec<_>) =
        ports.iter().partition(|port| !port.endpoints.is_empty());
    let served: Vec<_> = served
        .into_iter()
        .map(|port| Served::new(port, is_commented))
        .collect();
    out.write_all(MANGLE.as_bytes())?;
    write_filter(node, &unserved, out)?;
    write_nat(node, &served, out)
}

impl<'a> Served<'a> {
    fn new(port: &'a Port, is_commented: bool) -> Self {
        let chain = |endpoint| (names::of_endpoint(port, endpoint), endpoint);
        Self {
            port,
            is_commented,
            name: names::of_port(port),
            endpoints: endpoints(port).into_iter().map(chain).collect(),
        }
    }

    /// A comment of a rule that each endpoint has, and a space behind it.
    fn comment(&self, what: &str) -> String {
        if self.is_commented {
            format!("{} ", comment(self.port, what))
        } else {
            String::new()
        }
    }

    /// Masquerades clients of a NodePort, whose endpoints may be on other nodes.
    fn write_external(&self, out: &mut impl Write) -> io::Result<()> {
        let Self { port, name, .. } = self;
        writeln!(
            out,
            "-A KUBE-EXT-{name} -m comment --comment \"masquerade traffic for {} external \
             destinations\" -j KUBE-MARK-MASQ\n-A KUBE-EXT-{name} -j KUBE-SVC-{name}",
            port.name
        )
    }

    fn write_node_port(&self, node: &Node, out: &mut impl Write) -> io::Result<()> {
        let Some(node_port) = self.port.node_port else {
            return Ok(());
        };
        let (name, protocol) = (&self.name, lower(self.port.protocol));
        let comment = comment(self.port, "");
        if node.counts && node.family() == Family::Ipv4 {
            writeln!(
                out,
                "-A KUBE-NODEPORTS -d 127.0.0.0/8 -p {protocol} {comment} -m {protocol} \
                 --dport {node_port} -m nfacct --nfacct-name  localhost_nps_accepted_pkts \
                 -j KUBE-EXT-{name}"
            )?;
        }
        writeln!(
            out,
            "-A KUBE-NODEPORTS -p {protocol} {comment} -m {protocol} --dport {node_port} \
             -j KUBE-EXT-{name}"
        )
    }

    fn write_cluster_ip(&self, out: &mut impl Write) -> io::Result<()> {
        let to_cluster_ip = to_cluster_ip(self.port, "cluster IP");
        let name = &self.name;
        writeln!(out, "-A KUBE-SERVICES {to_cluster_ip} -j KUBE-SVC-{name}")
    }

    /// Translates, and masquerades an endpoint that is its own client.
    fn write_endpoint(
        &self,
        chain: &str,
        endpoint: SocketAddr,
        out: &mut impl Write,
    ) -> io::Result<()> {
        let protocol = lower(self.port.protocol);
        let comment = self.comment("");
        writeln!(
            out,
            "-A KUBE-SEP-{chain} -s {} {comment}-j KUBE-MARK-MASQ\n-A KUBE-SEP-{chain} \
             -p {protocol} {comment}-m {protocol} -j DNAT --to-destination {endpoint}",
            single(endpoint.ip()),
        )
    }

    /// One rule after the other has its chance to be the one.
    fn write_choice(&self, node: &Node, out: &mut impl Write) -> io::Result<()> {
        let Self { port, name, .. } = self;
        let to_cluster_ip = to_cluster_ip(port, "cluster IP");
        writeln!(
            out,
            "-A KUBE-SVC-{name} ! -s {} {to_cluster_ip} -j KUBE-MARK-MASQ",
            node.pods
        )?;
        let n_endpoints = self.endpoints.len();
        for (at, (chain, endpoint)) in self.endpoints.iter().enumerate() {
            let comment = self.comment(&format!(" -> {endpoint}"));
            let chance = match n_endpoints - at {
                1 => String::new(),
                left => format!(
                    "-m statistic --mode random --probability {} ",
                    probability(left)
                ),
            };
            writeln!(
                out,
                "-A KUBE-SVC-{name} {comment}{chance}-j KUBE-SEP-{chain}"
            )?;
        }
        Ok(())
    }
}

/// Ports that nobody serves are refused here.
fn write_filter(node: &Node, unserved: &[&Port], out: &mut impl Write) -> io::Result<()> {
    let family = node.family();
    let target = match family {
        Family::Ipv4 => "REJECT --reject-with icmp-port-unreachable",
        Family::Ipv6 => "REJECT --reject-with icmp6-port-unreachable",
    };
    out.write_all(FILTER.as_bytes())?;
    for port in unserved {
        let Some(node_port) = port.node_port else {
            continue;
        };
        let protocol = lower(port.protocol);
        let comment = comment(port, " has no endpoints");
        writeln!(
            out,
            "-A KUBE-EXTERNAL-SERVICES -p {protocol} {comment} -m addrtype --dst-type LOCAL \
             -m {protocol} --dport {node_port} -j {target}"
        )?;
    }
    if family == Family::Ipv4 {
        out.write_all(FIREWALL.as_bytes())?;
    }
    let counter = if node.counts {
        "-m nfacct --nfacct-name  ct_state_invalid_dropped_pkts "
    } else {
        ""
    };
    writeln!(
        out,
        "-A KUBE-FORWARD -m conntrack --ctstate INVALID {counter}-j DROP"
    )?;
    out.write_all(FORWARD.as_bytes())?;
    for port in unserved {
        let to_cluster_ip = to_cluster_ip(port, "has no endpoints");
        writeln!(out, "-A KUBE-SERVICES {to_cluster_ip} -j {target}")?;
    }
    writeln!(out, "COMMIT")
}

fn write_nat(node: &Node, served: &[Served], out: &mut impl Write) -> io::Result<()> {
    let mut by_name: Vec<&Served> = served.iter().collect();
    by_name.sort_unstable_by_key(|it| &it.name);
    let external = || by_name.iter().filter(|it| it.port.node_port.is_some());
    let mut endpoints: Vec<(&String, &Served, SocketAddr)> = served
        .iter()
        .flat_map(|it| {
            let endpoints = it.endpoints.iter();
            endpoints.map(move |(chain, endpoint)| (chain, it, *endpoint))
        })
        .collect();
    endpoints.sort_unstable_by_key(|it| it.0);

    out.write_all(NAT.as_bytes())?;
    for it in external() {
        declare(out, "KUBE-EXT-", &it.name)?;
    }
    for name in ["MARK-MASQ", "NODEPORTS", "POSTROUTING", "PROXY-CANARY"] {
        declare(out, "KUBE-", name)?;
    }
    for (chain, ..) in &endpoints {
        declare(out, "KUBE-SEP-", chain)?;
    }
    declare(out, "KUBE-", "SERVICES")?;
    for it in &by_name {
        declare(out, "KUBE-SVC-", &it.name)?;
    }

    out.write_all(NAT_RULES.as_bytes())?;
    for it in external() {
        it.write_external(out)?;
    }
    out.write_all(MARK_MASQ.as_bytes())?;
    for it in served {
        it.write_node_port(node, out)?;
    }
    out.write_all(POSTROUTING.as_bytes())?;
    for (chain, it, endpoint) in &endpoints {
        it.write_endpoint(chain, *endpoint, out)?;
    }
    for it in served {
        it.write_cluster_ip(out)?;
    }
    out.write_all(LAST_OF_SERVICES.as_bytes())?;
    for it in &by_name {
        it.write_choice(node, out)?;
    }
    writeln!(out, "COMMIT")
}

fn declare(out: &mut impl Write, prefix: &str, name: &str) -> io::Result<()> {
    writeln!(out, ":{prefix}{name} - [0:0]")
}

fn to_cluster_ip(port: &Port, what: &str) -> String {
    let protocol = lower(port.protocol);
    format!(
        "-d {} -p {protocol} {} -m {protocol} --dport {}",
        single(port.cluster_ip),
        comment(port, &format!(" {what}")),
        port.port
    )
}

fn comment(port: &Port, what: &str) -> String {
    format!("-m comment --comment \"{}{what}\"", port.name)
}

/// The network that is one address.
fn single(address: IpAddr) -> String {
    match address {
        IpAddr::V4(_) => format!("{address}/32"),
        IpAddr::V6(_) => format!("{address}/128"),
    }
}

/// The chance of one among `n`: kube-proxy writes ten digits, and the kernel keeps 31 bits of them.
fn probability(n: usize) -> String {
    let written = (1e10 / n as f64).round_ties_even() / 1e10;
    let scale = f64::from(1_u32 << 31);
    format!("{:.11}", (written * scale).round() / scale)
}

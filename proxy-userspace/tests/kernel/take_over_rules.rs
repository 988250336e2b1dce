//! kube-proxy's own rules, as it wrote them for another cluster: with the addresses of this one,
//! and for both families.

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use proxy_common::abi::Family;
use xtask::testbed::{NODE_IPV4, Namespace, Pod, Testbed, in_namespace};

/// Two of the Services of these rules, which are `bench/svc-00030` and so on, by number; of the
/// second one all is UDP here.
pub(crate) const TCP: u8 = 30;
/// See [`TCP`].
pub(crate) const UDP: u8 = 31;
/// Port of their endpoints.
pub(crate) const TARGET_PORT: u16 = 8080;

/// How long `nft` and `iptables` may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who makes rules, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    /// kube-proxy's nftables mode.
    Nftables,
    /// Its iptables mode, where `iptables` makes nf_tables rules.
    IptablesNft,
    /// Its iptables mode, where `iptables` is the old one.
    IptablesLegacy,
}

/// The NodePort of Service `number`.
pub(crate) fn node_port(number: u8) -> u16 {
    30_050 + u16::from(number)
}

impl Mode {
    /// A program of this flavour of iptables.
    fn iptables(self, family: Family, what: &str) -> Option<String> {
        let flavour = match self {
            Self::Nftables => return None,
            Self::IptablesNft => "nft",
            Self::IptablesLegacy => "legacy",
        };
        let name = match family {
            Family::Ipv4 => "iptables",
            Family::Ipv6 => "ip6tables",
        };
        Some(format!("{name}-{flavour}-{what}"))
    }

    /// Writes kube-proxy's rules, for Services whose endpoints are `pods`.
    pub(crate) fn load(self, testbed: &Testbed, pods: &[Pod; 2]) {
        for family in Family::ALL {
            let (program, text) = match self.iptables(family, "restore") {
                None => ("nft".to_owned(), nftables(family, pods)),
                Some(program) => (program, iptables(family, pods)),
            };
            let mut command = Command::new(&program);
            if self == Self::Nftables {
                command.args(["-f", "-"]);
            } else {
                command.arg("--noflush");
            }
            run(testbed, command, &text);
        }
    }

    /// Writes rules of others: beside kube-proxy's, and before and behind them in the same chains.
    pub(crate) fn load_others(self, testbed: &Testbed, at: &str) {
        if self == Self::Nftables {
            if at == "before" {
                run(testbed, with_args("nft", &["-f", "-"]), OTHER_TABLE);
            }
            return;
        }
        for family in Family::ALL {
            let program = self.iptables(family, "restore").unwrap();
            let text = match family {
                Family::Ipv4 => others(at),
                Family::Ipv6 => others(at).replace("192.0.2.", "2001:db8::"),
            };
            run(testbed, with_args(&program, &["--noflush"]), &text);
        }
    }

    /// Rules of others and of kube-proxy's iptables mode, as the programs show them.
    pub(crate) fn rules(self, node: &Namespace) -> Vec<String> {
        if self == Self::Nftables {
            return said(node, with_args("nft", &["list", "table", "inet", "other"]));
        }
        let mut all = Vec::new();
        for family in Family::ALL {
            let text = said(node, Command::new(self.iptables(family, "save").unwrap()));
            let is_rule = |line: &String| !line.starts_with('#');
            all.extend(text.into_iter().filter(is_rule).map(without_counters));
        }
        all
    }
}

/// The tables of nf_tables.
pub(crate) fn tables(node: &Namespace) -> Vec<String> {
    said(node, with_args("nft", &["list", "tables"]))
}

/// Packets that the rules of others with this comment have counted.
pub(crate) fn counted(node: &Namespace, comment: &str) -> u64 {
    let text = said(node, with_args("iptables-legacy-save", &["--counters"]));
    let rule = text.iter().find(|line| line.contains(comment)).unwrap();
    rule[1..].split(':').next().unwrap().parse().unwrap()
}

fn without_counters(line: String) -> String {
    match line.find(" [") {
        Some(at) if line.starts_with(':') => line[..at].to_owned(),
        _ => line,
    }
}

/// What is left of rules without kube-proxy's, by what they look like.
pub(crate) fn without_kube_proxys(rules: &[String]) -> Vec<String> {
    const OWN: [&str; 10] = [
        "KUBE-SERVICES",
        "KUBE-EXTERNAL-SERVICES",
        "KUBE-NODEPORTS",
        "KUBE-POSTROUTING",
        "KUBE-MARK-MASQ",
        "KUBE-FORWARD",
        "KUBE-PROXY-",
        "KUBE-EXT-",
        "KUBE-SVC-",
        "KUBE-SEP-",
    ];
    let is_own = |name: &str| OWN.iter().any(|own| name.starts_with(own));
    let is_rest = |line: &&String| {
        let words = line.split_whitespace();
        let names = words.map(|word| word.trim_start_matches(':'));
        !names.clone().any(is_own)
    };
    rules.iter().filter(is_rest).cloned().collect()
}

fn said(node: &Namespace, mut command: Command) -> Vec<String> {
    let output = in_namespace(node, || command.output()).unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn with_args(program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    command
}

fn run(testbed: &Testbed, command: Command, input: &str) {
    let name = format!("{command:?}");
    let node = &testbed.node().namespace;
    let mut program = testbed.start(node, command).unwrap();
    program.tell(input).unwrap();
    program.end_input();
    let ended = program.wait(PATIENCE).unwrap();
    assert!(ended.status.success(), "{name}: {}", ended.said);
}

/// The rules of one file.
fn unpacked(name: &str) -> String {
    let package = env!("CARGO_MANIFEST_DIR");
    let file = format!("{package}/../xtask/data/kube-proxy/{name}.txt.gz");
    let output = Command::new("zcat").arg(&file).output().unwrap();
    assert!(output.status.success(), "{file}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A name of kube-proxy's for something of Service `number`, in what it wrote.
fn name<'a>(text: &'a str, number: u8, marks: &str, prefix: &str) -> &'a str {
    let service = format!("bench/svc-{number:05}");
    let line = text
        .lines()
        .find(|line| line.contains(&service) && line.contains(marks))
        .unwrap();
    line.split_whitespace()
        .find(|word| word.starts_with(prefix))
        .unwrap()
}

/// Has Service [`UDP`] be one, and Services lead to `pods`; then all of that for the family.
fn adapted(text: &str, family: Family, pods: &[Pod; 2]) -> String {
    let service = format!("bench/svc-{UDP:05}");
    let mut all = String::new();
    for line in text.lines() {
        let leads_there = line.contains("10.244.1.155") || line.contains(&service);
        let line = if leads_there {
            line.replace("tcp", "udp")
        } else {
            line.to_owned()
        };
        // Two pods stand for the ten endpoints of both Services.
        let at = |address: Ipv4Addr| match address.octets() {
            [10, 244, 1, number @ 150..160] => pods[usize::from(number % 2)].ipv4,
            _ => address,
        };
        all += &with_addresses(&line, |address| write(family, at(address)));
        all += "\n";
    }
    all
}

/// An address as it is in the family: with the numbers of the IPv4 one.
fn write(family: Family, address: Ipv4Addr) -> (String, [(&'static str, &'static str); 3]) {
    let same = [("/32", "/32"), ("/16", "/16"), ("/8", "/8")];
    match (family, address.octets()) {
        (Family::Ipv4, _) => (address.to_string(), same),
        (Family::Ipv6, [127, ..]) => (
            "::1".to_owned(),
            [("/32", "/128"), ("/16", ""), ("/8", "/128")],
        ),
        (Family::Ipv6, octets) => (six(octets), [("/32", "/128"), ("/16", "/48"), ("/8", "")]),
    }
}

fn six(octets: [u8; 4]) -> String {
    match octets {
        [10, 96, a, b] => format!("fd00:10:96::{a}:{b}"),
        [10, 244, a, b] => format!("fd00:10:244:{a}::{b}"),
        [172, net, _, host] => format!("fd00:172:{net}::{host}"),
        [192, 0, 2, host] => format!("2001:db8::{host}"),
        _ => panic!("{octets:?}"),
    }
}

/// Has `write` say how each address is written, and the lengths of networks behind it.
fn with_addresses(
    line: &str,
    write: impl Fn(Ipv4Addr) -> (String, [(&'static str, &'static str); 3]),
) -> String {
    let mut all = String::new();
    let mut rest = line;
    while let Some(start) = rest.find(|byte: char| byte.is_ascii_digit()) {
        all += &rest[..start];
        rest = &rest[start..];
        let is_part = |byte: char| byte.is_ascii_digit() || byte == '.';
        let end = rest.find(|byte: char| !is_part(byte)).unwrap_or(rest.len());
        let (token, behind) = rest.split_at(end);
        rest = behind;
        let Ok(address) = token.parse() else {
            all += token;
            continue;
        };
        let (written, lengths) = write(address);
        let is_port = rest.starts_with(':') && written.contains(':') && !line.contains("->");
        all += &if is_port {
            format!("[{written}]")
        } else {
            written
        };
        for (old, new) in lengths {
            if let Some(behind) = rest.strip_prefix(old) {
                all += new;
                rest = behind;
                break;
            }
        }
    }
    all + rest
}

/// The table of the nftables mode, with NodePorts.
fn nftables(family: Family, pods: &[Pod; 2]) -> String {
    let text = unpacked("nftables-100");
    let (text, _) = text.split_once("table ip6 ").unwrap();
    let chains = [TCP, UDP].map(|number| {
        let service = name(text, number, "chain ", "service-");
        (number, service, service.replacen("service", "external", 1))
    });
    let elements: Vec<_> = chains
        .iter()
        .map(|(number, _, external)| {
            let protocol = if *number == UDP { "udp" } else { "tcp" };
            format!("{protocol} . {} : goto {external}", node_port(*number))
        })
        .collect();
    let mut text = text
        .replace(
            "comment \"NodePort traffic\"",
            &format!(
                "comment \"NodePort traffic\"\nelements = {{ {} }}",
                elements.join(",\n")
            ),
        )
        .replace(
            "comment \"IPs that accept NodePort traffic\"",
            &format!("elements = {{ {NODE_IPV4} }}"),
        );
    text.truncate(text.rfind('}').unwrap());
    for (_, service, external) in &chains {
        text +=
            &format!("chain {external} {{\nmeta mark set meta mark | 0x4000\ngoto {service}\n}}\n");
    }
    text += "}\n";
    let text = adapted(&text, family, pods);
    match family {
        Family::Ipv4 => text,
        Family::Ipv6 => [
            ("table ip ", "table ip6 "),
            ("ip daddr", "ip6 daddr"),
            ("ip saddr", "ip6 saddr"),
            ("ipv4_addr", "ipv6_addr"),
            ("dnat ip to", "dnat ip6 to"),
        ]
        .into_iter()
        .fold(text, |text, (from, to)| text.replace(from, to)),
    }
}

/// The tables of the iptables mode, with NodePorts and the kubelet's other chains.
fn iptables(family: Family, pods: &[Pod; 2]) -> String {
    let text = unpacked("iptables-100");
    // A kernel may have no such counters.
    let text = text.replace(
        "-m nfacct --nfacct-name  ct_state_invalid_dropped_pkts ",
        "",
    );
    let mut heads = String::from("*nat\n:KUBE-KUBELET-CANARY - [0:0]\n:KUBE-MARK-DROP - [0:0]\n");
    let mut rules = String::from("-A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000\n");
    for number in [TCP, UDP] {
        let service = name(&text, number, "-A KUBE-SERVICES", "KUBE-SVC-");
        let external = service.replacen("SVC", "EXT", 1);
        heads += &format!(":{external} - [0:0]\n");
        rules += &format!(
            "-A KUBE-NODEPORTS -p tcp -m comment --comment \"bench/svc-{number:05}:p80\" -m tcp \
             --dport {} -j {external}\n\
             -A {external} -m comment --comment \"masquerade traffic for bench/svc-{number:05}:p80 \
             external destinations\" -j KUBE-MARK-MASQ\n-A {external} -j {service}\n",
            node_port(number)
        );
    }
    let end = text.rfind("COMMIT").unwrap();
    let text = format!("{}{rules}{}", &text[..end], &text[end..]).replace("*nat\n", &heads);
    adapted(&text, family, pods)
}

/// A table of somebody else: a filter that does not look at connections.
const OTHER_TABLE: &str = "table inet other {
	set addresses {
		type ipv4_addr
		elements = { 192.0.2.1, 192.0.2.2 }
	}

	chain forward {
		type filter hook forward priority filter; policy accept;
		ip saddr @addresses drop
	}
}
";

/// Rules of a CNI plugin and of an administrator.
fn others(at: &str) -> String {
    format!(
        "*nat\n:CNI-{at} - [0:0]\n-A PREROUTING -m comment --comment \"other {at}\" -j CNI-{at}\n\
         -A POSTROUTING -s 192.0.2.7 -m comment --comment \"other {at}\" -j RETURN\n\
         -A CNI-{at} -p tcp -m tcp --dport 8443 -j DNAT --to-destination 192.0.2.1\nCOMMIT\n\
         *filter\n:OWN-{at} - [0:0]\n-A FORWARD -m comment --comment \"other {at}\" -j OWN-{at}\n\
         -A OWN-{at} -s 192.0.2.9 -j DROP\n\
         -A FORWARD -p tcp -m comment --comment \"counts {at}\"\nCOMMIT\n"
    )
}

#[test]
fn addresses_are_written_for_the_family() {
    let v6 = |line: &str| with_addresses(line, |address| write(Family::Ipv6, address));
    assert_eq!(
        v6("-A X -d 10.96.1.30/32 -j DNAT --to-destination 10.244.0.101:8080"),
        "-A X -d fd00:10:96::1:30/128 -j DNAT --to-destination [fd00:10:244:0::101]:8080"
    );
    assert_eq!(
        v6("[0:0] v1.8.9 10.96.0.0/16"),
        "[0:0] v1.8.9 fd00:10:96::0:0/48"
    );
}

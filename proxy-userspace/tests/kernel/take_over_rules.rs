//! kube-proxy's rules for a hundred Services, in both families, among those of others.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use proxy_common::abi::{Family, Protocol};
use xtask::kube_proxy::{Flavour, Node, Port, write_rules};
use xtask::testbed::{Namespace, Pod, Testbed, in_namespace};

/// Two of the Services of these rules, which are `bench/svc-00030` and so on, by number; of the
/// second one all is UDP here.
pub(crate) const TCP: u8 = 30;
/// See [`TCP`].
pub(crate) const UDP: u8 = 31;
/// Port of their endpoints.
pub(crate) const TARGET_PORT: u16 = 8080;

/// How many Services there are.
const SERVICES: u8 = 100;

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
            let program = self.iptables(family, "restore");
            let program = program.unwrap_or_else(|| "nft".to_owned());
            let text = self.written(family, pods);
            let mut command = Command::new(&program);
            if self == Self::Nftables {
                command.args(["-f", "-"]);
            } else {
                command.arg("--noflush");
            }
            run(testbed, command, &text);
        }
    }

    /// kube-proxy's rules, and in the iptables mode the kubelet's other chains.
    fn written(self, family: Family, pods: &[Pod; 2]) -> String {
        let flavour = match self {
            Self::Nftables => Flavour::Nftables,
            Self::IptablesNft | Self::IptablesLegacy => Flavour::Iptables,
        };
        let mut text = Vec::new();
        let (node, ports) = (Node::of_testbed(family), ports(family, pods));
        write_rules(flavour, &node, &ports, &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        if self == Self::Nftables {
            text
        } else {
            text + KUBELET
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

/// The address of Service `number`.
pub(crate) fn cluster_ip(family: Family, number: u8) -> IpAddr {
    match family {
        Family::Ipv4 => Ipv4Addr::new(10, 96, 1, number).into(),
        Family::Ipv6 => {
            // Its last group reads like the number.
            let group = u16::from_str_radix(&number.to_string(), 16).unwrap();
            Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 1, group).into()
        }
    }
}

/// All Services, whose endpoints are nowhere but for two of them.
fn ports(family: Family, pods: &[Pod; 2]) -> Vec<Port> {
    let nowhere = |number: u8, at: u8| match family {
        Family::Ipv4 => Ipv4Addr::new(10, 244, number, at).into(),
        Family::Ipv6 => {
            Ipv6Addr::new(0xfd00, 0x10, 0x244, number.into(), 0, 0, 1, at.into()).into()
        }
    };
    let port = |number| {
        let is_real = [TCP, UDP].contains(&number);
        let endpoints: Vec<IpAddr> = if is_real {
            pods.iter().map(|pod| pod.address(family)).collect()
        } else {
            (0..5).map(|at| nowhere(number + 2, at)).collect()
        };
        Port {
            name: format!("bench/svc-{number:05}:p80"),
            protocol: if number == UDP {
                Protocol::Udp
            } else {
                Protocol::Tcp
            },
            cluster_ip: cluster_ip(family, number),
            port: 80,
            node_port: is_real.then(|| node_port(number)),
            endpoints: endpoints
                .into_iter()
                .map(|ip| SocketAddr::new(ip, TARGET_PORT))
                .collect(),
        }
    };
    (0..SERVICES).map(port).collect()
}

/// Chains of the kubelet's.
const KUBELET: &str = "*nat
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-MARK-DROP - [0:0]
-A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000
COMMIT
";

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

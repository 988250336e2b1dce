//! What a packet costs in the programs, by test run in the kernel, and what the verifier says of
//! them, as JSON: `{"packets": [xtask::figures::Packet…], "programs": [xtask::figures::Program…]}`.
//!
//! ```text
//! cargo xtask build && cargo run --release -p proxy-userspace --example packet_cost -- [--quick]
//! ```
//!
//! Needs root. All cases take turns, round by round, so that they meet the same machine; the least
//! of all rounds is the cost without disturbance.
//!
//! - `not IP`: a frame that is left alone at once, the cost of running a program at all.
//! - `direct`: a packet in mid-flow, to no Service and without a record; it is left alone. A pod that
//!   has flows by its packets (`direct, pod with flows`) is looked up among all flows.
//! - `established`: a packet of a flow that has a record, rewritten.
//! - `first`: the packet that opens a flow through a ClusterIP with one endpoint: frontend, choice,
//!   two records, rewriting. A test run keeps the rewritten packet for the next one, so each
//!   Service's endpoint is the next Service's address: every run opens another flow. Between turns
//!   the records are removed, so there is room for new ones. At `node_ingress` the endpoint is on
//!   this node; at `node_egress`, whose client is a process of the node, the cost has two look-ups
//!   of the route in it.
//! - `first, NodePort`: the same through NodePorts, with an endpoint on this node.

#[path = "../tests/support/loaded.rs"]
mod loaded;

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::Ebpf;
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use beeline::maps::Raw;
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::time::{ClockId, clock_gettime};
use proxy_common::abi::{
    Addr, AddressFlags, Backend, BackendFlags, BackendState, Flow, FlowKey, FlowRole, FlowState,
    Frontend, FrontendFlags, FrontendKey, Pass, Port, Protocol, Rewrite, Settings, Side, Tuple,
    Verdict,
};
use proxy_common::datapath::crc32c;
use proxy_common::testing::Frame;
use serde_json::json;
use xtask::figures::Packet;
use xtask::testbed::ip;

/// How often each case has its turn.
const ROUNDS: usize = 300;
/// The same for a first look.
const QUICK_ROUNDS: usize = 40;
/// Packets in a turn.
const PACKETS: u32 = 2_000;
/// Packets in a turn of which each opens a flow.
const FIRST_PACKETS: u32 = 200;
/// The device that leads away, and the one by which the node's own packets are routed.
const DEVICES: [u32; 2] = [7, 9];

/// A program, and who sends the packets that it sees.
struct Site {
    program: &'static str,
    side: Side,
    /// Client, address of a Service with a record, its endpoint, and somebody else; for each family.
    ends: [[&'static str; 4]; 2],
    /// Whether it opens flows, and whether also by NodePorts.
    opens: (bool, bool),
}

const POD: [[&str; 4]; 2] = [
    [
        "10.244.0.5:40000",
        "10.96.0.10:80",
        "10.244.1.7:8080",
        "10.244.1.9:8080",
    ],
    [
        "[fd00:10::5]:40000",
        "[fd00:96::10]:80",
        "[fd00:11::7]:8080",
        "[fd00:11::9]:8080",
    ],
];
const NODE: [[&str; 4]; 2] = [
    [
        "172.31.0.2:40000",
        "10.96.0.10:80",
        "10.244.1.7:8080",
        "10.244.1.9:8080",
    ],
    [
        "[fd00:31::2]:40000",
        "[fd00:96::10]:80",
        "[fd00:11::7]:8080",
        "[fd00:11::9]:8080",
    ],
];
const SITES: [Site; 4] = [
    Site {
        program: "pod_ingress",
        side: Side::Ingress,
        ends: POD,
        opens: (true, false),
    },
    Site {
        program: "pod_egress",
        side: Side::Egress,
        ends: POD,
        opens: (false, false),
    },
    Site {
        program: "node_ingress",
        side: Side::Ingress,
        ends: POD,
        opens: (true, true),
    },
    Site {
        program: "node_egress",
        side: Side::Egress,
        ends: NODE,
        opens: (true, false),
    },
];

/// A packet to send through a program again and again.
struct Case {
    program: &'static str,
    what: &'static str,
    protocol: Option<Protocol>,
    family: Option<&'static str>,
    packet: Vec<u8>,
    /// What becomes of it.
    verdict: Verdict,
    turns: Vec<Duration>,
}

impl Case {
    const fn opens_flows(&self) -> bool {
        matches!(self.verdict, Verdict::Rewrite(Rewrite::NewFlow))
    }

    const fn packets(&self) -> u32 {
        if self.opens_flows() {
            FIRST_PACKETS
        } else {
            PACKETS
        }
    }
}

fn main() -> Result<()> {
    let is_quick = std::env::args().any(|argument| argument == "--quick");
    let rounds = if is_quick { QUICK_ROUNDS } else { ROUNDS };
    let _raised = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    make_node()?;
    let mut bpf = loaded::load()?;
    let programs = loaded::programs(&bpf)?;
    let mut maps = Maps::take(&mut bpf)?;
    maps.settle()?;
    let mut cases = cases(&mut maps)?;
    let kept: HashSet<_> = maps.flow_keys()?.into_iter().collect();
    for case in &cases {
        check(&bpf, &mut maps, case, &kept)?;
    }
    for _ in 0..rounds {
        for case in &mut cases {
            let turn = run(&bpf, case)?;
            case.turns.push(turn);
            if case.opens_flows() {
                maps.forget_flows_but(&kept)?;
            }
        }
    }
    let packets: Vec<Packet> = cases.into_iter().map(packet).collect();
    println!("{}", json!({ "packets": packets, "programs": programs }));
    Ok(())
}

/// Moves into a network namespace, which ends with this process, from which routes lead away.
fn make_node() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("a network namespace of its own: are you root?")?;
    for sysctl in ["ipv4/conf/all/forwarding", "ipv6/conf/all/forwarding"] {
        std::fs::write(format!("/proc/sys/net/{sysctl}"), "1").context(sysctl)?;
    }
    let devices = DEVICES.map(|index| {
        format!(
            "link add device{index} index {index} type veth peer name peer{index} index 10{index}"
        )
    });
    let up = DEVICES
        .iter()
        .flat_map(|index| ["device", "peer"].map(|end| format!("link set {end}{index} up")));
    let routes = [
        "address add 172.31.0.2/16 dev device7",
        "address add fd00:31::2/64 dev device7 nodad",
        "route add default via 172.31.0.1",
        "route add default via fd00:31::1",
    ];
    let lines: Vec<String> = devices
        .into_iter()
        .chain(up)
        .chain(routes.map(str::to_owned))
        .collect();
    ip(None, &lines)
}

/// All cases, with what they need in the maps.
fn cases(maps: &mut Maps) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    let mut n_chains = 0;
    for site in &SITES {
        cases.push(not_ip(site));
        for (id, ends) in (0..).zip(site.ends) {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                let [client, frontend, backend, other] = ends;
                let of = Of {
                    site,
                    client,
                    protocol,
                };
                let pass = Verdict::Pass(Pass::NoService);
                let (to_other, to_client) =
                    (more(protocol, client, other), more(protocol, other, client));
                // At a pod's device the pod is the sender, or the receiver.
                let (without, with) = match site.side {
                    Side::Ingress => (&to_client, &to_other),
                    Side::Egress => (&to_other, &to_client),
                };
                if site.program.starts_with("pod") {
                    cases.push(of.case("direct", pass, without));
                    cases.push(of.case("direct, pod with flows", pass, with));
                } else {
                    cases.push(of.case("direct", pass, &to_other));
                }
                let hit = more(protocol, client, frontend);
                maps.remember(&hit, site.side, frontend.parse()?, backend.parse()?, id)?;
                let known = if site.program == "pod_egress" {
                    Rewrite::Reverse
                } else {
                    Rewrite::Forward
                };
                cases.push(of.case("established", Verdict::Rewrite(known), &hit));
                let (by_cluster_ip, by_node_port) = site.opens;
                for (opens, what, by) in [
                    (by_cluster_ip, "first", By::ClusterIp),
                    (by_node_port, "first, NodePort", By::NodePort),
                ] {
                    if opens {
                        let dialled = maps.chain(protocol, client.parse()?, by, n_chains)?;
                        n_chains += 1;
                        let frame = opening(protocol, client, &dialled.to_string());
                        cases.push(of.case(what, Verdict::Rewrite(Rewrite::NewFlow), &frame));
                    }
                }
            }
        }
    }
    Ok(cases)
}

/// What some cases have in common.
struct Of<'a> {
    site: &'a Site,
    client: &'a str,
    protocol: Protocol,
}

impl Of<'_> {
    fn case(&self, what: &'static str, verdict: Verdict, frame: &Frame) -> Case {
        let is_v6 = self.client.starts_with('[');
        Case {
            program: self.site.program,
            what,
            protocol: Some(self.protocol),
            family: Some(if is_v6 { "IPv6" } else { "IPv4" }),
            packet: frame.bytes(),
            verdict,
            turns: Vec::new(),
        }
    }
}

/// A frame that every program leaves alone at once.
fn not_ip(site: &Site) -> Case {
    let [from, to, ..] = site.ends[0];
    let mut packet = more(Protocol::Tcp, from, to).bytes();
    let arp = [0x08, 0x06];
    packet[12..14].copy_from_slice(&arp);
    Case {
        program: site.program,
        what: "not IP",
        protocol: None,
        family: None,
        packet,
        verdict: Verdict::Pass(Pass::NotIp),
        turns: Vec::new(),
    }
}

/// A packet in mid-flow, with 60 bytes of payload.
fn more(protocol: Protocol, from: &str, to: &str) -> Frame {
    let data = match protocol {
        Protocol::Tcp => Frame::tcp(0x10, from, to),
        Protocol::Udp => Frame::udp(from, to),
        Protocol::Sctp => Frame::sctp(0, from, to),
    };
    let chunk: &[u8] = if protocol == Protocol::Sctp {
        &[0, 3, 0, 64]
    } else {
        &[]
    };
    data.with_payload([chunk, &[7; 60]].concat())
}

/// The packet that opens a flow.
fn opening(protocol: Protocol, from: &str, to: &str) -> Frame {
    match protocol {
        Protocol::Tcp => Frame::tcp(0x02, from, to),
        Protocol::Udp => more(protocol, from, to),
        Protocol::Sctp => Frame::sctp(1, from, to),
    }
}

/// What clients dial.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    ClusterIp,
    NodePort,
}

/// The maps that a packet meets.
struct Maps {
    frontends: HashMap<MapData, Raw<FrontendKey>, Raw<Frontend>>,
    addresses: HashMap<MapData, Raw<Addr>, Raw<AddressFlags>>,
    slots: Array<MapData, u32>,
    backends: Array<MapData, Raw<Backend>>,
    settings: Array<MapData, Raw<Settings>>,
    shifts: Array<MapData, u32>,
    flows: HashMap<MapData, Raw<FlowKey>, Raw<Flow>>,
    pod_flows: Array<MapData, u32>,
    outcomes: PerCpuArray<MapData, u64>,
}

/// A record that is no chain's: see [`Maps::chain`].
const RESERVED: u32 = 16;

impl Maps {
    fn take(bpf: &mut Ebpf) -> Result<Self> {
        Ok(Self {
            frontends: take(bpf, "FRONTENDS")?,
            addresses: take(bpf, "ADDRESSES")?,
            slots: take(bpf, "SLOTS")?,
            backends: take(bpf, "BACKENDS")?,
            settings: take(bpf, "SETTINGS")?,
            shifts: take(bpf, "CRC_SHIFTS")?,
            flows: take(bpf, "FLOWS")?,
            pod_flows: take(bpf, "POD_FLOWS")?,
            outcomes: take(bpf, "OUTCOMES")?,
        })
    }

    /// Writes what the daemon writes for the node itself.
    fn settle(&mut self) -> Result<()> {
        for (len, shift) in (0..self.shifts.len()).zip(crc32c::shifts()) {
            self.shifts.set(len, shift, 0)?;
        }
        let [v4, v6] = NODE.map(|[client, ..]| client.parse::<SocketAddr>());
        let [v4, v6] = [v4?, v6?].map(|client| Addr::from(client.ip()));
        let settings = Settings {
            node_v4: v4,
            node_v6: v6,
            host_device: DEVICES[1],
            ..Settings::DEFAULT
        };
        self.settings.set(0, Raw(settings), 0)?;
        for node in [v4, v6] {
            self.addresses
                .insert(Raw(node), Raw(AddressFlags::NODE), 0)?;
        }
        Ok(())
    }

    /// Enters the records that make every run a hit, and notes that there are some: a test run keeps the rewritten packet for the
    /// next one, so a second record leads back from the backend's address to the frontend's.
    fn remember(
        &mut self,
        frame: &Frame,
        side: Side,
        frontend: SocketAddr,
        backend: SocketAddr,
        id: u32,
    ) -> Result<()> {
        self.set_backend(id, backend, id)?;
        let since_boot = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
        let now = u64::try_from(since_boot.as_nanos())?;
        let to = |dst: SocketAddr| Tuple {
            src: frame.src.into(),
            dst: dst.ip().into(),
            src_port: Port::new(frame.src_port),
            dst_port: Port::new(dst.port()),
        };
        for (at, next) in [(frontend, backend), (backend, frontend)] {
            let tuple = to(at);
            let pod = match side {
                Side::Ingress => tuple.src,
                Side::Egress => tuple.dst,
            };
            self.pod_flows.set(pod.pod_slot(), 1, 0)?;
            let key = FlowKey {
                tuple,
                protocol: frame.protocol.number(),
                side: side as u8,
                _pad: 0,
            };
            let flow = Flow {
                to: to(next),
                backend: id,
                generation: 1,
                service: id,
                state: established(frame.protocol) as u8,
                role: FlowRole::Forward as u8,
                twin_side: Side::Egress as u8,
                device: 0,
                exit: 0,
                _pad: 0,
                tick: 0,
                created: now,
                last_seen: now,
            };
            self.flows.insert(Raw(key), Raw(flow), 0)?;
        }
        Ok(())
    }

    /// As many Services as a turn has packets, each of which leads to the next one's address.
    /// Returns that of the first.
    fn chain(
        &mut self,
        protocol: Protocol,
        client: SocketAddr,
        by: By,
        number: u32,
    ) -> Result<SocketAddr> {
        let first = RESERVED + number * FIRST_PACKETS;
        for link in 0..FIRST_PACKETS {
            let (id, dialled) = (first + link, link_address(client, by, link));
            self.set_backend(id, link_address(client, by, link + 1), id)?;
            self.slots.set(id, id, 0)?;
            let addr = Addr::from(dialled.ip());
            let port = Port::new(dialled.port());
            let (key, flags, kind) = match by {
                By::ClusterIp => (
                    FrontendKey::exact(addr, port, protocol),
                    FrontendFlags::NONE,
                    AddressFlags::CLUSTER_IP,
                ),
                By::NodePort => (
                    FrontendKey::node_port(addr.family(), port, protocol),
                    FrontendFlags::EXTERNAL,
                    AddressFlags::NODE_PORTS,
                ),
            };
            let frontend = Frontend {
                service: id,
                flags,
                first_slot: id,
                n_local: 0,
                cluster_offset: 0,
                n_cluster: 1,
                affinity_seconds: 0,
            };
            self.frontends.insert(Raw(key), Raw(frontend), 0)?;
            self.addresses.insert(Raw(addr), Raw(kind), 0)?;
        }
        Ok(link_address(client, by, 0))
    }

    fn set_backend(&mut self, id: u32, at: SocketAddr, service: u32) -> Result<()> {
        let backend = Backend {
            addr: at.ip().into(),
            service,
            generation: 1,
            port: Port::new(at.port()),
            state: BackendState::Active as u8,
            joined: 1,
            flags: BackendFlags::IS_LOCAL.union(BackendFlags::IN_CLUSTER_SET),
        };
        Ok(self.backends.set(id, Raw(backend), 0)?)
    }

    fn flow_keys(&self) -> Result<Vec<FlowKey>> {
        let keys = self.flows.keys().map(|key| key.map(|Raw(key)| key));
        Ok(keys.collect::<Result<_, MapError>>()?)
    }

    fn forget_flows_but(&mut self, kept: &HashSet<FlowKey>) -> Result<()> {
        for key in self.flow_keys()? {
            if !kept.contains(&key) {
                self.flows.remove(&Raw(key))?;
            }
        }
        Ok(())
    }

    /// How often this was decided, on all CPUs.
    fn count(&self, verdict: Verdict) -> Result<u64> {
        Ok(self.outcomes.get(&verdict.index(), 0)?.iter().sum())
    }
}

fn take<T: TryFrom<Map, Error = MapError>>(bpf: &mut Ebpf, name: &str) -> Result<T> {
    let map = bpf
        .take_map(name)
        .with_context(|| format!("no map {name}"))?;
    T::try_from(map).with_context(|| format!("map {name}"))
}

/// Where the Service with this number in its chain is. Ports differ, too.
fn link_address(client: SocketAddr, by: By, link: u32) -> SocketAddr {
    let host = match by {
        By::ClusterIp => link + 1,
        By::NodePort => 0xffff,
    };
    let address: IpAddr = match client.ip() {
        IpAddr::V4(_) => Ipv4Addr::from_bits(0x0a61_0000 + host).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0xfd00, 0x97, 0, 0, 0, 0, 0, host as u16).into(),
    };
    SocketAddr::new(address, 30_000 + link as u16)
}

const fn established(protocol: Protocol) -> FlowState {
    match protocol {
        Protocol::Tcp => FlowState::TcpEstablished,
        Protocol::Udp => FlowState::UdpStream,
        Protocol::Sctp => FlowState::SctpEstablished,
    }
}

/// Makes sure that a turn is what it is called: every packet of it gets the same verdict.
fn check(bpf: &Ebpf, maps: &mut Maps, case: &Case, kept: &HashSet<FlowKey>) -> Result<()> {
    let before = maps.count(case.verdict)?;
    let _turn = run(bpf, case)?;
    let count = maps.count(case.verdict)? - before;
    maps.forget_flows_but(kept)?;
    ensure!(
        count == u64::from(case.packets()),
        "{}, {:?} {:?} {}: {count} of {} packets came to {:?}",
        case.program,
        case.protocol,
        case.family,
        case.what,
        case.packets(),
        case.verdict
    );
    Ok(())
}

/// One turn: the mean time of a packet.
fn run(bpf: &Ebpf, case: &Case) -> Result<Duration> {
    let program: &SchedClassifier = bpf
        .program(case.program)
        .context("no such program")?
        .try_into()?;
    let mut out = [0; 512];
    let options = TestRunOptions {
        data_in: Some(&case.packet),
        data_out: Some(&mut out),
        repeat: case.packets(),
        ..Default::default()
    };
    Ok(program.test_run(options)?.duration)
}

fn packet(mut case: Case) -> Packet {
    case.turns.sort_unstable();
    let nanoseconds = |turn: Duration| turn.as_nanos() as f64;
    Packet {
        program: case.program.to_owned(),
        what: case.what.to_owned(),
        protocol: case.protocol.map(|protocol| protocol.to_string()),
        family: case.family.map(str::to_owned),
        least_ns: nanoseconds(case.turns[0]),
        median_ns: nanoseconds(case.turns[case.turns.len() / 2]),
    }
}

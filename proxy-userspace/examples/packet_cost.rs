//! What the programs cost a packet of an established flow, by test run in the kernel.
//!
//! ```text
//! cargo xtask build && cargo run --release -p proxy-userspace --example packet_cost
//! ```
//!
//! Needs root. Prints `docs/performance.md`'s tables. All cases take turns, round by round, so that
//! they meet the same machine; the least of all rounds is the cost without disturbance.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::maps::{Array, HashMap, MapData};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use bytemuck::cast;
use nix::time::{ClockId, clock_gettime};
use proxy_common::abi::{
    Backend, BackendFlags, BackendState, Flow, FlowKey, FlowRole, FlowState, Port, Protocol, Side,
    Tuple,
};
use proxy_common::datapath::crc32c;
use proxy_common::testing::Frame;

/// How often each case has its turn.
const ROUNDS: usize = 300;
/// Packets in a turn.
const PACKETS: u32 = 2_000;
const PROGRAMS: [(&str, Side); 4] = [
    ("pod_ingress", Side::Ingress),
    ("pod_egress", Side::Egress),
    ("node_ingress", Side::Ingress),
    ("node_egress", Side::Egress),
];

/// A packet to send through a program again and again.
struct Case {
    name: String,
    program: &'static str,
    packet: Vec<u8>,
    turns: Vec<Duration>,
}

fn main() -> Result<()> {
    let mut bpf = load()?;
    let mut cases = Vec::new();
    for (program, side) in PROGRAMS {
        cases.push(not_ours(program));
        for (n, (from, frontend, backend)) in addresses().into_iter().enumerate() {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                let id = u32::try_from(n)?;
                let frame = frame(protocol, from, frontend);
                remember(
                    &mut bpf,
                    &frame,
                    side,
                    frontend.parse()?,
                    backend.parse()?,
                    id,
                )?;
                let family = if frame.src.is_ipv4() { "IPv4" } else { "IPv6" };
                cases.push(Case {
                    name: format!("{protocol} over {family}"),
                    program,
                    packet: frame.bytes(),
                    turns: Vec::new(),
                });
            }
        }
    }
    for _ in 0..ROUNDS {
        for case in &mut cases {
            let turn = run(&bpf, case)?;
            case.turns.push(turn);
        }
    }
    print(&bpf, &mut cases)
}

/// Client, frontend and backend, once for each family. All ports differ.
fn addresses() -> [(&'static str, &'static str, &'static str); 2] {
    [
        ("10.244.0.5:40000", "10.96.0.10:80", "10.244.1.7:8080"),
        (
            "[fd00:10::5]:40000",
            "[fd00:96::10]:80",
            "[fd00:11::7]:8080",
        ),
    ]
}

fn frame(protocol: Protocol, from: &str, to: &str) -> Frame {
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

/// A frame that every program leaves alone at once: the cost of running at all.
fn not_ours(program: &'static str) -> Case {
    let (from, to, _) = addresses()[0];
    let mut packet = frame(Protocol::Tcp, from, to).bytes();
    let arp = [0x08, 0x06];
    packet[12..14].copy_from_slice(&arp);
    Case {
        name: "not IP".to_owned(),
        program,
        packet,
        turns: Vec::new(),
    }
}

fn load() -> Result<Ebpf> {
    let object = aya::include_bytes_aligned!(env!("BEELINE_BPF_OBJECT"));
    let mut loader = EbpfLoader::new();
    loader.override_global("COARSE_CLOCK", &1_u8, true);
    let mut bpf = loader
        .load(object)
        .context("cannot load the programs; are you root?")?;
    for (name, _) in PROGRAMS {
        let program: &mut SchedClassifier = bpf
            .program_mut(name)
            .context("no such program")?
            .try_into()?;
        program.load()?;
    }
    let mut shifts: Array<_, u32> = Array::try_from(map(&mut bpf, "CRC_SHIFTS")?)?;
    for (len, shift) in (0..shifts.len()).zip(crc32c::shifts()) {
        shifts.set(len, shift, 0)?;
    }
    Ok(bpf)
}

fn map<'a>(bpf: &'a mut Ebpf, name: &str) -> Result<&'a mut aya::maps::Map> {
    bpf.map_mut(name).with_context(|| format!("no map {name}"))
}

/// Enters the records that make every run a hit: a test run keeps the rewritten packet for the next
/// one, so a second record leads back from the backend's address to the frontend's.
fn remember(
    bpf: &mut Ebpf,
    frame: &Frame,
    side: Side,
    frontend: SocketAddr,
    backend: SocketAddr,
    id: u32,
) -> Result<()> {
    let mut backends: Array<_, [u8; size_of::<Backend>()]> =
        Array::try_from(map(bpf, "BACKENDS")?)?;
    let entry = Backend {
        addr: backend.ip().into(),
        service: id,
        generation: 1,
        port: Port::new(backend.port()),
        state: BackendState::Active as u8,
        joined: 1,
        flags: BackendFlags::NONE,
    };
    backends.set(id, cast::<_, [u8; size_of::<Backend>()]>(entry), 0)?;
    let mut flows: HashMap<&mut MapData, [u8; size_of::<FlowKey>()], [u8; size_of::<Flow>()]> =
        HashMap::try_from(map(bpf, "FLOWS")?)?;
    let since_boot = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
    let now = u64::try_from(since_boot.as_nanos())?;
    let to = |dst: SocketAddr| Tuple {
        src: frame.src.into(),
        dst: dst.ip().into(),
        src_port: Port::new(frame.src_port),
        dst_port: Port::new(dst.port()),
    };
    for (at, next) in [(frontend, backend), (backend, frontend)] {
        let key = FlowKey {
            tuple: to(at),
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
        let (key, flow): ([u8; size_of::<FlowKey>()], [u8; size_of::<Flow>()]) =
            (cast(key), cast(flow));
        flows.insert(key, flow, 0)?;
    }
    Ok(())
}

const fn established(protocol: Protocol) -> FlowState {
    match protocol {
        Protocol::Tcp => FlowState::TcpEstablished,
        Protocol::Udp => FlowState::UdpStream,
        Protocol::Sctp => FlowState::SctpEstablished,
    }
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
        repeat: PACKETS,
        ..Default::default()
    };
    Ok(program.test_run(options)?.duration)
}

fn print(bpf: &Ebpf, cases: &mut [Case]) -> Result<()> {
    println!("| program | packet | least, ns | median, ns |");
    println!("| --- | --- | ---: | ---: |");
    for case in cases {
        case.turns.sort_unstable();
        let (least, median) = (case.turns[0], case.turns[ROUNDS / 2]);
        println!(
            "| `{}` | {} | {} | {} |",
            case.program,
            case.name,
            least.as_nanos(),
            median.as_nanos()
        );
    }
    println!("\n| program | verified instructions | size when translated, bytes |");
    println!("| --- | ---: | ---: |");
    for (name, _) in PROGRAMS {
        let program: &SchedClassifier = bpf.program(name).context("no such program")?.try_into()?;
        let info = program.info()?;
        let count = |count: Option<u32>| count.map_or("unknown".to_owned(), |n| n.to_string());
        println!(
            "| `{name}` | {} | {} |",
            count(info.verified_instruction_count()),
            count(info.size_translated())
        );
    }
    Ok(())
}

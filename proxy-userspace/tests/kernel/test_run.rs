//! The compiled programs against the host library: the same packets, the same maps, byte for byte.
//!
//! The programs are loaded once, and the maps cleared between scenes: a load costs a quarter of a
//! second on an emulated machine. They ask the routing table of a network namespace that ends with
//! the test's thread; a packet is seen at a device of it, and goes nowhere.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap as BpfHashMap, LpmTrie, MapData, PerCpuArray, PerCpuValues};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use aya::util::nr_cpus;
use aya::{Ebpf, EbpfLoader};
use beeline::maps::Raw;
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::time::{ClockId, clock_gettime};
use proxy_common::abi::{
    Addr, AddressFlags, Affinity, AffinityKey, Backend, Device, Flow, FlowKey, FragmentKey,
    FragmentPorts, Frontend, FrontendKey, NetworkFlags, NetworkKey, ServiceCounters, Settings,
    Verdict,
};
use proxy_common::datapath::{Hook, crc32c, decide};
use proxy_common::testing::{Memory, Scene, Sent, Skb, Step, difference, scenes};
use xtask::testbed::ip;

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("BEELINE_BPF_OBJECT"));

/// Entries of each map: no scene needs more, and the maps of all kernel tests count together.
const ENTRIES: u32 = 4_096;

/// The longest frame for a test run: what fits into a page beside the kernel's own.
const LONGEST: usize = 3_000;

/// The shortest frame that every kernel takes for a test run: an Ethernet and an IPv6 header.
/// Some refuse shorter ones.
const SHORTEST: usize = 54;

/// A scene that took longer may have met the real time: the programs refresh records after 250
/// ticks of the kernel. It is played once more.
const CALM: Duration = Duration::from_millis(100);

#[test]
fn programs_decide_as_the_host_library_does() {
    let mut kernel = Kernel::load(Routes::new());
    let mut tally = Tally::default();
    let mut failures = Vec::new();
    let mut disturbed = BTreeSet::new();
    for scene in scenes() {
        let (name, start) = (scene.name.clone(), Instant::now());
        if let Err(failure) = play(&mut kernel, scene, &mut tally) {
            if start.elapsed() > CALM {
                let _new = disturbed.insert(name);
            } else {
                failures.push(failure);
            }
        }
    }
    for scene in scenes() {
        if disturbed.contains(&scene.name) {
            failures.extend(play(&mut kernel, scene, &mut tally).err());
        }
    }
    println!(
        "{} packets in {} scenes, {} with routes; left out: {} whose checksum is left to the \
         device, {} shorter or longer than a test run takes",
        tally.packets, tally.scenes, tally.routed, tally.partial, tally.length
    );
    assert!(
        failures.is_empty(),
        "{} scenes\n{}",
        failures.len(),
        failures.join("\n")
    );
    let counted: u64 = kernel
        .outcomes
        .iter()
        .map(|counts| counts.expect("a verdict").iter().sum::<u64>())
        .sum();
    assert_eq!(
        counted,
        u64::from(tally.packets),
        "each packet is counted once"
    );
    assert!(tally.packets > 1_000, "too few packets");
    assert!(tally.routed > 1_000, "too few packets with routes");
}

/// What was played, and what could not be.
#[derive(Default)]
struct Tally {
    scenes: u32,
    packets: u32,
    routed: u32,
    partial: u32,
    length: u32,
}

/// Plays a scene in both places. A packet that the kernel cannot be given is left out in both.
fn play(kernel: &mut Kernel, scene: Scene, tally: &mut Tally) -> Result<(), String> {
    let Scene {
        name,
        mut memory,
        steps,
    } = scene;
    tally.scenes += 1;
    kernel.clear();
    kernel.install(&memory);
    for (number, step) in steps.iter().enumerate() {
        match step {
            Step::Packet {
                is_partial: true, ..
            } => tally.partial += 1,
            Step::Packet {
                hook,
                device,
                packet,
                is_segmented,
                ..
            } => {
                let skb = Skb {
                    device: *device,
                    is_segmented: *is_segmented,
                    routes: memory.routes.clone(),
                    ..Skb::new(packet.clone())
                };
                let Some(crossed) = kernel.run(*hook, &skb) else {
                    tally.length += 1;
                    continue;
                };
                tally.packets += 1;
                tally.routed += u32::from(!memory.routes.is_empty());
                compare(kernel, &memory, *hook, skb, crossed)
                    .map_err(|wrong| format!("{name}, step {number}: {wrong}"))?;
            }
            Step::Advance(nanoseconds) => {
                memory.advance(*nanoseconds);
                kernel.age(*nanoseconds);
            }
            Step::Change(change) => {
                change(&mut memory);
                kernel.change(&memory);
            }
            // The host has been checked; here everything is compared with the host.
            Step::Check(_) => {}
        }
    }
    Ok(())
}

/// Action and packet as a program left them.
type Crossed = (i32, Vec<u8>);

/// Sends a packet across the edge on the host, too, and compares all that there is.
fn compare(
    kernel: &mut Kernel,
    memory: &Memory,
    hook: Hook,
    mut skb: Skb,
    (action, got): Crossed,
) -> Result<(), String> {
    let verdict = decide(&mut skb, memory, hook);
    let expected = action_of(verdict, skb.sent);
    if action != expected {
        return Err(format!("{verdict:?}: action {action}, not {expected}"));
    }
    if got != skb.bytes {
        return Err(format!("{verdict:?}: {}", difference(&skb.bytes, &got)));
    }
    kernel
        .compare_outcome(verdict)
        .and_then(|()| kernel.compare(memory))
        .map_err(|wrong| format!("{verdict:?}: {wrong}"))
}

/// What the kernel is told to do with a packet (`linux/pkt_cls.h`): go on with the next program
/// (-1), drop (2), redirect (7).
fn action_of(verdict: Verdict, sent: Sent) -> i32 {
    match (verdict, sent) {
        (Verdict::Drop(_), _) => 2,
        (_, Sent::Stack) => -1,
        (_, Sent::Out(_) | Sent::In(_) | Sent::Neighbour(_)) => 7,
    }
}

/// The programs and their maps.
struct Kernel {
    bpf: Ebpf,
    frontends: BpfHashMap<MapData, Raw<FrontendKey>, Raw<Frontend>>,
    addresses: BpfHashMap<MapData, Raw<Addr>, Raw<AddressFlags>>,
    devices: BpfHashMap<MapData, u32, Raw<Device>>,
    networks: LpmTrie<MapData, Raw<Addr>, Raw<NetworkFlags>>,
    source_ranges: LpmTrie<MapData, Raw<RangeData>, u32>,
    slots: Array<MapData, u32>,
    backends: Array<MapData, Raw<Backend>>,
    settings: Array<MapData, Raw<Settings>>,
    flows: BpfHashMap<MapData, Raw<FlowKey>, Raw<Flow>>,
    affinity: BpfHashMap<MapData, Raw<AffinityKey>, Raw<Affinity>>,
    fragments: BpfHashMap<MapData, Raw<FragmentKey>, Raw<FragmentPorts>>,
    counters: PerCpuArray<MapData, Raw<ServiceCounters>>,
    outcomes: PerCpuArray<MapData, u64>,
    /// What `outcomes` should hold: verdicts since the programs were loaded.
    expected_outcomes: HashMap<u32, u64>,
    routes: Routes,
}

impl Kernel {
    /// Loads the programs and fills what no scene changes. Nothing is pinned or attached.
    fn load(routes: Routes) -> Self {
        // Before 5.11 maps count against this limit; later it may be out of reach.
        let _raised = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
        let mut loader = EbpfLoader::new();
        for name in MAPS {
            loader.map_max_entries(name, ENTRIES);
        }
        let mut bpf = loader.load(OBJECT).expect("the object loads");
        for name in Hook::ALL.map(program_of) {
            let program = bpf.program_mut(name).expect("the program is there");
            let program: &mut SchedClassifier = program.try_into().expect("a classifier");
            program.load().expect("the verifier accepts it");
        }
        let mut shifts: Array<_, u32> = map(&mut bpf, "CRC_SHIFTS");
        for (len, shift) in (0..ENTRIES).zip(crc32c::shifts()) {
            shifts.set(len, shift, 0).expect("an entry for each length");
        }
        Self {
            frontends: map(&mut bpf, "FRONTENDS"),
            addresses: map(&mut bpf, "ADDRESSES"),
            devices: map(&mut bpf, "DEVICES"),
            networks: map(&mut bpf, "NETWORKS"),
            source_ranges: map(&mut bpf, "SOURCE_RANGES"),
            slots: map(&mut bpf, "SLOTS"),
            backends: map(&mut bpf, "BACKENDS"),
            settings: map(&mut bpf, "SETTINGS"),
            flows: map(&mut bpf, "FLOWS"),
            affinity: map(&mut bpf, "AFFINITY"),
            fragments: map(&mut bpf, "FRAGMENTS"),
            counters: map(&mut bpf, "SERVICE_COUNTERS"),
            outcomes: map(&mut bpf, "OUTCOMES"),
            expected_outcomes: HashMap::new(),
            routes,
            bpf,
        }
    }

    /// Runs the program of a hook. `None`: this kernel does not run packets of such a length.
    fn run(&self, hook: Hook, skb: &Skb) -> Option<Crossed> {
        let packet = &skb.bytes;
        if packet.len() > LONGEST {
            return None;
        }
        let program = self
            .bpf
            .program(program_of(hook))
            .expect("the program is there");
        let program: &SchedClassifier = program.try_into().expect("a classifier");
        let mut out = vec![0; LONGEST + 256];
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            ctx_in: Some(&context_of(skb)),
            ..Default::default()
        };
        let result = match program.test_run(options) {
            Err(_) if packet.len() < SHORTEST => return None,
            result => result.expect("the test run takes place"),
        };
        out.truncate(result.data_size_out as usize);
        Some((result.return_value.cast_signed(), out))
    }

    /// Empties what packets write.
    fn clear(&mut self) {
        empty(&mut self.frontends);
        empty(&mut self.flows);
        empty(&mut self.affinity);
        empty(&mut self.fragments);
        for service in 0..SERVICES {
            let zero = vec![Raw(ServiceCounters::default()); nr_cpus().expect("CPUs")];
            let zero = PerCpuValues::try_from(zero).expect("one for each CPU");
            self.counters.set(service, zero, 0).expect("a service");
        }
    }

    /// Writes all maps as they are in memory.
    fn install(&mut self, memory: &Memory) {
        self.change(memory);
        memory.affinity.borrow().iter().for_each(|(key, affinity)| {
            let age = memory.now.get().wrapping_sub(affinity.last_used);
            let affinity = Affinity {
                last_used: now().wrapping_sub(age),
                ..*affinity
            };
            self.affinity
                .insert(Raw(*key), Raw(affinity), 0)
                .expect("an affinity");
        });
    }

    /// Writes the maps that the sync writes, and forgets flows that memory has not.
    fn change(&mut self, memory: &Memory) {
        empty(&mut self.frontends);
        memory.frontends.iter().for_each(|(key, frontend)| {
            self.frontends
                .insert(Raw(*key), Raw(*frontend), 0)
                .expect("a frontend");
        });
        empty(&mut self.addresses);
        memory.addresses.iter().for_each(|(addr, flags)| {
            self.addresses
                .insert(Raw(*addr), Raw(*flags), 0)
                .expect("an address");
        });
        let known: Vec<u32> = self.devices.keys().map(|key| key.expect("a key")).collect();
        for index in known {
            self.devices.remove(&index).expect("a device");
        }
        memory.devices.iter().for_each(|(index, device)| {
            self.devices
                .insert(*index, Raw(*device), 0)
                .expect("a device");
        });
        self.routes.become_those_of(memory);
        self.replace_networks(memory);
        for (index, slot) in (0..).zip(&memory.slots) {
            self.slots.set(index, *slot, 0).expect("a slot");
        }
        for (id, backend) in (0..).zip(&memory.backends) {
            self.backends.set(id, Raw(*backend), 0).expect("a backend");
        }
        self.settings
            .set(0, Raw(memory.settings), 0)
            .expect("the settings");
        for Raw(key) in keys(&self.flows) {
            if !memory.flows.borrow().contains_key(&key) {
                self.flows.remove(&Raw(key)).expect("a flow");
            }
        }
    }

    fn replace_networks(&mut self, memory: &Memory) {
        for key in self
            .networks
            .keys()
            .collect::<Result<Vec<_>, _>>()
            .expect("keys")
        {
            self.networks.remove(&key).expect("a network");
        }
        for (key, flags) in &memory.networks {
            let key = Key::new(key.prefix_len, Raw(key.addr));
            self.networks
                .insert(&key, Raw(*flags), 0)
                .expect("a network");
        }
        for key in self
            .source_ranges
            .keys()
            .collect::<Result<Vec<_>, _>>()
            .expect("keys")
        {
            self.source_ranges.remove(&key).expect("a range");
        }
        for range in &memory.source_ranges {
            let data = RangeData {
                service: range.service,
                addr: range.addr,
            };
            let key = Key::new(range.prefix_len, Raw(data));
            self.source_ranges.insert(&key, 1, 0).expect("a range");
        }
    }

    /// Lets time pass: everything that is remembered is so much older.
    fn age(&mut self, nanoseconds: u64) {
        for Raw(key) in keys(&self.flows) {
            let Raw(mut flow) = self.flows.get(&Raw(key), 0).expect("a flow");
            flow.created = flow.created.wrapping_sub(nanoseconds);
            flow.last_seen = flow.last_seen.wrapping_sub(nanoseconds);
            flow.tick = flow.tick.wrapping_sub(Memory::ticks(nanoseconds));
            self.flows.insert(Raw(key), Raw(flow), 0).expect("a flow");
        }
        for Raw(key) in keys(&self.affinity) {
            let Raw(mut affinity) = self.affinity.get(&Raw(key), 0).expect("an affinity");
            affinity.last_used = affinity.last_used.wrapping_sub(nanoseconds);
            self.affinity
                .insert(Raw(key), Raw(affinity), 0)
                .expect("an affinity");
        }
    }

    /// Checks that this verdict was counted.
    fn compare_outcome(&mut self, verdict: Verdict) -> Result<(), String> {
        let expected = self.expected_outcomes.entry(verdict.index()).or_default();
        *expected += 1;
        let counts = self.outcomes.get(&verdict.index(), 0).expect("a verdict");
        let counted: u64 = counts.iter().sum();
        if counted == *expected {
            Ok(())
        } else {
            Err(format!("counted {counted} times, not {expected}"))
        }
    }

    /// Compares what packets write, but for times: the clocks are two.
    fn compare(&self, memory: &Memory) -> Result<(), String> {
        let timeless = |flow: Flow| Flow {
            tick: 0,
            created: 0,
            last_seen: 0,
            ..flow
        };
        same(
            "FLOWS",
            &memory.flows.borrow(),
            &contents(&self.flows),
            timeless,
        )?;
        let timeless = |affinity: Affinity| Affinity {
            last_used: 0,
            ..affinity
        };
        same(
            "AFFINITY",
            &memory.affinity.borrow(),
            &contents(&self.affinity),
            timeless,
        )?;
        let as_it_is = |ports: FragmentPorts| ports;
        same(
            "FRAGMENTS",
            &memory.fragments.borrow(),
            &contents(&self.fragments),
            as_it_is,
        )?;
        for service in 0..SERVICES {
            let expected = memory
                .counters
                .borrow()
                .get(&service)
                .copied()
                .unwrap_or_default();
            let counted = self.counters.get(&service, 0).expect("a service");
            let mut total = ServiceCounters::default();
            counted.iter().for_each(|Raw(counters)| total += *counters);
            if total != expected {
                return Err(format!("service {service}: {total:?}, not {expected:?}"));
            }
        }
        Ok(())
    }
}

/// What a test run may be told of a packet (`struct __sk_buff` in `linux/bpf.h`): the device where
/// it is seen, and the size of its segments.
fn context_of(skb: &Skb) -> [u8; 180] {
    let mut context = [0; 180];
    context[40..44].copy_from_slice(&skb.device.to_ne_bytes());
    let segment = if skb.is_segmented { 1_400_u32 } else { 0 };
    context[176..180].copy_from_slice(&segment.to_ne_bytes());
    context
}

/// The routing table of the test's own network namespace.
struct Routes {
    present: BTreeMap<NetworkKey, u32>,
}

impl Routes {
    /// Moves the calling thread into a network namespace that forwards, with the devices that
    /// scenes name.
    fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        for sysctl in ["ipv4/conf/all/forwarding", "ipv6/conf/all/forwarding"] {
            std::fs::write(format!("/proc/sys/net/{sysctl}"), "1").expect("forwarding");
        }
        let devices = DEVICES.map(|index| {
            let peer = format!("peer name peer{index} index 10{index}");
            format!("link add device{index} index {index} type veth {peer}")
        });
        let names = DEVICES.map(|index| [format!("device{index}"), format!("peer{index}")]);
        let up = names
            .iter()
            .flatten()
            .map(|name| format!("link set {name} up"));
        let lines: Vec<_> = devices.into_iter().chain(up).collect();
        ip(None, &lines).expect("devices");
        Self {
            present: BTreeMap::new(),
        }
    }

    /// Nothing is done if nothing changes: a command takes as long as a scene.
    fn become_those_of(&mut self, memory: &Memory) {
        if self.present == memory.routes {
            return;
        }
        let line = |verb: &str, (network, device): (&NetworkKey, &u32)| {
            let prefix = IpAddr::from(network.addr);
            let len = network.prefix_len - if prefix.is_ipv4() { 96 } else { 0 };
            format!("route {verb} {prefix}/{len} dev device{device}")
        };
        let gone = self.present.iter().map(|route| line("delete", route));
        let new = memory.routes.iter().map(|route| line("add", route));
        ip(None, &gone.chain(new).collect::<Vec<_>>()).expect("routes");
        self.present.clone_from(&memory.routes);
    }
}

/// The devices of scenes beside `lo`.
const DEVICES: [u32; 3] = [7, 8, 9];

/// The data of a key of `SOURCE_RANGES`.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct RangeData {
    service: u32,
    addr: Addr,
}

/// The program at a hook.
fn program_of(hook: Hook) -> &'static str {
    match hook {
        Hook::PodIngress => "pod_ingress",
        Hook::PodEgress => "pod_egress",
        Hook::NodeIngress => "node_ingress",
        Hook::NodeEgress => "node_egress",
    }
}

/// The maps that are made smaller.
const MAPS: [&str; 10] = [
    "FRONTENDS",
    "ADDRESSES",
    "SOURCE_RANGES",
    "SLOTS",
    "BACKENDS",
    "SERVICES",
    "FLOWS",
    "AFFINITY",
    "FRAGMENTS",
    "CRC_SHIFTS",
];

/// No scene has a service id as high as this.
const SERVICES: u32 = 8;

/// Takes a map out of the object.
fn map<T: TryFrom<aya::maps::Map, Error: Debug>>(bpf: &mut Ebpf, name: &str) -> T {
    let map = bpf.take_map(name).expect("the map is there");
    T::try_from(map).expect("a map of its kind")
}

fn keys<K: bytemuck::Pod, V: bytemuck::Pod>(
    map: &BpfHashMap<MapData, Raw<K>, Raw<V>>,
) -> Vec<Raw<K>> {
    map.keys().map(|key| key.expect("a key")).collect()
}

fn empty<K: bytemuck::Pod, V: bytemuck::Pod>(map: &mut BpfHashMap<MapData, Raw<K>, Raw<V>>) {
    for key in keys(map) {
        map.remove(&key).expect("an entry");
    }
}

fn contents<K: bytemuck::Pod + Eq + std::hash::Hash, V: bytemuck::Pod>(
    map: &BpfHashMap<MapData, Raw<K>, Raw<V>>,
) -> HashMap<K, V> {
    map.iter()
        .map(|entry| {
            let (Raw(key), Raw(value)) = entry.expect("an entry");
            (key, value)
        })
        .collect()
}

/// Compares two maps, values as `reduce` leaves them.
fn same<K: Debug + Eq + std::hash::Hash, V: Copy + Debug + PartialEq>(
    name: &str,
    expected: &HashMap<K, V>,
    got: &HashMap<K, V>,
    reduce: impl Fn(V) -> V,
) -> Result<(), String> {
    let wrong = expected.iter().filter_map(|(key, value)| {
        let found = got.get(key).map(|value| reduce(*value));
        let is_same = found == Some(reduce(*value));
        (!is_same).then(|| format!("\n{key:?}: {found:?}, not {value:?}"))
    });
    let unknown = got
        .keys()
        .filter(|key| !expected.contains_key(key))
        .map(|key| format!("\n{key:?}: should not be there"));
    let mut lines: Vec<_> = wrong.chain(unknown).collect();
    lines.sort();
    if lines.is_empty() {
        Ok(())
    } else {
        Err(format!("map {name}: {}", lines.concat()))
    }
}

/// Nanoseconds of the clock that the programs read.
fn now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("a clock");
    std::time::Duration::from(now).as_nanos() as u64
}

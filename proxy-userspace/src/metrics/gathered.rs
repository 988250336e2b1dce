//! Beeline's own metrics, put together when they are asked for.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use proxy_common::abi::{FlowState, Protocol, RefusalReason};
use tokio::sync::watch;

use super::problem::ProblemKind;
use super::process::Process;
use super::reader::{MapCount, Reader, Readings};
use super::seconds;
use super::services::Key;
use super::sheet::Sheet;
use crate::conntrack_gc::Passed;
use crate::health::unready;
use crate::model::Problem;
use crate::sockets::Counts;
use crate::source::SourceState;
use crate::sync::Fill;

/// The socket edge, as metrics show it.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct SocketEdgeView {
    /// Whose sockets are to be served.
    pub serves: String,
    /// Whether its programs are attached.
    pub is_attached: bool,
}

/// What was told and what was read last.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    state: Mutex<State>,
    reader: Mutex<Option<Reader>>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) source: Option<watch::Receiver<SourceState>>,
    pub(super) is_in_force: bool,
    pub(super) socket_edge: SocketEdgeView,
    pub(super) parted: Option<watch::Receiver<Counts>>,
    pub(super) fill: Option<Fill>,
    pub(super) passed: Option<watch::Receiver<Option<Passed>>>,
    pub(super) configured: Option<SystemTime>,
    pub(super) n_writes: u64,
    pub(super) n_pending: u64,
    pub(super) has_failed_writes: bool,
    problems: [u64; ProblemKind::ALL.len()],
    readings: Readings,
}

impl State {
    pub(super) fn set_problems(&mut self, problems: &[Problem]) {
        self.problems = ProblemKind::ALL.map(|_| 0);
        for problem in problems {
            self.problems[ProblemKind::of(&problem.subject) as usize] += 1;
        }
    }
}

impl Gathered {
    pub(super) fn edit(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
    }

    pub(super) fn read_with(&self, reader: Reader) {
        *self.reader.lock().unwrap_or_else(PoisonError::into_inner) = Some(reader);
    }

    pub(super) fn set_readings(&self, readings: Readings) {
        self.lock().readings = readings;
    }

    /// Reads what the kernel counts. The state is not locked meanwhile: the daemon's loop must not
    /// wait.
    pub(super) fn refresh(&self) {
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(readings) = reader.as_mut().and_then(Reader::read) {
            self.set_readings(readings);
        }
    }

    /// A panic of another holder leaves the state usable: each change is an assignment.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for Gathered {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut sheet = Sheet(encoder);
        let state = self.lock();
        state.daemon(&mut sheet)?;
        state.sync(&mut sheet)?;
        state.source(&mut sheet)?;
        state.maps(&mut sheet)?;
        state.flows(&mut sheet)?;
        state.sockets(&mut sheet)?;
        state.services(&mut sheet)?;
        drop(state);
        process(&mut sheet)
    }
}

impl State {
    fn daemon(&self, sheet: &mut Sheet<'_>) -> fmt::Result {
        let labels = [("version", env!("CARGO_PKG_VERSION"))];
        sheet.gauges("beeline_build_info", "Always 1", [(labels, 1)])?;
        sheet.gauge(
            "beeline_config_read_timestamp_seconds",
            "When the configuration in force was read",
            self.configured.map(seconds),
        )?;
        sheet.gauge(
            "beeline_ready",
            "1 if the first lists are in force and the source is heard of, as at /readyz",
            Some(u64::from(self.is_ready())),
        )?;
        sheet.gauges(
            "beeline_problems",
            "What is not as it should be, as beeline status shows it, by what is in trouble",
            ProblemKind::ALL.map(|kind| ([("kind", kind.name())], self.problems[kind as usize])),
        )
    }

    fn is_ready(&self) -> bool {
        let source = self.source.as_ref().map(|source| source.borrow().clone());
        unready(self.is_in_force, source.as_ref(), Instant::now()).is_none()
    }

    fn sync(&self, sheet: &mut Sheet<'_>) -> fmt::Result {
        sheet.counter(
            "beeline_sync_writes",
            "Writes to the maps of Services",
            self.n_writes,
        )?;
        sheet.gauge(
            "beeline_sync_pending",
            "What is not in force as desired: Services, and 1 for the maps as such",
            Some(self.n_pending),
        )?;
        sheet.gauge(
            "beeline_sync_failing",
            "1 if a write failed that is still to be done",
            Some(u64::from(self.has_failed_writes)),
        )
    }

    fn source(&self, sheet: &mut Sheet<'_>) -> fmt::Result {
        let state = self.source.as_ref().map(|source| source.borrow().clone());
        let resources = state.unwrap_or_default().resources;
        let now = Instant::now();
        let labels = |resource: &'static str| [("resource", resource)];
        let rows = resources.iter();
        sheet.gauges(
            "beeline_source_listed",
            "1 if the first list of the resource is complete",
            rows.clone()
                .map(|(&name, it)| (labels(name), u64::from(it.is_listed))),
        )?;
        sheet.gauges(
            "beeline_source_connected",
            "1 if changes of the resource are heard of",
            rows.clone()
                .map(|(&name, it)| (labels(name), u64::from(it.is_connected))),
        )?;
        sheet.gauges(
            "beeline_source_connected_change_age_seconds",
            "For how long beeline_source_connected has been what it is",
            rows.clone().map(|(&name, it)| {
                let age = now.saturating_duration_since(it.since);
                (labels(name), age.as_secs_f64())
            }),
        )?;
        let restarts = rows.flat_map(|(&name, it)| {
            let reasons = it.n_restarts.iter();
            reasons.map(move |(&reason, &n)| ([("resource", name), ("reason", reason)], n))
        });
        sheet.counters(
            "beeline_source_restarts",
            "How often the resource's watch had to be begun anew",
            restarts,
        )
    }

    fn maps(&self, sheet: &mut Sheet<'_>) -> fmt::Result {
        let now = Instant::now();
        let by_sync = self.fill.iter().flat_map(|fill| of_sync(fill, now));
        let of_flows = self.passed().map(|passed| MapCount {
            name: "FLOWS",
            entries: Some((passed.n_records, passed.at)),
            capacity: passed.capacity,
        });
        let counted = self.readings.maps.iter().cloned();
        let rows: Vec<_> = by_sync.chain(of_flows).chain(counted).collect();
        let known = rows.iter().filter_map(|it| {
            let (entries, at) = it.entries?;
            Some(([("map", it.name)], entries, at))
        });
        sheet.gauges(
            "beeline_map_entries",
            "Entries of the map",
            known.clone().map(|(labels, entries, _)| (labels, entries)),
        )?;
        let capacities = rows
            .iter()
            .map(|it| ([("map", it.name)], u64::from(it.capacity)));
        sheet.gauges(
            "beeline_map_capacity",
            "Entries that the map may hold",
            capacities,
        )?;
        sheet.gauges(
            "beeline_map_entries_age_seconds",
            "How long ago the entries of the map were counted",
            known.map(|(labels, _, at)| {
                let age = now.saturating_duration_since(at);
                (labels, age.as_secs_f64())
            }),
        )
    }

    fn passed(&self) -> Option<Passed> {
        self.passed.as_ref()?.borrow().clone()
    }

    fn flows(&self, sheet: &mut Sheet<'_>) -> fmt::Result {
        let passed = self.passed();
        let by_state = passed.iter().flat_map(|passed| {
            let both = FlowState::ALL.into_iter().zip(passed.by_state);
            both.map(|(state, n)| {
                let labels = [("protocol", protocol_of(state)), ("state", state.name())];
                (labels, n)
            })
        });
        sheet.gauges(
            "beeline_flows",
            "Conversations that are tracked, as of the latest pass over all records",
            by_state,
        )?;
        let expired = passed.iter().flat_map(|passed| {
            [
                ([("map", "FLOWS")], passed.n_expired_flows),
                ([("map", "AFFINITY")], passed.n_expired_affinities),
            ]
        });
        sheet.counters(
            "beeline_expired_entries",
            "Entries of the map that were removed because their time was over",
            expired,
        )?;
        let verdicts = self.readings.verdicts.iter().map(|(verdict, n)| {
            let labels = [("outcome", verdict.kind()), ("reason", verdict.name())];
            (labels, *n)
        });
        sheet.counters(
            "beeline_verdicts",
            "Packets and sockets by what was decided about them",
            verdicts,
        )
    }

    fn sockets(&self, sheet: &mut Sheet<'_>) -> fmt::Result {
        let edge = &self.socket_edge;
        let is_known = !edge.serves.is_empty();
        let rows = is_known.then(|| {
            let labels = [("serves", edge.serves.as_str())];
            (labels, u64::from(edge.is_attached))
        });
        sheet.gauges(
            "beeline_socket_edge_attached",
            "1 if the socket edge is attached",
            rows,
        )?;
        let counts = self.parted.as_ref().map(|counts| *counts.borrow());
        let rows = counts.into_iter().flat_map(|counts| {
            let row = |protocol, fate, n| ([("protocol", protocol), ("fate", fate)], n);
            [
                row("TCP", "closed", counts.tcp_closed),
                row("UDP", "closed", counts.udp_closed),
                row("UDP", "moved", counts.udp_moved),
            ]
        });
        sheet.counters(
            "beeline_sockets_parted",
            "Sockets that left an endpoint because it was gone",
            rows,
        )
    }

    fn services(&self, sheet: &mut Sheet<'_>) -> fmt::Result {
        let rows = &self.readings.rows;
        let (n_own, n_others) = rows.counts();
        sheet.gauges(
            "beeline_service_ports",
            "Service ports of both families, by whether they have rows of their own",
            [("own", n_own), ("other", n_others)].map(|(row, n)| ([("row", row)], n as u64)),
        )?;
        let all = || {
            let own = rows
                .own()
                .map(|(key, totals)| (ServiceLabels::of(key), totals));
            own.chain((n_others > 0).then(|| (ServiceLabels::OTHER, rows.other())))
        };
        sheet.counters(
            "beeline_service_packets",
            "Packets of the service port that were translated, both directions",
            all().map(|(labels, it)| (labels.pairs(), it.packets)),
        )?;
        sheet.counters(
            "beeline_service_bytes",
            "Bytes of those packets, link-layer headers included",
            all().map(|(labels, it)| (labels.pairs(), it.bytes)),
        )?;
        sheet.counters(
            "beeline_service_connections",
            "New flows and sockets that were sent to an endpoint of the service port",
            all().map(|(labels, it)| (labels.pairs(), it.connections)),
        )?;
        let refused = all().flat_map(|(labels, totals)| {
            let reasons = RefusalReason::ALL.into_iter().zip(totals.refused);
            let counted = reasons.filter(|(_, n)| *n > 0);
            counted.map(move |(reason, n)| ((labels.pairs(), [("reason", reason.name())]), n))
        });
        sheet.counters(
            "beeline_service_refused",
            "New flows and sockets that the service port refused",
            refused,
        )?;
        sheet.gauge(
            "beeline_read_seconds",
            "How long it took to read what the kernel counts",
            Some(self.readings.took.as_secs_f64()),
        )?;
        sheet.counter(
            "beeline_read_failures",
            "Maps that could not be read for metrics",
            self.readings.n_failures,
        )
    }
}

/// The maps that sync keeps, and knows without counting.
fn of_sync(fill: &Fill, now: Instant) -> [MapCount; 6] {
    let Fill { used, capacity } = fill;
    let row = |name, used, capacity| MapCount {
        name,
        entries: Some((u64::from(used), now)),
        capacity,
    };
    [
        row("FRONTENDS", used.frontends, capacity.frontends),
        row("ADDRESSES", used.addresses, capacity.addresses),
        row("SOURCE_RANGES", used.source_ranges, capacity.source_ranges),
        row("SLOTS", used.slots, capacity.slots),
        row("BACKENDS", used.backends, capacity.backends),
        row("SERVICES", used.services, capacity.services),
    ]
}

fn process(sheet: &mut Sheet<'_>) -> fmt::Result {
    let process = Process::read();
    let it = process.as_ref();
    sheet.counter(
        "process_cpu_seconds",
        "User and system CPU time",
        it.map_or(0.0, |it| it.cpu_seconds),
    )?;
    sheet.gauge(
        "process_resident_memory_bytes",
        "Resident memory",
        it.map(|it| it.resident),
    )?;
    sheet.gauge(
        "process_virtual_memory_bytes",
        "Virtual memory",
        it.map(|it| it.size),
    )?;
    sheet.gauge(
        "process_open_fds",
        "Open file descriptors",
        it.map(|it| it.open_files),
    )?;
    sheet.gauge(
        "process_max_fds",
        "Most open file descriptors",
        it.map(|it| it.max_files),
    )?;
    sheet.gauge(
        "process_start_time_seconds",
        "When the process was started: seconds since 1970",
        it.map(|it| it.started),
    )
}

/// The protocol that a state belongs to.
const fn protocol_of(state: FlowState) -> &'static str {
    match state {
        FlowState::TcpSynSent
        | FlowState::TcpSynRecv
        | FlowState::TcpEstablished
        | FlowState::TcpFinWait
        | FlowState::TcpCloseWait
        | FlowState::TcpTimeWait
        | FlowState::TcpClose => Protocol::Tcp.name(),
        FlowState::UdpUnreplied | FlowState::UdpReplied | FlowState::UdpStream => {
            Protocol::Udp.name()
        }
        FlowState::SctpCookieWait
        | FlowState::SctpCookieEchoed
        | FlowState::SctpEstablished
        | FlowState::SctpShutdown
        | FlowState::SctpClosed => Protocol::Sctp.name(),
    }
}

/// What tells a service port from others.
#[derive(Clone, Copy)]
struct ServiceLabels<'a> {
    namespace: &'a str,
    service: &'a str,
    port: &'a str,
    protocol: &'static str,
    ip_family: &'static str,
}

impl<'a> ServiceLabels<'a> {
    /// No Service has no namespace.
    const OTHER: ServiceLabels<'static> = ServiceLabels {
        namespace: "",
        service: "other",
        port: "",
        protocol: "",
        ip_family: "",
    };

    fn of(key: &'a Key) -> Self {
        Self {
            namespace: &key.namespace,
            service: &key.service,
            port: &key.port,
            protocol: Protocol::from_number(key.protocol).map_or("", Protocol::name),
            ip_family: match key.family {
                4 => "IPv4",
                6 => "IPv6",
                _ => "",
            },
        }
    }

    const fn pairs(self) -> [(&'static str, &'a str); 5] {
        [
            ("namespace", self.namespace),
            ("service", self.service),
            ("port", self.port),
            ("protocol", self.protocol),
            ("ip_family", self.ip_family),
        ]
    }
}

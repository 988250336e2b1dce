//! What a benchmark says in the end: tables for people, JSON for programs.

use std::collections::BTreeSet;

use comfy_table::{CellAlignment, LineStyle, TableStyle};
use proxy_common::abi::Family;
use serde_json::{Value, json};

use super::Settings;
use super::cluster::{Place, Way};
use super::machine::Machine;
use super::measure::Measure;
use super::report::Form;
use super::results::{Case, Comparison, ProgramCalls, Results, Summary};
use super::statistics::Spread;

/// All there is to tell.
pub(super) struct Report<'a> {
    /// How it was measured.
    pub(super) settings: &'a Settings,
    /// Where.
    pub(super) machine: &'a Machine,
    /// Load of the machine before and after.
    pub(super) load: (f64, f64),
    /// Seconds that Beeline took to be ready, by the number of Services.
    pub(super) ready_after: Vec<(u32, f64)>,
    /// What came out.
    pub(super) results: &'a Results,
}

/// Rows of cells under a header. The first `left` columns are names, the others numbers.
struct Table {
    header: &'static [&'static str],
    left: usize,
    rows: Vec<Vec<String>>,
}

/// What of the programs in the kernel is shown.
const SHOWN: [Measure; 6] = [
    Measure::TcpConnection,
    Measure::UdpConnected,
    Measure::UdpUnconnected,
    Measure::UdpNewSocket,
    Measure::Connect,
    Measure::SendTo,
];

impl Report<'_> {
    /// Everything, as text.
    pub(super) fn text(&self, form: Form) -> String {
        let parts = [
            self.circumstances(),
            "Requests. × is the median of all rounds of the ratio to the same round's, quartiles \
             behind it. CPU is the processor time of client, kernel and server together."
                .to_owned(),
            self.requests().render(form),
            "Calls, in nanoseconds of processor time. Differences are medians of all \
             rounds' differences, quartiles behind them."
                .to_owned(),
            self.calls().render(form),
            "Programs in the kernel, with a pod as client: calls for each operation × nanoseconds \
             a call. The kernel's own counting is in them, some 20 to 40 ns, and so is what the \
             servers call."
                .to_owned(),
            self.programs().render(form),
        ];
        parts.join("\n\n")
    }

    fn circumstances(&self) -> String {
        let (before, after) = self.load;
        let Machine {
            kernel,
            processor,
            processors,
        } = self.machine;
        let ready: String = self
            .ready_after
            .iter()
            .map(|(services, seconds)| format!(" {services} Services ready after {seconds:.1} s."))
            .collect();
        format!(
            "Linux {kernel}, {processor}, {processors} CPUs; load {before:.2} before, \
             {after:.2} after. {}, {} rounds, {} ms for each turn.{ready}",
            match self.settings.family {
                Family::Ipv4 => "IPv4",
                Family::Ipv6 => "IPv6",
            },
            self.settings.rounds,
            self.settings.turn.as_millis(),
        )
    }

    /// A case of the socket edge for each of the measures, in the order of tables.
    fn cases(&self, measures: &[Measure]) -> Vec<Case> {
        let mut cases = Vec::new();
        for place in Place::ALL {
            for &measure in measures {
                cases.extend(self.results.services().into_iter().map(|services| Case {
                    place,
                    measure,
                    services: Some(services),
                    way: Way::SocketEdge,
                }));
            }
        }
        cases
    }

    fn requests(&self) -> Table {
        let row = |case: Case| {
            let [direct, socket, packet] = self.summaries(case)?;
            let latencies = [&direct, &socket].map(|summary| {
                let (half, most) = summary.latency.unwrap_or_default();
                format!("{:.1} / {:.1}", half / 1e3, most / 1e3)
            });
            let mut row = names(case);
            row.extend([&direct, &socket].map(|summary| format!("{:.0}", summary.rate.median)));
            row.extend(latencies);
            row.extend([
                ratio(socket.to_direct.rate),
                ratio(socket.to_direct.used),
                ratio(packet.to_direct.used),
                ratio(direct.to_bare.used),
            ]);
            Some(row)
        };
        Table {
            header: &[
                "client",
                "request",
                "Services",
                "direct, 1/s",
                "socket edge, 1/s",
                "direct, p50 / p99 µs",
                "socket edge, p50 / p99 µs",
                "socket edge × direct",
                "its CPU × direct",
                "packet edge's CPU × direct",
                "direct's CPU × no Beeline",
            ],
            left: 2,
            rows: self
                .cases(&Measure::REQUESTS)
                .into_iter()
                .filter_map(row)
                .collect(),
        }
    }

    fn calls(&self) -> Table {
        let row = |case: Case| {
            let [direct, socket, packet] = self.summaries(case)?;
            let mut row = names(case);
            row.push(format!("{:.0}", direct.used.median));
            row.extend([
                nanoseconds(socket.to_direct.added_used),
                nanoseconds(packet.to_direct.added_used),
                nanoseconds(direct.to_bare.added_used),
                nanoseconds(socket.to_bare.added_used),
            ]);
            Some(row)
        };
        Table {
            header: &[
                "client",
                "call",
                "Services",
                "direct",
                "socket edge, more than direct",
                "packet edge, more than direct",
                "direct, more than no Beeline",
                "socket edge, more than no Beeline",
            ],
            left: 2,
            rows: self
                .cases(&Measure::CALLS)
                .into_iter()
                .filter_map(row)
                .collect(),
        }
    }

    fn programs(&self) -> Table {
        let ways = [Way::Direct, Way::SocketEdge, Way::PacketEdge];
        let mut rows = Vec::new();
        let services = self.results.services().last().copied();
        for measure in SHOWN {
            let all = ways.map(|way| {
                let place = Place::Pod;
                self.results.calls_in(Case {
                    place,
                    measure,
                    services,
                    way,
                })
            });
            let names: BTreeSet<_> = all
                .iter()
                .flatten()
                .flat_map(|done| done.calls.keys())
                .collect();
            rows.extend(names.into_iter().filter_map(|program| {
                let cells = all.map(|done| often(done?, program));
                let names = [measure.name().to_owned(), program.clone()];
                let is_any = cells.iter().any(Option::is_some);
                is_any.then(|| {
                    names
                        .into_iter()
                        .chain(cells.map(Option::unwrap_or_default))
                        .collect()
                })
            }));
        }
        Table {
            header: &[
                "request or call",
                "program",
                "direct",
                "socket edge",
                "packet edge",
            ],
            left: 2,
            rows,
        }
    }

    /// What is measured where a case is: direct, and by the two edges.
    fn summaries(&self, case: Case) -> Option<[Summary; 3]> {
        let by = |way| self.results.summary(case.by(way));
        Some([by(Way::Direct)?, by(Way::SocketEdge)?, by(Way::PacketEdge)?])
    }

    /// Everything, for programs.
    pub(super) fn json(&self) -> Value {
        let (before, after) = self.load;
        let summaries = self.results.summaries();
        let ready = self.ready_after.iter();
        json!({
            "kernel": self.machine.kernel,
            "processor": self.machine.processor,
            "processors": self.machine.processors,
            "load": {"before": before, "after": after},
            "rounds": self.settings.rounds,
            "turn_ms": self.settings.turn.as_millis() as u64,
            "family": format!("{:?}", self.settings.family).to_lowercase(),
            "ready": ready
                .map(|(services, seconds)| json!({"services": services, "seconds": seconds}))
                .collect::<Vec<_>>(),
            "measurements": summaries.iter().map(measurement).collect::<Vec<_>>(),
            "programs": self.results.calls().flat_map(|(case, done)| {
                done.calls.iter().map(|(program, calls)| {
                    let mut entry = describe(case);
                    entry["program"] = json!(program);
                    entry["calls_per_operation"] = json!(rounded(calls.count as f64 / done.operations as f64));
                    entry["ns_per_call"] = json!(rounded(calls.nanoseconds as f64 / calls.count as f64));
                    entry
                })
            }).collect::<Vec<_>>(),
        })
    }
}

/// How often a program was called for each operation, and how long a call took; `None` if that
/// was hardly ever.
fn often(done: &ProgramCalls, program: &str) -> Option<String> {
    let calls = done.calls.get(program)?;
    let each = calls.count as f64 / done.operations as f64;
    let nanoseconds = calls.nanoseconds as f64 / calls.count as f64;
    (each >= 0.05).then(|| format!("{each:.1} × {nanoseconds:.0}"))
}

fn names(case: Case) -> Vec<String> {
    vec![
        case.place.name().to_owned(),
        case.measure.name().to_owned(),
        case.services.unwrap_or_default().to_string(),
    ]
}

fn ratio(spread: Spread) -> String {
    let Spread { low, median, high } = spread;
    format!("{median:.3} ({low:.3}–{high:.3})")
}

fn nanoseconds(spread: Spread) -> String {
    let Spread { low, median, high } = spread;
    format!("{median:.0} ({low:.0} to {high:.0})")
}

impl Table {
    fn render(&self, form: Form) -> String {
        match form {
            Form::Terminal => self.for_terminal(),
            Form::Markdown => self.markdown(),
        }
    }

    fn for_terminal(&self) -> String {
        const STYLE: TableStyle =
            TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));
        let mut table = comfy_table::Table::new();
        table.load_style(STYLE).set_header(self.header);
        for row in &self.rows {
            table.add_row(row);
        }
        for (number, column) in table.column_iter_mut().enumerate() {
            column.set_padding((0, 2));
            if number >= self.left {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table.trim_fmt()
    }

    fn markdown(&self) -> String {
        let line = |cells: &[&str]| format!("| {} |", cells.join(" | "));
        let rules: Vec<_> = (0..self.header.len())
            .map(|number| if number < self.left { "---" } else { "---:" })
            .collect();
        let mut lines = vec![line(self.header), line(&rules)];
        for row in &self.rows {
            lines.push(line(&row.iter().map(String::as_str).collect::<Vec<_>>()));
        }
        lines.join("\n")
    }
}

fn describe(case: &Case) -> Value {
    json!({
        "client": case.place.name(),
        "measure": case.measure.name(),
        "services": case.services,
        "way": case.way.key(),
    })
}

fn measurement(summary: &Summary) -> Value {
    let mut entry = describe(&summary.case);
    entry["per_second"] = spread(summary.rate);
    entry["ns"] = spread(summary.time);
    entry["cpu_ns"] = spread(summary.used);
    if let Some((half, most)) = summary.latency {
        entry["p50_ns"] = json!(rounded(half));
        entry["p99_ns"] = json!(rounded(most));
    }
    entry["to_direct"] = comparison(&summary.to_direct);
    entry["to_no_beeline"] = comparison(&summary.to_bare);
    entry
}

fn comparison(comparison: &Comparison) -> Value {
    json!({
        "rate_ratio": spread(comparison.rate),
        "cpu_ratio": spread(comparison.used),
        "added_ns": spread(comparison.added),
        "added_cpu_ns": spread(comparison.added_used),
    })
}

fn spread(spread: Spread) -> Value {
    let [low, median, high] = [spread.low, spread.median, spread.high].map(rounded);
    json!({"low": low, "median": median, "high": high})
}

/// As far as it means anything.
fn rounded(number: f64) -> f64 {
    (number * 1e4).round() / 1e4
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::super::measure::Sample;
    use super::super::programs::Calls;
    use super::*;

    /// One round: by the socket edge everything takes a tenth longer than directly, by the packet
    /// edge twice as long.
    fn results() -> Results {
        let mut results = Results::default();
        let ways = [
            (None, Way::Bare, 900),
            (Some(10), Way::Direct, 1_000),
            (Some(10), Way::SocketEdge, 1_100),
            (Some(10), Way::PacketEdge, 2_000),
        ];
        for measure in Measure::REQUESTS.into_iter().chain(Measure::CALLS) {
            for (services, way, microseconds) in ways {
                let case = Case {
                    place: Place::Pod,
                    measure,
                    services,
                    way,
                };
                let took = Duration::from_micros(microseconds);
                let sample = Sample {
                    operations: 1_000,
                    warm_up: 0,
                    elapsed: took,
                    used: took,
                    latency: Some((1_000.0, 2_000.0)),
                };
                results.add(case, sample);
            }
        }
        results
    }

    fn text(results: &Results) -> String {
        let report = Report {
            settings: &Settings {
                family: Family::Ipv4,
                rounds: 1,
                turn: Duration::from_millis(1),
            },
            machine: &Machine {
                kernel: "6.1".to_owned(),
                processor: "Fast One".to_owned(),
                processors: 2,
            },
            load: (0.1, 0.2),
            ready_after: vec![(10, 0.5)],
            results,
        };
        assert_eq!(report.json()["measurements"].as_array().unwrap().len(), 32);
        report.text(Form::Markdown)
    }

    #[test]
    fn each_request_and_each_call_has_a_line_of_all_ways() {
        let text = text(&results());
        let request = "| pod | TCP connection | 10 | 1000000 | 909091 | 1.0 / 2.0 | 1.0 / 2.0 \
                       | 0.909 (0.909–0.909) | 1.100 (1.100–1.100) | 2.000 (2.000–2.000) \
                       | 1.111 (1.111–1.111) |";
        assert!(text.contains(request), "{text}");
        let call = "| pod | connect | 10 | 1000 | 100 (100 to 100) | 1000 (1000 to 1000) \
                    | 100 (100 to 100) | 200 (200 to 200) |";
        assert!(text.contains(call), "{text}");
        assert!(text.contains("load 0.10 before, 0.20 after"), "{text}");
    }

    #[test]
    fn a_program_that_is_hardly_called_is_left_out() {
        let calls = |count| Calls {
            count,
            nanoseconds: 150 * count,
        };
        let calls = ProgramCalls {
            operations: 1_000,
            calls: BTreeMap::from([
                ("connect4".to_owned(), calls(1_000)),
                ("sock_release".to_owned(), calls(1)),
            ]),
        };
        let mut results = results();
        let case = Case {
            place: Place::Pod,
            measure: Measure::Connect,
            services: Some(10),
            way: Way::SocketEdge,
        };
        results.add_calls(case, calls);
        let text = text(&results);
        assert!(
            text.contains("| connect | connect4 |  | 1.0 × 150 |  |"),
            "{text}"
        );
        assert!(!text.contains("sock_release"), "{text}");
    }

    #[test]
    fn tables_for_a_terminal_have_no_bars() {
        let table = Table {
            header: &["way", "ns"],
            left: 1,
            rows: vec![vec!["direct".to_owned(), "12".to_owned()]],
        };
        let text = table.for_terminal();
        assert!(text.contains("direct") && !text.contains('|'), "{text}");
    }
}

//! Tables of what clients met.

use xtask::figures::{Case, Figures, Measure, Place, Spread, Traffic};

use super::select::{REQUESTS, find, find_all, least_and_most, numbers_of_services};
use super::series::{self, Series};
use super::table::Table;
use super::{Form, names, number};

/// New TCP connections from a pod by each way with each number of Services: the answer at a glance.
pub(super) fn connections(figures: &Figures, form: Form) -> Table {
    let (place, measure) = (Place::Pod, Measure::TcpConnection);
    let mut rows = Vec::new();
    for (number, services) in numbers_of_services(figures).into_iter().enumerate() {
        let found = find_all(figures, place, measure, &series::ALL, services);
        let fresh = found
            .iter()
            .filter(|(series, _)| number == 0 || *series != series::NO_PROXY);
        rows.extend(fresh.map(|(series, traffic)| connection_row(*series, traffic, form)));
    }
    if rows.is_empty() {
        let direct = find(figures, place, measure, series::NO_PROXY, 0);
        rows.extend(direct.map(|traffic| connection_row(series::NO_PROXY, traffic, form)));
    }
    Table::new(
        "New TCP connections from a pod",
        "Open, one byte each way, close. CPU is the processor time of client, kernel and server \
         together.",
        1,
        &[
            "way",
            "Services",
            "connections/s",
            "× no proxy",
            "p50",
            "p99",
            "p99.9",
            "CPU each",
            "CPU × no proxy",
        ],
        rows,
    )
}

fn connection_row(series: Series, traffic: &Traffic, form: Form) -> Vec<String> {
    let ratio = |spread: Option<Spread>| spread.map(|spread| ratio(spread, form));
    let latency = |value: fn(&xtask::figures::Latency) -> f64| {
        let latency = traffic.latency.as_ref();
        latency.map(|latency| number::time(value(latency)))
    };
    let services = traffic.case.services.map(names::services);
    [
        Some(series.name()),
        services,
        Some(number::count(traffic.rate.median)),
        ratio(traffic.to_direct.map(|comparison| comparison.rate)),
        latency(|latency| latency.p50_ns),
        latency(|latency| latency.p99_ns),
        latency(|latency| latency.p999_ns),
        Some(number::time(traffic.cpu_ns.median)),
        ratio(traffic.to_direct.map(|comparison| comparison.cpu)),
    ]
    .map(Option::unwrap_or_default)
    .to_vec()
}

/// A ratio; with quartiles where there is room for them.
fn ratio(spread: Spread, form: Form) -> String {
    match form {
        Form::Terminal => number::ratio(spread.median),
        Form::Markdown => number::ratio_with_spread(spread),
    }
}

/// A table with a line for each client, measure and number of Services, and a column for each way.
struct Pivot<'a> {
    title: &'a str,
    note: &'a str,
    measures: &'a [Measure],
    columns: &'a [Series],
    /// The head of the first columns: what the client does.
    what: &'a str,
}

impl Pivot<'_> {
    /// With the least and the greatest number of Services.
    fn table(&self, figures: &Figures, value: impl Fn(&Traffic) -> Option<String>) -> Table {
        let numbers = least_and_most(figures);
        let mut rows = Vec::new();
        for place in Place::ALL {
            for &measure in self.measures {
                rows.extend(
                    numbers.iter().filter_map(|&services| {
                        self.row(figures, (place, measure, services), &value)
                    }),
                );
            }
        }
        let mut header = vec!["from", self.what, "Services"];
        header.extend(self.columns.iter().map(|series| series.short()));
        Table::new(self.title, self.note, 2, &header, rows)
    }

    /// Nothing if nobody but a node without a proxy has something to tell.
    fn row(
        &self,
        figures: &Figures,
        (place, measure, services): (Place, Measure, u32),
        value: impl Fn(&Traffic) -> Option<String>,
    ) -> Option<Vec<String>> {
        let cells: Vec<Option<String>> = self
            .columns
            .iter()
            .map(|&series| value(find(figures, place, measure, series, services)?))
            .collect();
        let compared = self.columns.iter().zip(&cells);
        let is_any = compared
            .filter(|(series, _)| **series != series::NO_PROXY)
            .any(|(_, cell)| cell.is_some());
        let names = [
            names::place_in_table(place).to_owned(),
            names::measure(measure).to_owned(),
            names::services(services),
        ];
        let cells = cells.into_iter().map(Option::unwrap_or_default);
        is_any.then(|| names.into_iter().chain(cells).collect())
    }
}

/// Rates as parts of those without a proxy.
pub(super) fn rates(figures: &Figures, form: Form) -> Table {
    let table = Pivot {
        title: "Rate, × no proxy",
        note: "Through a Service, as a part of the rate of dialling the pod on a node without any \
               proxy. Higher is better.",
        measures: &REQUESTS,
        columns: &series::ALL[1..],
        what: "what",
    };
    table.table(figures, |traffic| {
        Some(ratio(traffic.to_direct?.rate, form))
    })
}

/// Rates without a proxy, which the ratios are of.
pub(super) fn absolute(figures: &Figures) -> Table {
    let row = |traffic: &Traffic| {
        let Case { place, measure, .. } = traffic.case;
        vec![
            names::place_in_table(place).to_owned(),
            names::measure(measure).to_owned(),
            names::rate(measure, traffic.rate.median),
            format!(
                "{} per {}",
                names::cpu(measure, traffic.cpu_ns.median),
                names::operation(measure)
            ),
        ]
    };
    let direct = figures
        .traffic
        .iter()
        .filter(|traffic| series::NO_PROXY.has(&traffic.case));
    Table::new(
        "Without any proxy",
        "What the ratios are of.",
        2,
        &["from", "what", "rate", "CPU"],
        direct.map(row).collect(),
    )
}

/// Processor time as a part of that without a proxy.
pub(super) fn cpu(figures: &Figures, form: Form) -> Table {
    let table = Pivot {
        title: "Processor time, × no proxy",
        note: "Of client, kernel and server together. Lower is better.",
        measures: &REQUESTS,
        columns: &series::ALL[1..],
        what: "what",
    };
    table.table(figures, |traffic| Some(ratio(traffic.to_direct?.cpu, form)))
}

/// Processor time as a part of that of dialling the pod on the same node.
pub(super) fn to_pod(figures: &Figures, form: Form) -> Table {
    let table = Pivot {
        title: "Processor time, × the pod on the same node",
        note: "What it costs there to go by a Service, and not by the pod's own address.",
        measures: &REQUESTS,
        columns: &series::ALL[1..],
        what: "what",
    };
    table.table(figures, |traffic| Some(ratio(traffic.to_pod?.cpu, form)))
}

/// What a proxy costs those who dial no Service.
pub(super) fn beside(figures: &Figures, form: Form) -> Table {
    let table = Pivot {
        title: "Beside a proxy",
        note: "Pods dialled by their own address on nodes with each proxy: processor time, × no \
               proxy.",
        measures: &[Measure::TcpConnection, Measure::UdpRequest],
        columns: &series::BESIDE[1..],
        what: "what",
    };
    table.table(figures, |traffic| Some(ratio(traffic.to_direct?.cpu, form)))
}

/// How long operations took.
pub(super) fn latency(figures: &Figures, form: Form) -> Table {
    let (title, shown) = match form {
        Form::Terminal => ("Latency, p50 / p99 in µs", 2),
        Form::Markdown => ("Latency, p50 / p99 / p99.9 in µs", 3),
    };
    let table = Pivot {
        title,
        note: "",
        measures: &REQUESTS,
        columns: &series::ALL,
        what: "what",
    };
    table.table(figures, |traffic| {
        let latency = traffic.latency?;
        let times = [latency.p50_ns, latency.p99_ns, latency.p999_ns];
        let times = times.into_iter().take(shown);
        let times: Vec<String> = times.map(|ns| number::short(ns / 1e3)).collect();
        Some(times.join(" / "))
    })
}

/// What system calls cost.
pub(super) fn calls(figures: &Figures) -> Table {
    let table = Pivot {
        title: "System calls, ns of processor time",
        note: "In brackets: more than without a proxy, quartiles of the rounds' differences.",
        measures: &Measure::CALLS,
        columns: &series::ALL,
        what: "call",
    };
    table.table(figures, |traffic| {
        let time = number::count(traffic.cpu_ns.median);
        Some(match traffic.to_direct {
            Some(comparison) => {
                let Spread { low, high, .. } = comparison.added_cpu_ns;
                format!("{time} ({} to {})", number::count(low), number::count(high))
            }
            None => time,
        })
    })
}

/// How often Beeline's programs were called for an operation of a pod's, and how long a call took,
/// with the greatest number of Services.
pub(super) fn program_calls(figures: &Figures) -> Table {
    let most = numbers_of_services(figures).last().copied();
    let columns = [series::BESIDE[1], series::SOCKET_EDGE, series::PACKET_EDGE];
    let mut rows: Vec<(Measure, &str)> = figures
        .calls
        .iter()
        .filter(|calls| calls.case.place == Place::Pod && calls.case.services == most)
        .map(|calls| (calls.case.measure, calls.program.as_str()))
        .collect();
    rows.sort_unstable();
    rows.dedup();
    let cell = |series: Series, measure, program: &str| {
        let calls = figures.calls.iter().find(|calls| {
            let case = &calls.case;
            series.has(case)
                && (case.place, case.measure, case.services) == (Place::Pod, measure, most)
                && calls.program == program
        })?;
        (calls.each >= 0.05).then(|| format!("{:.1} × {:.0}", calls.each, calls.ns))
    };
    let rows = rows.into_iter().map(|(measure, program)| {
        let cells = columns.map(|series| cell(series, measure, program).unwrap_or_default());
        let names = [names::measure(measure).to_owned(), program.to_owned()];
        names.into_iter().chain(cells).collect()
    });
    Table::new(
        "Beeline's programs, calls × ns for each operation",
        "From a pod. The kernel's own counting is in them, some 20 to 40 ns a call, and so is what \
         the servers call.",
        2,
        &[
            "what",
            "program",
            "no Service",
            "socket edge",
            "packet edge",
        ],
        rows.collect(),
    )
}

/// How long proxies took until all Services were served.
pub(super) fn nodes(figures: &Figures) -> Table {
    let row = |node: &xtask::figures::Node| {
        vec![
            names::proxy(node.proxy).to_owned(),
            names::services(node.services),
            number::seconds(node.ready_s),
        ]
    };
    Table::new(
        "Nodes of this run",
        "From the start of `beeline run`, or of the command that loads ready-made rules (not of \
         kube-proxy), until all Services were served.",
        1,
        &["proxy", "Services", "ready after"],
        figures.nodes.iter().map(row).collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn connections_show_all_that_the_answer_is_made_of() {
        let text = connections(&sample::full(), Form::Markdown)
            .text(Form::Markdown)
            .unwrap();
        let line = "| Beeline, socket edge | 30,000 | 9,900 | 0.990 (0.980–1.000) | 50.5 µs | 101 µs \
                    | 152 µs | 101 µs | 1.010 (1.000–1.020) |";
        assert!(text.contains(line), "{text}");
        assert_eq!(text.matches("| no proxy |").count(), 1, "{text}");
    }

    #[test]
    fn a_table_shows_the_least_and_the_most_services() {
        let text = rates(&sample::full(), Form::Terminal)
            .text(Form::Markdown)
            .unwrap();
        let line = "| pod | TCP bulk | 30,000 | 0.990 | 0.960 | 0.900 | 0.300 | 0.450 |";
        assert!(text.contains(line), "{text}");
        assert!(!text.contains("5,000"), "{text}");
    }

    #[test]
    fn a_program_that_is_hardly_called_is_left_out() {
        let text = program_calls(&sample::full()).text(Form::Markdown).unwrap();
        assert!(
            text.contains("| connect | connect4 | 1.0 × 150 |"),
            "{text}"
        );
        assert!(!text.contains("sock_release"), "{text}");
    }

    #[test]
    fn without_figures_there_are_no_tables() {
        let figures = sample::empty();
        for table in [
            connections(&figures, Form::Terminal),
            rates(&figures, Form::Terminal),
            latency(&figures, Form::Terminal),
            calls(&figures),
            program_calls(&figures),
            nodes(&figures),
            absolute(&figures),
        ] {
            assert!(table.is_empty());
        }
    }
}

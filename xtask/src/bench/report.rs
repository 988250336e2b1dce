//! What a benchmark says in the end: tables for people, JSON for programs.

use comfy_table::{CellAlignment, LineStyle, TableStyle};
use serde_json::{Value, json};

use super::Settings;
use super::cluster::{Place, Way};
use super::machine::Machine;
use super::measure::Measure;
use super::results::{Case, Comparison, Results, Summary};
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

/// The form of tables.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// To be read on a terminal.
    Terminal,
    /// To be pasted into a page.
    Markdown,
}

/// Rows of cells under a header. The first `left` columns are names, the others numbers.
struct Table {
    header: &'static [&'static str],
    left: usize,
    rows: Vec<Vec<String>>,
}

impl Report<'_> {
    /// Everything, as text.
    pub(super) fn text(&self, form: Form) -> String {
        let summaries = self.results.summaries();
        let parts = [
            self.circumstances(),
            "Requests: medians of all rounds, quartiles behind; × is the median of each round's \
             ratio. CPU is the processor time of client, kernel and server together."
                .to_owned(),
            requests(&summaries).render(form),
            "Calls: nanoseconds of processor time.".to_owned(),
            calls(&summaries).render(form),
            "Programs in the kernel: calls for each operation, and nanoseconds a call as the \
             kernel counts them, which is part of them (20 to 40 ns)."
                .to_owned(),
            programs(self.results).render(form),
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
            "Linux {kernel}, {processor}, {processors} CPUs; load {before:.2} before, {after:.2} \
             after. {:?}, {} rounds, {} ms for each turn.{ready}",
            self.settings.family,
            self.settings.rounds,
            self.settings.turn.as_millis(),
        )
    }

    /// One line for each thing that is to be about as fast as without Beeline.
    pub(super) fn conclusions(&self) -> String {
        let services = self.results.services();
        let cases = Place::ALL.into_iter().flat_map(|place| {
            let cases = Measure::REQUESTS.into_iter().flat_map({
                let services = &services;
                move |measure| {
                    services.iter().map(move |&services| Case {
                        place,
                        measure,
                        services: Some(services),
                        way: Way::SocketEdge,
                    })
                }
            });
            cases.collect::<Vec<_>>()
        });
        let summaries = cases.filter_map(|case| self.results.summary(case));
        let lines: Vec<_> = summaries.map(|summary| conclusion(&summary)).collect();
        lines.join("\n")
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
                    entry["calls_per_operation"] = json!(calls.count as f64 / done.operations as f64);
                    entry["ns_per_call"] = json!(calls.nanoseconds as f64 / calls.count as f64);
                    entry
                })
            }).collect::<Vec<_>>(),
        })
    }
}

fn conclusion(summary: &Summary) -> String {
    let Case {
        place,
        measure,
        services,
        ..
    } = summary.case;
    format!(
        "{}, {} by {} at {} Services: {} × direct ({} by CPU time), {} × without Beeline",
        place.name(),
        measure.name(),
        summary.case.way.name(),
        services.unwrap_or_default(),
        ratio(summary.to_direct.rate),
        ratio(summary.to_direct.used),
        ratio(summary.to_bare.rate),
    )
}

fn requests(summaries: &[Summary]) -> Table {
    let rows = summaries
        .iter()
        .filter(|summary| Measure::REQUESTS.contains(&summary.case.measure))
        .map(|summary| {
            let mut row = names(&summary.case);
            row.push(format!("{:.0}", summary.rate.median));
            let (half, most) = summary.latency.unwrap_or_default();
            row.extend([half, most, summary.used.median].map(|ns| format!("{:.1}", ns / 1e3)));
            row.push(ratio(summary.to_direct.rate));
            row.push(ratio(summary.to_direct.used));
            row.push(ratio(summary.to_bare.rate));
            row
        });
    Table {
        header: &[
            "client",
            "measure",
            "Services",
            "way",
            "per second",
            "p50, µs",
            "p99, µs",
            "CPU, µs",
            "rate × direct",
            "CPU × direct",
            "rate × no Beeline",
        ],
        left: 4,
        rows: rows.collect(),
    }
}

fn calls(summaries: &[Summary]) -> Table {
    let rows = summaries
        .iter()
        .filter(|summary| Measure::CALLS.contains(&summary.case.measure))
        .map(|summary| {
            let mut row = names(&summary.case);
            row.push(nanoseconds(summary.used));
            row.push(nanoseconds(summary.to_direct.added_used));
            row.push(nanoseconds(summary.to_bare.added_used));
            row
        });
    Table {
        header: &[
            "client",
            "call",
            "Services",
            "way",
            "ns",
            "more than direct",
            "more than no Beeline",
        ],
        left: 4,
        rows: rows.collect(),
    }
}

fn programs(results: &Results) -> Table {
    let rows = results.calls().flat_map(|(case, done)| {
        done.calls.iter().map(|(program, calls)| {
            let mut row = names(case);
            row.push(program.clone());
            row.push(format!(
                "{:.1}",
                calls.count as f64 / done.operations as f64
            ));
            row.push(format!(
                "{:.0}",
                calls.nanoseconds as f64 / calls.count as f64
            ));
            row
        })
    });
    Table {
        header: &[
            "client",
            "measure",
            "Services",
            "way",
            "program",
            "calls",
            "ns a call",
        ],
        left: 5,
        rows: rows.collect(),
    }
}

fn names(case: &Case) -> Vec<String> {
    vec![
        case.place.name().to_owned(),
        case.measure.name().to_owned(),
        case.services
            .map_or("–".to_owned(), |count| count.to_string()),
        case.way.name().to_owned(),
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
        "way": case.way.name(),
    })
}

fn measurement(summary: &Summary) -> Value {
    let mut entry = describe(&summary.case);
    entry["per_second"] = spread(summary.rate);
    entry["ns"] = spread(summary.time);
    entry["cpu_ns"] = spread(summary.used);
    if let Some((half, most)) = summary.latency {
        entry["p50_ns"] = json!(half);
        entry["p99_ns"] = json!(most);
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
    json!({"low": spread.low, "median": spread.median, "high": spread.high})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_aligned_to_the_right_in_markdown() {
        let table = Table {
            header: &["way", "ns"],
            left: 1,
            rows: vec![vec!["direct".to_owned(), "12".to_owned()]],
        };
        assert_eq!(
            table.markdown(),
            "| way | ns |\n| --- | ---: |\n| direct | 12 |"
        );
        assert!(table.for_terminal().contains("direct"));
    }
}

//! Charts that belong to one number of Services: bars of rate and processor time, and latencies.

use xtask::figures::{Figures, Latency, Measure, Place, Spread, Traffic};

use super::chart::{self, Bar, Line, Point, Reference, Tick};
use super::markup::{escape, folded_group, group, section};
use super::select::{PACKETS, REQUESTS, find_all};
use super::series::{self, NO_PROXY, Series};
use super::table::Table;
use super::{names, number};

/// A chart with its title, its unit and its table.
pub(super) struct Card {
    /// What it shows.
    pub(super) title: String,
    /// The unit, and which direction is better.
    pub(super) unit: String,
    /// The chart, and a legend if it needs one.
    pub(super) chart: String,
    /// What the chart is made of.
    pub(super) table: Table,
}

impl Card {
    /// As a piece of a page.
    pub(super) fn html(&self) -> String {
        let Self {
            title,
            unit,
            chart,
            table,
        } = self;
        format!(
            "<figure class=card>\n<figcaption><h4>{}</h4><p class=unit>{}</p></figcaption>\n\
             {chart}{}</figure>\n",
            escape(title),
            escape(unit),
            table.folded("As a table")
        )
    }
}

/// What a proxy costs others is shown by these.
const BESIDE: [Measure; 2] = [Measure::TcpConnection, Measure::UdpRequest];

/// All sections of one number of Services.
pub(super) fn sections(figures: &Figures, services: u32) -> String {
    let at = Cards { figures, services };
    let mut by_operation = REQUESTS.to_vec();
    by_operation.retain(|measure| !PACKETS.contains(measure));
    let id = |name: &str| format!("{name}-{services}");
    let with = format!("{} Services", names::services(services));
    [
        section(
            &id("rate"),
            &format!("How fast: {with}"),
            "Rate through a Service, as a part of the rate of dialling the pod on a node without \
             any proxy. Lines across the ends of bars are quartiles of the rounds.",
            &at.by_place(&REQUESTS, Shown::Everything, Cards::rate),
        ),
        section(
            &id("latency"),
            &format!("How long: {with}"),
            "What 50, 99 and 99.9 of 100 operations took at most.",
            &at.by_place(&REQUESTS, Shown::Pods, Cards::latency),
        ),
        section(
            &id("cpu"),
            &format!("How much processor time: {with}"),
            "Client, kernel and server together; what else the machine does hardly shows in it.",
            &at.by_place(&by_operation, Shown::Pods, Cards::cpu),
        ),
        section(
            &id("packet"),
            &format!("Processor time of a packet: {with}"),
            "Packets one way, from the sender to the socket that reads them.",
            &at.by_place(&PACKETS, Shown::Everything, Cards::cpu),
        ),
        section(
            &id("call"),
            &format!("Processor time of a system call: {with}"),
            "",
            &at.by_place(&Measure::CALLS, Shown::Pods, Cards::cpu),
        ),
        section(
            &id("beside"),
            &format!("What a proxy costs those who dial no Service: {with}"),
            "Pods dialled by their own address, on nodes with each of the proxies.",
            &at.by_place(&BESIDE, Shown::Pods, Cards::beside),
        ),
    ]
    .concat()
}

/// What is not behind a fold.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    /// What was measured at every place.
    Everything,
    /// What was measured from a pod.
    Pods,
}

/// What was measured with one number of Services.
struct Cards<'a> {
    figures: &'a Figures,
    services: u32,
}

impl Cards<'_> {
    fn by_place(
        &self,
        measures: &[Measure],
        shown: Shown,
        card: impl Fn(&Self, Place, Measure) -> Option<Card>,
    ) -> String {
        let place = |place| {
            let cards = measures
                .iter()
                .filter_map(|&measure| card(self, place, measure));
            let cards: String = cards.map(|card| card.html()).collect();
            let title = format!("From {}", names::place(place));
            if place == Place::Pod || shown == Shown::Everything {
                group(&title, &cards)
            } else {
                folded_group(&title, &cards)
            }
        };
        Place::ALL.into_iter().map(place).collect()
    }

    /// All ways that were measured; nothing if there is nothing to compare.
    fn found(
        &self,
        place: Place,
        measure: Measure,
        all: &[Series],
    ) -> Option<Vec<(Series, &Traffic)>> {
        let found = find_all(self.figures, place, measure, all, self.services);
        let is_any = found.iter().any(|(series, _)| *series != NO_PROXY);
        is_any.then_some(found)
    }

    fn rate(&self, place: Place, measure: Measure) -> Option<Card> {
        let found = self.found(place, measure, &series::ALL)?;
        let compared: Vec<_> = found
            .iter()
            .filter_map(|(series, traffic)| Some((*series, traffic.to_direct?.rate)))
            .filter(|(series, _)| *series != NO_PROXY)
            .collect();
        let bars: Vec<Bar> = compared
            .iter()
            .map(|(series, ratio)| Bar {
                name: series.name(),
                class: series.class(),
                value: ratio.median,
                spread: Some((ratio.low, ratio.high)),
                text: number::ratio(ratio.median),
            })
            .collect();
        let title = names::measure(measure);
        let reference = Reference {
            value: 1.0,
            name: "1 = no proxy".to_owned(),
        };
        (!bars.is_empty()).then(|| Card {
            title: title.to_owned(),
            unit: "rate, × no proxy; longer is better".to_owned(),
            chart: chart::bars(title, &bars, Some(&reference), 1.1),
            table: rate_table(title, measure, &found),
        })
    }

    fn cpu(&self, place: Place, measure: Measure) -> Option<Card> {
        let found = self.found(place, measure, &series::ALL)?;
        Some(cpu_card(measure, &found))
    }

    fn beside(&self, place: Place, measure: Measure) -> Option<Card> {
        let found = self.found(place, measure, &series::BESIDE)?;
        Some(cpu_card(measure, &found))
    }

    fn latency(&self, place: Place, measure: Measure) -> Option<Card> {
        let found = self.found(place, measure, &series::ALL)?;
        let timed: Vec<(Series, Latency)> = found
            .iter()
            .filter_map(|(series, traffic)| Some((*series, traffic.latency?)))
            .collect();
        let lines: Vec<Line> = timed.iter().map(latency_line).collect();
        let title = names::measure(measure);
        let ticks = PERCENTILES.map(|(across, name)| Tick {
            across,
            text: name.to_owned(),
        });
        let rows = timed.iter().map(|(series, latency)| {
            let times = latency_values(latency).map(number::time);
            [series.name()].into_iter().chain(times).collect()
        });
        let header = ["way", "p50", "p99", "p99.9"];
        (!lines.is_empty()).then(|| Card {
            title: title.to_owned(),
            unit: format!("time of an operation{}; lower is better", scale(&lines)),
            chart: chart::legend(&lines) + &chart::lines(title, &ticks, &lines, number::time),
            table: Table::new(title, "", 1, &header, rows.collect()),
        })
    }
}

/// Where parts of operations stand on an axis that gives as much room to each nine.
const PERCENTILES: [(f64, &str); 3] = [(0.0, "p50"), (0.63, "p99"), (1.0, "p99.9")];

fn latency_values(latency: &Latency) -> [f64; 3] {
    [latency.p50_ns, latency.p99_ns, latency.p999_ns]
}

fn latency_line((series, latency): &(Series, Latency)) -> Line {
    let points = latency_values(latency).into_iter().zip(PERCENTILES);
    Line {
        name: series.name(),
        class: series.class(),
        mark: series.mark(),
        points: points
            .map(|(value, (across, name))| Point {
                across,
                value,
                spread: None,
                text: format!("{name} {}", number::time(value)),
            })
            .collect(),
    }
}

/// What is to be said of the vertical axis of lines.
pub(super) fn scale(lines: &[Line]) -> &'static str {
    if chart::is_logarithmic(lines) {
        ", log scale"
    } else {
        ""
    }
}

fn cpu_card(measure: Measure, found: &[(Series, &Traffic)]) -> Card {
    let bars: Vec<Bar> = found
        .iter()
        .map(|(series, traffic)| {
            let Spread { low, median, high } = traffic.cpu_ns;
            Bar {
                name: series.name(),
                class: series.class(),
                value: median,
                spread: Some((low, high)),
                text: cpu_text(measure, traffic),
            }
        })
        .collect();
    let title = names::measure(measure);
    let of = names::operation(measure);
    Card {
        title: title.to_owned(),
        unit: format!("processor time of a {of} (× no proxy); shorter is better"),
        chart: chart::bars(title, &bars, None, 0.0),
        table: cpu_table(title, measure, found),
    }
}

fn cpu_text(measure: Measure, traffic: &Traffic) -> String {
    let time = names::cpu(measure, traffic.cpu_ns.median);
    match traffic.to_direct {
        Some(comparison) => format!("{time} ({} ×)", number::ratio(comparison.cpu.median)),
        None => time,
    }
}

fn rate_table(title: &str, measure: Measure, found: &[(Series, &Traffic)]) -> Table {
    let ratio = |spread: Option<Spread>| spread.map(number::ratio_with_spread).unwrap_or_default();
    let row = |(series, traffic): &(Series, &Traffic)| {
        vec![
            series.name(),
            names::rate(measure, traffic.rate.median),
            ratio(traffic.to_direct.map(|comparison| comparison.rate)),
            ratio(traffic.to_pod.map(|comparison| comparison.rate)),
        ]
    };
    let header = [
        "way",
        "rate",
        "× no proxy (quartiles)",
        "× the pod on the same node",
    ];
    Table::new(title, "", 1, &header, found.iter().map(row).collect())
}

fn cpu_table(title: &str, measure: Measure, found: &[(Series, &Traffic)]) -> Table {
    let ratio = |spread: Option<Spread>| spread.map(number::ratio_with_spread).unwrap_or_default();
    let row = |(series, traffic): &(Series, &Traffic)| {
        let Spread { low, median, high } = traffic.cpu_ns;
        let added = traffic
            .to_direct
            .map(|comparison| names::cpu(measure, comparison.added_cpu_ns.median));
        vec![
            series.name(),
            names::cpu(measure, median),
            format!("{}–{}", names::cpu(measure, low), names::cpu(measure, high)),
            added.unwrap_or_default(),
            ratio(traffic.to_direct.map(|comparison| comparison.cpu)),
            ratio(traffic.to_pod.map(|comparison| comparison.cpu)),
        ]
    };
    let header = [
        "way",
        "CPU",
        "quartiles",
        "more than no proxy",
        "× no proxy (quartiles)",
        "× the pod on the same node",
    ];
    Table::new(title, "", 1, &header, found.iter().map(row).collect())
}

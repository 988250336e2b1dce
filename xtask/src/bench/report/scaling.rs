//! What things cost as the number of Services grows.

use xtask::figures::{Figures, Measure, Place, Spread, Traffic};

use super::cards::{Card, scale};
use super::chart::{self, Line, Point, Tick};
use super::markup::{group_of, section};
use super::select::{find, numbers_of_services};
use super::series::{self, NO_PROXY, Series};
use super::table::Table;
use super::{names, number};

/// What is drawn for each place.
const MEASURES: [Measure; 2] = [Measure::TcpConnection, Measure::UdpNewSocket];

/// The section; nothing if there is one number of Services only.
pub(super) fn html(figures: &Figures) -> String {
    let numbers = numbers_of_services(figures);
    if numbers.len() < 2 {
        return String::new();
    }
    let all = Scaling { figures, numbers };
    let groups: String = Place::ALL
        .into_iter()
        .map(|place| {
            let cards: String = MEASURES
                .into_iter()
                .flat_map(|measure| all.cards(place, measure))
                .map(|card| card.html())
                .collect();
            group_of(
                &format!("From {}", names::place(place)),
                "cards wide",
                &cards,
            )
        })
        .collect();
    section(
        "scaling",
        "Cost against the number of Services",
        "Across: Services on the node, log scale. Lines through points are quartiles.",
        &groups,
    )
}

/// Numbers of Services as ticks of a horizontal axis.
pub(super) fn ticks(numbers: &[u32]) -> Vec<Tick> {
    let places = chart::by_logarithm(numbers);
    let ticks = numbers.iter().zip(places);
    ticks
        .map(|(number, across)| Tick {
            across,
            text: names::services(*number),
        })
        .collect()
}

struct Scaling<'a> {
    figures: &'a Figures,
    numbers: Vec<u32>,
}

impl Scaling<'_> {
    fn cards(&self, place: Place, measure: Measure) -> Vec<Card> {
        let of = names::operation(measure);
        let ratio = self.card(
            (place, measure),
            &format!("{}: rate", names::measure(measure)),
            ("rate, × no proxy", "higher"),
            |traffic| match traffic.to_direct {
                Some(comparison) => Some(comparison.rate),
                None => is_direct(traffic).then_some(ONE),
            },
            number::ratio,
        );
        let cpu = self.card(
            (place, measure),
            &format!("{}: processor time", names::measure(measure)),
            (&format!("processor time of a {of}"), "lower"),
            |traffic| Some(traffic.cpu_ns),
            |ns| names::cpu(measure, ns),
        );
        [ratio, cpu].into_iter().flatten().collect()
    }

    fn card(
        &self,
        of: (Place, Measure),
        title: &str,
        (unit, better): (&str, &str),
        value: impl Fn(&Traffic) -> Option<Spread>,
        format: impl Fn(f64) -> String,
    ) -> Option<Card> {
        let rows: Vec<(Series, Vec<Option<Spread>>)> = series::ALL
            .into_iter()
            .map(|series| {
                let values = self.numbers.iter().map(|&services| {
                    find(self.figures, of.0, of.1, series, services).and_then(&value)
                });
                (series, values.collect())
            })
            .filter(|(_, values): &(_, Vec<Option<Spread>>)| values.iter().any(Option::is_some))
            .collect();
        let is_any = rows.iter().any(|(series, _)| *series != NO_PROXY);
        let lines: Vec<Line> = rows
            .iter()
            .map(|(series, values)| self.line(*series, values, &format))
            .collect();
        let header: Vec<String> = ["way".to_owned()]
            .into_iter()
            .chain(self.numbers.iter().map(|number| names::services(*number)))
            .collect();
        let header: Vec<&str> = header.iter().map(String::as_str).collect();
        let cells = rows.iter().map(|(series, values)| {
            let values = values.iter().map(|value| {
                let median = value.map(|spread| format(spread.median));
                median.unwrap_or_default()
            });
            [series.name()].into_iter().chain(values).collect()
        });
        is_any.then(|| Card {
            title: title.to_owned(),
            unit: format!("{unit}{}, by Services; {better} is better", scale(&lines)),
            chart: chart::legend(&lines)
                + &chart::lines(title, &ticks(&self.numbers), &lines, &format),
            table: Table::new(title, "", 1, &header, cells.collect()),
        })
    }

    fn line(
        &self,
        series: Series,
        values: &[Option<Spread>],
        format: impl Fn(f64) -> String,
    ) -> Line {
        let places = chart::by_logarithm(&self.numbers);
        let points = self.numbers.iter().zip(places).zip(values);
        Line {
            name: series.name(),
            class: series.class(),
            mark: series.mark(),
            points: points
                .filter_map(|((services, across), spread)| {
                    let Spread { low, median, high } = (*spread)?;
                    let with = names::services(*services);
                    Some(Point {
                        across,
                        value: median,
                        spread: Some((low, high)),
                        text: format!("{with} Services, {}", format(median)),
                    })
                })
                .collect(),
        }
    }
}

const ONE: Spread = Spread {
    low: 1.0,
    median: 1.0,
    high: 1.0,
};

fn is_direct(traffic: &Traffic) -> bool {
    NO_PROXY.has(&traffic.case)
}

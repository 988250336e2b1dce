//! The answer in a sentence or two: how much faster than kube-proxy, how close to no proxy at all?

use xtask::figures::{Figures, Measure, Place, Traffic};

use super::number::{ratio, short};
use super::select::{find, least_and_most, numbers_of_services};
use super::series::{NO_PROXY, PACKET_EDGE, PEERS, SOCKET_EDGE, Series};
use super::{names, number};

/// The answer.
pub(super) struct Answer {
    /// In words.
    pub(super) sentences: Vec<String>,
    /// In a few numbers.
    pub(super) tiles: Vec<Tile>,
}

/// A number, large, and what it is.
pub(super) struct Tile {
    /// The number.
    pub(super) value: String,
    /// What it is.
    pub(super) what: String,
    /// What the style sheet gives a colour.
    pub(super) class: &'static str,
}

/// What the answer is about.
const MEASURE: Measure = Measure::TcpConnection;
/// Where it was measured.
const PLACE: Place = Place::Pod;

/// Answers from what a pod's TCP connections came to; nothing if that was not measured.
pub(super) fn answer(figures: &Figures) -> Option<Answer> {
    let ends = least_and_most(figures);
    let (least, most) = (*ends.first()?, *ends.last()?);
    let mut sentences = vec![close(figures, most)?];
    sentences.extend(faster(figures, most));
    if least != most {
        sentences.extend(with_few(figures, least));
    }
    Some(Answer {
        sentences,
        tiles: tiles(figures, most),
    })
}

fn get(figures: &Figures, series: Series, services: u32) -> Option<&Traffic> {
    find(figures, PLACE, MEASURE, series, services)
}

/// The rate by a way as a part of that without a proxy.
fn to_no_proxy(figures: &Figures, series: Series, services: u32) -> Option<f64> {
    let by_it = get(figures, series, services)?;
    match by_it.to_direct {
        Some(comparison) => Some(comparison.rate.median),
        None => against(by_it, get(figures, NO_PROXY, services)?),
    }
}

/// One rate as a part of another's. What was compared in the same rounds counts more.
fn against(one: &Traffic, other: &Traffic) -> Option<f64> {
    let (one, other) = match (one.to_direct, other.to_direct) {
        (Some(one), Some(other)) => (one.rate.median, other.rate.median),
        _ => (one.rate.median, other.rate.median),
    };
    (other > 0.0).then(|| one / other)
}

fn close(figures: &Figures, services: u32) -> Option<String> {
    let socket = to_no_proxy(figures, SOCKET_EDGE, services);
    let packet = to_no_proxy(figures, PACKET_EDGE, services);
    let by = match (socket, packet) {
        (Some(socket), Some(packet)) => format!(
            "{} × the rate that it has without any proxy (socket edge; where packets are \
             translated, {} ×)",
            ratio(socket),
            ratio(packet)
        ),
        (Some(socket), None) => format!(
            "{} × the rate that it has without any proxy (socket edge)",
            ratio(socket)
        ),
        (None, Some(packet)) => format!(
            "{} × the rate that it has without any proxy (packet edge)",
            ratio(packet)
        ),
        (None, None) => return None,
    };
    Some(format!(
        "With {} Services on its node, a pod opens TCP connections through Beeline at {by}.",
        names::services(services)
    ))
}

/// How much faster than one of kube-proxy's modes, at so many Services or the most that both were
/// measured with.
fn faster_than(figures: &Figures, peer: Series, at_most: u32) -> Option<(f64, u32)> {
    let numbers = numbers_of_services(figures);
    let numbers = numbers.into_iter().rev();
    numbers
        .filter(|services| *services <= at_most)
        .find_map(|services| {
            let theirs = get(figures, peer, services)?;
            let ours = get(figures, SOCKET_EDGE, services)
                .or_else(|| get(figures, PACKET_EDGE, services))?;
            Some((against(ours, theirs)?, services))
        })
}

fn faster(figures: &Figures, services: u32) -> Option<String> {
    let comparisons = beside_peers(figures, services)?;
    Some(format!("Beside kube-proxy's rules that is {comparisons}."))
}

/// How many times the rate of each of kube-proxy's modes; nothing if none was measured.
fn beside_peers(figures: &Figures, services: u32) -> Option<String> {
    let comparisons = PEERS.iter().filter_map(|&peer| {
        let (factor, with) = faster_than(figures, peer, services)?;
        let with = if with == services {
            String::new()
        } else {
            format!(" (with {})", names::services(with))
        };
        Some(format!("{} × {}{with}", short(factor), peer.short()))
    });
    in_words(&Vec::from_iter(comparisons))
}

fn with_few(figures: &Figures, services: u32) -> Option<String> {
    let close = to_no_proxy(figures, SOCKET_EDGE, services)?;
    let comparisons = beside_peers(figures, services)
        .map(|words| format!(", {words}"))
        .unwrap_or_default();
    Some(format!(
        "With {}: {} × no proxy{comparisons}.",
        names::services(services),
        ratio(close)
    ))
}

fn tiles(figures: &Figures, services: u32) -> Vec<Tile> {
    let close = [SOCKET_EDGE, PACKET_EDGE].into_iter().filter_map(|series| {
        Some(Tile {
            value: format!("{} ×", ratio(to_no_proxy(figures, series, services)?)),
            what: format!(
                "no proxy: {}, {} Services",
                series.short(),
                names::services(services)
            ),
            class: series.class(),
        })
    });
    let faster = PEERS.iter().filter_map(|&peer| {
        let (factor, with) = faster_than(figures, peer, services)?;
        Some(Tile {
            value: format!("{} ×", number::short(factor)),
            what: format!("{}, {} Services", peer.name(), names::services(with)),
            class: peer.class(),
        })
    });
    close.chain(faster).collect()
}

/// `a`, `a and b`, `a, b and c`.
fn in_words(parts: &[String]) -> Option<String> {
    let (last, others) = parts.split_last()?;
    Some(if others.is_empty() {
        last.clone()
    } else {
        format!("{} and {last}", others.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use xtask::figures::Proxy;

    use super::super::sample;
    use super::*;

    #[test]
    fn both_halves_of_the_question_are_answered() {
        let answer = answer(&sample::full()).unwrap();
        assert_eq!(
            answer.sentences,
            [
                "With 30,000 Services on its node, a pod opens TCP connections through Beeline at \
                 0.990 × the rate that it has without any proxy (socket edge; where packets are \
                 translated, 0.960 ×).",
                "Beside kube-proxy's rules that is 1.10 × nftables, 3.30 × iptables and 2.20 × \
                 iptables-legacy.",
                "With 10: 0.990 × no proxy, 1.10 × nftables, 1.24 × iptables and 1.16 × iptables-legacy.",
            ]
        );
        assert_eq!(answer.tiles.len(), 5);
    }

    #[test]
    fn a_peer_that_was_left_out_is_compared_where_it_was_not() {
        let mut figures = sample::full();
        figures.traffic.retain(|traffic| {
            traffic.case.proxy != Proxy::Iptables || traffic.case.services != Some(30_000)
        });
        let answer = answer(&figures).unwrap();
        assert!(
            answer.sentences[1].contains("2.40 × iptables (with 5,000)"),
            "{:?}",
            answer.sentences
        );
    }

    #[test]
    fn without_a_proxy_there_is_no_answer() {
        let mut figures = sample::full();
        figures
            .traffic
            .retain(|traffic| traffic.case.proxy == Proxy::Direct);
        assert!(answer(&figures).is_none());
    }
}

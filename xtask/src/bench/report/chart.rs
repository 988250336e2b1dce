//! Charts, as SVG that fits any width: across, everything is placed in per cent; down, in pixels.
//! So text keeps its size on a phone, and no script is needed.

use std::fmt::Write as _;

use super::markup::escape;

/// A bar from zero, with its name and value above it.
pub(super) struct Bar {
    /// What it stands for.
    pub(super) name: String,
    /// What the style sheet gives a colour.
    pub(super) class: &'static str,
    /// Its length.
    pub(super) value: f64,
    /// From where to where a line across its end goes.
    pub(super) spread: Option<(f64, f64)>,
    /// Its value, in words.
    pub(super) text: String,
}

/// A value that all bars of a chart are seen against.
pub(super) struct Reference {
    /// Where it is.
    pub(super) value: f64,
    /// What it is.
    pub(super) name: String,
}

/// A line through points, from left to right.
pub(super) struct Line {
    /// What it stands for.
    pub(super) name: String,
    /// What the style sheet gives a colour.
    pub(super) class: &'static str,
    /// The outline of its marks, about the origin.
    pub(super) mark: &'static str,
    /// Its points.
    pub(super) points: Vec<Point>,
}

/// A point of a line.
pub(super) struct Point {
    /// Its place on the horizontal axis, 0 to 1.
    pub(super) across: f64,
    /// Its value.
    pub(super) value: f64,
    /// From where to where a line through it goes.
    pub(super) spread: Option<(f64, f64)>,
    /// What a pointer that rests there is told.
    pub(super) text: String,
}

/// What is written under a chart of lines.
pub(super) struct Tick {
    /// Where, 0 to 1.
    pub(super) across: f64,
    /// What.
    pub(super) text: String,
}

/// Height of a bar with its text, in pixels.
const ROW: f64 = 38.0;
/// Height of the space for lines, in pixels.
const PLOT: f64 = 190.0;
/// Space above it.
const HEAD: f64 = 18.0;
/// The parts of the width between which lines run: labels of the vertical axis stand before them.
const ACROSS: (f64, f64) = (18.0, 92.0);
/// A bar up to this part of the width, in per cent, has no room for a line across its end.
const SHORT: f64 = 2.0;
/// Above this ratio of the greatest to the least value an axis is logarithmic.
const WIDE: f64 = 12.0;

/// Bars, one under the other; the longest thing is as long as `at_least`, or longer if need be.
pub(super) fn bars(
    title: &str,
    bars: &[Bar],
    reference: Option<&Reference>,
    at_least: f64,
) -> String {
    let ends = bars.iter().flat_map(|bar| {
        let (_, high) = bar.spread.unwrap_or_default();
        [bar.value, high]
    });
    let longest = ends
        .chain(reference.map(|reference| reference.value))
        .fold(at_least, f64::max)
        .max(f64::MIN_POSITIVE);
    let across = |value: f64| 100.0 * (value / longest).clamp(0.0, 1.0);
    let height = bars.len() as f64 * ROW;
    let foot = if reference.is_some() { 20.0 } else { 4.0 };
    let mut svg = open("bars", title, height + foot);
    if let Some(reference) = reference {
        svg.push_str(&reference_lines(
            reference,
            across(reference.value),
            bars.len(),
        ));
    }
    for (number, bar) in bars.iter().enumerate() {
        svg.push_str(&one_bar(bar, number as f64 * ROW, across));
    }
    svg.push_str("</svg>\n");
    svg
}

/// Lines beside the bars only, so that they cross no text.
fn reference_lines(reference: &Reference, across: f64, bars: usize) -> String {
    let mut svg = String::new();
    for number in 0..bars {
        let top = number as f64 * ROW;
        let [from, to] = [17.0, 35.0].map(|down| (across, top + down));
        write_line(&mut svg, "reference", from, to);
    }
    let _in_memory = writeln!(
        svg,
        "<text class=small x=\"{across:.2}%\" y=\"{}\" text-anchor=\"{}\">{}</text>",
        bars as f64 * ROW + 13.0,
        anchor(across / 100.0),
        escape(&reference.name)
    );
    svg
}

fn one_bar(bar: &Bar, top: f64, across: impl Fn(f64) -> f64) -> String {
    let Bar {
        name,
        class,
        value,
        spread,
        text,
    } = bar;
    let (name, text) = (escape(name), escape(text));
    let (words, bar_top, middle) = (top + 14.0, top + 20.0, top + 26.0);
    let mut svg = format!(
        "<g><title>{name}: {text}</title>\
         <text x=\"0\" y=\"{words}\">{name}</text>\
         <text class=value x=\"100%\" y=\"{words}\" text-anchor=\"end\">{text}</text>\
         <rect class=\"fill {class}\" x=\"0\" y=\"{bar_top}\" width=\"{:.2}%\" height=\"12\"/>",
        across(*value)
    );
    let seen = spread.filter(|_| across(*value) > SHORT);
    if let Some((low, high)) = seen {
        let (low, high) = (across(low), across(high));
        // The same lines below, broader, keep it visible on a bar of its own colour.
        for class in ["halo", "whisker"] {
            write_line(&mut svg, class, (low, middle), (high, middle));
            for end in [low, high] {
                write_line(&mut svg, class, (end, middle - 4.0), (end, middle + 4.0));
            }
        }
    }
    svg.push_str("</g>\n");
    svg
}

/// Lines over a common horizontal axis. Vertical values are written by `format`.
pub(super) fn lines(
    title: &str,
    ticks: &[Tick],
    lines: &[Line],
    format: impl Fn(f64) -> String,
) -> String {
    let axis = Axis::over(lines);
    let bottom = HEAD + PLOT;
    let mut svg = open("lines", title, bottom + 24.0);
    for value in axis.ticks() {
        let y = axis.down(value);
        write_line(&mut svg, "grid", (0.0, y), (100.0, y));
        let label = if value == 0.0 {
            "0".to_owned()
        } else {
            without_zeros(&format(value))
        };
        let _in_memory = writeln!(
            svg,
            "<text class=small x=\"0\" y=\"{:.1}\">{}</text>",
            y - 4.0,
            escape(&label)
        );
    }
    for Tick { across, text } in readable(ticks) {
        let _in_memory = writeln!(
            svg,
            "<text class=small x=\"{:.2}%\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            x(*across),
            bottom + 18.0,
            escape(text)
        );
    }
    for line in lines {
        svg.push_str(&one_line(line, &axis));
    }
    svg.push_str("</svg>\n");
    svg
}

/// Whether the vertical axis of these lines is logarithmic.
pub(super) fn is_logarithmic(lines: &[Line]) -> bool {
    Axis::over(lines).is_logarithmic
}

fn one_line(line: &Line, axis: &Axis) -> String {
    let Line {
        name,
        class,
        mark,
        points,
    } = line;
    let mut svg = format!("<g class=\"series {class}\">");
    for pair in points.windows(2) {
        if let [from, to] = pair {
            let place = |point: &Point| (x(point.across), axis.down(point.value));
            write_line(&mut svg, "stroke", place(from), place(to));
        }
    }
    for point in points {
        let (across, down) = (x(point.across), axis.down(point.value));
        if let Some((low, high)) = point.spread {
            let ends = [low, high].map(|value| axis.down(value));
            write_line(&mut svg, "error", (across, ends[0]), (across, ends[1]));
        }
        let _in_memory = write!(
            svg,
            "<svg class=mark x=\"{across:.2}%\" y=\"{down:.1}\"><path d=\"{mark}\"><title>{}: {}\
             </title></path></svg>",
            escape(name),
            escape(&point.text)
        );
    }
    svg.push_str("</g>\n");
    svg
}

/// What tells the lines of a chart apart.
pub(super) fn legend(lines: &[Line]) -> String {
    let items: String = lines
        .iter()
        .map(|line| {
            let Line {
                name, class, mark, ..
            } = line;
            format!(
                "<li><svg class=\"key series {class}\" width=\"16\" height=\"14\" aria-hidden=\"true\">\
                 <svg class=mark x=\"8\" y=\"7\"><path d=\"{mark}\"/></svg></svg>{}</li>",
                escape(name)
            )
        })
        .collect();
    format!("<ul class=legend>{items}</ul>\n")
}

/// A vertical axis.
struct Axis {
    low: f64,
    high: f64,
    is_logarithmic: bool,
}

impl Axis {
    /// One that has room for all points: from zero, unless they are too far apart.
    fn over(lines: &[Line]) -> Self {
        let points = || lines.iter().flat_map(|line| &line.points);
        let most = points()
            .flat_map(|point| [point.value, point.spread.unwrap_or_default().1])
            .fold(f64::MIN_POSITIVE, f64::max);
        let least = points()
            .map(|point| point.value)
            .filter(|value| *value > 0.0)
            .fold(most, f64::min);
        let is_logarithmic = most / least > WIDE;
        Self {
            low: if is_logarithmic {
                round_down(least)
            } else {
                0.0
            },
            high: most * if is_logarithmic { 1.15 } else { 1.05 },
            is_logarithmic,
        }
    }

    /// Where a value is, in pixels from above.
    fn down(&self, value: f64) -> f64 {
        let part = if self.is_logarithmic {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            value / self.high
        };
        HEAD + PLOT * (1.0 - part.clamp(0.0, 1.0))
    }

    /// Values that get a line across.
    fn ticks(&self) -> Vec<f64> {
        if self.is_logarithmic {
            let decades = (self.high / self.low).log10();
            let steps: &[f64] = if decades > 2.0 {
                &[1.0]
            } else {
                &[1.0, 2.0, 5.0]
            };
            let first = self.low.log10().floor() as i32;
            let last = self.high.log10().ceil() as i32;
            (first..=last)
                .flat_map(|power| steps.iter().map(move |step| step * 10_f64.powi(power)))
                .filter(|value| (self.low * 0.999..=self.high).contains(value))
                .collect()
        } else {
            let step = round_down(self.high / 3.0);
            (0..)
                .map(|number| f64::from(number) * step)
                .take_while(|value| *value <= self.high)
                .collect()
        }
    }
}

/// A number with a unit, without the zeros at the end of a fraction.
fn without_zeros(text: &str) -> String {
    let (number, unit) = text.split_at(text.find(' ').unwrap_or(text.len()));
    if number.contains('.') {
        let number = number.trim_end_matches('0').trim_end_matches('.');
        format!("{number}{unit}")
    } else {
        text.to_owned()
    }
}

/// The greatest 1, 2 or 5 times a power of ten that is not above a value.
fn round_down(value: f64) -> f64 {
    let power = 10_f64.powf(value.log10().floor());
    [5.0, 2.0]
        .into_iter()
        .map(|step| step * power)
        .find(|rounded| *rounded <= value)
        .unwrap_or(power)
}

/// Places on a horizontal axis by the logarithm of numbers, 0 to 1.
pub(super) fn by_logarithm(numbers: &[u32]) -> Vec<f64> {
    let logarithms: Vec<f64> = numbers
        .iter()
        .map(|number| f64::from(*number).max(1.0).ln())
        .collect();
    let (Some(first), Some(last)) = (logarithms.first(), logarithms.last()) else {
        return Vec::new();
    };
    let span = (last - first).max(f64::MIN_POSITIVE);
    logarithms
        .iter()
        .map(|number| (number - first) / span)
        .collect()
}

/// Those of ticks, the last one first, that have room for their text.
fn readable(ticks: &[Tick]) -> Vec<&Tick> {
    const ROOM: f64 = 0.16;
    let mut kept: Vec<&Tick> = Vec::new();
    for tick in ticks.iter().rev() {
        if kept
            .last()
            .is_none_or(|next| next.across - tick.across > ROOM)
        {
            kept.push(tick);
        }
    }
    kept
}

fn x(across: f64) -> f64 {
    ACROSS.0 + (ACROSS.1 - ACROSS.0) * across
}

fn anchor(across: f64) -> &'static str {
    match across {
        _ if across < 0.2 => "start",
        _ if across > 0.8 => "end",
        _ => "middle",
    }
}

fn open(class: &str, title: &str, height: f64) -> String {
    let title = escape(title);
    format!(
        "<svg class=\"chart {class}\" role=\"img\" aria-label=\"{title}\" width=\"100%\" \
         height=\"{height}\"><title>{title}</title>\n"
    )
}

/// Writes a line between points, whose first number is in per cent.
fn write_line(svg: &mut String, class: &str, from: (f64, f64), to: (f64, f64)) {
    let _in_memory = write!(
        svg,
        "<line class={class} x1=\"{:.2}%\" y1=\"{:.1}\" x2=\"{:.2}%\" y2=\"{:.1}\"/>",
        from.0, from.1, to.0, to.1
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(value: f64, spread: Option<(f64, f64)>) -> Bar {
        Bar {
            name: "a < b".to_owned(),
            class: "nftables",
            value,
            spread,
            text: value.to_string(),
        }
    }

    fn line(values: &[f64]) -> Line {
        let point = |(number, value): (usize, &f64)| Point {
            across: number as f64,
            value: *value,
            spread: None,
            text: value.to_string(),
        };
        Line {
            name: "one".to_owned(),
            class: "nftables",
            mark: "M0 0Z",
            points: values.iter().enumerate().map(point).collect(),
        }
    }

    #[test]
    fn bars_start_at_zero_and_the_longest_fills_the_width() {
        let svg = bars("Bars", &[bar(2.0, None), bar(0.5, None)], None, 1.0);
        assert!(svg.contains("x=\"0\" y=\"20\" width=\"100.00%\""), "{svg}");
        assert!(svg.contains("x=\"0\" y=\"58\" width=\"25.00%\""), "{svg}");
    }

    #[test]
    fn a_spread_has_room_too() {
        let svg = bars("Bars", &[bar(2.0, Some((1.0, 4.0)))], None, 1.0);
        assert!(svg.contains("width=\"50.00%\""), "{svg}");
        assert!(
            svg.contains("<line class=whisker x1=\"25.00%\" y1=\"26.0\" x2=\"100.00%\""),
            "{svg}"
        );
    }

    #[test]
    fn names_are_escaped() {
        let svg = bars("<Bars>", &[bar(1.0, None)], None, 1.0);
        assert!(
            svg.contains("&lt;Bars&gt;") && svg.contains("a &lt; b"),
            "{svg}"
        );
    }

    #[test]
    fn values_that_are_near_each_other_are_seen_from_zero() {
        let axis = Axis::over(&[line(&[10.0, 20.0])]);
        assert!(!axis.is_logarithmic);
        assert_eq!(axis.down(0.0), HEAD + PLOT);
        assert_eq!(axis.ticks(), [0.0, 5.0, 10.0, 15.0, 20.0]);
    }

    #[test]
    fn values_that_are_far_apart_are_seen_by_their_logarithm() {
        let axis = Axis::over(&[line(&[10.0, 100.0, 1_000.0])]);
        assert!(axis.is_logarithmic);
        let steps = [
            axis.down(10.0) - axis.down(100.0),
            axis.down(100.0) - axis.down(1_000.0),
        ];
        assert!((steps[0] - steps[1]).abs() < 1e-9, "{steps:?}");
        assert_eq!(axis.ticks(), [10.0, 100.0, 1_000.0]);
    }

    #[test]
    fn rounding_down_is_to_one_two_or_five() {
        let rounded = [1.9, 2.0, 4.9, 7.0, 0.03, 650.0].map(round_down);
        let expected = [1.0, 2.0, 2.0, 5.0, 0.02, 500.0];
        for (rounded, expected) in rounded.into_iter().zip(expected) {
            assert!(
                (rounded / expected - 1.0).abs() < 1e-9,
                "{rounded} {expected}"
            );
        }
    }

    #[test]
    fn ticks_have_no_needless_zeros() {
        let short = ["60.0 µs", "1.50 ms", "100 µs", "1.000"].map(without_zeros);
        assert_eq!(short, ["60 µs", "1.5 ms", "100 µs", "1"]);
    }

    #[test]
    fn numbers_are_placed_by_their_logarithm() {
        let places = by_logarithm(&[10, 1_000, 100_000]);
        assert_eq!(places.len(), 3);
        assert!((places[1] - 0.5).abs() < 1e-9, "{places:?}");
        assert_eq!(by_logarithm(&[7]), [0.0]);
    }
}

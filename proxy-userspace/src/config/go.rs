//! Values as Go writes them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A time as Go has it, such as `1h30m`. It may be negative.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub struct GoDuration {
    nanos: i64,
}

/// A text that Go does not read as a time.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is no time such as 30s or 1h30m")]
pub struct DurationError(String);

/// Units by name, in nanoseconds.
const UNITS: [(&str, f64); 8] = [
    ("ns", 1.0),
    ("us", 1e3),
    ("µs", 1e3),
    ("μs", 1e3),
    ("ms", 1e6),
    ("s", 1e9),
    ("m", 60e9),
    ("h", 3600e9),
];

impl GoDuration {
    /// So many seconds.
    pub const fn from_secs(seconds: i64) -> Self {
        Self {
            nanos: seconds * 1_000_000_000,
        }
    }

    /// So many nanoseconds.
    pub const fn from_nanos(nanos: i64) -> Self {
        Self { nanos }
    }

    /// Whether it is no time at all.
    pub const fn is_zero(self) -> bool {
        self.nanos == 0
    }

    /// `None` if it is negative.
    pub fn to_std(self) -> Option<Duration> {
        u64::try_from(self.nanos).ok().map(Duration::from_nanos)
    }
}

impl FromStr for GoDuration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, DurationError> {
        let (sign, rest) = match text.split_at_checked(1) {
            Some(("-", rest)) => (-1.0, rest),
            Some(("+", rest)) => (1.0, rest),
            _ => (1.0, text),
        };
        let nanos = match rest {
            "0" => Some(0.0),
            _ => parts(rest),
        };
        let nanos = nanos.filter(|nanos| *nanos <= i64::MAX as f64);
        let nanos = nanos.ok_or_else(|| DurationError(text.to_owned()))?;
        Ok(Self {
            nanos: (sign * nanos) as i64,
        })
    }
}

/// The sum of numbers with units, in nanoseconds.
fn parts(mut rest: &str) -> Option<f64> {
    let mut sum = 0.0;
    loop {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, with_unit) = rest.split_at(end);
        let end = with_unit.find(|c: char| c.is_ascii_digit() || c == '.');
        let (unit, next) = with_unit.split_at(end.unwrap_or(with_unit.len()));
        let (_, nanos) = UNITS.into_iter().find(|(name, _)| *name == unit)?;
        sum += number.parse::<f64>().ok()? * nanos;
        if next.is_empty() {
            return Some(sum);
        }
        rest = next;
    }
}

impl fmt::Display for GoDuration {
    /// As Go prints it: `1h0m0s`, `1.5s`, `250ms`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos < 0 {
            f.write_str("-")?;
        }
        let nanos = self.nanos.unsigned_abs();
        let (unit, of_unit) = match nanos {
            0 => return f.write_str("0s"),
            1..1_000 => ("ns", 1),
            1_000..1_000_000 => ("µs", 1_000),
            1_000_000..1_000_000_000 => ("ms", 1_000_000),
            _ => ("s", 1_000_000_000),
        };
        let whole = nanos / of_unit;
        let seconds = if unit == "s" { whole } else { 0 };
        if seconds >= 3600 {
            write!(f, "{}h", seconds / 3600)?;
        }
        if seconds >= 60 {
            write!(f, "{}m", seconds / 60 % 60)?;
        }
        let small = if seconds > 0 { seconds % 60 } else { whole };
        let fraction = format!("{:.9}", (nanos % of_unit) as f64 / of_unit as f64);
        let fraction = fraction.trim_start_matches('0').trim_end_matches('0');
        write!(f, "{small}{}{unit}", fraction.trim_end_matches('.'))
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Reads a truth value as Go's flags do.
///
/// # Errors
/// If it is none.
pub fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "True" | "TRUE" => Ok(true),
        "0" | "f" | "F" | "false" | "False" | "FALSE" => Ok(false),
        _ => Err("neither true nor false".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<i64> {
        text.parse().ok().map(|it: GoDuration| it.nanos)
    }

    #[test]
    fn times_are_read_as_go_reads_them() {
        for (text, nanos) in [
            ("0", Some(0)),
            ("0s", Some(0)),
            ("30s", Some(30_000_000_000)),
            ("1h30m", Some(5_400_000_000_000)),
            ("2h22m0s", Some(8_520_000_000_000)),
            ("1.5s", Some(1_500_000_000)),
            (".5s", Some(500_000_000)),
            ("1.s", Some(1_000_000_000)),
            ("250ms", Some(250_000_000)),
            ("3us", Some(3_000)),
            ("3µs", Some(3_000)),
            ("-1s", Some(-1_000_000_000)),
            ("+1s", Some(1_000_000_000)),
            ("", None),
            ("-", None),
            ("30", None),
            ("s", None),
            (".s", None),
            ("1d", None),
            ("1 s", None),
            ("1..5s", None),
            ("9999999h", None),
        ] {
            assert_eq!(read(text), nanos, "{text:?}");
        }
    }

    #[test]
    fn times_are_printed_as_go_prints_them() {
        for (nanos, text) in [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (250_000_000, "250ms"),
            (1_500_000_000, "1.5s"),
            (30_000_000_000, "30s"),
            (60_000_000_000, "1m0s"),
            (900_000_000_000, "15m0s"),
            (3_600_000_000_000, "1h0m0s"),
            (86_400_000_000_000, "24h0m0s"),
            (-1_000_000_000, "-1s"),
            (10_000_000_000, "10s"),
            (100_000_000, "100ms"),
        ] {
            assert_eq!(GoDuration { nanos }.to_string(), text);
        }
    }
}

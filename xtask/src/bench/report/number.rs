//! Numbers as people read them.

use xtask::figures::Spread;

/// A whole number, with commas between thousands.
pub(super) fn count(number: f64) -> String {
    let digits = format!("{:.0}", number.abs());
    let first = digits.len() % 3;
    let (head, tail) = digits.split_at(first);
    let mut groups: Vec<&str> = Vec::new();
    if !head.is_empty() {
        groups.push(head);
    }
    for start in (0..tail.len()).step_by(3) {
        groups.push(&tail[start..start + 3]);
    }
    let sign = if number < 0.0 && digits != "0" {
        "−"
    } else {
        ""
    };
    format!("{sign}{}", groups.join(","))
}

/// A number with about three digits that mean something.
pub(super) fn short(number: f64) -> String {
    match number.abs() {
        size if size >= 99.95 || size == 0.0 => count(number),
        size if size >= 9.995 => format!("{number:.1}"),
        size if size >= 0.9995 => format!("{number:.2}"),
        _ => format!("{number:.3}"),
    }
}

/// A time in nanoseconds, in the unit that fits it.
pub(super) fn time(ns: f64) -> String {
    let (unit, size) = unit_of_time(ns.abs());
    format!("{} {unit}", short(ns / size))
}

/// A time in seconds, in the unit that fits it.
pub(super) fn seconds(seconds: f64) -> String {
    time(seconds * 1e9)
}

/// The unit that fits a time in nanoseconds, and its length.
fn unit_of_time(ns: f64) -> (&'static str, f64) {
    match ns {
        _ if ns < 999.5 => ("ns", 1.0),
        _ if ns < 999_500.0 => ("µs", 1e3),
        _ if ns < 999_500_000.0 => ("ms", 1e6),
        _ => ("s", 1e9),
    }
}

/// A size in bytes, in the unit that fits it.
pub(super) fn bytes(size: f64) -> String {
    match size {
        _ if size < 1024.0 => format!("{} B", short(size)),
        _ if size < 1024.0 * 1024.0 => format!("{} KiB", short(size / 1024.0)),
        _ => format!("{} MiB", short(size / 1024.0 / 1024.0)),
    }
}

/// A ratio, as a number that `×` follows or goes before.
pub(super) fn ratio(ratio: f64) -> String {
    match ratio {
        _ if ratio >= 9.995 => short(ratio),
        _ if ratio >= 1.9995 => format!("{ratio:.2}"),
        _ => format!("{ratio:.3}"),
    }
}

/// A ratio with its quartiles.
pub(super) fn ratio_with_spread(spread: Spread) -> String {
    let Spread { low, median, high } = spread;
    format!("{} ({}–{})", ratio(median), ratio(low), ratio(high))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_told_apart() {
        assert_eq!(count(0.0), "0");
        assert_eq!(count(999.4), "999");
        assert_eq!(count(30_000.0), "30,000");
        assert_eq!(count(1_234_567.0), "1,234,567");
        assert_eq!(count(-1_200.0), "−1,200");
        assert_eq!(count(-0.2), "0");
    }

    #[test]
    fn a_time_has_the_unit_that_fits() {
        assert_eq!(time(116.0), "116 ns");
        assert_eq!(time(68_100.0), "68.1 µs");
        assert_eq!(time(999_600.0), "1.00 ms");
        assert_eq!(time(1.7e9), "1.70 s");
        assert_eq!(time(1.15e11), "115 s");
        assert_eq!(seconds(0.72), "720 ms");
    }

    #[test]
    fn sizes_are_binary() {
        assert_eq!(bytes(512.0), "512 B");
        assert_eq!(bytes(100.0 * 1024.0 * 1024.0), "100 MiB");
    }

    #[test]
    fn ratios_near_one_are_exact() {
        assert_eq!(ratio(0.9912), "0.991");
        assert_eq!(ratio(3.214), "3.21");
        assert_eq!(ratio(21.34), "21.3");
        let spread = Spread {
            low: 0.98,
            median: 0.99,
            high: 1.0,
        };
        assert_eq!(ratio_with_spread(spread), "0.990 (0.980–1.000)");
    }
}

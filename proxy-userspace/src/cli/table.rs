//! Tables and figures for people.

use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};

/// Lays `rows` out under `header`. Columns whose numbers are in `right` are aligned there.
pub(super) fn render(header: &[&str], right: &[usize], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    let _table = table.load_style(presets::NOTHING).set_header(header);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for row in rows {
        let _table = table.add_row(row);
    }
    table.trim_fmt() + "\n"
}

/// A time in its largest unit, to one digit of the next: `1.5h`.
pub(super) fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    let (value, unit) = match seconds {
        s if s < 1.0 => (s * 1000.0, "ms"),
        s if s < 120.0 => (s, "s"),
        s if s < 7200.0 => (s / 60.0, "m"),
        s if s < 172_800.0 => (s / 3600.0, "h"),
        s => (s / 86_400.0, "d"),
    };
    if value < 10.0 && unit != "ms" {
        format!("{value:.1}{unit}")
    } else {
        format!("{value:.0}{unit}")
    }
}

/// A number of bytes in binary units: `1.5 MiB`.
pub(super) fn bytes(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{n} B")
    } else {
        format!("{value:.1} {}", units[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_where_their_text_does() {
        let rows = vec![
            vec!["lo".to_owned(), "7".to_owned(), String::new()],
            vec!["veth1234".to_owned(), "1000".to_owned(), "x".to_owned()],
        ];
        let text = render(&["DEVICE", "N", "NOTE"], &[1], rows);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "DEVICE       N  NOTE");
        assert_eq!(lines[1], "lo           7");
        assert_eq!(lines[2], "veth1234  1000  x");
    }

    #[test]
    fn times_have_two_digits_that_count() {
        let cases = [
            (Duration::from_millis(12), "12ms"),
            (Duration::from_millis(1500), "1.5s"),
            (Duration::from_secs(90), "90s"),
            (Duration::from_secs(432_000), "5.0d"),
            (Duration::from_secs(5400), "90m"),
        ];
        for (time, expected) in cases {
            assert_eq!(duration(time), expected);
        }
    }

    #[test]
    fn bytes_are_in_binary_units() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(u64::MAX), "16384.0 PiB");
    }
}

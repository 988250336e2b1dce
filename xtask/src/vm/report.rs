//! What a machine prints, read; and what all machines came to, written.

use std::fmt::Write;

use xtask::tally::Tally;

/// The line that says the payload starts.
pub(super) fn start_marker(nonce: &str) -> String {
    format!("beeline-vm {nonce} start")
}

/// The line that says the payload ended, but for the exit status at its end.
pub(super) fn end_marker(nonce: &str) -> String {
    format!("beeline-vm {nonce} end")
}

/// A line that the payload's script prints around the tests.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Marker {
    /// The tests come next.
    Start,
    /// The tests ended with this exit status.
    End(i32),
}

impl Marker {
    /// Reads a marker of this run.
    pub(super) fn parse(line: &str, nonce: &str) -> Option<Self> {
        if line == start_marker(nonce) {
            return Some(Self::Start);
        }
        // A test that was killed may have left an unfinished line before the end marker.
        let (_, status) = line.split_once(&end_marker(nonce))?;
        status.trim().parse().ok().map(Self::End)
    }
}

/// How one machine ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The tests ended by themselves.
    Finished {
        /// What they counted.
        tally: Tally,
        /// The test binary's exit status.
        status: i32,
    },
    /// The machine did not come up, hung or died.
    Broken,
}

/// What one kernel came to.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Release and package version.
    pub(super) kernel: String,
    /// Wall-clock time from the image to the end.
    pub(super) seconds: f64,
    /// How it ended.
    pub(super) ending: Ending,
}

impl Outcome {
    /// How many failures this counts as: a machine or a test binary that dies is one.
    pub(super) fn failed(&self) -> u64 {
        match self.ending {
            Ending::Finished { tally, status: 0 } => tally.failed,
            Ending::Finished { tally, .. } => tally.failed.max(1),
            Ending::Broken => 1,
        }
    }

    /// Whether the filter matched no test.
    pub(super) fn ran_nothing(&self) -> bool {
        self.ending
            == Ending::Finished {
                tally: Tally::default(),
                status: 0,
            }
    }

    /// What was counted, with `failed` as above.
    fn tally(&self) -> Tally {
        let counted = match self.ending {
            Ending::Finished { tally, .. } => tally,
            Ending::Broken => Tally::default(),
        };
        Tally {
            failed: self.failed(),
            ..counted
        }
    }

    fn note(&self) -> String {
        match self.ending {
            Ending::Finished {
                tally: Tally { failed: 0, .. },
                status,
            } if status != 0 => {
                format!("  ended with status {status}")
            }
            Ending::Finished { .. } => String::new(),
            Ending::Broken => "  no end marker".to_owned(),
        }
    }
}

/// One row a kernel, and the closing line.
pub(super) fn table(outcomes: &[Outcome]) -> String {
    let width = outcomes
        .iter()
        .map(|outcome| outcome.kernel.len())
        .max()
        .unwrap_or(0)
        .max(6);
    let mut text = row(
        width,
        "kernel",
        ["passed", "failed", "skipped", "seconds"].map(str::to_owned),
        "",
    );
    for outcome in outcomes {
        let tally = outcome.tally();
        let cells = [
            tally.passed.to_string(),
            tally.failed.to_string(),
            tally.skipped.to_string(),
            format!("{:.1}", outcome.seconds),
        ];
        text += &row(width, &outcome.kernel, cells, &outcome.note());
    }
    let total: Tally = outcomes.iter().map(Outcome::tally).sum();
    text + &format!("\n{total}\n")
}

fn row(width: usize, kernel: &str, cells: [String; 4], note: &str) -> String {
    let mut text = format!("{kernel:<width$}");
    for cell in cells {
        write!(text, "  {cell:>7}").expect("a String takes everything");
    }
    text + note + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(passed: u64, failed: u64, skipped: u64) -> Tally {
        Tally {
            passed,
            failed,
            skipped,
        }
    }

    fn outcome(kernel: &str, ending: Ending) -> Outcome {
        Outcome {
            kernel: kernel.to_owned(),
            seconds: 4.25,
            ending,
        }
    }

    #[test]
    fn markers_of_this_run_only() {
        assert_eq!(
            Marker::parse(&start_marker("n1"), "n1"),
            Some(Marker::Start)
        );
        assert_eq!(
            Marker::parse("beeline-vm n1 end 101", "n1"),
            Some(Marker::End(101))
        );
        assert_eq!(
            Marker::parse("test a ... beeline-vm n1 end 134", "n1"),
            Some(Marker::End(134))
        );
        assert_eq!(Marker::parse("beeline-vm n2 end 0", "n1"), None);
        assert_eq!(Marker::parse("beeline-vm n1 end", "n1"), None);
    }

    #[test]
    fn the_table_counts_dead_machines_and_dead_test_binaries_as_failures() {
        let outcomes = [
            outcome(
                "5.10.0-1 (5.10.2)",
                Ending::Finished {
                    tally: tally(7, 0, 1),
                    status: 0,
                },
            ),
            outcome(
                "6.1",
                Ending::Finished {
                    tally: tally(0, 0, 0),
                    status: 134,
                },
            ),
            outcome("6.12", Ending::Broken),
        ];
        assert_eq!(
            table(&outcomes),
            "kernel              passed   failed  skipped  seconds\n\
             5.10.0-1 (5.10.2)        7        0        1      4.2\n\
             6.1                      0        1        0      4.2  ended with status 134\n\
             6.12                     0        1        0      4.2  no end marker\n\
             \n\
             7 passed, 2 failed\n"
        );
    }

    #[test]
    fn a_filter_that_matches_nothing_is_noticed() {
        let nothing = Ending::Finished {
            tally: Tally::default(),
            status: 0,
        };
        assert!(outcome("6.1", nothing).ran_nothing());
        assert!(!outcome("6.1", Ending::Broken).ran_nothing());
    }
}

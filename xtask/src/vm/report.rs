//! What a machine prints, read; and what all machines came to, written.

use std::fmt::Write;

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

/// Counts of tests, as the test binary reports them.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Summary {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Summary {
    /// Adds the counts if this line is a test binary's result.
    pub(super) fn read(&mut self, line: &str) {
        if let Some(found) = Self::parse(line) {
            self.passed += found.passed;
            self.failed += found.failed;
            self.skipped += found.skipped;
        }
    }

    fn parse(line: &str) -> Option<Self> {
        let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let count = |what| {
            let part = counts.split("; ").find_map(|part| part.strip_suffix(what));
            part?.trim().parse().ok()
        };
        Some(Self {
            passed: count("passed")?,
            failed: count("failed")?,
            skipped: count("ignored")?,
        })
    }
}

/// How one machine ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The tests ended by themselves.
    Finished {
        /// What they counted.
        summary: Summary,
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
            Ending::Finished { summary, status: 0 } => summary.failed,
            Ending::Finished { summary, .. } => summary.failed.max(1),
            Ending::Broken => 1,
        }
    }

    /// Whether the filter matched no test.
    pub(super) fn ran_nothing(&self) -> bool {
        self.ending
            == Ending::Finished {
                summary: Summary::default(),
                status: 0,
            }
    }

    fn summary(&self) -> Summary {
        match self.ending {
            Ending::Finished { summary, .. } => summary,
            Ending::Broken => Summary::default(),
        }
    }

    fn note(&self) -> String {
        match self.ending {
            Ending::Finished {
                summary: Summary { failed: 0, .. },
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
        let Summary {
            passed, skipped, ..
        } = outcome.summary();
        let cells = [
            passed.to_string(),
            outcome.failed().to_string(),
            skipped.to_string(),
            format!("{:.1}", outcome.seconds),
        ];
        text += &row(width, &outcome.kernel, cells, &outcome.note());
    }
    let passed: u64 = outcomes
        .iter()
        .map(|outcome| outcome.summary().passed)
        .sum();
    let failed: u64 = outcomes.iter().map(Outcome::failed).sum();
    text + &format!("\n{passed} passed, {failed} failed\n")
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

    fn summary(passed: u64, failed: u64, skipped: u64) -> Summary {
        Summary {
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
    fn results_of_several_test_binaries_add_up() {
        let mut counts = Summary::default();
        counts.read("test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 1.23s");
        counts.read("test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s");
        counts.read("test result of something else");
        counts.read("test tcp ... ok");
        assert_eq!(counts, summary(8, 2, 1));
    }

    #[test]
    fn the_table_counts_dead_machines_and_dead_test_binaries_as_failures() {
        let outcomes = [
            outcome(
                "5.10.0-1 (5.10.2)",
                Ending::Finished {
                    summary: summary(7, 0, 1),
                    status: 0,
                },
            ),
            outcome(
                "6.1",
                Ending::Finished {
                    summary: summary(0, 0, 0),
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
            summary: Summary::default(),
            status: 0,
        };
        assert!(outcome("6.1", nothing).ran_nothing());
        assert!(!outcome("6.1", Ending::Broken).ran_nothing());
    }
}

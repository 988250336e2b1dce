//! Numbers of tests and of cases, as those who run them report them.

use std::fmt;
use std::iter::Sum;
use std::ops::AddAssign;

/// Numbers of tests, or of cases.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Tally {
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed.
    pub failed: u64,
    /// Tests that were left out.
    pub skipped: u64,
}

impl Tally {
    /// What a line says if it is the last one of a test program:
    /// `test result: ok. 12 passed; 0 failed; 1 ignored; ...`.
    pub fn of(line: &str) -> Option<Self> {
        let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let count = |word| -> Option<u64> {
            counts
                .split("; ")
                .find_map(|part| part.strip_suffix(word))?
                .trim()
                .parse()
                .ok()
        };
        Some(Self {
            passed: count("passed")?,
            failed: count("failed")?,
            skipped: count("ignored")?,
        })
    }

    /// What a line says if it is among the last of a run of cases: `12 passed, 1 failed`, or
    /// `3 not on the wire` before it.
    pub fn of_cases(line: &str) -> Option<Self> {
        let mut tally = Self::default();
        if let Some(skipped) = line.strip_suffix(" not on the wire") {
            tally.skipped = skipped.parse().ok()?;
            return Some(tally);
        }
        let (passed, failed) = line.strip_suffix(" failed")?.split_once(" passed, ")?;
        tally.passed = passed.parse().ok()?;
        tally.failed = failed.parse().ok()?;
        Some(tally)
    }

    /// Whether there was no test.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl Sum for Tally {
    fn sum<I: Iterator<Item = Self>>(tallies: I) -> Self {
        tallies.fold(Self::default(), |mut total, tally| {
            total += tally;
            total
        })
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
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

    #[test]
    fn reads_results_of_test_programs() {
        let rest = "0 measured; 3 filtered out; finished in 0.09s";
        let ok = Tally::of(&format!(
            "test result: ok. 11 passed; 0 failed; 1 ignored; {rest}"
        ));
        assert_eq!(ok, Some(tally(11, 0, 1)));
        let bad = Tally::of(&format!(
            "test result: FAILED. 4 passed; 2 failed; 0 ignored; {rest}"
        ));
        assert_eq!(bad, Some(tally(4, 2, 0)));
        assert_eq!(Tally::of("test reads_results ... ok"), None);
        assert_eq!(Tally::of("test result of something else"), None);
    }

    #[test]
    fn reads_results_of_cases() {
        assert_eq!(
            Tally::of_cases("12 passed, 3 failed"),
            Some(tally(12, 3, 0))
        );
        assert_eq!(Tally::of_cases("2 not on the wire"), Some(tally(0, 0, 2)));
        for other in [
            "== pure: 12 passed, 3 failed",
            "not on the wire: a: b",
            "FAILED a: objects: 1 failed",
        ] {
            assert_eq!(Tally::of_cases(other), None, "{other}");
        }
    }

    #[test]
    fn results_of_several_test_programs_add_up() {
        let total: Tally = [tally(5, 0, 1), tally(3, 2, 0)].into_iter().sum();
        assert_eq!(total, tally(8, 2, 1));
        assert_eq!(total.to_string(), "8 passed, 2 failed");
    }
}

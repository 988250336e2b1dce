//! Shows on a terminal that something takes its time.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// Nothing is shown before.
const PATIENCE: Duration = Duration::from_secs(1);
const REFRESH: Duration = Duration::from_millis(200);

/// A line on standard error, if that is a terminal, that tells how far something has come.
pub(super) struct Progress {
    what: &'static str,
    n_done: u64,
    due: Instant,
    is_shown: bool,
}

impl Progress {
    /// Something called `what` begins.
    pub(super) fn new(what: &'static str) -> Self {
        Self {
            what,
            n_done: 0,
            due: Instant::now() + PATIENCE,
            is_shown: false,
        }
    }

    /// One more is done.
    pub(super) fn step(&mut self) {
        self.n_done += 1;
        if self.n_done.is_multiple_of(1024) && Instant::now() >= self.due {
            self.show();
        }
    }

    fn show(&mut self) {
        self.due = Instant::now() + REFRESH;
        let mut out = std::io::stderr().lock();
        if out.is_terminal() {
            self.is_shown = true;
            drop(write!(out, "\r{}: {} …", self.what, self.n_done));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_shown {
            drop(write!(std::io::stderr(), "\r\x1b[K"));
        }
    }
}

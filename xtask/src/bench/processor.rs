//! Where threads run, and what they used.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

/// Pins the calling thread to one processor, the same for clients and servers: so a request costs
/// what client, kernel and server do for it, one after the other, and not how long it takes an
/// idle processor to wake up.
pub(super) fn pin() -> Result<()> {
    let own = Pid::from_raw(0);
    let allowed = sched_getaffinity(own).context("ask for processors")?;
    // Interrupts like the first one.
    let last = (0..CpuSet::count())
        .rev()
        .find(|&at| allowed.is_set(at).unwrap_or(false))
        .context("no processor may be used")?;
    let mut one = CpuSet::new();
    one.set(last).context("choose a processor")?;
    sched_setaffinity(own, &one).with_context(|| format!("run on processor {last}"))
}

/// The processor time that all threads of this process have used, in the kernel too.
pub(super) fn time_used() -> Result<Duration> {
    let used = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID);
    Ok(used.context("ask for the processor time used")?.into())
}

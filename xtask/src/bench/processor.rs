//! Where threads run, and what they used.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

/// Pins the calling thread to one processor, the same for clients and servers, and returns its
/// number: so a request costs what client, kernel and server do for it, one after the other, and
/// not how long it takes an idle processor to wake up.
pub(super) fn pin() -> Result<usize> {
    let own = Pid::from_raw(0);
    let allowed = sched_getaffinity(own).context("ask for processors")?;
    // Interrupts like the first one.
    let last = (0..CpuSet::count())
        .rev()
        .find(|&at| allowed.is_set(at).unwrap_or(false))
        .context("no processor may be used")?;
    let mut one = CpuSet::new();
    one.set(last).context("choose a processor")?;
    sched_setaffinity(own, &one).with_context(|| format!("run on processor {last}"))?;
    Ok(last)
}

/// Tells how much processor time was used.
pub(super) struct Meter {
    /// What the kernel's own thread for packets on the processor used; `None` if it cannot be
    /// seen from here.
    packets: Option<File>,
}

impl Meter {
    /// One for threads of this process that are pinned to a processor.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub(super) fn on(processor: usize) -> Result<Self> {
        let thread = thread_for_packets(processor)?;
        let open =
            |path: PathBuf| File::open(&path).with_context(|| format!("open {}", path.display()));
        let packets = thread.map(|folder| open(folder.join("schedstat")));
        Ok(Self {
            packets: packets.transpose()?,
        })
    }

    /// The processor time that all threads of this process have used, in the kernel too, and the
    /// kernel's thread that handles packets for them when there are many.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub(super) fn used(&self) -> Result<Duration> {
        let used = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID);
        let used: Duration = used.context("ask for the processor time used")?.into();
        let packets = self.packets.as_ref().map(time_of).transpose()?;
        Ok(used + packets.unwrap_or_default())
    }
}

/// The folder in `/proc` of `ksoftirqd` on a processor.
fn thread_for_packets(processor: usize) -> Result<Option<PathBuf>> {
    let name = format!("ksoftirqd/{processor}\n");
    for entry in std::fs::read_dir("/proc").context("read folder /proc")? {
        let folder = entry.context("read folder /proc")?.path();
        // Others may end meanwhile.
        if std::fs::read_to_string(folder.join("comm")).is_ok_and(|comm| comm == name) {
            return Ok(Some(folder));
        }
    }
    Ok(None)
}

/// The first number of a `schedstat`: nanoseconds on the processor.
fn time_of(schedstat: &File) -> Result<Duration> {
    let mut buffer = [0; 64];
    let length = schedstat
        .read_at(&mut buffer, 0)
        .context("read schedstat")?;
    let text = String::from_utf8_lossy(&buffer[..length]);
    let first = text.split(' ').next().unwrap_or_default();
    let nanoseconds = first
        .parse()
        .with_context(|| format!("schedstat: {text:?}"))?;
    Ok(Duration::from_nanos(nanoseconds))
}

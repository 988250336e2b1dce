//! What Prometheus' own libraries tell of every process.

use std::time::{Duration, SystemTime};

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{SysconfVar, sysconf};

/// The daemon as the kernel sees it.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub(super) struct Process {
    /// User and system time: seconds.
    pub(super) cpu_seconds: f64,
    /// Bytes.
    pub(super) resident: u64,
    /// Bytes.
    pub(super) size: u64,
    pub(super) open_files: u64,
    pub(super) max_files: u64,
    /// Seconds since 1970.
    pub(super) started: f64,
}

impl Process {
    /// Reads it; `None` if there is no `/proc`.
    pub(super) fn read() -> Option<Self> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        let stat = Stat::parse(&stat)?;
        let ticks = sysconf(SysconfVar::CLK_TCK).ok()?? as f64;
        let page = u64::try_from(sysconf(SysconfVar::PAGE_SIZE).ok()??).ok()?;
        let limit = getrlimit(Resource::RLIMIT_NOFILE).ok()?.0;
        Some(Self {
            cpu_seconds: stat.cpu_ticks as f64 / ticks,
            resident: stat.resident_pages * page,
            size: stat.size,
            // Less the one that the folder is read by.
            open_files: (std::fs::read_dir("/proc/self/fd").ok()?.count() as u64).saturating_sub(1),
            max_files: limit,
            started: boot_time()? + stat.started_ticks as f64 / ticks,
        })
    }
}

/// When this machine was started: seconds since 1970. By the uptime, since `btime` is of another
/// time namespace than the process may be.
fn boot_time() -> Option<f64> {
    let uptime = std::fs::read_to_string("/proc/uptime").ok()?;
    let uptime: f64 = uptime.split(' ').next()?.parse().ok()?;
    let uptime = Duration::try_from_secs_f64(uptime).ok()?;
    Some(super::seconds(SystemTime::now().checked_sub(uptime)?))
}

struct Stat {
    cpu_ticks: u64,
    started_ticks: u64,
    size: u64,
    resident_pages: u64,
}

impl Stat {
    /// Reads `/proc/PID/stat`, whose second field is a name in parentheses and may have spaces.
    fn parse(text: &str) -> Option<Self> {
        let (_, fields) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        // By the numbers of proc(5), of which the first here is 3.
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_ticks: number(14)? + number(15)?,
            started_ticks: number(22)?,
            size: number(23)?,
            resident_pages: number(24)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_shifts_nothing() {
        let text = "7 (a) (b) S 1 1 1 0 -1 0 0 0 0 0 11 22 0 0 20 0 4 0 333 4096 5 1 2";
        let stat = Stat::parse(text).unwrap();
        let read = (
            stat.cpu_ticks,
            stat.started_ticks,
            stat.size,
            stat.resident_pages,
        );
        assert_eq!(read, (33, 333, 4096, 5));
    }

    #[test]
    fn this_process_is_small_and_young() {
        let process = Process::read().unwrap();
        assert!(process.resident > 1 << 16 && process.resident < process.size);
        assert!((1..=process.max_files).contains(&process.open_files));
        let age = super::super::seconds(SystemTime::now()) - process.started;
        assert!((-1.0..86_400.0).contains(&age), "{age}");
    }
}

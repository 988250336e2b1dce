//! What was measured on.

use std::fs;

use anyhow::{Context, Result};
use xtask::figures::Machine;

/// This machine, after measuring; its load before is given.
///
/// # Errors
/// The kernel does not tell.
pub(super) fn this(load_before: f64) -> Result<Machine> {
    let file = "/proc/cpuinfo";
    let cpuinfo = fs::read_to_string(file).with_context(|| format!("read {file}"))?;
    let uname = nix::sys::utsname::uname().context("ask for the kernel's release")?;
    Ok(Machine {
        kernel: version(&uname.release().to_string_lossy()).to_owned(),
        processor: model(&cpuinfo).unwrap_or("unknown").to_owned(),
        processors: std::thread::available_parallelism()
            .context("count processors")?
            .get(),
        load: [load_before, load()?],
    })
}

fn version(release: &str) -> &str {
    release
        .split_once('-')
        .map_or(release, |(version, _)| version)
}

fn model(cpuinfo: &str) -> Option<&str> {
    let mut fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    fields.find_map(|(name, value)| (name.trim() == "model name").then_some(value.trim()))
}

/// How many threads ran or wanted to, on average over the last minute.
///
/// # Errors
/// The kernel does not tell.
pub(super) fn load() -> Result<f64> {
    let file = "/proc/loadavg";
    let text = fs::read_to_string(file).with_context(|| format!("read {file}"))?;
    let first = text.split(' ').next().unwrap_or_default();
    first.parse().with_context(|| format!("{file}: {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_named_by_its_version() {
        assert_eq!(version("6.1.0-18-cloud-amd64"), "6.1.0");
        assert_eq!(version("6.18.44"), "6.18.44");
    }

    #[test]
    fn the_processor_is_named() {
        let cpuinfo = "processor\t: 0\nmodel\t\t: 2\nmodel name\t: Fast One\nflags\t\t: fpu\n";
        assert_eq!(model(cpuinfo), Some("Fast One"));
        assert_eq!(model(""), None);
    }
}

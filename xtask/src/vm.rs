//! `cargo xtask vm`: the kernel tests under Debian's stock kernels in QEMU.

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use xtask::tally::Tally;

use self::fetch::KernelFiles;
use self::payload::Payload;
use self::qemu::Qemu;
use self::report::{Ending, Outcome};
use crate::{build, debian, setup, workspace};

mod fetch;
mod image;
mod kvm;
mod lock;
mod modules;
mod payload;
mod qemu;
mod report;
mod sources;

/// Runs the kernel tests under Debian's stock kernels in QEMU
///
/// Sets up and builds first what is missing. Kernels, and a QEMU where the system's is too old, go
/// into a cache; the system's package sources stay as they are. Ends with a table of the kernels
/// and the number of tests that passed and failed.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Kernel to boot; may be given several times [default: all of them]
    #[arg(long = "kernel", value_enum, value_name = "VERSION")]
    kernels: Vec<Kernel>,

    /// Minutes after which a kernel that has not finished counts as hung
    #[arg(long, value_name = "MINUTES", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,

    /// Look for newer kernel and QEMU packages instead of taking the cached ones
    #[arg(long)]
    refresh: bool,

    /// Arguments of the test program: parts of test names, or options such as `--exact`
    #[arg(last = true, value_name = "ARGUMENT")]
    tests: Vec<String>,
}

/// A kernel series that Beeline supports, each from the Debian suite that carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kernel {
    /// Debian bullseye; the oldest that Beeline runs on.
    #[value(name = "5.10")]
    V5_10,
    /// Debian bookworm.
    #[value(name = "6.1")]
    V6_1,
    /// Debian bookworm-backports; the first here with TCX.
    #[value(name = "6.12")]
    V6_12,
}

impl Kernel {
    fn series(self) -> &'static str {
        match self {
            Self::V5_10 => "5.10",
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }

    fn suite(self) -> &'static str {
        match self {
            Self::V5_10 => "bullseye",
            Self::V6_1 => "bookworm",
            Self::V6_12 => "bookworm-backports",
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.series())
    }
}

/// `qemu-system-x86` is here for the libraries it pulls in, even where its own QEMU is too old.
const PACKAGES: [&str; 8] = [
    "busybox-static",
    "ca-certificates",
    "cpio",
    "ethtool",
    "iproute2",
    "kmod",
    "qemu-system-x86",
    "xz-utils",
];

/// Runs the kernel tests on every kernel asked for and prints one table.
///
/// # Errors
/// When a package, the payload or a machine cannot be had, and when any test failed.
pub(crate) fn run(args: Args) -> Result<()> {
    let session = Session::prepare(&args)?;
    let outcomes = session.run_all();
    print!("\n{}", report::table(&outcomes));
    if outcomes.iter().any(|outcome| outcome.failed() > 0) {
        bail!("the kernel tests failed");
    }
    if outcomes.iter().all(Outcome::ran_nothing) {
        bail!("no kernel test matches {:?}", args.tests);
    }
    Ok(())
}

/// What all machines of one invocation share.
struct Session {
    kernels: Vec<(Kernel, KernelFiles)>,
    qemu: Qemu,
    payload: Payload,
    limit: Duration,
    work: PathBuf,
    /// Held to the end: a second invocation in this checkout would overwrite our images.
    _lock: File,
}

impl Session {
    fn prepare(args: &Args) -> Result<Self> {
        build::kernel_programs()?;
        debian::require(&PACKAGES, "QEMU and what goes into its machines")?;
        setup::test_programs()?;
        let cache = fetch::Cache::open()?;
        let qemu = cache.qemu(args.refresh)?;
        let kernels = chosen(&args.kernels)
            .into_iter()
            .map(|kernel| Ok((kernel, cache.kernel(kernel, args.refresh)?)))
            .collect::<Result<Vec<_>>>()?;
        drop(cache);

        let work = workspace::target_dir()?.join("vm");
        let lock = lock::take(&work)?;
        let payload = Payload::build(&work, &args.tests)?;
        let limit = Duration::from_secs(args.timeout * 60);
        Ok(Self {
            kernels,
            qemu,
            payload,
            limit,
            work,
            _lock: lock,
        })
    }

    /// Boots every kernel, as many at a time as there are cores, and keeps their order.
    fn run_all(&self) -> Vec<Outcome> {
        let next = AtomicUsize::new(0);
        let work = || {
            let mut outcomes = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some((kernel, files)) = self.kernels.get(index) else {
                    return outcomes;
                };
                outcomes.push((index, self.run_one(*kernel, files)));
            }
        };
        let mut outcomes: Vec<_> = thread::scope(|scope| {
            let workers: Vec<_> = (0..worker_count(self.kernels.len()))
                .map(|_| scope.spawn(work))
                .collect();
            workers
                .into_iter()
                .flat_map(|worker| worker.join().expect("no worker panics"))
                .collect()
        });
        outcomes.sort_by_key(|(index, _)| *index);
        outcomes.into_iter().map(|(_, outcome)| outcome).collect()
    }

    fn run_one(&self, kernel: Kernel, files: &KernelFiles) -> Outcome {
        let started = Instant::now();
        let ending = self.boot(kernel, files).unwrap_or_else(|error| {
            for line in format!("{error:#}").lines() {
                eprintln!("{kernel:<4} ! {line}");
            }
            Ending::Broken
        });
        Outcome {
            kernel: files.to_string(),
            seconds: started.elapsed().as_secs_f64(),
            ending,
        }
    }

    fn boot(&self, kernel: Kernel, files: &KernelFiles) -> Result<Ending> {
        let folder = self.work.join("machine").join(kernel.series());
        fs::create_dir_all(&folder)
            .with_context(|| format!("folder {}: not created", folder.display()))?;
        let initramfs = image::assemble(files, &self.payload, &folder)?;
        let console = folder.join("console.log");
        let machine = self.qemu.boot(&files.image, &initramfs, &console)?;

        let mut tally = Tally::default();
        let status = machine.follow(self.payload.nonce(), self.limit, |line| {
            println!("{kernel:<4} | {line}");
            tally += Tally::of(line).unwrap_or_default();
        })?;
        Ok(Ending::Finished { tally, status })
    }
}

fn chosen(kernels: &[Kernel]) -> Vec<Kernel> {
    Kernel::value_variants()
        .iter()
        .copied()
        .filter(|kernel| kernels.is_empty() || kernels.contains(kernel))
        .collect()
}

fn worker_count(kernel_count: usize) -> usize {
    thread::available_parallelism()
        .map_or(1, usize::from)
        .min(kernel_count)
}

/// The only entry of a folder, for trees that hold one version.
fn only_entry(folder: &Path) -> Result<PathBuf> {
    let mut entries = fs::read_dir(folder)
        .with_context(|| format!("folder {}: not readable", folder.display()))?;
    let Some(first) = entries.next() else {
        bail!("folder {}: empty", folder.display());
    };
    Ok(first?.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_kernels_are_the_default_and_repeats_count_once() {
        assert_eq!(chosen(&[]), [Kernel::V5_10, Kernel::V6_1, Kernel::V6_12]);
        assert_eq!(
            chosen(&[Kernel::V6_12, Kernel::V5_10, Kernel::V6_12]),
            [Kernel::V5_10, Kernel::V6_12]
        );
    }
}

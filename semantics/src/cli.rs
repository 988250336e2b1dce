//! The command line and the report.

use std::env;
use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Result, ensure};
use beeline::node::SocketLb;
use clap::{Parser, ValueEnum};
use xtask::tally::Tally;

use crate::case::{self, Case, Read};
use crate::outcome::Outcome;
use crate::{kernel, pure};

/// Runs cases: what becomes of packets to Services, described by example
///
/// Prints every failure with the case's id, the flow's number (from 0) and name, and the reason.
/// Ends with how many cases passed and failed, over all levels; a broken case file is a failure.
#[derive(Parser, Debug)]
#[command(name = "cargo xtask semantics", bin_name = "cargo xtask semantics")]
pub struct Args {
    /// Run one level only
    #[arg(long, value_name = "LEVEL")]
    level: Option<Level>,
    /// Have clients on pods be real sockets at level kernel, and these sockets served when they
    /// connect [default: clients on pods are frames, no socket is served]
    #[arg(long, value_name = "WHOSE")]
    socket_lb: Option<SocketLb>,
    /// Run the cases with these ids only
    #[arg(long = "case", value_name = "ID")]
    cases: Vec<String>,
    /// Folders of case files, or files [default: the repository's own cases]
    #[arg(value_name = "FOLDER")]
    folders: Vec<PathBuf>,
}

/// Where cases are run.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
pub enum Level {
    /// The compiler and the shared packet decisions, on the host
    Pure,
    /// Packets on the devices of a node made of network namespaces; needs root
    Kernel,
}

impl Level {
    const fn name(self) -> &'static str {
        match self {
            Self::Pure => "pure",
            Self::Kernel => "kernel",
        }
    }

    fn run(self, case: &Case, socket_lb: Option<SocketLb>) -> Outcome {
        match self {
            Self::Pure => pure::run(case),
            Self::Kernel => kernel::run(case, socket_lb),
        }
    }

    fn n_workers(self) -> usize {
        match self {
            Self::Pure => thread::available_parallelism().map_or(1, usize::from),
            Self::Kernel => kernel::n_workers(),
        }
    }
}

/// Parses the command line and runs it.
pub fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(tally) if tally.failed == 0 => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<Tally> {
    let cases = read(args)?;
    println!(
        "settings: source NAT where kube-proxy does it, flows to gone backends kept, no NodePorts \
         at localhost: as the cases describe kube-proxy's nftables mode"
    );
    let levels = args
        .level
        .as_ref()
        .map_or(Level::value_variants(), std::slice::from_ref);
    let total: Tally = levels
        .iter()
        .map(|level| run_level(*level, &cases, args))
        .sum();
    if total.skipped > 0 {
        println!("{} not on the wire", total.skipped);
    }
    println!("{total}");
    Ok(total)
}

fn read(args: &Args) -> Result<Vec<Read>> {
    // Cargo says at run time where the package is: trees are moved along with what was built.
    let package = env::var_os("CARGO_MANIFEST_DIR").unwrap_or(env!("CARGO_MANIFEST_DIR").into());
    let own = [Path::new(&package).join("cases")];
    let folders = if args.folders.is_empty() {
        &own[..]
    } else {
        &args.folders
    };
    let mut cases = Vec::new();
    for folder in folders {
        cases.extend(case::folder(folder)?);
    }
    if !args.cases.is_empty() {
        for id in &args.cases {
            ensure!(
                cases.iter().any(|case| case.id() == *id),
                "no case is called '{id}'"
            );
        }
        cases.retain(|case| args.cases.contains(&case.id()));
    }
    Ok(cases)
}

fn run_level(level: Level, cases: &[Read], args: &Args) -> Tally {
    println!("\n== {}", level.name());
    if level == Level::Kernel {
        println!("{}", kernel::NOTE);
    }
    if level == Level::Kernel && args.socket_lb.is_some() {
        println!("{}", kernel::SOCKETS_NOTE);
    }
    let results = in_parallel(level.n_workers(), cases, |read| {
        Some(level.run(read.case.as_ref().ok()?, args.socket_lb))
    });
    if level == Level::Kernel {
        kernel::tear_down();
    }
    let mut tally = Tally::default();
    for (read, outcome) in cases.iter().zip(&results) {
        let (one, text) = report(read, outcome.as_ref());
        tally += one;
        print!("{text}");
    }
    if level == Level::Kernel && args.socket_lb.is_some_and(SocketLb::is_on) {
        println!("{}", kernel::socket_edge());
        // Single cases may have no client that it serves.
        if args.cases.is_empty() && !kernel::is_edge_used() {
            println!("FAILED: the socket edge was never used");
            tally.failed += 1;
        }
    }
    println!("== {}: {tally}", level.name());
    tally
}

/// What a case counts for, and what there is to say about it.
fn report(read: &Read, outcome: Option<&Outcome>) -> (Tally, String) {
    let id = read.id();
    let mut tally = Tally::default();
    let mut text = String::new();
    let line = &mut |line: fmt::Arguments<'_>| {
        writeln!(text, "{line}").expect("a string takes all");
    };
    match (&read.case, outcome) {
        (Err(wrong), _) => {
            tally.failed = 1;
            line(format_args!(
                "FAILED {id}: {}: {wrong}",
                read.file.display()
            ));
        }
        (Ok(_), Some(Outcome::Failed(failures))) => {
            tally.failed = 1;
            failures
                .iter()
                .for_each(|failure| line(format_args!("FAILED {id}: {failure}")));
        }
        (Ok(_), Some(Outcome::NotOnTheWire(reason))) => {
            tally.skipped = 1;
            line(format_args!("not on the wire: {id}: {reason}"));
        }
        (Ok(_), Some(Outcome::Passed) | None) => tally.passed = 1,
    }
    (tally, text)
}

/// Results of `work` on each item, in the order of the items.
fn in_parallel<T: Sync, R: Send>(
    n_workers: usize,
    items: &[T],
    work: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..n_workers.min(items.len()) {
            let _worker = scope.spawn(|| {
                while let Some((index, item)) = {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    items.get(index).map(|item| (index, item))
                } {
                    let result = work(item);
                    results
                        .lock()
                        .expect("no worker panics")
                        .push((index, result));
                }
            });
        }
    });
    let mut results = results.into_inner().expect("no worker panics");
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::{Item, Place};

    fn case() -> Read {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
        case::folder(&folder).unwrap().swap_remove(0)
    }

    #[test]
    fn a_broken_file_is_a_failure_that_names_file_and_field() {
        let wrong = Case::from_json("{}").unwrap_err();
        let read = Read {
            file: "some/where.json".into(),
            case: Err(wrong),
        };
        let (tally, text) = report(&read, None);
        assert_eq!((tally.passed, tally.failed), (0, 1));
        let expected = "FAILED where: some/where.json: .: missing field `formatVersion`";
        assert!(text.starts_with(expected), "{text}");
    }

    #[test]
    fn each_failure_has_a_line_but_a_case_counts_once() {
        let read = case();
        let place = |index| Place {
            step: None,
            item: Item::Flow(index, "a flow".into()),
        };
        let failures = vec![place(0).fails("one"), place(2).fails("another")];
        let (tally, text) = report(&read, Some(&Outcome::Failed(failures)));
        assert_eq!(tally.to_string(), "0 passed, 1 failed");
        let id = read.id();
        let expected = format!(
            "FAILED {id}: flows[0] 'a flow': one\nFAILED {id}: flows[2] 'a flow': another\n"
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn what_is_skipped_is_listed_and_neither_passed_nor_failed() {
        let read = case();
        let outcome = Outcome::NotOnTheWire("no reason".into());
        let (tally, text) = report(&read, Some(&outcome));
        assert_eq!((tally.passed, tally.failed, tally.skipped), (0, 0, 1));
        assert_eq!(text, format!("not on the wire: {}: no reason\n", read.id()));
        assert_eq!(report(&read, Some(&Outcome::Passed)).1, "");
    }

    #[test]
    fn results_keep_the_order_of_the_items() {
        let items: Vec<u32> = (0..100).collect();
        assert_eq!(
            in_parallel(4, &items, |item| item + 1),
            (1..=100).collect::<Vec<_>>()
        );
        assert!(in_parallel(4, &items[..0], |item| *item).is_empty());
    }
}

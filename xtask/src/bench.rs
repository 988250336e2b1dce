//! `cargo xtask bench`: what a connection and a request through a Service cost, beside the same
//! without one.
//!
//! Nodes made of network namespaces, one without Beeline and one for each number of Services, are
//! up at the same time. Clients on all of them take short turns, in another order in every round,
//! so that what disturbs the machine disturbs all alike; ratios are those of one round.

mod client;
mod cluster;
#[expect(dead_code, reason = "the benchmark is about to call it")]
mod costs;
mod machine;
mod manifests;
mod measure;
mod processor;
mod programs;
mod report;
mod results;
mod server;
mod statistics;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use proxy_common::abi::Family;

use cluster::{Place, Site, Way};
use machine::Machine;
use measure::Measure;
use programs::Counting;
use report::{Form, Report};
use results::{Case, ProgramCalls, Results};

/// Measures what Services cost
///
/// Needs root and a machine with nothing else to do. Touches nothing outside the network
/// namespaces that it makes, and removes them at the end.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Fewer and shorter rounds: under a minute, for a first look
    #[arg(long)]
    quick: bool,
    /// Numbers of Services to measure with
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_values_t = [10, 30_000],
          value_parser = clap::value_parser!(u32).range(3..=1_000_000))]
    services: Vec<u32>,
    /// How often everything has its turn
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: Option<u32>,
    /// Measure over IPv6
    #[arg(long)]
    ipv6: bool,
    /// Write all results to a file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Print tables for a page of documentation
    #[arg(long)]
    markdown: bool,
}

/// Load above which others disturb too much. Making the nodes is a load itself.
const BUSY: f64 = 2.0;

/// How things are measured.
struct Settings {
    family: Family,
    rounds: u32,
    /// Of one client, without the time to get warm.
    turn: Duration,
}

impl Args {
    fn settings(&self) -> Settings {
        let (rounds, turn) = if self.quick { (8, 15) } else { (40, 30) };
        Settings {
            family: if self.ipv6 {
                Family::Ipv6
            } else {
                Family::Ipv4
            },
            rounds: self.rounds.unwrap_or(rounds),
            turn: Duration::from_millis(turn),
        }
    }
}

/// Runs the command.
///
/// # Errors
/// Without root's privileges, or if something cannot be built, made, started or dialled.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the benchmark makes network namespaces: run it as root"
    );
    let settings = args.settings();
    let beeline = match std::env::var_os("BEELINE_BIN") {
        Some(binary) => binary.into(),
        None => crate::build::build(true)?.beeline,
    };
    let machine = Machine::this()?;
    let mut counts = args.services.clone();
    counts.sort_unstable();
    counts.dedup();
    let most = counts.last().copied().unwrap_or_default();

    eprintln!("making nodes out of network namespaces …");
    let mut sites = vec![Site::new(settings.family, None, most)?];
    for count in counts {
        eprintln!("starting `beeline run` with {count} Services …");
        sites.push(Site::new(settings.family, Some((count, &beeline)), most)?);
    }
    for site in &sites {
        site.check_ways()?;
    }
    let before = machine::load()?;
    if before > BUSY {
        eprintln!("warning: load {before:.2}: only the figures in processor time mean something");
    }
    let mut results = Results::default();
    measure_all(&sites, &settings, &mut results)?;
    count_calls(&sites, &settings, &mut results)?;
    let report = Report {
        settings: &settings,
        machine: &machine,
        load: (before, machine::load()?),
        ready_after: sites
            .iter()
            .filter_map(|site| Some((site.services?, site.ready_after?.as_secs_f64())))
            .collect(),
        results: &results,
    };
    let form = if args.markdown {
        Form::Markdown
    } else {
        Form::Terminal
    };
    println!("{}", report.text(form));
    if let Some(file) = &args.json {
        fs::write(file, format!("{:#}\n", report.json()))
            .with_context(|| format!("write {}", file.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// All that is measured, in groups of what is compared with each other.
fn groups(sites: &[Site]) -> Vec<Vec<(&Site, Case)>> {
    let measures = Measure::REQUESTS.into_iter().chain(Measure::CALLS);
    let group = |place, measure| {
        let ways = sites
            .iter()
            .flat_map(|site| site.ways().iter().map(move |&way| (site, way)));
        ways.map(|(site, way)| {
            let case = Case {
                place,
                measure,
                services: site.services,
                way,
            };
            (site, case)
        })
        .collect()
    };
    measures
        .flat_map(|measure| Place::ALL.map(|place| group(place, measure)))
        .collect()
}

/// Lets all cases have their turns, round by round.
fn measure_all(sites: &[Site], settings: &Settings, results: &mut Results) -> Result<()> {
    let mut groups = groups(sites);
    let started = Instant::now();
    for round in 0..settings.rounds {
        for (number, group) in groups.iter_mut().enumerate() {
            statistics::shuffle(group, u64::from(round) << 32 | number as u64);
            for (site, case) in group {
                let sample = site.take(case.place, case.way, case.measure, settings.turn)?;
                results.add(*case, sample);
            }
        }
        let each = started.elapsed() / (round + 1);
        let left = each * (settings.rounds - round - 1);
        eprint!(
            "\rround {} of {}, {} s left   ",
            round + 1,
            settings.rounds,
            left.as_secs()
        );
    }
    eprintln!();
    Ok(())
}

/// Has the kernel count and time the programs, in turns that count for nothing else: it makes
/// them slower.
fn count_calls(sites: &[Site], settings: &Settings, results: &mut Results) -> Result<()> {
    eprintln!("timing the programs in the kernel …");
    let _counting = Counting::start()?;
    for (site, case) in groups(sites).into_iter().flatten() {
        if case.way == Way::Bare {
            continue;
        }
        let (sample, calls) = site
            .programs()?
            .calls_during(|| site.take(case.place, case.way, case.measure, settings.turn))?;
        let calls = ProgramCalls {
            operations: sample.operations + sample.warm_up,
            calls,
        };
        results.add_calls(case, calls);
    }
    Ok(())
}

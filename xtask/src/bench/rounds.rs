//! Everything has its turns, round by round.

use std::time::Instant;

use anyhow::{Context, Error, Result};
use xtask::figures::{Calls, Case, Measure, Proxy, Traffic};
use xtask::testbed::sctp;

use super::cluster::{Site, place_name, proxy_name, way_name};
use super::programs::Counting;
use super::results::Results;
use super::{Settings, measure, plan, statistics};

/// What is measured on some nodes, and what came out so far.
pub(super) struct Rounds<'a> {
    settings: &'a Settings,
    /// Cases that are compared with each other.
    groups: Vec<Vec<(&'a Site, Case)>>,
    results: Results,
    left_out: Vec<String>,
}

impl<'a> Rounds<'a> {
    /// What is to be measured on these nodes. `left_out` is what was left out before.
    pub(super) fn new(
        sites: &'a [Site],
        settings: &'a Settings,
        mut left_out: Vec<String>,
    ) -> Self {
        let mut groups = Vec::new();
        for &group in plan::groups(settings.is_quick) {
            if group.1 == Measure::SctpPackets && sctp::kernel_answers() {
                left_out.push(
                    "SCTP packets: this kernel has SCTP itself, and answers the generator's packets"
                        .to_owned(),
                );
                continue;
            }
            let of = |site: &'a Site| {
                let node = (site.proxy, site.services);
                plan::cases(group, node, is_end(site, sites))
                    .filter(|case| site.has(case.way))
                    .map(move |case| (site, case))
            };
            groups.push(sites.iter().flat_map(of).collect());
        }
        Self {
            settings,
            groups,
            results: Results::default(),
            left_out,
        }
    }

    /// Tries everything once, to see whether it works and is what it is called.
    ///
    /// # Errors
    /// Something of Beeline's or without a proxy does not.
    pub(super) fn try_out(&mut self) -> Result<()> {
        eprintln!("trying all ways …");
        self.each_group(|_, group, failed| {
            group.retain(|&(site, case)| match site.try_out(case) {
                Ok(()) => true,
                Err(error) => {
                    failed.push((case, error));
                    false
                }
            });
        })
    }

    /// Measures everything, and returns in how many rounds.
    ///
    /// # Errors
    /// As [`Self::try_out`].
    pub(super) fn measure(&mut self) -> Result<u32> {
        let turns = self.groups.iter().map(Vec::len).sum();
        let Settings { turn, budget, .. } = *self.settings;
        let count = self.settings.rounds;
        let count = count.unwrap_or_else(|| plan::rounds(turns, turn, budget));
        eprintln!("measuring: {count} rounds of {turns} turns …");
        let started = Instant::now();
        for round in 0..count {
            let mut number = u64::from(round) << 32;
            self.each_group(|results, group, failed| {
                number += 1;
                statistics::shuffle(group, number);
                group.retain(|&(site, case)| match site.take(case, turn) {
                    Ok(sample) => {
                        results.add(case, sample);
                        true
                    }
                    Err(error) => {
                        results.remove(case);
                        failed.push((case, error));
                        false
                    }
                });
            })?;
            let left = started.elapsed() / (round + 1) * (count - round - 1);
            eprint!(
                "\rround {} of {count}, {} s left   ",
                round + 1,
                left.as_secs()
            );
        }
        eprintln!();
        Ok(count)
    }

    /// Has the kernel count and time Beeline's programs, in turns that count for nothing else: it
    /// makes them slower.
    ///
    /// # Errors
    /// The kernel cannot, or a turn fails.
    pub(super) fn count_calls(&self) -> Result<Vec<Calls>> {
        eprintln!("timing Beeline's programs in the kernel …");
        let _counting = Counting::start()?;
        let mut all = Vec::new();
        for &(site, case) in self.groups.iter().flatten() {
            if case.proxy != Proxy::Beeline {
                continue;
            }
            let (sample, calls) = site
                .programs()?
                .calls_during(|| site.take(case, self.settings.turn))?;
            let operations = (sample.operations + sample.warm_up) as f64;
            all.extend(calls.into_iter().map(|(program, calls)| Calls {
                case,
                program,
                each: calls.count as f64 / operations,
                ns: calls.nanoseconds as f64 / calls.count as f64,
            }));
        }
        Ok(all)
    }

    /// What everything came to.
    pub(super) fn traffic(&self) -> Vec<Traffic> {
        self.results.traffic()
    }

    /// What was left out, in plain words.
    pub(super) fn left_out(self) -> Vec<String> {
        self.left_out
    }

    /// Does something with each group, which says what failed in the end: peers' cases are left
    /// out from then on.
    fn each_group(
        &mut self,
        mut work: impl FnMut(&mut Results, &mut Vec<(&'a Site, Case)>, &mut Vec<(Case, Error)>),
    ) -> Result<()> {
        for group in &mut self.groups {
            let mut failed = Vec::new();
            work(&mut self.results, group, &mut failed);
            for (case, error) in failed {
                let described = describe(case);
                if matches!(case.proxy, Proxy::Direct | Proxy::Beeline) {
                    return Err(error).context(described);
                }
                eprintln!("\nleft out: {described}: {error:#}");
                self.left_out.push(format!("{described}: {error:#}"));
            }
        }
        Ok(())
    }
}

/// Whether a node has the least or the most Services of all with its proxy.
fn is_end(site: &Site, sites: &[Site]) -> bool {
    let alike = || sites.iter().filter(|other| other.proxy == site.proxy);
    let numbers = || alike().map(|other| other.services);
    [numbers().min(), numbers().max()].contains(&Some(site.services))
}

/// A case in plain words.
fn describe(case: Case) -> String {
    let services = case
        .services
        .map(|services| format!(" with {services} Services"));
    format!(
        "{} {} {}, {}{}",
        measure::name(case.measure),
        place_name(case.place),
        way_name(case.way),
        proxy_name(case.proxy),
        services.unwrap_or_default()
    )
}

//! `beeline migrate`.

use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use serde::Serialize;

use super::{Paths, ReadArgs, print};
use crate::kube_proxy::{self, Found, Process, Table};
use crate::loader::checks;
use crate::loader::lock::Lock;
use crate::status::Status;

#[derive(Args, Debug)]
pub(super) struct MigrateArgs {
    #[command(flatten)]
    read: ReadArgs,
    /// Say what would be removed, and remove nothing.
    #[arg(long)]
    dry_run: bool,
    /// Remove kube-proxy's rules even if it runs, or not all Services are in force.
    #[arg(long)]
    force: bool,
}

/// What was removed, or would be.
#[derive(Serialize, Debug)]
struct Done {
    /// Whether nothing was removed, as was asked for.
    dry_run: bool,
    /// Where kube-proxy's rules were.
    tables: Vec<Table>,
    /// Whether its ipvs mode has served, which is not removed.
    ipvs: bool,
    /// Its processes.
    processes: Vec<Process>,
}

/// Removes kube-proxy's rules.
pub(super) fn migrate(paths: &Paths, args: &MigrateArgs) -> anyhow::Result<ExitCode> {
    checks::privileges()?;
    let processes = kube_proxy::processes();
    if !args.dry_run {
        ready(paths, args.force)?;
        stopped(&processes, args.force)?;
    }
    let Found { tables, ipvs } = if args.dry_run {
        kube_proxy::find()?
    } else {
        kube_proxy::remove()?
    };
    let done = Done {
        dry_run: args.dry_run,
        tables,
        ipvs,
        processes,
    };
    print(args.read.output, &done, text);
    Ok(ExitCode::SUCCESS)
}

/// Whether Beeline serves everything.
fn ready(paths: &Paths, force: bool) -> anyhow::Result<()> {
    let pins = paths.pins();
    let is_running = pins.root().exists() && Lock::is_held(pins.root())?;
    ensure!(
        is_running,
        "no daemon is running: nobody would serve Services without kube-proxy's rules; start \
         `beeline run` first"
    );
    let status = Status::read(&paths.state_dir)?.context("the daemon has not said anything yet")?;
    ensure!(
        status.synced,
        "the daemon does not serve everything yet: `beeline status` says what it waits for"
    );
    let pending = status.last_sync.map_or(0, |sync| sync.pending);
    ensure!(
        force || pending == 0,
        "{pending} writes of the daemon are pending, so that some Services are not in force: \
         `beeline status` says which; --force removes kube-proxy's rules all the same"
    );
    Ok(())
}

fn stopped(processes: &[Process], force: bool) -> anyhow::Result<()> {
    if let Some(process) = processes.first()
        && !force
    {
        bail!(
            "kube-proxy runs (process {}) and would write its rules again; stop it first, or use \
             --force",
            process.pid
        );
    }
    Ok(())
}

fn text(done: &Done) -> String {
    let (goes, stays): (Vec<_>, Vec<_>) = done.tables.iter().partition(|table| table.goes());
    let verb = if done.dry_run {
        "would remove"
    } else {
        "removed"
    };
    let mut lines: Vec<_> = goes.iter().map(|table| format!("{verb} {table}")).collect();
    if lines.is_empty() && !done.ipvs {
        lines.push("no rules of kube-proxy's are here".to_owned());
    }
    lines.extend(stays.iter().map(|table| format!("left {table}")));
    if done.ipvs {
        lines.push("kube-proxy's ipvs mode is here, which is not removed".to_owned());
    }
    for process in &done.processes {
        lines.push(format!("kube-proxy runs: process {}", process.pid));
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube_proxy::Kind;

    fn table(kind: Kind, chains: Option<usize>, kept: &[&str]) -> Table {
        Table {
            kind,
            family: "IPv4".to_owned(),
            table: "nat".to_owned(),
            chains,
            jumps: 3,
            kept: kept.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    #[test]
    fn it_says_what_goes_and_what_stays() {
        let mut done = Done {
            dry_run: false,
            tables: vec![
                table(Kind::Nftables, None, &[]),
                table(Kind::IptablesNft, Some(7), &["KUBE-MARK-MASQ"]),
                table(Kind::IptablesLegacy, Some(0), &["KUBE-MARK-MASQ"]),
            ],
            ipvs: false,
            processes: vec![Process { pid: 5 }],
        };
        assert_eq!(
            text(&done),
            "removed nftables, IPv4: table nat\n\
             removed iptables (nf_tables), IPv4: table nat, 7 chains and 3 rules that lead there; \
             used by others, so kept: KUBE-MARK-MASQ\n\
             left iptables (legacy), IPv4: table nat, 0 chains and 3 rules that lead there; used \
             by others, so kept: KUBE-MARK-MASQ\n\
             kube-proxy runs: process 5\n"
        );
        done = Done {
            dry_run: true,
            tables: Vec::new(),
            ipvs: false,
            processes: Vec::new(),
        };
        assert_eq!(text(&done), "no rules of kube-proxy's are here\n");
        done.tables = vec![table(Kind::Nftables, None, &[])];
        assert!(text(&done).starts_with("would remove nftables"));
    }
}

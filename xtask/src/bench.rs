//! `cargo xtask bench`: what connections, requests and packets through a Service cost, beside the
//! same without one, and beside the rules of kube-proxy.
//!
//! Nodes made of network namespaces are up at the same time: one without a proxy, and one for each
//! proxy and number of Services. Clients on all of them take short turns, in another order in every
//! round, so that what disturbs the machine disturbs all alike; ratios are those of one round.

mod client;
mod cluster;
mod costs;
mod machine;
mod manifests;
mod measure;
mod plan;
mod processor;
mod programs;
mod report;
mod results;
mod rounds;
mod server;
mod statistics;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use proxy_common::abi::Family;
use xtask::figures::{self, Figures, Node, Proxy};

use crate::{setup, workspace};
use cluster::{Edge, Plan, Site, proxy_name};
use report::Form;
use rounds::Rounds;

/// Measures what Services cost, with Beeline and with kube-proxy's rules
///
/// Needs root and a machine with nothing else to do. Touches nothing outside the network
/// namespaces that it makes, and removes them at the end.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Less of everything: under 90 seconds, for a first look
    #[arg(long)]
    quick: bool,
    /// Numbers of Services to measure with; 10, 1,000, 5,000 and 30,000 if not given, the first
    /// two with --quick
    #[arg(long, value_name = "N,…", value_delimiter = ',',
          value_parser = clap::value_parser!(u32).range(i64::from(manifests::LEAST)..=1_000_000))]
    services: Vec<u32>,
    /// What Beeline is compared with; everything if not given, but for rules that take minutes to
    /// load. Direct, which is no proxy, always is
    #[arg(long, value_name = "PROXY,…", value_delimiter = ',', value_enum)]
    against: Vec<Against>,
    /// How often everything has its turn; if not given, as often as takes five minutes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: Option<u32>,
    /// Measure over IPv6
    #[arg(long)]
    ipv6: bool,
    /// Print tables for a page of documentation
    #[arg(long)]
    markdown: bool,
    /// Where a page with charts is written to; target/bench/index.html if not given
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Where all results are written to; target/bench/figures.json if not given
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Show the results of an earlier run, and measure nothing
    #[arg(long, value_name = "FILE",
          conflicts_with_all = ["quick", "services", "against", "rounds", "ipv6", "json"])]
    from: Option<PathBuf>,
}

/// What Beeline is compared with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Against {
    /// A node without a proxy, where pods are dialled by their addresses
    Direct,
    /// kube-proxy's rules in iptables-nft
    Iptables,
    /// kube-proxy's rules in iptables-legacy
    IptablesLegacy,
    /// kube-proxy's rules in nftables
    Nftables,
}

impl Against {
    fn proxy(self) -> Proxy {
        match self {
            Self::Direct => Proxy::Direct,
            Self::Iptables => Proxy::Iptables,
            Self::IptablesLegacy => Proxy::IptablesLegacy,
            Self::Nftables => Proxy::Nftables,
        }
    }
}

/// Load above which others disturb too much. Making the nodes is a load itself.
const BUSY: f64 = 2.0;

/// Services above which nftables rules take the kernel minutes to load: for each endpoint's choice
/// it walks all the choices that there are.
const NFTABLES_AT_MOST: u32 = 10_000;

/// How things are measured.
struct Settings {
    family: Family,
    /// Only what is most important.
    is_quick: bool,
    services: Vec<u32>,
    /// Those of nodes with as many Services each.
    proxies: Vec<Proxy>,
    /// Whether rules are loaded even if that takes minutes.
    is_patient: bool,
    rounds: Option<u32>,
    /// Of one client, without the time to get warm.
    turn: Duration,
    /// Of all rounds, unless their number is given.
    budget: Duration,
}

impl Args {
    fn form(&self) -> Form {
        if self.markdown {
            Form::Markdown
        } else {
            Form::Terminal
        }
    }

    fn settings(&self) -> Settings {
        let (default, turn, budget): (&[u32], _, _) = if self.quick {
            (&[10, 1_000], 15, 20)
        } else {
            (&[10, 1_000, 5_000, 30_000], 20, 300)
        };
        let given = Some(&self.services[..]).filter(|given| !given.is_empty());
        let mut services = given.unwrap_or(default).to_vec();
        services.sort_unstable();
        services.dedup();
        let given = Some(&self.against[..]).filter(|given| !given.is_empty());
        let peers = given.unwrap_or(Against::value_variants()).iter();
        let peers = peers.map(|against| against.proxy());
        let mut proxies: Vec<_> = peers.chain([Proxy::Beeline]).collect();
        proxies.retain(|&proxy| proxy != Proxy::Direct);
        proxies.sort_unstable();
        proxies.dedup();
        Settings {
            family: if self.ipv6 {
                Family::Ipv6
            } else {
                Family::Ipv4
            },
            is_quick: self.quick,
            services,
            proxies,
            is_patient: given.is_some(),
            rounds: self.rounds,
            turn: Duration::from_millis(turn),
            budget: Duration::from_secs(budget),
        }
    }
}

/// Runs the command.
///
/// # Errors
/// Without root's privileges, or if something cannot be built, made, started, dialled or written.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let figures = match &args.from {
        Some(file) => report::read(file)?,
        None => {
            let figures = measure(&args.settings())?;
            let json = serde_json::to_string_pretty(&figures)?;
            write(args.json.as_deref(), "figures.json", &format!("{json}\n"))?;
            figures
        }
    };
    write(args.html.as_deref(), "index.html", &report::html(&figures))?;
    println!("{}", report::text(&figures, args.form()));
    Ok(ExitCode::SUCCESS)
}

/// Writes a file, by default one of this name among what is built, and says where.
fn write(given: Option<&Path>, name: &str, text: &str) -> Result<()> {
    let default = || Ok(workspace::target_dir()?.join("bench").join(name));
    let file = given.map_or_else(default, |file| anyhow::Ok(file.to_owned()))?;
    let folder = file.parent().unwrap_or(&file);
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(&file, text))
        .with_context(|| format!("write {}", file.display()))?;
    eprintln!("written: {}", file.display());
    Ok(())
}

fn measure(settings: &Settings) -> Result<Figures> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the benchmark makes network namespaces: run it as root"
    );
    let beeline = match std::env::var_os("BEELINE_BIN") {
        Some(binary) => binary.into(),
        None => crate::build::build(true)?.beeline,
    };
    if let Err(error) = setup::rule_programs() {
        eprintln!("warning: {error:#}");
    }
    let load_before = machine::load()?;
    eprintln!("measuring what a packet costs in Beeline's programs …");
    let (packets, programs) = costs::packets(settings.is_quick)?;
    eprintln!("measuring what changes of the cluster cost the daemon …");
    let control = costs::control(&beeline, settings.is_quick)?;
    let mut left_out = Vec::new();
    let sites = make_sites(settings, &beeline, &mut left_out)?;
    let load_now = machine::load()?;
    if load_now > BUSY {
        eprintln!("warning: load {load_now:.2}: only the figures in processor time mean something");
    }
    let mut rounds = Rounds::new(&sites, settings, left_out);
    rounds.try_out()?;
    let count = rounds.measure()?;
    let calls = rounds.count_calls()?;
    let nodes = sites.iter().filter_map(|site| {
        Some(Node {
            proxy: site.proxy,
            services: site.services?,
            ready_s: site.ready_after?.as_secs_f64(),
        })
    });
    Ok(Figures {
        command: command(),
        day: today(),
        machine: machine::this(load_before)?,
        settings: figures::Settings {
            family: settings.family.name().to_owned(),
            rounds: count,
            turn_ms: settings.turn.as_millis() as u64,
        },
        nodes: nodes.collect(),
        traffic: rounds.traffic(),
        left_out: rounds.left_out(),
        calls,
        packets,
        programs,
        control: Some(control),
        peers: xtask::kube_proxy::peers(),
    })
}

/// The day, in UTC.
#[expect(
    clippy::disallowed_methods,
    reason = "it is the wall's date that is told"
)]
fn today() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%d").to_string()
}

/// The command as it was given.
fn command() -> String {
    let args = std::env::args().skip(1);
    ["cargo xtask".to_owned()]
        .into_iter()
        .chain(args)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Makes a node without a proxy, and one for each proxy and number of Services. Those of peers
/// that cannot be made are left out.
fn make_sites(
    settings: &Settings,
    beeline: &Path,
    left_out: &mut Vec<String>,
) -> Result<Vec<Site>> {
    let plan = |proxy, services, edge| Plan {
        family: settings.family,
        proxy,
        services,
        beeline,
        edge,
    };
    let most = settings
        .services
        .last()
        .copied()
        .unwrap_or(manifests::LEAST);
    eprintln!("making a node out of network namespaces …");
    let mut sites = vec![Site::new(plan(Proxy::Direct, most, None))?];
    for &services in &settings.services {
        for (proxy, edge) in with_edges(&settings.proxies) {
            let name = proxy_name(proxy);
            if is_slow_to_load(proxy, services) && !settings.is_patient {
                left_out.push(format!(
                    "{name} with {services} Services: its rules take the kernel minutes to load; \
                     `--against {name}` measures it all the same"
                ));
                continue;
            }
            let translates = edge.map(|edge| format!(", {}", edge.name()));
            let translates = translates.unwrap_or_default();
            eprint!("making a node with {name} and {services} Services{translates} …");
            match Site::new(plan(proxy, services, edge)) {
                Ok(site) => {
                    eprintln!(" done");
                    sites.push(site);
                }
                Err(error) if proxy == Proxy::Beeline => {
                    return Err(error.context(format!("{name} with {services} Services")));
                }
                Err(error) => {
                    eprintln!(" left out: {error:#}");
                    left_out.push(format!("{name} with {services} Services: {error:#}"));
                }
            }
        }
    }
    Ok(sites)
}

/// Each edge of Beeline's has nodes of its own.
fn with_edges(proxies: &[Proxy]) -> impl Iterator<Item = (Proxy, Option<Edge>)> {
    proxies.iter().flat_map(|&proxy| {
        let edges: &[_] = if proxy == Proxy::Beeline {
            &[Some(Edge::Sockets), Some(Edge::Packets)]
        } else {
            &[None]
        };
        edges.iter().map(move |&edge| (proxy, edge))
    })
}

fn is_slow_to_load(proxy: Proxy, services: u32) -> bool {
    proxy == Proxy::Nftables && services > NFTABLES_AT_MOST
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn settings(args: &[&str]) -> Settings {
        let args = ["bench"].into_iter().chain(args.iter().copied());
        Command::parse_from(args).args.settings()
    }

    #[test]
    fn beeline_is_compared_with_all_or_with_what_is_asked_for() {
        let all = settings(&[]);
        assert_eq!(all.services, [10, 1_000, 5_000, 30_000]);
        assert_eq!(all.proxies.len(), 4);
        let few = settings(&["--quick", "--against", "nftables", "--services", "20,10,20"]);
        assert_eq!(few.services, [10, 20]);
        assert_eq!(few.proxies, [Proxy::Nftables, Proxy::Beeline]);
        assert_eq!(settings(&["--against", "direct"]).proxies, [Proxy::Beeline]);
    }

    #[test]
    fn what_does_not_exist_is_refused() {
        for args in [
            ["--against", "ipvs"],
            ["--services", "3"],
            ["--rounds", "0"],
        ] {
            assert!(Command::try_parse_from(["bench"].iter().chain(&args)).is_err());
        }
    }
}

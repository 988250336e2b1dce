//! `cargo xtask run`: a node, pods, Services and real requests, in one table.

mod request;
mod table;

use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use xtask::testbed::{
    Beeline, Layout, NODE_NAME, Pod, PodOptions, Serve, Server, Testbed, dns, release_all_and_exit,
};

use request::Outcome;

/// The Services, relative to the repository's root.
const MANIFESTS: &str = "deploy/examples/demo";

/// Shows Beeline at work: a node made of network namespaces, and requests to its Services
///
/// Needs root. Touches nothing outside the namespaces that it makes, and removes them at the end.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Keep everything up until Ctrl-C, to try by hand
    #[arg(long)]
    hold: bool,
    /// Optimise the `beeline` command (the kernel programs always are)
    #[arg(long)]
    release: bool,
    /// Requests to each Service
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    requests: u32,
    /// How pods reach the node
    #[arg(long, value_enum, default_value_t = Network::Routed)]
    network: Network,
}

/// The ways in which CNIs connect pods.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Network {
    /// A route to each pod, as Calico has it
    Routed,
    /// A bridge for all pods, as flannel has it
    Bridge,
}

/// What a pod of the demonstration serves.
struct Backend {
    service: &'static str,
    /// Last number of the first pod's addresses, as the EndpointSlices have it.
    first: u8,
    pods: u8,
    serve: Serve,
    port: u16,
}

const BACKENDS: [Backend; 7] = [
    Backend {
        service: "hello",
        first: 11,
        pods: 3,
        serve: Serve::Http,
        port: 8080,
    },
    Backend {
        service: "frontend",
        first: 21,
        pods: 2,
        serve: Serve::Http,
        port: 8000,
    },
    Backend {
        service: "database",
        first: 31,
        pods: 1,
        serve: Serve::Echo,
        port: 27017,
    },
    Backend {
        service: "dns",
        first: 41,
        pods: 2,
        serve: Serve::Dns,
        port: 53,
    },
    Backend {
        service: "signalling",
        first: 51,
        pods: 2,
        serve: Serve::Sctp,
        port: 9900,
    },
    Backend {
        service: "dual-stack",
        first: 61,
        pods: 2,
        serve: Serve::Http,
        port: 8080,
    },
    Backend {
        service: "shop",
        first: 71,
        pods: 2,
        serve: Serve::Http,
        port: 8080,
    },
];

const CLIENT_NUMBER: u8 = 2;

/// Set while there is nothing to do but to wait for Ctrl-C: then it is no failure.
static HOLDING: AtomicBool = AtomicBool::new(false);

/// Runs the command. Fails if a request does.
///
/// # Errors
/// Without root's privileges, or if something cannot be built, made or started.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the demonstration makes network namespaces: run it as root"
    );
    let beeline = crate::build::build(args.release)?.beeline;
    ctrlc::set_handler(|| {
        eprintln!("\ncleaning up …");
        release_all_and_exit(if HOLDING.load(Ordering::Relaxed) {
            0
        } else {
            130
        });
    })
    .context("handle Ctrl-C")?;
    print_introduction();

    let layout = match args.network {
        Network::Routed => Layout::Routed,
        Network::Bridge => Layout::Bridge,
    };
    let testbed = step("making a node out of network namespaces", || {
        Testbed::new(layout)
    })?;
    let (client, _servers) = step("adding pods with servers to it", || add_pods(&testbed))?;
    let beeline = Beeline::new(&testbed, beeline)
        .with_manifests(manifests()?)
        .socket_lb("all");
    let _daemon = step("starting `beeline run` on it", || beeline.run::<&str>([]))?;
    let what = format!("sending {} requests to each address", args.requests);
    let outcomes = step(&what, || {
        // As a load balancer's announcement has it.
        let way = format!("route add {} via {}", request::VIP, request::NODE_V4);
        testbed.outside().ip([&*way])?;
        Ok(request::send_all(&testbed, &client, args.requests))
    })?;
    let services = beeline.json(["services"])?;

    println!("\n{}\n", table::render(&outcomes, &services));
    let failed: u32 = outcomes.iter().map(Outcome::failed).sum();
    for outcome in outcomes.iter().filter(|outcome| outcome.failed() > 0) {
        let reason = outcome
            .first_error
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default();
        eprintln!(
            "error: {}: {} failed: {reason}",
            outcome.frontend,
            outcome.failed()
        );
    }
    if args.hold {
        hold(&testbed, &client, &beeline)?;
    } else {
        print_what_next();
    }
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn print_introduction() {
    println!(
        "\
Pods come and go, so clients dial the stable address of a Service, and something on every node
has to pick one of its pods, a backend, for each new connection. That is Beeline. Here, one node
is made out of network namespaces: each pod is a namespace with a cable to the node. Beeline
reads Services and EndpointSlices from {MANIFESTS}/ and puts programs where
processes dial, which point their sockets at a backend once, and at the node's ends of the cables,
which do the same for packets of SCTP and of other machines.
"
    );
}

/// Does something that may take a second, and says so.
fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprint!("{what} … ");
    let start = Instant::now();
    let result = work();
    match &result {
        Ok(_) => eprintln!("{:.1} s", start.elapsed().as_secs_f32()),
        Err(_) => eprintln!("failed"),
    }
    result
}

fn manifests() -> Result<std::path::PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask has no parent")?;
    Ok(root.join(MANIFESTS))
}

fn add_pods(testbed: &Testbed) -> Result<(Pod, Vec<Server>)> {
    let numbered = |number| PodOptions {
        number: Some(number),
        ..PodOptions::default()
    };
    let client = testbed.pod_with("client", &numbered(CLIENT_NUMBER))?;
    let mut servers = Vec::new();
    for backend in &BACKENDS {
        for at in 0..backend.pods {
            let name = format!("{}-{}", backend.service, at + 1);
            let pod = testbed.pod_with(&name, &numbered(backend.first + at))?;
            servers.push(pod.serve(backend.serve, backend.port)?);
        }
    }
    Ok((client, servers))
}

fn print_what_next() {
    println!(
        "\
What next:
  cargo xtask run --hold    keeps all this up, to enter a pod and try by hand
  {MANIFESTS}/    the Services: change one and run again
  cargo xtask test          all tests
  ARCHITECTURE.md           how it works, and where in the code"
    );
}

fn hold(testbed: &Testbed, client: &Pod, beeline: &Beeline<'_>) -> Result<()> {
    let inside = format!("ip netns exec {}", client.namespace.name());
    let node = format!("ip netns exec {}", testbed.node().namespace.name());
    let beeline = format!(
        "{node} {} --bpffs {} --state-dir {}",
        beeline.binary().display(),
        testbed.bpffs().display(),
        testbed.state_folder().display()
    );
    println!(
        "\
All this stays up until you press Ctrl-C. In another terminal, as root:

  # be a process in pod `client`
  {inside} curl -s http://10.96.0.20/
  {inside} curl -s 'http://[fd00:10:96::60]/'
  {inside} dig +short @10.96.0.10 {name}
  {inside} curl http://10.96.0.70/    # refused: no endpoints
  {inside} bash

  # ask Beeline, as a process of the node
  {beeline} services
  {beeline} flows
  {beeline} status

  # see the packets of {NODE_NAME}: pod addresses on both sides
  {node} tcpdump -ni any

Edit a file in {MANIFESTS}/ (make a backend of hello `ready: false`, say):
it takes effect at once.",
        name = dns::NAME,
    );
    HOLDING.store(true, Ordering::Relaxed);
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

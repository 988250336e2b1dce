//! Programs that everybody knows, from pods and from the node, while endpoints come and go.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use proxy_common::abi::Family;
use xtask::testbed::{Ended, Program};

use crate::socket_world::{Edges, IPERFS, Port, SHOP, SocketWorld, WHO, Who, redis_cli, until};

/// Ports at which programs of the machine serve those that run for a moment.
const PROGRAMS: [Port; 2] = [Port::Dns, Port::Redis];
/// How often endpoints change under programs that run for a moment.
const CHANGES: usize = 20;
/// How long dig waits before it asks again.
const DIG_WAITS: Duration = Duration::from_secs(2);
/// How long any other program may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long what runs on is watched at least.
const A_WHILE: Duration = Duration::from_millis(300);

/// A program that runs for a moment, and says which backend served it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Errand {
    Dig,
    DigTcp,
    Curl,
    Redis,
    NcTcp,
    NcUdp,
}

impl Errand {
    const ALL: [Self; 6] = [
        Self::Dig,
        Self::DigTcp,
        Self::Curl,
        Self::Redis,
        Self::NcTcp,
        Self::NcUdp,
    ];

    const fn port(self) -> Port {
        match self {
            Self::Dig | Self::DigTcp => Port::Dns,
            Self::Curl => Port::Http,
            Self::Redis => Port::Redis,
            Self::NcTcp | Self::NcUdp => Port::Echo,
        }
    }

    fn command(self, server: SocketAddr) -> Command {
        match self {
            Self::Dig => dig(server, &[]),
            Self::DigTcp => dig(server, &["+tcp"]),
            Self::Curl => curl(server),
            Self::Redis => redis_cli(server, &["get", WHO]),
            Self::NcTcp => nc(server, &["-N", "-w", "10"]),
            // Until the first answer.
            Self::NcUdp => nc(server, &["-u", "-W", "1", "-w", "10"]),
        }
    }

    /// Whether it can lose its endpoint half-way without a second try of its own.
    const fn can_be_cut(self) -> bool {
        !matches!(self, Self::Dig)
    }

    fn run(self, world: &SocketWorld, who: Who, server: SocketAddr) -> Ended {
        let start = Instant::now();
        let command = self.command(server);
        let mut program = world.testbed.start(world.place(who), command).unwrap();
        if matches!(self, Self::NcTcp | Self::NcUdp) {
            program.tell("hello\n").unwrap();
        }
        if self != Self::NcUdp {
            program.end_input();
        }
        let ended = program.wait(PATIENCE).unwrap();
        let took = start.elapsed();
        assert!(took < PATIENCE, "{self:?} of {who:?} at {server}: {took:?}");
        ended
    }
}

fn dig(server: SocketAddr, args: &[&str]) -> Command {
    let mut command = Command::new("dig");
    command
        .arg(format!("@{}", server.ip()))
        .args(["-p", &server.port().to_string()])
        .args(["+short", "+tries=3"])
        .arg(format!("+timeout={}", DIG_WAITS.as_secs()))
        .args(args)
        .args(["TXT", WHO]);
    command
}

fn curl(server: SocketAddr) -> Command {
    let mut command = Command::new("curl");
    command
        .args(["--silent", "--show-error", "--noproxy", "*"])
        .args(["--max-time", "10"])
        .arg(format!("http://{server}/"));
    command
}

fn nc(server: SocketAddr, args: &[&str]) -> Command {
    // Debian has two programs of the name `nc`.
    let mut command = Command::new("nc.openbsd");
    command
        .args(args)
        .args([server.ip().to_string(), server.port().to_string()]);
    command
}

/// The backend that a program names in what it says.
fn named(said: &str) -> Option<usize> {
    let (_, rest) = said.split_once("shop-")?;
    rest.get(..1)?.parse().ok()
}

/// What came of errands that ran one after the other.
#[derive(Default, Debug)]
struct Report {
    done: usize,
    cut: Vec<String>,
    longest_dig: Duration,
    failures: Vec<String>,
}

impl Report {
    fn add(&mut self, what: &str, errand: Errand, ended: &Ended, took: Duration) {
        self.done += 1;
        if errand == Errand::Dig {
            self.longest_dig = self.longest_dig.max(took);
        }
        if ended.status.success() && named(&ended.said).is_some() {
            return;
        }
        let failure = format!("{what}: {} after {took:?}: {}", ended.status, ended.said);
        if errand.can_be_cut() {
            self.cut.push(failure);
        } else {
            self.failures.push(failure);
        }
    }
}

fn errands(world: &SocketWorld, who: Who, family: Family, done: &AtomicBool) -> Report {
    let mut report = Report::default();
    while !done.load(Ordering::Relaxed) {
        for errand in Errand::ALL {
            let server = SHOP.cluster(errand.port(), family);
            let start = Instant::now();
            let ended = errand.run(world, who, server);
            let what = format!("{errand:?} of {who:?} at {server}");
            report.add(&what, errand, &ended, start.elapsed());
        }
    }
    report
}

/// Takes one of three backends away after the other. Who is taken away is soon not there at all.
fn replace_endpoints(world: &SocketWorld) {
    for change in 0..CHANGES {
        let gone = change % 3;
        let stay = [(change + 1) % 3, (change + 2) % 3];
        let programs = |at: usize| PROGRAMS.map(|port| world.backends[at].program(port));
        for program in programs((change + 2) % 3) {
            program.thaw().unwrap();
        }
        world.apply(SHOP, &stay);
        // What was asked before the change may still be answered.
        std::thread::sleep(Duration::from_millis(100));
        for program in programs(gone) {
            program.freeze().unwrap();
        }
    }
}

fn short_runs_are_served_while_endpoints_change(edges: Edges) {
    let world = SocketWorld::new(edges, 3, &PROGRAMS);
    let n_connected = world.count("connect");
    let done = AtomicBool::new(false);
    let reports: Vec<_> = std::thread::scope(|scope| {
        let (world, done) = (&world, &done);
        let threads: Vec<_> = Who::in_families()
            .map(|(who, family)| scope.spawn(move || errands(world, who, family, done)))
            .collect();
        // Whatever comes of it, the programs must end.
        let changed = catch_unwind(AssertUnwindSafe(|| replace_endpoints(world)));
        done.store(true, Ordering::Relaxed);
        let reports = threads.into_iter().map(|it| it.join().unwrap()).collect();
        changed.unwrap_or_else(|panic| resume_unwind(panic));
        reports
    });
    for report in reports {
        assert!(
            report.done > CHANGES,
            "too little to show anything: {report:?}"
        );
        assert!(report.failures.is_empty(), "{report:#?}");
        assert!(report.longest_dig < DIG_WAITS, "{report:#?}");
        // One thing at a time: a change can cut one.
        assert!(report.cut.len() <= CHANGES, "{report:#?}");
    }
    let uses_sockets = world.count("connect") > n_connected;
    assert_eq!(uses_sockets, edges == Edges::Sockets);
}

#[test]
fn short_runs_are_served_while_endpoints_change_by_packets() {
    short_runs_are_served_while_endpoints_change(Edges::Packets);
}

#[test]
fn short_runs_are_served_while_endpoints_change_by_sockets() {
    short_runs_are_served_while_endpoints_change(Edges::Sockets);
}

/// A program that runs until it is ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Run {
    IperfTcp,
    IperfUdp,
    /// redis-cli with a question again and again; connects again by itself.
    Redis,
    /// redis-cli with commands as they come.
    RedisPipe,
    NcTcp,
    NcUdp,
}

impl Run {
    const ALL: [Self; 6] = [
        Self::IperfTcp,
        Self::IperfUdp,
        Self::Redis,
        Self::RedisPipe,
        Self::NcTcp,
        Self::NcUdp,
    ];

    /// `iperf` is the number of the first of two servers that this client has for itself.
    fn command(self, family: Family, iperf: u8) -> Command {
        let at = |port| SHOP.cluster(port, family);
        let for_long = ["--time", "120"];
        match self {
            Self::IperfTcp => iperf3(at(Port::Iperf(iperf)), &for_long),
            Self::IperfUdp => iperf3(
                at(Port::Iperf(iperf + 1)),
                &[&for_long[..], &["--udp"]].concat(),
            ),
            Self::Redis => redis_cli(
                at(Port::Redis),
                &["-r", "1000000", "-i", "0.02", "get", WHO],
            ),
            Self::RedisPipe => redis_cli(at(Port::Redis), &["--pipe"]),
            Self::NcTcp => nc(at(Port::Echo), &[]),
            Self::NcUdp => nc(at(Port::Echo), &["-u"]),
        }
    }

    /// Whether the end of its endpoint is the end of it; others find another.
    const fn ends_with_endpoint(self, edges: Edges) -> bool {
        match self {
            Self::IperfTcp | Self::RedisPipe | Self::NcTcp => true,
            // By packets, its TCP connection is not told: it says nothing until the end.
            Self::IperfUdp => matches!(edges, Edges::Sockets),
            Self::Redis | Self::NcUdp => false,
        }
    }
}

fn iperf3(server: SocketAddr, args: &[&str]) -> Command {
    let mut command = Command::new("iperf3");
    command
        .args(["--client", &server.ip().to_string()])
        .args(["--port", &server.port().to_string()])
        .args(["--bitrate", "2M", "--length", "1200"])
        .args(["--forceflush", "--interval", "0.1"])
        .args(args);
    command
}

/// A [`Run`] of one client.
struct Running {
    what: String,
    run: Run,
    program: Program,
    n_lines: usize,
}

impl Running {
    fn start(world: &SocketWorld, run: Run, client: (Who, Family), iperf: u8) -> Self {
        let (who, family) = client;
        let command = run.command(family, iperf);
        let program = world.testbed.start(world.place(who), command).unwrap();
        Self {
            what: format!("{run:?} of {who:?} in {family:?}"),
            run,
            program,
            n_lines: 0,
        }
    }

    /// Gives it something to do, if it waits for that. It may have ended.
    fn prompt(&mut self) {
        self.n_lines += 1;
        let number = self.n_lines;
        let _reads = match self.run {
            Run::NcTcp | Run::NcUdp => self.program.tell(&format!("line {number}\n")),
            Run::RedisPipe => self.program.tell("PING\r\n"),
            Run::IperfTcp | Run::IperfUdp | Run::Redis => Ok(()),
        };
    }

    /// Whether something came back for it, given what it had `said` before.
    fn goes_on(&self, said: usize) -> bool {
        match self.run {
            Run::NcTcp | Run::NcUdp => {
                let last = format!("line {}\n", self.n_lines);
                self.program.said().contains(&last)
            }
            // Says nothing until the end.
            Run::RedisPipe => true,
            Run::IperfTcp | Run::IperfUdp | Run::Redis => self.program.said().len() > said,
        }
    }
}

/// All programs go on.
fn are_undisturbed(running: &mut [Running]) {
    let start = Instant::now();
    while start.elapsed() < A_WHILE {
        let said: Vec<_> = running
            .iter_mut()
            .map(|it| {
                it.prompt();
                it.program.said().len()
            })
            .collect();
        for (it, said) in running.iter().zip(said) {
            until(&it.what, PATIENCE, || {
                if let Some(ended) = it.program.ended().unwrap() {
                    panic!("{} ended: {ended:?}", it.what);
                }
                it.goes_on(said)
            });
        }
    }
}

/// The programs were told that their endpoint has gone, or have gone to the other one.
fn were_told(running: &mut [Running], edges: Edges) {
    for it in running {
        let ends = it.run.ends_with_endpoint(edges);
        if it.run == Run::IperfUdp && !ends {
            continue;
        }
        let (what, mut has_ended) = (it.what.clone(), false);
        until(&what, PATIENCE, || {
            // Packets are answered; a socket is told, whatever it does. But this one looks at
            // nothing while it waits for its input.
            if edges == Edges::Packets || it.run == Run::RedisPipe {
                it.prompt();
            }
            has_ended = it.program.ended().unwrap().is_some();
            has_ended || it.program.said().contains("shop-1")
        });
        assert!(has_ended || !ends, "{what} goes on");
    }
}

fn long_runs_go_on_until_their_endpoint_goes(edges: Edges) {
    let iperfs = (0..IPERFS).map(Port::Iperf);
    let ports: Vec<_> = iperfs.chain([Port::Redis]).collect();
    let world = SocketWorld::new(edges, 2, &ports);
    world.apply(SHOP, &[0]);
    let mut running: Vec<_> = Who::in_families()
        .zip((0..IPERFS).step_by(2))
        .flat_map(|(client, iperf)| Run::ALL.map(|run| Running::start(&world, run, client, iperf)))
        .collect();
    are_undisturbed(&mut running);
    world.apply(SHOP, &[0, 1]);
    are_undisturbed(&mut running);
    world.apply(SHOP, &[0]);
    are_undisturbed(&mut running);
    world.apply(SHOP, &[1]);
    for port in ports {
        world.backends[0].program(port).freeze().unwrap();
    }
    were_told(&mut running, edges);
    drop(running);
    for ((who, family), iperf) in Who::in_families().zip(0..IPERFS) {
        for errand in [Errand::Curl, Errand::Redis, Errand::NcTcp, Errand::NcUdp] {
            let server = SHOP.cluster(errand.port(), family);
            let ended = errand.run(&world, who, server);
            assert_eq!(named(&ended.said), Some(1), "{errand:?}: {ended:?}");
        }
        let server = SHOP.cluster(Port::Iperf(iperf), family);
        let ended = world
            .testbed
            .call(
                world.place(who),
                iperf3(server, &["--bytes", "50K"]),
                PATIENCE,
            )
            .unwrap();
        assert!(ended.status.success(), "{ended:?}");
    }
}

#[test]
fn long_runs_go_on_until_their_endpoint_goes_by_packets() {
    long_runs_go_on_until_their_endpoint_goes(Edges::Packets);
}

#[test]
fn long_runs_go_on_until_their_endpoint_goes_by_sockets() {
    long_runs_go_on_until_their_endpoint_goes(Edges::Sockets);
}

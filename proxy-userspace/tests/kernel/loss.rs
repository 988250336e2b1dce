//! Nothing is lost, shown by counting: sockets are opened by the clock while the daemon is
//! restarted, killed, replaced by another version and taken away.

use std::time::Duration;

use xtask::testbed::Daemon;
use xtask::testbed::load::{Kind, Load, Stream};

use crate::cluster::{beeline, next_beeline};
use crate::loss_crowd::{Crowd, expect_no_loss};
use crate::loss_footprint::Footprint;
use crate::socket_world::until;
use crate::take_over;
use crate::take_over_rules::{Mode, tables};
use crate::upgrade::disguise_programs;

/// How often the daemon is told to end and started again …
const RESTARTS: usize = 50;
/// … and how often it is killed.
const KILLS: u32 = 20;
/// About as long as the daemon takes until it is ready.
const START: Duration = Duration::from_millis(200);
/// Long enough for every client to have said something.
const A_WHILE: Duration = Duration::from_secs(1);
/// How long something may take that waits for the end of connections.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn restarts_and_crashes_lose_nothing_with_the_packet_edge() {
    restarts_and_crashes_lose_nothing("off");
}

#[test]
fn restarts_and_crashes_lose_nothing_with_the_socket_edge() {
    restarts_and_crashes_lose_nothing("all");
}

fn restarts_and_crashes_lose_nothing(socket_lb: &'static str) {
    let mut crowd = Crowd::new(socket_lb);
    let mut steps = 0..;
    for turn in 0..RESTARTS {
        match turn % 2 {
            0 => restart(&mut crowd),
            _ => restart_with_changes(&mut crowd, steps.next().unwrap()),
        }
    }
    for turn in 0..KILLS {
        kill(&mut crowd);
        if turn % 2 == 1 {
            crowd.change(steps.next().unwrap());
        }
        crash_at_start(&mut crowd, START * turn / KILLS);
        crowd.world.start_again();
        crowd.expect_changed();
    }
    crowd.end();
}

/// Nothing has changed meanwhile, and nothing is touched.
fn restart(crowd: &mut Crowd) {
    let before = Footprint::of(&crowd.world.testbed);
    assert!(crowd.world.daemon.stop().unwrap().success());
    crowd.world.start_again();
    let status = crowd.world.daemon.status();
    assert_eq!(status["last_sync"]["writes"], 0, "{status}");
    assert_eq!(Footprint::of(&crowd.world.testbed), before);
}

fn restart_with_changes(crowd: &mut Crowd, step: usize) {
    assert!(crowd.world.daemon.stop().unwrap().success());
    crowd.change(step);
    crowd.world.start_again();
    crowd.expect_changed();
}

fn kill(crowd: &mut Crowd) {
    let ended = crowd.world.daemon.kill().unwrap();
    assert_eq!(ended.code(), None, "{ended}");
}

/// A daemon that is killed so long after its start.
fn crash_at_start(crowd: &mut Crowd, after: Duration) {
    crowd.world.launch();
    std::thread::sleep(after);
    kill(crowd);
}

#[test]
fn upgrades_lose_nothing_with_the_packet_edge() {
    upgrades_lose_nothing("off");
}

#[test]
fn upgrades_lose_nothing_with_the_socket_edge() {
    upgrades_lose_nothing("all");
}

/// Three times other programs, then larger maps, then maps of another layout.
fn upgrades_lose_nothing(socket_lb: &'static str) {
    let mut crowd = Crowd::new(socket_lb);
    for step in 0..3 {
        assert!(crowd.world.daemon.stop().unwrap().success());
        disguise_programs(&crowd.world);
        crowd.change(step);
        crowd.world.start_again();
        crowd.expect_changed();
    }
    let larger = ["flows", "sockets", "datagrams"].map(|map| format!("--max-{map}=300000"));
    crowd
        .world
        .start_again_with(&larger.each_ref().map(String::as_str));
    crowd.change(3);
    crowd.expect_changed();
    let killed = |it: &Daemon| assert!(it.kill().is_some());
    let world = &mut crowd.world;
    world.replace_daemon(killed, |it| it.with_binary(next_beeline()));
    std::thread::sleep(A_WHILE);
    crowd.end();
}

/// Kube-proxy serves, Beeline takes over and is restarted, and kube-proxy serves again.
#[test]
fn a_whole_story_loses_nothing() {
    let world = take_over::World::new(Mode::Nftables);
    let is_long = |it: &Stream| matches!(it.kind, Kind::TcpLong { .. } | Kind::UdpLong { .. });
    let (long, short): (Vec<_>, Vec<_>) = world.streams().into_iter().partition(is_long);
    let [long, short] = [long, short].map(|streams| Load::start(streams).unwrap());
    std::thread::sleep(A_WHILE);
    // Flows that are over are not to be waited for.
    let args = [
        "--replace-kube-proxy",
        "--timeout=udp-stream=2s",
        "--timeout=udp-replied=2s",
    ];
    let start = || world.start("all", &args);
    let is_served = || tables(world.node()).contains(&"table ip kube-proxy".to_owned());
    assert!(is_served());
    let mut daemon = start();
    until("kube-proxy's rules gone", PATIENCE, || !is_served());
    std::thread::sleep(A_WHILE);
    for end in [Daemon::stop, Daemon::kill].into_iter().cycle().take(6) {
        assert!(end(&daemon).is_some());
        daemon = start();
    }
    assert!(daemon.stop().unwrap().success());
    world.mode.load(&world.testbed, &world.backends);
    assert!(is_served());
    let cleanup = beeline(&world.testbed).command(["cleanup"]);
    let cleanup = world.testbed.start(world.node(), cleanup).unwrap();
    std::thread::sleep(A_WHILE);
    expect_no_loss(&long.stop().unwrap());
    let ended = cleanup.wait(PATIENCE).unwrap();
    assert!(ended.status.success(), "{}", ended.said);
    assert!(!ended.said.contains(" cut\n"), "{}", ended.said);
    assert!(!world.testbed.bpffs().join("beeline").exists());
    std::thread::sleep(A_WHILE);
    expect_no_loss(&short.stop().unwrap());
}

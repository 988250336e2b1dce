//! Nothing is lost, shown by counting: sockets are opened by the clock while the daemon is
//! restarted, killed, replaced by another version and taken away.

use std::time::Duration;

use crate::loss_crowd::Crowd;
use crate::loss_footprint::Footprint;

/// How often the daemon is told to end and started again …
const RESTARTS: usize = 50;
/// … and how often it is killed.
const KILLS: u32 = 20;
/// About as long as the daemon takes until it is ready.
const START: Duration = Duration::from_millis(200);

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

/// How often maps and programs are replaced by others.
const GROWTHS: u32 = 8;

#[test]
fn larger_maps_lose_nothing_with_the_packet_edge() {
    larger_maps_lose_nothing("off");
}

#[test]
fn larger_maps_lose_nothing_with_the_socket_edge() {
    larger_maps_lose_nothing("all");
}

/// Every start makes all maps anew, larger ones, and replaces all programs.
fn larger_maps_lose_nothing(socket_lb: &'static str) {
    let mut crowd = Crowd::with(socket_lb, &as_args(&sizes(0)));
    for step in 1..=GROWTHS {
        crowd.world.start_again_with(&as_args(&sizes(step)));
    }
    crowd.end();
}

fn as_args(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

/// Of the maps that traffic fills, all larger than a step before.
fn sizes(step: u32) -> [String; 8] {
    let options = ["flows", "affinity", "sockets", "datagrams"];
    let args = options.map(|option| [format!("--max-{option}"), (400_000 + step).to_string()]);
    args.concat().try_into().unwrap()
}

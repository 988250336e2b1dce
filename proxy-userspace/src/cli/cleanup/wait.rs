//! Hands traffic back, and waits until nobody needs Beeline any more.

use std::time::{Duration, Instant};

use crate::causes;
use crate::cli::{Error, Paths, block_on};
use crate::conntrack_gc::Timeouts;
use crate::hand_back::{HandBack, Left};
use crate::kube_proxy;
use crate::loader::cgroup;
use crate::loader::lock::Lock;
use crate::status::{self, Status};

/// How often is looked, but never for more than a fifth of the time.
const INTERVAL: Duration = Duration::from_millis(200);
/// How often something is said.
const SAY: Duration = Duration::from_secs(5);

/// How the wait ended.
pub(super) enum End {
    /// All can be removed; this much is cut by that.
    Remove(Left),
    /// Somebody wants to go on later.
    Interrupted,
}

/// Leaves everything new to the stack, and waits for the rest, at most for so long.
///
/// # Errors
/// If a map refuses, or a daemon starts meanwhile.
pub(super) fn hand_back(paths: &Paths, patience: Duration) -> Result<End, Error> {
    let pins = paths.pins();
    if !pins.map("SETTINGS").exists() {
        return Ok(End::Remove(Left::default()));
    }
    let status = Status::read(&paths.state_dir).ok().flatten();
    let timeouts = status.map_or_else(Timeouts::default, |status| {
        Timeouts::from_names(&status.timeouts)
    });
    say_whether_served();
    let mut hand_back = HandBack::open(&pins, timeouts)?;
    hand_back.begin()?;
    // Nobody is pointed at a backend any more. The other programs stay: who was has to be told
    // who answers.
    let _n_detached = cgroup::detach_connect(&pins)?;
    block_on(wait(paths, &mut hand_back, patience))
}

/// Says so if nobody takes what is handed back. Somebody may whom we do not know.
fn say_whether_served() {
    match kube_proxy::serving() {
        Ok(serving) if serving.is_empty() => eprintln!(
            "no rules of kube-proxy are here: unless something else serves, new connections to \
             Services fail from now on"
        ),
        Ok(serving) => eprintln!("kube-proxy's rules serve ({})", serving.join("; ")),
        Err(error) => eprintln!(
            "cannot tell whether kube-proxy serves: {}",
            causes::line(&error)
        ),
    }
}

async fn wait(paths: &Paths, hand_back: &mut HandBack, patience: Duration) -> Result<End, Error> {
    use tokio::signal::unix::{SignalKind, signal};
    let failed = |source| Error::Io {
        action: "listen to signals for",
        path: "beeline cleanup".into(),
        source,
    };
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let start = Instant::now();
    let mut said = None;
    loop {
        if is_served_again(paths, hand_back)? {
            return Err(Error::ServedAgain);
        }
        let began = Instant::now();
        let left = hand_back.left()?;
        let pause = INTERVAL.max(began.elapsed() * 4);
        if left.total() == 0 {
            return Ok(End::Remove(left));
        }
        let Some(rest) = patience.checked_sub(start.elapsed()) else {
            return Ok(End::Remove(left));
        };
        if said.is_none_or(|said: Instant| said.elapsed() >= SAY) {
            said = Some(Instant::now());
            eprint!("{}", report(&left, rest));
        }
        tokio::select! {
            () = tokio::time::sleep(pause.min(rest)) => {}
            _ = interrupt.recv() => return Ok(interrupted(&left)),
            _ = terminate.recv() => return Ok(interrupted(&left)),
        }
    }
}

fn is_served_again(paths: &Paths, hand_back: &HandBack) -> Result<bool, Error> {
    Ok(!hand_back.is_in_force()?
        || Lock::is_held(paths.pins().root())?
        || Lock::is_held(&status::lock_file(&paths.state_dir))?)
}

fn interrupted(left: &Left) -> End {
    eprintln!(
        "interrupted: traffic stays handed back, and the programs stay for {left}; go on with \
         `beeline cleanup`, or serve again with `beeline run`"
    );
    End::Interrupted
}

fn report(left: &Left, rest: Duration) -> String {
    let mut text = format!(
        "new connections are left to the stack; waiting for {left}, at most {} s more (--now \
         removes everything at once)\n",
        rest.as_secs()
    );
    if left.total() <= left.examples.len() {
        for example in &left.examples {
            text.push_str(&format!("  {example}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_named() {
        let mut left = Left {
            connections: 1,
            examples: vec!["TCP from a to b".to_owned()],
            ..Left::default()
        };
        let rest = Duration::from_secs(7);
        assert!(report(&left, rest).ends_with("\n  TCP from a to b\n"));
        left.connections = 2;
        let text = report(&left, rest);
        assert!(text.contains("waiting for 2 connections, at most 7 s more"));
        assert!(!text.contains("from a"));
    }
}

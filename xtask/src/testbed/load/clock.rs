//! When something is begun.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval_at};

use super::{Client, Kind, sctp, tcp, udp};

/// A clock that ticks so often. Ticks that come too late, because the machine was busy, are all
/// made up for.
pub(super) struct Clock {
    interval: tokio::time::Interval,
}

impl Clock {
    /// Ticks every `period`, for the first time after `phase`.
    pub(super) fn new(period: Duration, phase: Duration) -> Self {
        let mut interval = interval_at((Instant::now() + phase).into(), period);
        interval.set_missed_tick_behavior(MissedTickBehavior::Burst);
        Self { interval }
    }

    /// Waits for the next tick, and returns when it was due; `None` if nothing is to be begun any
    /// more.
    pub(super) async fn tick(&mut self, client: &Client) -> Option<Instant> {
        tokio::select! {
            biased;
            () = client.ending() => None,
            due = self.interval.tick() => Some(due.into_std()),
        }
    }
}

/// Starts what a stream's clients do. Of streams that start together, each ticks in another `part`
/// (0 to 1) of its period.
pub(super) fn start(
    tasks: &mut JoinSet<()>,
    client: Client,
    kind: Kind,
    per_second: f64,
    part: f64,
) {
    let period = Duration::from_secs_f64(1.0 / per_second);
    let phase = period.mul_f64(part);
    let one = || Clock::new(period, phase);
    // Of sockets that tick one after the other.
    let several =
        |sockets| (0..sockets).map(move |at| Clock::new(period * sockets, phase + period * at));
    match kind {
        Kind::TcpShort => drop(tasks.spawn(each(client, one(), tcp::short))),
        Kind::UdpShort => drop(tasks.spawn(each(client, one(), udp::short))),
        Kind::Sctp => drop(tasks.spawn(each(client, one(), sctp::short))),
        Kind::TcpLong { sockets } => {
            for clock in several(sockets) {
                drop(tasks.spawn(tcp::long(client.clone(), clock)));
            }
        }
        Kind::UdpLong { sockets } => {
            for clock in several(sockets) {
                drop(tasks.spawn(udp::long(client.clone(), clock)));
            }
        }
    }
}

/// Begins something at every tick, and waits at last for the end of all of it.
async fn each<F>(client: Client, mut clock: Clock, begin: fn(Client, u64, Instant) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut under_way = JoinSet::new();
    let mut number = 0;
    while let Some(due) = clock.tick(&client).await {
        number += 1;
        client.shared.begun(due);
        let begun = begin(client.clone(), number, due);
        let shared = client.shared.clone();
        drop(under_way.spawn(async move {
            begun.await;
            shared.ended(due);
        }));
        while under_way.try_join_next().is_some() {}
    }
    while under_way.join_next().await.is_some() {}
}

//! Traffic by the clock, whose losses are counted.
//!
//! The load is open-loop: the clock starts connections and exchanges, whatever became of earlier
//! ones. A Service that does not answer for a second is met by all that would have come in that
//! second, and what they waited counts from when they were due.
//!
//! - What cannot be opened has *failed*: a connection that is refused or not there in time, a new
//!   socket's datagram that nobody answers.
//! - What was open and then ended or went silent is *broken*: nobody but the client ends
//!   anything, so an orderly end counts too.
//! - A datagram may get lost. As a resolver does, a client that has no answer after
//!   [`Patience::resend`] sends once more from the same socket, and gives up after
//!   [`Patience::answer`]. If the second one is answered and the first one is not, it was *lost*;
//!   if the first one is after all, it was *late*.
//! - A connection that is only there after [`Patience::resend`] was *slow*: the kernel sends a SYN
//!   that is lost again after a second.

mod clock;
mod counts;
mod sctp;
mod tcp;
mod udp;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use self::counts::{Counts, Tally};
use super::Namespace;
use super::namespace::enter;

/// Clients of one kind, in one place, of one server or Service.
#[derive(Clone, Debug)]
pub struct Stream {
    /// What its counts are kept under. Streams of one name are counted together.
    pub name: String,
    /// Where its sockets are made.
    pub from: Namespace,
    /// Where an echo server is reached ([`super::Serve::Echo`], for SCTP [`super::Serve::Sctp`]).
    pub to: SocketAddr,
    /// What its clients do.
    pub kind: Kind,
    /// How many new sockets there are a second; with long-lived ones, how many exchanges they
    /// have a second, all together.
    pub per_second: f64,
}

/// What clients do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A TCP connection, one exchange, and its end.
    TcpShort,
    /// TCP connections that stay open, and exchange something again and again.
    TcpLong {
        /// How many there are.
        sockets: u32,
    },
    /// A new UDP socket, a datagram and its answer.
    UdpShort,
    /// Connected UDP sockets that stay open, and exchange datagrams again and again.
    UdpLong {
        /// How many there are.
        sockets: u32,
    },
    /// An SCTP association, one exchange, and its end.
    Sctp,
}

/// How long a client waits.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For an answer, or for a connection.
    pub answer: Duration,
    /// Until a datagram is sent once more, or a connection is slow.
    pub resend: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(20),
            resend: Duration::from_secs(1),
        }
    }
}

/// Running traffic. Dropping it ends it at once.
#[derive(Debug)]
pub struct Load {
    phase: watch::Sender<Phase>,
    threads: Vec<JoinHandle<Result<()>>>,
    counts: Vec<Shared>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// The clock goes on.
    On,
    /// Nothing new; what is under way comes to its end.
    Ending,
    /// Everything ends where it is.
    Over,
}

impl Load {
    /// Starts all streams, on a thread for each namespace. Of those that stay open, each is opened
    /// when its first exchange is due.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(streams: impl IntoIterator<Item = Stream>) -> Result<Self> {
        let mut places = BTreeMap::<String, (Namespace, Vec<(Stream, Shared)>)>::new();
        let mut counts = BTreeMap::<String, Shared>::new();
        for stream in streams {
            let shared = counts
                .entry(stream.name.clone())
                .or_insert_with(|| Shared::new(&stream.name))
                .clone();
            let place = places
                .entry(stream.from.name().to_owned())
                .or_insert_with(|| (stream.from.clone(), Vec::new()));
            place.1.push((stream, shared));
        }
        let mut load = Self {
            phase: watch::Sender::new(Phase::On),
            threads: Vec::new(),
            counts: counts.into_values().collect(),
        };
        for (name, (namespace, streams)) in places {
            let phase = load.phase.subscribe();
            let thread = std::thread::Builder::new()
                .name(format!("load {name}"))
                .spawn(move || {
                    enter(&namespace)?;
                    talk(streams, Patience::default(), phase)
                })
                .context("start a thread")?;
            load.threads.push(thread);
        }
        Ok(load)
    }

    /// What there was so far.
    pub fn counts(&self) -> Counts {
        self.counts
            .iter()
            .map(|shared| (shared.name.clone(), shared.tally().clone()))
            .collect()
    }

    /// Waits for the end of all short-lived sockets that are begun by now: those that end later do
    /// not know what was before.
    pub fn settle(&self) {
        let now = Instant::now();
        while self.counts.iter().any(|shared| shared.has_before(now)) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Starts nothing new, waits for the end of what is under way, and returns what there was.
    ///
    /// # Errors
    /// A thread could not do its work.
    pub fn stop(mut self) -> Result<Counts> {
        self.join(Phase::Ending)?;
        Ok(self.counts())
    }

    fn join(&mut self, phase: Phase) -> Result<()> {
        self.phase.send_replace(phase);
        for thread in self.threads.drain(..) {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.phase.send_replace(Phase::Over);
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => eprintln!("load: {error:#}"),
                Err(_) => eprintln!("load: a thread panicked"),
            }
        }
    }
}

/// The counts of one name.
#[derive(Clone, Debug)]
struct Shared {
    name: String,
    start: Instant,
    tally: Arc<Mutex<Tally>>,
    /// Short-lived sockets that have not ended: when they were due, and how many of each.
    under_way: Arc<Mutex<BTreeMap<Instant, u32>>>,
}

impl Shared {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            start: Instant::now(),
            tally: Arc::default(),
            under_way: Arc::default(),
        }
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn under_way(&self) -> MutexGuard<'_, BTreeMap<Instant, u32>> {
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is a short-lived socket that was due before this.
    fn has_before(&self, then: Instant) -> bool {
        let under_way = self.under_way();
        under_way
            .first_key_value()
            .is_some_and(|(due, _)| *due < then)
    }

    fn begun(&self, due: Instant) {
        *self.under_way().entry(due).or_default() += 1;
        self.tally().begun(due);
    }

    fn ended(&self, due: Instant) {
        let mut under_way = self.under_way();
        if let Entry::Occupied(mut count) = under_way.entry(due) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                let _none_left = count.remove();
            }
        }
    }
}

/// What a client needs to know.
#[derive(Clone, Debug)]
struct Client {
    to: SocketAddr,
    patience: Patience,
    shared: Shared,
    phase: watch::Receiver<Phase>,
}

impl Client {
    /// Until nothing new is to be begun.
    async fn ending(&self) {
        let mut phase = self.phase.clone();
        // That nobody is there any more to say so means the same.
        drop(phase.wait_for(|phase| *phase != Phase::On).await);
    }

    /// Notes a socket that has found its server.
    fn opened(&self, due: Instant, backend: &str) {
        let mut tally = self.shared.tally();
        *tally.backends.entry(backend.to_owned()).or_default() += 1;
        tally.waited(due);
    }

    fn exchanged(&self, due: Instant) {
        let mut tally = self.shared.tally();
        tally.exchanges += 1;
        tally.waited(due);
    }

    /// Notes how long a connection took: the kernel sends a SYN again after a second.
    fn connected(&self, took: Duration) {
        if took >= self.patience.resend {
            let at = self.shared.start.elapsed();
            self.shared.tally().slow(at, took);
        }
    }

    fn failed(&self, what: &str, why: &std::io::Error) {
        let at = self.shared.start.elapsed();
        self.shared.tally().failed(at, what, why);
    }

    fn broken(&self, what: &str, why: &std::io::Error) {
        let at = self.shared.start.elapsed();
        self.shared.tally().broken(at, what, why);
    }
}

/// What clients send: who they are to the server, and which try it is.
fn message(number: u64, attempt: u8) -> [u8; MESSAGE] {
    let mut message = [attempt; MESSAGE];
    message[..8].copy_from_slice(&number.to_be_bytes());
    message
}

/// Length of what clients send, in bytes.
const MESSAGE: usize = 16;

/// Waits for a result, but not longer than a client does.
async fn in_time<T>(
    patience: Duration,
    work: impl Future<Output = std::io::Result<T>>,
) -> std::io::Result<T> {
    match tokio::time::timeout(patience, work).await {
        Ok(result) => result,
        Err(_) => Err(std::io::Error::other(format!("nothing in {patience:?}"))),
    }
}

/// The name of who answered, of an echo server's first line; a witness says more behind it.
fn backend(line: &[u8]) -> String {
    let line = String::from_utf8_lossy(line);
    line.split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// All streams of one place, on this thread, until they are over.
fn talk(
    streams: Vec<(Stream, Shared)>,
    patience: Patience,
    phase: watch::Receiver<Phase>,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start tokio")?;
    runtime.block_on(async {
        let mut tasks = JoinSet::new();
        let n_streams = streams.len() as f64;
        for (at, (stream, shared)) in streams.into_iter().enumerate() {
            let client = Client {
                to: stream.to,
                patience,
                shared,
                phase: phase.clone(),
            };
            let part = at as f64 / n_streams;
            clock::start(&mut tasks, client, stream.kind, stream.per_second, part);
        }
        let mut over = phase.clone();
        tokio::select! {
            _ = over.wait_for(|phase| *phase == Phase::Over) => {}
            () = async { while tasks.join_next().await.is_some() {} } => {}
        }
    });
    // An association may still be waiting for its server.
    runtime.shutdown_background();
    Ok(())
}

#[cfg(test)]
mod tests;

//! Clients of all sorts, at work while something else happens, of whom nobody may notice.

use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use xtask::testbed::{Namespace, in_namespace, sctp};

use crate::client::{Connection, udp, udp_echo};

/// Long enough for what is to be over soon.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// How often everybody says something.
pub(crate) const PAUSE: Duration = Duration::from_millis(10);

/// Conversations that go on, and others that are opened one after the other, until they are told
/// to stop.
#[derive(Default)]
pub(crate) struct Load {
    pub(crate) stop_long: AtomicBool,
    pub(crate) stop_short: AtomicBool,
    n_short: AtomicU32,
    n_long: AtomicU32,
}

/// A client. It ends with the first thing that goes wrong.
pub(crate) struct Job<'scope> {
    name: String,
    thread: ScopedJoinHandle<'scope, io::Result<()>>,
}

impl Load {
    /// One connection, to the end.
    pub(crate) fn talk<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        place: &'scope Namespace,
        address: SocketAddr,
    ) -> Job<'scope> {
        self.job(
            scope,
            place,
            format!("connection to {address}"),
            move || {
                let mut connection = Connection::open(address)?;
                self.while_long(|| connection.echo(&[7; 5_000]))
            },
        )
    }

    /// Datagrams from one port: all to the same backend.
    pub(crate) fn send<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        place: &'scope Namespace,
        address: SocketAddr,
    ) -> Job<'scope> {
        self.job(scope, place, format!("datagrams to {address}"), move || {
            let socket = udp(0, address)?;
            let first = udp_echo(&socket, b"first")?;
            self.while_long(|| {
                let backend = udp_echo(&socket, b"more")?;
                if backend == first {
                    return Ok(());
                }
                Err(io::Error::other(format!("{backend}, not {first}")))
            })
        })
    }

    /// One SCTP association, to the end.
    pub(crate) fn associate<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        place: &'scope Namespace,
        address: SocketAddr,
    ) -> Job<'scope> {
        self.job(
            scope,
            place,
            format!("association with {address}"),
            move || {
                let mut association = sctp::Association::open(0, address, PATIENCE)?;
                self.while_long(|| association.exchange(&[7; 500]).map(drop))?;
                association.close()
            },
        )
    }

    /// One short connection after the other.
    pub(crate) fn dial<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        place: &'scope Namespace,
        address: SocketAddr,
    ) -> Job<'scope> {
        self.job(
            scope,
            place,
            format!("short ones to {address}"),
            move || {
                while !self.stop_short.load(Ordering::Relaxed) {
                    Connection::open(address)?.echo(b"short")?;
                    let _before = self.n_short.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(PAUSE);
                }
                Ok(())
            },
        )
    }

    fn job<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        place: &'scope Namespace,
        name: String,
        work: impl FnOnce() -> io::Result<()> + Send + 'scope,
    ) -> Job<'scope> {
        let name = format!("{}: {name}", place.name());
        let thread = scope.spawn(move || in_namespace(place, work));
        Job { name, thread }
    }

    fn while_long(&self, mut say: impl FnMut() -> io::Result<()>) -> io::Result<()> {
        while !self.stop_long.load(Ordering::Relaxed) {
            say()?;
            let _before = self.n_long.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Waits until there was more of everything.
    pub(crate) fn go_on(&self, jobs: &[Job<'_>]) {
        let counts = || [&self.n_short, &self.n_long].map(|it| it.load(Ordering::Relaxed));
        let (start, before) = (Instant::now(), counts());
        while counts()
            .iter()
            .zip(before)
            .any(|(now, then)| now - then < 30)
        {
            let ended = jobs.iter().find(|it| it.thread.is_finished());
            assert!(ended.is_none(), "{} has ended", ended.unwrap().name);
            assert!(
                start.elapsed() < PATIENCE,
                "{:?} after {before:?}",
                counts()
            );
            std::thread::sleep(PAUSE);
        }
    }

    /// Has `work` done while the clients are at theirs, then ends them all; each must have had
    /// what it wanted.
    pub(crate) fn watch(&self, jobs: Vec<Job<'_>>, work: impl FnOnce(&[Job<'_>])) {
        let worked = catch_unwind(AssertUnwindSafe(|| {
            self.go_on(&jobs);
            work(&jobs);
        }));
        self.stop_long.store(true, Ordering::Relaxed);
        self.stop_short.store(true, Ordering::Relaxed);
        let wrong: Vec<_> = jobs
            .into_iter()
            .filter_map(|job| {
                let done = job
                    .thread
                    .join()
                    .unwrap_or_else(|panic| resume_unwind(panic));
                done.err().map(|error| format!("{}: {error}", job.name))
            })
            .collect();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        worked.unwrap_or_else(|panic| resume_unwind(panic));
    }
}

//! What load balancers and the kubelet ask: is this node good to send traffic to?
//!
//! [`State`] is pure: it is told what changes, and with every call what time it is. A [`Health`]
//! is the handle by which the daemon's loop and the servers share one, together with a clock.
//! [`Server`] answers `/healthz`, `/livez` and `/readyz` on one address; [`NodePorts`] has a server for each
//! Service with a health check node port.
//!
//! # Running the servers elsewhere
//! Nothing here needs the rest of the daemon, so a program may have its own clock and say itself
//! when which family is up to date:
//!
//! ```no_run
//! # async fn example() -> std::io::Result<()> {
//! use std::sync::{Arc, Mutex};
//! use std::time::{Duration, Instant};
//! use beeline::health::{Health, NodePorts, Problems, Server, State};
//! use beeline::metrics::Metrics;
//! use proxy_common::abi::Family;
//!
//! let now = Arc::new(Mutex::new(Instant::now()));
//! let clock = { let now = now.clone(); move || *now.lock().unwrap() };
//! let health = Health::new(State::new(Duration::from_secs(30)), clock);
//! let (metrics, problems) = (Metrics::new(), Problems::default());
//! let bind = "127.0.0.1:10256".parse().unwrap();
//! let server = Server::start(bind, health.clone(), metrics, problems.clone());
//! let mut node_ports = NodePorts::new(health.clone(), problems);
//!
//! for family in Family::ALL {
//!     health.update(|state, now| state.changed(family, now));
//! }
//! // Only one family comes to its end: 61 s later /healthz says 503.
//! health.update(|state, now| state.synced(Family::Ipv4, now));
//! *now.lock().unwrap() += Duration::from_secs(61);
//! // After it, what is open is what the state asks for.
//! node_ports.settle().await;
//! # Ok(())
//! # }
//! ```

mod check;
pub(crate) mod http;
mod node_ports;
mod problems;
mod ready;
mod server;
mod state;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::watch;

use crate::source::SourceState;

pub use self::check::check;
pub use self::http::{Answer, Bind, BindError, not_found};
pub use self::node_ports::{NodePorts, check_answer};
pub use self::problems::Problems;
pub use self::ready::unready;
pub use self::server::{Server, healthz, livez, readyz};
pub use self::state::{CheckAnswer, HealthCheck, Listener, ProxyHealth, State};

/// A [`State`] that several share, and the clock that it goes by. Clones are the same state.
#[derive(Clone)]
pub struct Health(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    clock: Box<dyn Fn() -> Instant + Send + Sync>,
    /// The state's [`State::listeners_version`].
    listeners: watch::Sender<u64>,
    /// How the source gets on, if there is one.
    source: Mutex<Option<watch::Receiver<SourceState>>>,
}

impl Health {
    /// Shares `state`; `clock` tells the time, `Instant::now` in a daemon.
    pub fn new(state: State, clock: impl Fn() -> Instant + Send + Sync + 'static) -> Self {
        let listeners = watch::Sender::new(state.listeners_version());
        Self(Arc::new(Shared {
            state: Mutex::new(state),
            clock: Box::new(clock),
            listeners,
            source: Mutex::default(),
        }))
    }

    /// Where to look how the source gets on.
    pub fn watch_source(&self, state: watch::Receiver<SourceState>) {
        let mut source = self.0.source.lock().unwrap_or_else(PoisonError::into_inner);
        *source = Some(state);
    }

    /// Why what is in force does not follow the cluster, if it does not.
    pub fn unready(&self) -> Option<String> {
        let source = self.0.source.lock().unwrap_or_else(PoisonError::into_inner);
        let source = source.as_ref().map(|source| source.borrow().clone());
        self.look(|state, now| unready(state.is_in_force(), source.as_ref(), now))
    }

    /// Changes the state, given the time. The servers follow.
    pub fn update<R>(&self, change: impl FnOnce(&mut State, Instant) -> R) -> R {
        let mut state = self.lock();
        let result = change(&mut state, (self.0.clock)());
        let version = state.listeners_version();
        drop(state);
        self.0
            .listeners
            .send_if_modified(|known| std::mem::replace(known, version) != version);
        result
    }

    /// Looks at the state, given the time.
    pub fn look<R>(&self, look: impl FnOnce(&State, Instant) -> R) -> R {
        look(&self.lock(), (self.0.clock)())
    }

    /// Tells when other listeners are asked for.
    fn listeners(&self) -> watch::Receiver<u64> {
        self.0.listeners.subscribe()
    }

    /// A panic of another holder leaves the state usable: each change is a single assignment.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

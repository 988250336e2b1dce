//! kube-proxy's rules in the tables of `iptables-legacy`: each is one piece of memory that is read,
//! changed and put in place as a whole.

mod blob;
mod option;

use std::fs::File;
use std::io;

use nix::fcntl::{Flock, FlockArg};
use proxy_common::abi::Family;

use self::blob::{Blob, Garbled};
use self::option::Tables;
use super::names;
use super::plan::{Plan, plan};

/// The lock that `iptables-legacy` takes to change something.
const LOCK: &str = "/run/xtables.lock";

/// How often something else may change rules while kube-proxy's are being removed.
const ATTEMPTS: usize = 20;

/// Something about such a table went wrong.
#[derive(Debug, thiserror::Error)]
pub enum LegacyError {
    /// The kernel or a file refuses.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A table does not look as expected.
    #[error("cannot read what the kernel tells")]
    Garbled(#[from] Garbled),
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> LegacyError {
    move |source| LegacyError::Io { action, source }
}

/// Where the kernel lists the tables that are there. Asking for a table would make it.
const fn list(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "/proc/thread-self/net/ip_tables_names",
        Family::Ipv6 => "/proc/thread-self/net/ip6_tables_names",
    }
}

/// The tables of a family that are there and may have chains of kube-proxy's.
///
/// # Errors
/// If the list cannot be read.
pub(super) fn tables(family: Family) -> Result<Vec<&'static str>, LegacyError> {
    match std::fs::read_to_string(list(family)) {
        Ok(names) => {
            let is_there = |name: &&str| names.lines().any(|line| line == *name);
            Ok(names::TABLES.into_iter().filter(is_there).collect())
        }
        // The kernel has none of these tables.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed("read the list of tables")(error)),
    }
}

/// What of a table goes.
///
/// # Errors
/// If the kernel refuses.
pub(super) fn read(family: Family, table: &str) -> Result<Plan, LegacyError> {
    let tables = Tables::open(family).map_err(failed("open a socket"))?;
    Ok(plan(&blob(&tables, family, table)?.table()?))
}

/// Removes from a table what is kube-proxy's, at once; says what that was.
///
/// # Errors
/// If the kernel refuses; the table is as it was then.
pub(super) fn remove(family: Family, table: &str) -> Result<Plan, LegacyError> {
    let _lock = lock().map_err(failed("lock /run/xtables.lock"))?;
    let tables = Tables::open(family).map_err(failed("open a socket"))?;
    let mut attempt = 0;
    loop {
        let old = blob(&tables, family, table)?;
        let plan = plan(&old.table()?);
        if plan.is_empty() {
            return Ok(plan);
        }
        let (new, kept) = old.without(&plan)?;
        attempt += 1;
        match tables.replace(table, &new, old.n_entries()) {
            // Somebody who does not know the lock was faster.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && attempt < ATTEMPTS => {}
            counters => {
                let counters = counters.map_err(failed("replace the table"))?;
                let kept: Vec<_> = kept.iter().map(|at| counters[*at]).collect();
                // They began at zero.
                let added = tables.add_counters(table, &kept);
                added.map_err(failed("put the rules' counters back"))?;
                return Ok(plan);
            }
        }
    }
}

fn blob(tables: &Tables, family: Family, table: &str) -> Result<Blob, LegacyError> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        match tables.get(table) {
            // It grew between the two questions.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && attempt < ATTEMPTS => {}
            read => {
                let (shape, bytes) = read.map_err(failed("read the table"))?;
                return Ok(Blob::new(family, shape, bytes)?);
            }
        }
    }
}

fn lock() -> io::Result<Flock<File>> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(LOCK)?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error.into())
}

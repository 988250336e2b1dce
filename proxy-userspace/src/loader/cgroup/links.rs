//! The programs of the socket edge on a cgroup, by links.
//!
//! A link outlives the process by its pin. Its program is replaced in one step, and a link to
//! another cgroup goes only when the new one is there.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use aya::programs::ProgramError;
use aya::sys::SyscallError;

use super::{Cgroup, syscall};
use crate::loader::pins::{self, Pins};
use crate::loader::socket_programs::AttachFailure;
use crate::loader::{SocketHook, SocketProgram, SocketPrograms};

/// A program that is attached, as the kernel tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attached {
    /// Where.
    pub hook: SocketHook,
    /// The kernel's number of the link.
    pub link: u32,
    /// The kernel's number of the program.
    pub program: u32,
    /// The hash of its instructions.
    pub tag: String,
    /// The kernel's number of the cgroup; 0 if that is gone.
    pub cgroup: u64,
}

/// How many programs were attached in which way.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Changes {
    /// Nothing was there, or on another cgroup.
    pub created: usize,
    /// They took the place of another one.
    pub replaced: usize,
    /// They were there.
    pub unchanged: usize,
}

/// Attaching or detaching failed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Somebody else's program tolerates no other.
    #[error(
        "program {}: another program has cgroup {}, or one above it, to itself; \
         `bpftool cgroup tree` shows it; detach it and start again, or name another cgroup with \
         --cgroup-path",
        hook.name(), cgroup.display()
    )]
    Exclusive {
        /// Which program.
        hook: SocketHook,
        /// The cgroup.
        cgroup: PathBuf,
    },
    /// The kernel refuses otherwise.
    #[error("program {}: attaching to cgroup {} failed", hook.name(), cgroup.display())]
    Attach {
        /// Which program.
        hook: SocketHook,
        /// The cgroup.
        cgroup: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A pin cannot be read, made or removed.
    #[error("cannot {action} {}", path.display())]
    Pin {
        /// What was tried.
        action: &'static str,
        /// The pin.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Sees to it that `programs` are on `cgroup`, and ours on no other. What others attached stays.
///
/// # Errors
/// If the kernel refuses. What was on this or another cgroup before is still there then.
pub fn attach(
    pins: &Pins,
    cgroup: &Cgroup,
    programs: &mut SocketPrograms,
) -> Result<Changes, LinkError> {
    let present = attached(pins)?;
    let here = |hook| {
        let mut here = present.iter().filter(|it| it.cgroup == cgroup.id());
        here.find(|it| it.hook == hook)
    };
    let mut changes = Changes::default();
    let missing = || programs_at(|hook| here(hook).is_none());
    for hook in missing() {
        changes.created += 1;
        let made = programs
            .get_mut(hook)
            .map_or(Ok(()), |program| create(pins, cgroup, program));
        if let Err(error) = made {
            missing().rev().for_each(|hook| discard_new(pins, hook));
            return Err(error);
        }
    }
    for hook in missing() {
        settle(pins, hook)?;
    }
    for program in &programs.all {
        match here(program.hook) {
            None => {}
            Some(at) if at.program == program.id => changes.unchanged += 1,
            Some(_) => {
                replace(pins, cgroup, program)?;
                changes.replaced += 1;
            }
        }
    }
    let _n_detached = detach_unknown(pins)?;
    Ok(changes)
}

/// Takes our programs off whatever cgroup they are on; says how many there were.
///
/// # Errors
/// If a pin cannot be removed.
pub fn detach(pins: &Pins) -> Result<usize, LinkError> {
    let n_detached = detach_at(pins, SocketHook::ALL.into_iter().rev())?;
    Ok(n_detached + detach_unknown(pins)?)
}

/// Takes programs off that another version has and this one has not; says how many there were.
fn detach_unknown(pins: &Pins) -> Result<usize, LinkError> {
    let pinned = pins.socket_links().map_err(failed("read", &pins.links()))?;
    let is_known = |name: &String| SocketHook::ALL.iter().any(|hook| hook.name() == *name);
    let mut n_detached = 0;
    for name in pinned.iter().filter(|name| !is_known(name)) {
        let _was_there = unpin(&pins.new_socket_link(name))?;
        n_detached += usize::from(unpin(&pins.socket_link(name))?);
    }
    Ok(n_detached)
}

/// Takes those off that point sockets at backends when they connect; says how many there were.
///
/// # Errors
/// If a pin cannot be removed.
pub fn detach_connect(pins: &Pins) -> Result<usize, LinkError> {
    detach_at(pins, [SocketHook::Connect6, SocketHook::Connect4])
}

fn detach_at(pins: &Pins, hooks: impl IntoIterator<Item = SocketHook>) -> Result<usize, LinkError> {
    let mut n_detached = 0;
    for hook in hooks {
        let _was_there = unpin(&pins.new_socket_link(hook.name()))?;
        n_detached += usize::from(unpin(&pins.socket_link(hook.name()))?);
    }
    Ok(n_detached)
}

/// Our programs that are attached.
///
/// # Errors
/// If a pin cannot be opened.
pub fn attached(pins: &Pins) -> Result<Vec<Attached>, LinkError> {
    let mut all = Vec::new();
    for hook in SocketHook::ALL {
        let path = pins.socket_link(hook.name());
        let Some(link) = open(&path)? else {
            continue;
        };
        let info = PathBuf::from(format!("/proc/self/fdinfo/{}", link.as_raw_fd()));
        let text = std::fs::read_to_string(&info).map_err(failed("read", &info))?;
        let described = describe(hook, &text);
        all.push(described.ok_or_else(|| failed("make sense of", &info)(io::Error::other(text)))?);
    }
    Ok(all)
}

fn programs_at(
    is_wanted: impl Fn(SocketHook) -> bool,
) -> impl DoubleEndedIterator<Item = SocketHook> {
    SocketHook::ALL
        .into_iter()
        .filter(move |hook| is_wanted(*hook))
}

/// What `/proc/PID/fdinfo` tells about a link to a cgroup.
fn describe(hook: SocketHook, fdinfo: &str) -> Option<Attached> {
    let field = |name: &str| {
        let values = fdinfo.lines().filter_map(|line| line.split_once(':'));
        let mut values = values.filter(|(field, _)| *field == name);
        values.next().map(|(_, value)| value.trim())
    };
    Some(Attached {
        hook,
        link: field("link_id")?.parse().ok()?,
        program: field("prog_id")?.parse().ok()?,
        tag: field("prog_tag")?.to_owned(),
        cgroup: field("cgroup_id")?.parse().ok()?,
    })
}

/// Attaches a program by a link that is not yet pinned where it will be.
fn create(pins: &Pins, cgroup: &Cgroup, program: &mut SocketProgram) -> Result<(), LinkError> {
    let path = pins.new_socket_link(program.hook.name());
    // A start that was killed may have left one.
    let _was_there = unpin(&path)?;
    let hook = program.hook;
    let link = program
        .attach(cgroup.folder())
        .map_err(|error| refused(hook, cgroup.path(), error))?;
    let pinned = link.pin(&path).map_err(io::Error::other);
    pinned.map(drop).map_err(failed("pin", &path))
}

/// Puts a new link in its place; with the pin goes the old one, if there was one.
fn settle(pins: &Pins, hook: SocketHook) -> Result<(), LinkError> {
    let (new, path) = (
        pins.new_socket_link(hook.name()),
        pins.socket_link(hook.name()),
    );
    std::fs::rename(&new, &path).map_err(failed("rename", &new))
}

fn replace(pins: &Pins, cgroup: &Cgroup, program: &SocketProgram) -> Result<(), LinkError> {
    let path = pins.socket_link(program.hook.name());
    let Some(link) = open(&path)? else {
        return Ok(());
    };
    let fd = program
        .fd()
        .map_err(|error| refused(program.hook, cgroup.path(), error.into()))?;
    syscall::update_link(link.as_fd(), fd).map_err(failed("replace the program of", &path))
}

fn discard_new(pins: &Pins, hook: SocketHook) {
    if let Err(error) = unpin(&pins.new_socket_link(hook.name())) {
        tracing::warn!("{error}");
    }
}

fn open(path: &Path) -> Result<Option<OwnedFd>, LinkError> {
    match syscall::open_pin(path) {
        Ok(link) => Ok(Some(link)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(failed("open", path)(source)),
    }
}

fn unpin(path: &Path) -> Result<bool, LinkError> {
    pins::remove(path).map_err(failed("remove", path))
}

fn refused(hook: SocketHook, cgroup: &Path, failure: AttachFailure) -> LinkError {
    let cgroup = cgroup.to_owned();
    if let AttachFailure::Program(ProgramError::SyscallError(SyscallError { io_error, .. })) =
        &failure
        && io_error.raw_os_error() == Some(libc::EPERM)
    {
        return LinkError::Exclusive { hook, cgroup };
    }
    LinkError::Attach {
        hook,
        cgroup,
        source: Box::new(failure),
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LinkError {
    move |source| LinkError::Pin {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_description_of_a_link_is_read() {
        let fdinfo = "pos:\t0\nflags:\t02000002\nmnt_id:\t15\nino:\t1057\n\
                      link_type:\tcgroup\nlink_id:\t7\nprog_tag:\tdeadbeef00000001\n\
                      prog_id:\t42\ncgroup_id:\t4294967297\nattach_type:\t10\n";
        let expected = Attached {
            hook: SocketHook::Connect4,
            link: 7,
            program: 42,
            tag: "deadbeef00000001".to_owned(),
            cgroup: 4_294_967_297,
        };
        assert_eq!(describe(SocketHook::Connect4, fdinfo), Some(expected));
        assert_eq!(
            describe(SocketHook::Connect4, "pos:\t0\nlink_id:\t7\n"),
            None
        );
    }

    #[test]
    fn a_cgroup_that_somebody_has_to_himself_is_told_from_other_refusals() {
        let refused = |number| {
            let source = SyscallError {
                call: "bpf_link_create",
                io_error: io::Error::from_raw_os_error(number),
            };
            let failure = AttachFailure::Program(source.into());
            refused(SocketHook::Connect4, Path::new("/c"), failure).to_string()
        };
        let exclusive = refused(libc::EPERM);
        assert!(exclusive.contains("has cgroup /c, or one above it, to itself"));
        assert!(exclusive.contains("--cgroup-path"), "{exclusive}");
        assert!(refused(libc::EINVAL).contains("connect4: attaching to cgroup /c failed"));
    }
}

//! Programs of the machine's own, such as `dig`, on a testbed.

use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::Testbed;
use super::namespace::{Namespace, in_namespace};
use super::traces::{self, SharedChild};

/// A program that was started. Dropping it kills it, and what it started.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: SharedChild,
    group: Pid,
    input: Option<ChildStdin>,
    output: PathBuf,
}

/// How a program ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Its exit code, or the signal that ended it.
    pub status: ExitStatus,
    /// All that it wrote to its output and to its error output.
    pub said: String,
    /// When it was seen to have ended.
    pub at: Instant,
}

impl Testbed {
    /// Starts a program in a namespace of this testbed.
    ///
    /// # Errors
    /// It is not on this machine, or cannot be started.
    pub fn start(&self, place: &Namespace, mut command: Command) -> Result<Program> {
        let name = command.get_program().to_string_lossy().into_owned();
        let output = self.new_log();
        let file = File::create(&output).with_context(|| format!("create {}", output.display()))?;
        command
            .stdin(Stdio::piped())
            .stdout(file.try_clone().context("share the output")?)
            .stderr(file)
            .process_group(0);
        let mut making = traces::making();
        let mut child = in_namespace(place, || command.spawn()).with_context(|| {
            format!("start `{name}`: on Debian `cargo xtask setup` installs it")
        })?;
        let input = child.stdin.take();
        let group = Pid::from_raw(child.id().cast_signed());
        let child = making.child(self.id(), child);
        Ok(Program {
            name,
            child,
            group,
            input,
            output,
        })
    }

    /// Runs a program in a namespace of this testbed, without input, to its end.
    ///
    /// # Errors
    /// As [`Self::start`] and [`Program::wait`].
    pub fn call(&self, place: &Namespace, command: Command, patience: Duration) -> Result<Ended> {
        let mut program = self.start(place, command)?;
        program.end_input();
        program.wait(patience)
    }
}

impl Program {
    /// Its process id.
    pub fn id(&self) -> u32 {
        self.group.as_raw().cast_unsigned()
    }

    /// What it has written so far to its output and its error output.
    pub fn said(&self) -> String {
        let bytes = std::fs::read(&self.output).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Writes to its input.
    ///
    /// # Errors
    /// It reads no more.
    pub fn tell(&mut self, text: &str) -> Result<()> {
        let input = self.input.as_mut().context("its input has ended")?;
        let written = input.write_all(text.as_bytes());
        written.with_context(|| format!("write to `{}`", self.name))
    }

    /// Ends its input.
    pub fn end_input(&mut self) {
        drop(self.input.take());
    }

    /// Stops it where it is until [`Self::thaw`]: to others it is a machine that has gone.
    ///
    /// # Errors
    /// It has ended.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets it go on after [`Self::freeze`].
    ///
    /// # Errors
    /// It has ended.
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        killpg(self.group, signal).with_context(|| format!("send {signal} to `{}`", self.name))
    }

    /// How it ended; `None` if it still runs.
    ///
    /// # Errors
    /// The kernel does not know it any more.
    pub fn ended(&self) -> Result<Option<Ended>> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let status = child
            .try_wait()
            .with_context(|| format!("wait for `{}`", self.name))?;
        Ok(status.map(|status| Ended {
            status,
            said: self.said(),
            at: Instant::now(),
        }))
    }

    /// Waits until it ends.
    ///
    /// # Errors
    /// It still runs after `patience`; with what it said.
    pub fn wait(&self, patience: Duration) -> Result<Ended> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(ended) = self.ended()? {
                return Ok(ended);
            }
            if Instant::now() > deadline {
                bail!(
                    "`{}` still runs after {patience:?}:\n{}",
                    self.name,
                    self.said()
                );
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Fails if none of its group is left.
        let _was_there = killpg(self.group, Signal::SIGKILL);
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = child.wait() {
            eprintln!("warning: wait for `{}`: {error}", self.name);
        }
    }
}

//! QEMU: which one, how it is started, and how its machine is followed to the end.

use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use super::kvm;
use super::report::Marker;
use crate::process;

/// QEMU 7.2 crashes one emulated guest in three; 10.0 did not fail in 150 boots.
const OLDEST: u32 = 10;

const KERNEL_ARGUMENTS: &str = "console=ttyS0 panic=-1 oops=panic loglevel=6 net.ifnames=0";

/// With all that the emulator has; what it lacks would only bring warnings.
const EMULATED_CPU: &str = "Haswell-v4,-pcid,-tsc-deadline,-invpcid,-spec-ctrl";

/// How many of the console's last lines explain a machine that died.
const CONSOLE_LINES: usize = 40;

/// An installed or unpacked QEMU.
#[derive(Debug)]
pub(super) struct Qemu {
    program: PathBuf,
    /// Where an unpacked QEMU finds its firmware; empty for an installed one.
    firmware: Vec<PathBuf>,
    version: String,
    kvm: bool,
}

impl Qemu {
    /// The system's own QEMU, if it is new enough.
    pub(super) fn of_system() -> Option<Self> {
        let qemu = Self::at(PathBuf::from("qemu-system-x86_64"), Vec::new()).ok()?;
        (major(&qemu.version)? >= OLDEST).then_some(qemu)
    }

    /// A QEMU whose packages were unpacked to `tree`.
    pub(super) fn of_tree(tree: &Path) -> Result<Self> {
        let share = tree.join("usr/share");
        let firmware = vec![share.join("seabios"), share.join("qemu")];
        Self::at(tree.join("usr/bin/qemu-system-x86_64"), firmware)
    }

    fn at(program: PathBuf, firmware: Vec<PathBuf>) -> Result<Self> {
        let text = process::output(Command::new(&program).arg("--version"))?;
        let version = version(&text)
            .context("QEMU: no version in its output")?
            .to_owned();
        Ok(Self {
            program,
            firmware,
            version,
            kvm: kvm::works(),
        })
    }

    /// Starts a machine; the kernel's console goes to the file `console`.
    pub(super) fn boot(&self, kernel: &Path, initramfs: &Path, console: &Path) -> Result<Machine> {
        // The kernel kills QEMU when the thread that started it ends for whatever reason, Ctrl-C
        // and SIGKILL included; Machine's drop only does so on the ordinary ways out.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(&self.program);
        for folder in &self.firmware {
            command.arg("-L").arg(folder);
        }
        command
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none", "-monitor", "none"])
            .args(["-machine", "pc", "-smp", "2", "-m", "1G"])
            .args(self.acceleration())
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(initramfs)
            .args(["-append", KERNEL_ARGUMENTS])
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args(["-serial", "stdio"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        let child = command.spawn().context("setpriv: not started")?;
        Ok(Machine {
            child,
            console: console.to_owned(),
        })
    }

    fn acceleration(&self) -> [&'static str; 4] {
        if self.kvm {
            ["-accel", "kvm", "-cpu", "host"]
        } else {
            ["-accel", "tcg,thread=multi", "-cpu", EMULATED_CPU]
        }
    }
}

impl fmt::Display for Qemu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.kvm {
            "KVM"
        } else {
            "software emulation"
        };
        write!(f, "QEMU {}, {how}", self.version)
    }
}

/// A running machine; dropping it kills QEMU.
#[derive(Debug)]
pub(super) struct Machine {
    child: Child,
    console: PathBuf,
}

impl Machine {
    /// Hands every line between the markers to `on_line` and returns the payload's exit status.
    ///
    /// # Errors
    /// When the machine ends without the end marker or not within `limit`; the error carries the
    /// console's last lines.
    pub(super) fn follow(
        mut self,
        nonce: &str,
        limit: Duration,
        mut on_line: impl FnMut(&str),
    ) -> Result<i32> {
        let lines = self.lines()?;
        let deadline = Instant::now() + limit;
        let mut started = false;
        loop {
            let line = match lines.recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => {
                    self.child.kill().context("QEMU: not killed")?;
                    // The line that never ended names the test that hangs.
                    lines.iter().for_each(|line| on_line(&line));
                    return Err(self.died(&format!("no end after {} s", limit.as_secs())));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(self.died("the machine died"));
                }
            };
            match Marker::parse(&line, nonce) {
                Some(Marker::Start) => started = true,
                Some(Marker::End(status)) => return Ok(status),
                None if started => on_line(&line),
                None => {}
            }
        }
    }

    fn lines(&mut self) -> Result<Receiver<String>> {
        let Some(output) = self.child.stdout.take() else {
            bail!("QEMU: no output")
        };
        let (sender, receiver) = channel();
        std::thread::spawn(move || send_lines(output, &sender));
        Ok(receiver)
    }

    fn died(&self, what: &str) -> anyhow::Error {
        let console = fs::read(&self.console).unwrap_or_default();
        let tail = last_lines(&String::from_utf8_lossy(&console), CONSOLE_LINES);
        anyhow!(
            "{what}; the console's last lines, of {}:\n{tail}",
            self.console.display()
        )
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!(
                "vm: QEMU, process {}: not stopped: {error}",
                self.child.id()
            );
        }
    }
}

/// Ends with the output, or when nobody listens any more.
fn send_lines(output: impl Read, sender: &Sender<String>) {
    for line in BufReader::new(output).split(b'\n') {
        let Ok(line) = line else { return };
        let line = String::from_utf8_lossy(&line)
            .trim_end_matches('\r')
            .to_owned();
        if sender.send(line).is_err() {
            return;
        }
    }
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// The version in what `--version` prints.
fn version(text: &str) -> Option<&str> {
    text.lines().next()?.strip_prefix("QEMU emulator version ")
}

fn major(version: &str) -> Option<u32> {
    version.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_and_its_major_number() {
        let text = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright\n";
        assert_eq!(version(text), Some("10.0.2 (Debian 1:10.0.2+ds-2)"));
        assert_eq!(version(text).and_then(major), Some(10));
        assert_eq!(version("qemu: error"), None);
    }

    #[test]
    fn only_the_last_lines_of_the_console_are_shown() {
        assert_eq!(last_lines("a\r\nb\r\nc\r\n", 2), "b\nc");
        assert_eq!(last_lines("a", 2), "a");
    }

    #[test]
    fn lines_lose_their_ends_and_the_last_needs_none() {
        let (sender, receiver) = channel();
        send_lines(&b"one\r\n\xfftwo\nthree"[..], &sender);
        drop(sender);
        assert_eq!(
            receiver.iter().collect::<Vec<_>>(),
            ["one", "\u{fffd}two", "three"]
        );
    }
}

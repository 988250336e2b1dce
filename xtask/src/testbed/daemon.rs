//! `beeline run` on a testbed's nodes.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use super::namespace::in_namespace;
use super::traces::{self, SharedChild};
use super::{Node, Testbed};

/// How long the daemon may take until it has programmed all Services.
const READY: Duration = Duration::from_secs(300);
/// Lines of the log that are shown after a failure.
const LOG_TAIL: usize = 40;

/// The `beeline` command, and how to call it on a testbed's node.
#[derive(Clone, Debug)]
pub struct Beeline<'a> {
    testbed: &'a Testbed,
    node: &'a Node,
    binary: PathBuf,
    source: Vec<OsString>,
    node_name: String,
    socket_lb: &'static str,
    cgroup: Option<PathBuf>,
    variable: Option<(&'static str, String)>,
}

impl<'a> Beeline<'a> {
    /// The command `binary` on the node of `testbed`; the environment's `BEELINE_BIN`, if set,
    /// takes its place.
    pub fn new(testbed: &'a Testbed, binary: impl Into<PathBuf>) -> Self {
        let binary = std::env::var_os("BEELINE_BIN").map_or_else(|| binary.into(), PathBuf::from);
        let source = manifests(testbed.manifests());
        let node = testbed.node();
        Self {
            testbed,
            node,
            binary,
            source,
            node_name: node.name().to_owned(),
            socket_lb: "off",
            cgroup: Some(testbed.cgroup().to_owned()),
            variable: None,
        }
    }

    /// The same on another node of the testbed.
    #[must_use]
    pub fn on(self, node: &'a Node) -> Self {
        Self {
            node,
            node_name: node.name().to_owned(),
            cgroup: Some(node.namespace.cgroup().to_owned()),
            ..self
        }
    }

    /// Has these sockets of the node's control group served (`all`, `host`; `off` at first).
    #[must_use]
    pub fn socket_lb(self, which: &'static str) -> Self {
        Self {
            socket_lb: which,
            ..self
        }
    }

    /// Has sockets served in another control group than the node's; `None`: the daemon finds one.
    #[must_use]
    pub fn in_cgroup(self, folder: impl Into<Option<PathBuf>>) -> Self {
        Self {
            cgroup: folder.into(),
            ..self
        }
    }

    /// Takes another command.
    #[must_use]
    pub fn with_binary(self, binary: impl Into<PathBuf>) -> Self {
        Self {
            binary: binary.into(),
            ..self
        }
    }

    /// Sets a variable of the daemon's environment.
    #[must_use]
    pub fn with_variable(self, name: &'static str, value: &str) -> Self {
        Self {
            variable: Some((name, value.to_owned())),
            ..self
        }
    }

    /// Calls the node by another name.
    #[must_use]
    pub fn with_node_name(self, name: &str) -> Self {
        Self {
            node_name: name.to_owned(),
            ..self
        }
    }

    /// Reads manifests from another folder than the testbed's.
    #[must_use]
    pub fn with_manifests(self, folder: impl Into<PathBuf>) -> Self {
        Self {
            source: manifests(folder.into()),
            ..self
        }
    }

    /// Follows an API server in place of manifests.
    #[must_use]
    pub fn with_kubeconfig(self, file: impl Into<PathBuf>) -> Self {
        let args = ["--source", "kubernetes", "--kubeconfig"].map(OsString::from);
        let source = args.into_iter().chain([file.into().into()]).collect();
        Self { source, ..self }
    }

    fn socket_args(&self) -> impl Iterator<Item = &OsStr> {
        let which = ["--socket-lb", self.socket_lb].map(OsStr::new);
        let folder = self.cgroup.iter().map(|folder| folder.as_os_str());
        let path = folder.flat_map(|folder| [OsStr::new("--cgroup-path"), folder]);
        which.into_iter().chain(path)
    }

    /// The file of the command.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// A call with these arguments, with the node's bpffs and state folder.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(args)
            .args([OsStr::new("--bpffs"), self.node.bpffs().as_os_str()])
            .args([
                OsStr::new("--state-dir"),
                self.node.state_folder().as_os_str(),
            ])
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        command
    }

    /// Runs a call on the node and returns what it says.
    ///
    /// # Errors
    /// The command cannot be started.
    pub fn call<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Output> {
        let mut command = self.command(args);
        in_namespace(&self.node.namespace, || command.output())
            .with_context(|| format!("start {}", self.binary.display()))
    }

    /// Runs a call with `-o json` on the node and parses what it says.
    ///
    /// # Errors
    /// The command fails, or does not print JSON.
    pub fn json<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
    ) -> Result<serde_json::Value> {
        let args: Vec<_> = args
            .into_iter()
            .map(|arg| arg.as_ref().to_owned())
            .collect();
        let all = args
            .iter()
            .map(|arg| arg.as_os_str())
            .chain(["-o", "json"].map(OsStr::new));
        let output = self.call(all)?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("`beeline` with {args:?} failed: {}", said.trim());
        }
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("read JSON of `beeline` with {args:?}"))
    }

    /// Starts `beeline run` with its source and further arguments, and waits until every Service
    /// is programmed.
    ///
    /// # Errors
    /// It ends, or is not ready in a minute; the end of its log is part of the error.
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Daemon> {
        let daemon = self.start(args)?;
        daemon.wait_until_ready()?;
        Ok(daemon)
    }

    /// Starts `beeline run` with its source and further arguments.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Daemon> {
        let status = self.node.state_folder().join("status.json");
        if status.exists() {
            // What an earlier daemon said there is no sign of readiness.
            std::fs::remove_file(&status).context("remove the old status")?;
        }
        let log = self.testbed.new_log();
        let file = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let mut command = self.command(["run"]);
        // Its own group: a Ctrl-C is the testbed's to pass on.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command
            .args(&self.source)
            .args(["--node-name", &self.node_name])
            .args(self.socket_args())
            .args(args)
            .envs(self.variable.iter().map(|(name, value)| (name, value)))
            .stdout(file.try_clone().context("share the log")?)
            .stderr(file);
        let mut making = traces::making();
        let child = in_namespace(&self.node.namespace, || command.spawn())
            .with_context(|| format!("start {}", self.binary.display()))?;
        let child = making.child(self.testbed.id(), child);
        Ok(Daemon { child, log, status })
    }
}

fn manifests(folder: PathBuf) -> Vec<OsString> {
    let args = ["--source", "file", "--manifests"].map(OsString::from);
    args.into_iter().chain([folder.into()]).collect()
}

/// A running `beeline run`. Dropping it ends the process; what it pinned stays until the testbed
/// goes.
#[derive(Debug)]
pub struct Daemon {
    child: SharedChild,
    log: PathBuf,
    status: PathBuf,
}

impl Daemon {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .id()
    }

    /// Whether it has ended, and how; waits for it at most so long.
    pub fn ended(&self, patience: Duration) -> Option<ExitStatus> {
        let start = Instant::now();
        loop {
            let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
            if let Ok(Some(status)) = child.try_wait() {
                return Some(status);
            }
            drop(child);
            if start.elapsed() > patience {
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What it says about itself, as of its last change; `null` if nothing yet.
    pub fn status(&self) -> serde_json::Value {
        let text = std::fs::read(&self.status).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Ends it as a service supervisor does; how it ended, `None` if nobody knows.
    pub fn stop(&self) -> Option<ExitStatus> {
        traces::stop(&self.child, Signal::SIGTERM)
    }

    /// Ends it without a chance to do anything.
    pub fn kill(&self) -> Option<ExitStatus> {
        traces::stop(&self.child, Signal::SIGKILL)
    }

    /// Waits until `condition` holds for its status.
    ///
    /// # Errors
    /// It ends, or the condition does not hold in a minute.
    pub fn wait_until(
        &self,
        what: &str,
        condition: impl Fn(&serde_json::Value) -> bool,
    ) -> Result<()> {
        let deadline = Instant::now() + READY;
        while !condition(&self.status()) {
            let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(status) = child.try_wait().context("wait for `beeline run`")? {
                bail!("`beeline run` ended ({status}):\n{}", self.log_tail());
            }
            drop(child);
            if Instant::now() > deadline {
                let status = self.status();
                bail!(
                    "`beeline run`: {what}: not in {READY:?}\n{status}\n{}",
                    self.log_tail()
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn wait_until_ready(&self) -> Result<()> {
        self.wait_until("ready", |status| status["synced"] == true)
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        traces::stop(&self.child, Signal::SIGTERM);
        if std::thread::panicking() {
            eprintln!("end of the log of `beeline run`:\n{}", self.log_tail());
        }
    }
}

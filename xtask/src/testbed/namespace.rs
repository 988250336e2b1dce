//! Network namespaces, and the `ip` command in them.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sched::{CloneFlags, setns};

use super::cgroup::Cgroup;

/// Where `ip netns` keeps the names.
pub(super) const FOLDER: &str = "/var/run/netns";

/// How long a device may take to come up.
const DEVICE_WAIT: Duration = Duration::from_secs(5);

/// A named network namespace. Dropping it does not remove it: its testbed does.
#[derive(Clone, Debug)]
pub struct Namespace {
    name: Arc<str>,
    handle: Arc<File>,
    cgroup: Arc<Cgroup>,
}

impl Namespace {
    /// Makes a namespace, with loopback up and IPv6 addresses usable at once. What runs in it
    /// belongs to `cgroup`.
    pub(super) fn create(name: &str, cgroup: Cgroup) -> Result<Self> {
        std::fs::create_dir_all(FOLDER).with_context(|| format!("create folder {FOLDER}"))?;
        ip(None, &[format!("netns add {name}")])?;
        let path = Path::new(FOLDER).join(name);
        let handle = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        let namespace = Self {
            name: name.into(),
            handle: Arc::new(handle),
            cgroup: Arc::new(cgroup),
        };
        // Duplicate address detection would keep new addresses unusable for a second.
        namespace.set("net/ipv6/conf/all/accept_dad", "0")?;
        namespace.set("net/ipv6/conf/default/accept_dad", "0")?;
        namespace.ip(["link set lo up"])?;
        Ok(namespace)
    }

    /// The name, as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder of the control group of what runs in it.
    pub fn cgroup(&self) -> &Path {
        self.cgroup.folder()
    }

    pub(super) fn group(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Runs `ip` commands in this namespace, one each.
    ///
    /// # Errors
    /// The first command that fails, with what `ip` says.
    pub fn ip<S: AsRef<str>>(&self, commands: impl IntoIterator<Item = S>) -> Result<()> {
        ip(Some(&self.name), &commands.into_iter().collect::<Vec<_>>())
    }

    /// What an `ip` command says in this namespace.
    ///
    /// # Errors
    /// The command fails, with what `ip` says.
    pub fn ask_ip(&self, command: &str) -> Result<String> {
        let output = Command::new(ip_path())
            .args(["-netns", &self.name])
            .args(command.split_whitespace())
            .output()
            .context("start `ip`: is iproute2 installed?")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "`ip {command}` in namespace {}: {}",
            self.name,
            said.trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The value of a sysctl, named by its path under `/proc/sys`, in this namespace.
    ///
    /// # Errors
    /// The sysctl does not exist.
    pub fn get(&self, sysctl: &str) -> Result<String> {
        let path = Path::new("/proc/sys").join(sysctl);
        let value = on_network(self, || std::fs::read_to_string(&path))
            .with_context(|| format!("namespace {}: read {sysctl}", self.name))?;
        Ok(value.trim().to_owned())
    }

    /// Sets a sysctl, named by its path under `/proc/sys`, in this namespace.
    ///
    /// # Errors
    /// The sysctl does not exist or refuses the value.
    pub fn set(&self, sysctl: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(sysctl);
        on_network(self, || std::fs::write(&path, value))
            .with_context(|| format!("namespace {}: set {sysctl} to {value}", self.name))
    }

    /// Waits until these devices carry packets.
    pub(super) fn wait_for_devices(&self, devices: &[&str]) -> Result<()> {
        let deadline = Instant::now() + DEVICE_WAIT;
        while !on_network(self, || all_running(devices))? {
            ensure!(
                Instant::now() < deadline,
                "namespace {}: devices {devices:?} did not come up in {DEVICE_WAIT:?}",
                self.name
            );
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}

/// Runs `work` on a thread of its own inside `namespace` and returns what it returns.
///
/// Sockets made and processes started by `work` belong to the namespace and to its control group.
/// Threads that `work` starts do so too.
///
/// # Panics
/// If `work` panics, or if the namespace cannot be entered.
pub fn in_namespace<T: Send>(namespace: &Namespace, work: impl FnOnce() -> T + Send) -> T {
    on_a_thread(|| enter(namespace), work)
}

/// The same, but in the control group of the calling thread: for what makes no socket, since a
/// group takes a while to enter, or one that programs for the node's sockets are not to see.
///
/// # Panics
/// As [`in_namespace`].
pub fn on_network<T: Send>(namespace: &Namespace, work: impl FnOnce() -> T + Send) -> T {
    on_a_thread(|| enter_network(namespace), work)
}

fn on_a_thread<T: Send>(
    enter: impl FnOnce() -> Result<()> + Send,
    work: impl FnOnce() -> T + Send,
) -> T {
    let entered = || {
        if let Err(error) = enter() {
            panic!("{error:#}");
        }
        work()
    };
    let result = std::thread::scope(|scope| scope.spawn(entered).join());
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Moves the calling thread into `namespace` and its control group, for good.
pub(super) fn enter(namespace: &Namespace) -> Result<()> {
    namespace.cgroup.enter()?;
    enter_network(namespace)
}

fn enter_network(namespace: &Namespace) -> Result<()> {
    setns(&namespace.handle, CloneFlags::CLONE_NEWNET)
        .with_context(|| format!("enter namespace {}", namespace.name))
}

fn all_running(devices: &[&str]) -> Result<bool> {
    let running: Vec<String> = getifaddrs()
        .context("list devices")?
        .filter(|address| address.flags.contains(InterfaceFlags::IFF_RUNNING))
        .map(|address| address.interface_name)
        .collect();
    Ok(devices
        .iter()
        .all(|device| running.iter().any(|name| name == device)))
}

/// Runs `ip` commands in the named namespace, or in the calling thread's.
///
/// # Errors
/// The first command that fails, with what `ip` says.
pub fn ip<S: AsRef<str>>(namespace: Option<&str>, commands: &[S]) -> Result<()> {
    let mut command = Command::new(ip_path());
    if let Some(namespace) = namespace {
        command.args(["-netns", namespace]);
    }
    let lines: String = commands
        .iter()
        .map(|line| format!("{}\n", line.as_ref()))
        .collect();
    let mut child = command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("start `ip`: is iproute2 installed?")?;
    let mut input = child.stdin.take().context("`ip` has no input")?;
    // A failed write means that `ip` gave up early; its own words say more.
    let written = input.write_all(lines.as_bytes());
    drop(input);
    let output = child.wait_with_output().context("wait for `ip`")?;
    if !output.status.success() {
        let place = namespace.unwrap_or("the host's");
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`ip` in namespace {place}: {} in\n{lines}", said.trim());
    }
    written.context("write to `ip`")
}

/// The real `ip`: a busybox of that name, which a small image has first on its PATH, knows
/// neither namespaces nor batches.
fn ip_path() -> PathBuf {
    ["/usr/sbin/ip", "/usr/bin/ip", "/sbin/ip", "/bin/ip"]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
        .unwrap_or_else(|| "ip".into())
}

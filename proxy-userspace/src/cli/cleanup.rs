//! `beeline cleanup`.

mod wait;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Command, FromArgMatches as _};
use serde::Serialize;

use self::wait::End;
use super::{Error, Paths, ReadArgs, block_on, print};
use crate::causes;
use crate::conntrack_gc;
use crate::devices::{host_edge, monitor, routes};
use crate::kube_proxy;
use crate::loader::checks::{self, CheckError};
use crate::loader::lock::Lock;
use crate::loader::pins::{self, Pins};
use crate::loader::{attach, cgroup};
use crate::status;

#[derive(Args, Debug)]
pub(super) struct CleanupArgs {
    #[command(flatten)]
    read: ReadArgs,
    /// Clean up even if a daemon is running; at once then.
    #[arg(long)]
    force: bool,
    /// Wait at most this long until all connections are over that Beeline serves; the rest is cut.
    /// Seconds, or a number with s, m, h or d.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    wait: Duration,
    /// Wait for nothing: connections through Services break.
    #[arg(long, conflicts_with = "wait")]
    now: bool,
}

fn duration(text: &str) -> Result<Duration, String> {
    const YEAR: u64 = 365 * 86_400;
    let seconds = conntrack_gc::parse_seconds(text).filter(|seconds| *seconds <= YEAR);
    let seconds = seconds.ok_or("give whole seconds, or a number with s, m, h or d")?;
    Ok(Duration::from_secs(seconds))
}

/// The same as `beeline cleanup` without options.
pub(super) fn by_default(paths: &Paths) -> anyhow::Result<ExitCode> {
    let command = CleanupArgs::augment_args(Command::new("cleanup"));
    let matches = command.try_get_matches_from(["cleanup"])?;
    Ok(cleanup(paths, &CleanupArgs::from_arg_matches(&matches)?)?)
}

/// What was removed.
#[derive(Default, Serialize, Debug)]
struct Removed {
    /// Connections, flows of datagrams and UDP sockets that were still in use.
    cut: usize,
    /// Devices that programs were taken off.
    devices: Vec<String>,
    /// Devices that Beeline had made.
    devices_made: Vec<String>,
    /// Programs of the socket edge that were taken off their cgroup.
    socket_programs: usize,
    /// Links of devices that are gone, or in another network namespace.
    links: usize,
    /// Pinned maps.
    maps: Vec<String>,
    /// Kernel settings that have the value again that they had before.
    settings: Vec<String>,
    /// Files and folders.
    paths: Vec<PathBuf>,
    /// Whether netfilter's table of Beeline's own stays: connections that kube-proxy opened before
    /// Beeline came need it.
    keeps_connections: bool,
}

/// Takes everything of Beeline off this node.
pub(super) fn cleanup(paths: &Paths, args: &CleanupArgs) -> Result<ExitCode, Error> {
    checks::privileges()?;
    let pins = paths.pins();
    let lock_file = status::lock_file(&paths.state_dir);
    let is_running = Lock::is_held(pins.root())? || Lock::is_held(&lock_file)?;
    if is_running && !args.force {
        return Err(Error::Running);
    }
    let mut cut = 0;
    if !is_running && !args.now {
        match wait::hand_back(paths, args.wait)? {
            End::Remove(left) => cut = left.total(),
            End::Interrupted => return Ok(ExitCode::FAILURE),
        }
    }
    let mut removed = Removed {
        cut,
        socket_programs: cgroup::detach(&pins)?,
        ..Removed::default()
    };
    block_on(detach(&pins, &mut removed))?;
    match kube_proxy::remove_keeper(args.now) {
        Ok(stays) => removed.keeps_connections = stays,
        Err(error) => eprintln!("table beeline stays: {}", causes::line(&error)),
    }
    removed.settings = host_edge::put_back(&paths.state_dir)?;
    match checks::is_bpffs(&paths.bpffs) {
        Ok(()) => unpin(&pins, &mut removed)?,
        // Nothing can be pinned where no bpffs is.
        Err(CheckError::NoFolder { .. } | CheckError::NotBpffs { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let unmounted = cgroup::unmount_own(&paths.state_dir);
    let unmounted = unmounted.map_err(failed("unmount", &cgroup::own_mount(&paths.state_dir)))?;
    removed.paths.extend(unmounted);
    for file in [status::file(&paths.state_dir), lock_file] {
        if file.exists() {
            std::fs::remove_file(&file).map_err(failed("remove", &file))?;
            removed.paths.push(file);
        }
    }
    if std::fs::remove_dir(&paths.state_dir).is_ok() {
        removed.paths.push(paths.state_dir.clone());
    }
    print(args.read.output, &removed, text);
    Ok(ExitCode::SUCCESS)
}

async fn detach(pins: &Pins, removed: &mut Removed) -> Result<(), Error> {
    let netlink = monitor::connect()?;
    for link in monitor::read(&netlink).await?.links {
        if attach::detach(pins, &netlink, &link.device).await? {
            removed.devices.push(link.device.name.to_string());
        }
    }
    let _n_routes = routes::set(&netlink, &BTreeSet::new()).await?;
    if host_edge::remove(&netlink).await? {
        removed.devices_made.push(host_edge::HOST_DEVICE.to_owned());
    }
    let others = pins.pinned_links().map_err(failed("read", &pins.links()))?;
    removed.links = others.len();
    Ok(())
}

/// With its pins go the maps, programs and links of devices that are not here.
fn unpin(pins: &Pins, removed: &mut Removed) -> Result<(), Error> {
    removed.maps = pins::file_names(&pins.maps()).map_err(failed("read", &pins.maps()))?;
    let root = pins.root();
    match std::fs::remove_dir_all(root) {
        Ok(()) => removed.paths.push(root.to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("remove", root)(error)),
    }
    Ok(())
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

fn text(removed: &Removed) -> String {
    let mut lines = Vec::new();
    if removed.cut > 0 {
        lines.push(format!("{} connections and flows cut", removed.cut));
    }
    if !removed.devices.is_empty() {
        lines.push(format!("programs taken off {}", removed.devices.join(", ")));
    }
    if !removed.devices_made.is_empty() {
        lines.push(format!(
            "device {} removed",
            removed.devices_made.join(", ")
        ));
    }
    if removed.socket_programs > 0 {
        lines.push(format!(
            "{} programs taken off their cgroup",
            removed.socket_programs
        ));
    }
    if removed.links > 0 {
        lines.push(format!(
            "{} links of devices that are not here removed",
            removed.links
        ));
    }
    if !removed.maps.is_empty() {
        lines.push(format!("maps removed: {}", removed.maps.join(", ")));
    }
    let settings = removed.settings.iter();
    lines.extend(settings.map(|setting| format!("{setting} again")));
    lines.extend(
        removed
            .paths
            .iter()
            .map(|path| format!("{} removed", path.display())),
    );
    if removed.keeps_connections {
        lines.push(
            "table beeline of nf_tables stays: connections need it that kube-proxy opened before \
             Beeline came; clean up once more when they have ended, or with --now"
                .to_owned(),
        );
    }
    if lines.is_empty() {
        lines.push("nothing to remove".to_owned());
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_it_removed() {
        assert_eq!(text(&Removed::default()), "nothing to remove\n");
        let removed = Removed {
            cut: 3,
            devices: vec!["veth1".to_owned(), "veth2".to_owned()],
            devices_made: vec!["beeline0".to_owned()],
            socket_programs: 9,
            settings: vec!["net.ipv4.conf.lo.accept_local = 0".to_owned()],
            paths: vec![PathBuf::from("/run/beeline")],
            ..Removed::default()
        };
        assert_eq!(
            text(&removed),
            "3 connections and flows cut\nprograms taken off veth1, veth2\ndevice beeline0 removed\n\
             9 programs taken off their cgroup\n\
             net.ipv4.conf.lo.accept_local = 0 again\n/run/beeline removed\n"
        );
    }
}

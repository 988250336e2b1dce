//! Puts rules in force.

use std::io::{ErrorKind, Write};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use proxy_common::abi::Family;

use super::{Flavour, Node, Port, nftables, write_rules};
use crate::testbed::{Namespace, on_network};

/// Ports whose chains are loaded at a time in the nftables mode.
///
/// The kernel walks through the whole transaction and through all anonymous sets of the table for
/// each new one of these, and does nothing else meanwhile: all at once would hold up the machine
/// for minutes. Also like this, 30,000 ports take minutes; kube-proxy itself pays the same.
const PORTS_AT_A_TIME: usize = 500;

/// Loads kube-proxy's rules for these ports into the namespace of a testbed's node, in place of
/// those that are in the same tables, and tells how long the commands ran.
///
/// iptables gets whole tables, which is fast where kube-proxy's own way (`--noflush`) takes
/// minutes; what is in the kernel then is the same.
///
/// # Errors
/// The command is not there, or refuses: the kernel may lack tables or matches.
pub fn load(
    place: &Namespace,
    flavour: Flavour,
    family: Family,
    ports: &[Port],
) -> Result<Duration> {
    let node = Node::of_testbed(family);
    let mut duration = Duration::ZERO;
    if flavour == Flavour::Nftables && ports.len() > PORTS_AT_A_TIME {
        for part in nftables::parts(&node, ports, PORTS_AT_A_TIME) {
            duration += feed(place, flavour, family, &part.context("make rules")?)?;
        }
    } else {
        let mut text = Vec::new();
        write_rules(flavour, &node, ports, &mut text).context("make rules")?;
        duration += feed(place, flavour, family, &text)?;
    }
    Ok(duration)
}

/// The command that reads rules.
fn command(flavour: Flavour, family: Family) -> Command {
    let name = match (flavour, family) {
        (Flavour::Iptables, Family::Ipv4) => "iptables-nft-restore",
        (Flavour::Iptables, Family::Ipv6) => "ip6tables-nft-restore",
        (Flavour::IptablesLegacy, Family::Ipv4) => "iptables-legacy-restore",
        (Flavour::IptablesLegacy, Family::Ipv6) => "ip6tables-legacy-restore",
        (Flavour::Nftables, _) => "nft",
    };
    let mut command = Command::new(name);
    if flavour == Flavour::Nftables {
        command.args(["-f", "-"]);
    }
    command
}

/// Runs the command with these rules as its input.
fn feed(place: &Namespace, flavour: Flavour, family: Family, rules: &[u8]) -> Result<Duration> {
    let mut command = command(flavour, family);
    let name = command.get_program().to_string_lossy().into_owned();
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let start = Instant::now();
    let output = on_network(place, || run(&mut command, rules)).map_err(|error| {
        match error.downcast_ref::<std::io::Error>() {
            Some(io) if io.kind() == ErrorKind::NotFound => {
                anyhow!(
                    "there is no `{name}`: on Debian it is in the packages iptables and nftables"
                )
            }
            _ => error.context(format!("run `{name}`")),
        }
    })?;
    let duration = start.elapsed();
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<_> = said.lines().take(5).collect();
        bail!(
            "`{name}` refuses kube-proxy's rules, so the kernel may lack their tables or matches: \
             {}",
            lines.join("\n")
        );
    }
    Ok(duration)
}

fn run(command: &mut Command, rules: &[u8]) -> Result<Output> {
    let mut child = command.spawn()?;
    let mut input = child.stdin.take().context("it has no input")?;
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || input.write_all(rules));
        let output = child.wait_with_output().context("wait for it")?;
        // A failed write means that it gave up early; its own words say more.
        let written = writer.join().map_err(|_| anyhow!("the writer panicked"))?;
        if output.status.success() {
            written.context("write to it")?;
        }
        Ok(output)
    })
}

//! What packets cost in the programs, and changes of the cluster the daemon: measured by the
//! examples of `proxy-userspace`, and by a look at a daemon that runs.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::maps::MapData;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use xtask::figures::{Control, Memory, Packet, Program};
use xtask::testbed::{Beeline, Layout, REMOTE_NODE_NAME, Testbed};

use super::programs::entries;
use crate::{build, process};

/// Services and endpoints of each of them with which a daemon's memory is measured.
const CLUSTERS: [(u32, u32); 2] = [(5_000, 50), (30_000, 4)];
/// Endpoints in a slice, at most, as the controller of EndpointSlices has it.
const SLICE: u32 = 100;
/// What a daemon that is ready has for giving back what it needed at its start.
const REST: Duration = Duration::from_secs(2);

/// What a packet costs in the programs, and what the kernel tells of these.
///
/// # Errors
/// Without root's privileges, or if something cannot be built or run.
pub(super) fn packets(quick: bool) -> Result<(Vec<Packet>, Vec<Program>)> {
    #[derive(Deserialize)]
    struct Measured {
        packets: Vec<Packet>,
        programs: Vec<Program>,
    }
    let measured: Measured = example("packet_cost", quick)?;
    Ok((measured.packets, measured.programs))
}

/// What changes of the cluster cost the daemon, and how much memory it takes.
///
/// # Errors
/// Without root's privileges, or if something cannot be built, made, started or read.
pub(super) fn control(beeline: &Path, quick: bool) -> Result<Control> {
    let mut control: Control = example("sync_cost", quick)?;
    for (services, endpoints) in CLUSTERS {
        control.memory.push(memory(beeline, services, endpoints)?);
    }
    Ok(control)
}

/// Builds an example, optimised, and reads what it prints.
fn example<T: DeserializeOwned>(name: &str, quick: bool) -> Result<T> {
    let _object = build::kernel_programs()?;
    let mut cargo = process::cargo();
    cargo
        .args(["run", "--release", "--quiet"])
        .args(["--package", "proxy-userspace", "--example", name, "--"])
        .args(quick.then_some("--quick"));
    let text = process::stdout(&mut cargo)?;
    serde_json::from_str(&text).with_context(|| format!("what the example {name} prints"))
}

/// Starts a daemon, and looks at its memory when all its Services are in the kernel.
fn memory(beeline: &Path, services: u32, endpoints: u32) -> Result<Memory> {
    let testbed = Testbed::new(Layout::Routed)?;
    let file = testbed.manifests().join("services.json");
    fs::File::create(&file)
        .and_then(|file| write_manifests(BufWriter::new(file), services, endpoints))
        .with_context(|| format!("write {}", file.display()))?;
    let daemon = Beeline::new(&testbed, beeline)
        .socket_lb("all")
        .run::<&str>([])?;
    thread::sleep(REST);
    let file = format!("/proc/{}/status", daemon.pid());
    let status = fs::read_to_string(&file).with_context(|| format!("read {file}"))?;
    let bytes = |name| kibibytes(&status, name).with_context(|| format!("{file} has no {name}"));
    Ok(Memory {
        services,
        endpoints,
        resident: bytes("VmRSS")?,
        peak_resident: bytes("VmHWM")?,
        maps: memory_of_maps(&testbed.bpffs())?,
    })
}

/// A field of /proc/PID/status, in bytes.
fn kibibytes(status: &str, name: &str) -> Option<u64> {
    let of_field = |line: &str| {
        let text = line.strip_prefix(name)?.strip_prefix(':')?;
        text.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    status
        .lines()
        .find_map(of_field)
        .map(|kibibytes| kibibytes * 1024)
}

/// What the kernel accounts for all maps that are pinned, in bytes.
fn memory_of_maps(bpffs: &Path) -> Result<u64> {
    let mut pins = Vec::new();
    for layout in entries(&bpffs.join("beeline"))? {
        pins.extend(entries(&layout.join("maps"))?);
    }
    ensure!(
        !pins.is_empty(),
        "no maps are pinned in {}",
        bpffs.display()
    );
    let memory =
        |pin: &PathBuf| memory_of_map(pin).with_context(|| format!("map {}", pin.display()));
    pins.iter().map(memory).sum()
}

fn memory_of_map(pin: &Path) -> Result<u64> {
    let map = MapData::from_pin(pin)?;
    let number = map.fd().as_fd().as_raw_fd();
    let told = fs::read_to_string(format!("/proc/self/fdinfo/{number}"))?;
    let mut fields = told.lines().filter_map(|line| line.split_once(':'));
    let memory = fields.find(|(name, _)| *name == "memlock");
    let (_, bytes) = memory.context("the kernel does not tell its memory")?;
    Ok(bytes.trim().parse()?)
}

/// The manifests of Services with so many endpoints each: one JSON document a line.
fn write_manifests(mut out: impl Write, services: u32, endpoints: u32) -> io::Result<()> {
    let endpoint = |number: u32| {
        json!({"addresses": [Ipv4Addr::from_bits(0x0b00_0000 + number)],
               "nodeName": REMOTE_NODE_NAME, "zone": format!("zone-{}", number % 3),
               "conditions": {"ready": true, "serving": true, "terminating": false},
               "targetRef": {"kind": "Pod", "namespace": "bench", "name": format!("pod-{number}")}})
    };
    for number in 0..services {
        let name = format!("service-{number}");
        let address = Ipv4Addr::from_bits(0x0a60_0100 + number);
        let service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"namespace": "bench", "name": name},
            "spec": {"clusterIP": address, "clusterIPs": [address], "ipFamilies": ["IPv4"],
                     "ports": [{"name": "http", "protocol": "TCP", "port": 80}]},
        });
        writeln!(out, "{service}")?;
        for first in (0..endpoints).step_by(SLICE as usize) {
            let in_slice = first..endpoints.min(first + SLICE);
            let endpoints: Vec<_> = in_slice
                .map(|at| endpoint(number * endpoints + at))
                .collect();
            let slice = json!({
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {"namespace": "bench", "name": format!("{name}-{first}"),
                             "labels": {"kubernetes.io/service-name": name}},
                "addressType": "IPv4",
                "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
                "endpoints": endpoints,
            });
            writeln!(out, "{slice}")?;
        }
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    #[test]
    fn manifests_have_as_many_services_and_endpoints_as_asked_for() {
        let mut text = Vec::new();
        write_manifests(&mut text, 3, 250).unwrap();
        let objects: Vec<Value> = text
            .split(|&byte| byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect();
        let of_kind = |kind: &str| objects.iter().filter(move |it| it["kind"] == kind).count();
        assert_eq!((of_kind("Service"), of_kind("EndpointSlice")), (3, 9));
        let endpoints: BTreeSet<_> = objects
            .iter()
            .filter_map(|object| object["endpoints"].as_array())
            .flatten()
            .map(|endpoint| endpoint["addresses"].to_string())
            .collect();
        assert_eq!(endpoints.len(), 750);
    }

    #[test]
    fn memory_is_read_in_kibibytes() {
        let status = "VmHWM:\t  2048 kB\nVmRSS:\t    12 kB\nVmRSSx:\t 1 kB\n";
        assert_eq!(kibibytes(status, "VmRSS"), Some(12 * 1024));
        assert_eq!(kibibytes(status, "VmHWM"), Some(2 << 20));
        assert_eq!(kibibytes(status, "VmSwap"), None);
    }
}

//! What Beeline keeps in the kernel, to tell whether it was touched.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use aya::maps::MapInfo;
use aya::programs::ProgramInfo;
use aya::programs::links::{FdLink, PinnedLink};
use beeline::loader::pins::Pins;
use beeline::maps::Maps;
use beeline::sync::Contents;
use proxy_common::abi::{Device, NetworkFlags, Settings};
use xtask::testbed::Testbed;

/// Everything that is pinned, and what the maps hold that no packet changes.
#[derive(PartialEq, Debug)]
pub(crate) struct Footprint {
    /// By path: ids of maps and programs, of links with that of their program.
    pins: BTreeMap<PathBuf, Id>,
    services: Contents,
    settings: Vec<Settings>,
    networks: Vec<(u32, [u32; 4], NetworkFlags)>,
    devices: Vec<(u32, Device)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Id {
    Map(u32),
    Program(u32),
    Link { id: u32, program: u32 },
}

impl Footprint {
    /// That of a testbed's node.
    pub(crate) fn of(testbed: &Testbed) -> Self {
        let pins = Pins::new(&testbed.bpffs());
        let maps = Maps::open(&pins).unwrap();
        let mut ids = BTreeMap::new();
        collect(pins.root(), &mut ids);
        Self {
            pins: ids,
            services: maps.contents().unwrap(),
            settings: vec![maps.settings.get(0).unwrap()],
            networks: maps.networks.entries().map(Result::unwrap).collect(),
            devices: maps.devices.entries().map(Result::unwrap).collect(),
        }
    }
}

fn collect(folder: &Path, ids: &mut BTreeMap<PathBuf, Id>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, ids);
        } else {
            let id = id(&path);
            ids.insert(path, id);
        }
    }
}

fn id(pin: &Path) -> Id {
    if pin.parent().is_some_and(|folder| folder.ends_with("links")) {
        let link = FdLink::from(PinnedLink::from_pin(pin).unwrap());
        let link = link.info().unwrap();
        return Id::Link {
            id: link.id(),
            program: link.program_id(),
        };
    }
    // The kernel tells a pin of the wrong kind by an error.
    match MapInfo::from_pin(pin) {
        Ok(map) => Id::Map(map.id()),
        Err(_) => Id::Program(ProgramInfo::from_pin(pin).unwrap().id()),
    }
}

//! From the maps of an older layout to ours.
//!
//! A map that both layouts have alike is pinned in both folders, and shared by old and new
//! programs. One that has changed is made anew, and filled by a [`Change`]; [`super::handover`]
//! says when. `SETTINGS` is always made anew.
//!
//! To change the layout of a map: raise `LAYOUT_VERSION`; put the old key or value below, named
//! after its version; add an [`Ancestor`] with a function from old to new, and a test from the
//! bytes of the one to the bytes of the other. Where earlier ancestors had the same map, let their
//! functions go by way of yours.

use std::path::{Path, PathBuf};

use super::handover::{self, Copier, HandBack, SETTINGS};
use super::pins::Pins;
use super::sizes::{MAPS, Shape, Spec};
use super::{LoadError, map_info, pin_map};
use crate::maps::MapFailure;

/// A layout from which entries can be carried over.
struct Ancestor {
    version: u32,
    changes: &'static [Change],
    /// Its programs are told so to hand back.
    hand_back: HandBack,
}

/// A map that looks different in ours.
struct Change {
    map: &'static str,
    /// Carries entries from the first pin to the second.
    copier: fn(&Path, &Path) -> Result<Copier, MapFailure>,
}

#[cfg(not(feature = "next-layout"))]
const ANCESTORS: &[Ancestor] = &[];
#[cfg(feature = "next-layout")]
const ANCESTORS: &[Ancestor] = &[rehearsal::LAYOUT_1];

/// The maps of an older layout.
pub(super) struct Origin {
    pins: Pins,
    ancestor: &'static Ancestor,
}

impl Origin {
    /// The latest older layout whose maps are there and can be carried over.
    pub(super) fn find(pins: &Pins) -> Result<Option<Self>, LoadError> {
        let others = pins.other_layouts();
        let others = others.map_err(super::io_error("read", pins.root()))?;
        let mut known = others.into_iter().rev().filter_map(|version| {
            let ancestor = ANCESTORS.iter().find(|it| it.version == version)?;
            let pins = pins.of_layout(version);
            Some(Self { pins, ancestor })
        });
        Ok(known.find(|origin| origin.pins.map(SETTINGS).exists()))
    }

    /// Which layout it is.
    pub(super) const fn version(&self) -> u32 {
        self.pins.version()
    }

    /// The size of its map `name`.
    pub(super) fn size(&self, name: &'static str) -> Result<Option<u32>, LoadError> {
        let info = map_info(name, &self.pins.map(name))?;
        Ok(info.map(|info| info.max_entries()))
    }

    fn change(&self, name: &str) -> Option<&'static Change> {
        self.ancestor.changes.iter().find(|it| it.map == name)
    }

    /// Pins the maps that are alike among ours, too; returns the new pins.
    pub(super) fn share(&self, pins: &Pins) -> Result<Vec<PathBuf>, LoadError> {
        let mut made = Vec::new();
        for spec in MAPS {
            let (from, to) = (self.pins.map(spec.name), pins.map(spec.name));
            if self.is_alike(&spec)? && !to.exists() {
                pin_map(spec.name, &from, &to)?;
                made.push(to);
                step("shared");
            }
        }
        Ok(made)
    }

    fn is_alike(&self, spec: &Spec) -> Result<bool, LoadError> {
        if spec.name == SETTINGS || self.change(spec.name).is_some() {
            return Ok(false);
        }
        let Some(info) = map_info(spec.name, &self.pins.map(spec.name))? else {
            return Ok(false);
        };
        let path = self.pins.map(spec.name);
        let failed = |source| LoadError::Pin {
            name: spec.name,
            path,
            source,
        };
        let shape = Shape {
            map_type: info.map_type().map_err(failed)?,
            key_size: info.key_size(),
            value_size: info.value_size(),
        };
        if shape != spec.shape {
            tracing::warn!(
                "map {}: its entries are not carried over from layout v{}",
                spec.name,
                self.version()
            );
        }
        Ok(shape == spec.shape)
    }

    /// What carries over the entries of the others.
    pub(super) fn copiers(&self, pins: &Pins) -> Result<Vec<(&'static str, Copier)>, LoadError> {
        let mut copiers = Vec::new();
        for spec in MAPS {
            let (old, new) = (self.pins.map(spec.name), pins.map(spec.name));
            if !old.exists() {
                continue;
            }
            let copier = match self.change(spec.name) {
                Some(change) => (change.copier)(&old, &new)?,
                None if spec.name == SETTINGS => handover::copier(SETTINGS, &old, &new)?,
                None => continue,
            };
            copiers.push((spec.name, copier));
        }
        Ok(copiers)
    }

    /// How its programs are told to hand back.
    pub(super) fn settings(&self) -> Result<Option<(PathBuf, HandBack)>, LoadError> {
        let path = self.pins.map(SETTINGS);
        Ok(path.exists().then_some((path, self.ancestor.hand_back)))
    }
}

/// Ends the process here if a rehearsal asks for it, as if it had been killed.
#[cfg(feature = "next-layout")]
pub(super) fn step(name: &str) {
    if std::env::var_os("BEELINE_DIE_AT").is_some_and(|at| at == name) {
        std::process::abort();
    }
}

/// Ends the process here if a rehearsal asks for it.
#[cfg(not(feature = "next-layout"))]
pub(super) const fn step(_name: &str) {}

/// A layout that never was: tests upgrade to it and back.
#[cfg(feature = "next-layout")]
mod rehearsal {
    use bytemuck::{Pod, Zeroable};
    use proxy_common::abi::{Flow, FlowKey, Tuple};

    use super::super::handover::{FLOWS, hand_back, table};
    use super::{Ancestor, Change};

    pub(super) const LAYOUT_1: Ancestor = Ancestor {
        version: 1,
        changes: &[Change {
            map: "FLOWS",
            copier: |old, new| table::<FlowKey, Flow, FlowV1>("FLOWS", old, new, flow, FLOWS),
        }],
        hand_back,
    };

    /// [`Flow`] in layout 1.
    #[derive(Clone, Copy, Pod, Zeroable)]
    #[repr(C)]
    pub(super) struct FlowV1 {
        to: Tuple,
        backend: u32,
        generation: u32,
        service: u32,
        device: u32,
        state: u8,
        role: u8,
        twin_side: u8,
        exit: u8,
        tick: u32,
        pad: u32,
        created: u64,
        last_seen: u64,
    }

    pub(super) const fn flow(old: FlowV1) -> Flow {
        Flow {
            rehearsed: REHEARSED,
            to: old.to,
            backend: old.backend,
            generation: old.generation,
            service: old.service,
            device: old.device,
            state: old.state,
            role: old.role,
            twin_side: old.twin_side,
            exit: old.exit,
            tick: old.tick,
            _pad: 0,
            created: old.created,
            last_seen: old.last_seen,
        }
    }

    /// What is written where there was nothing.
    pub(super) const REHEARSED: u64 = 0x0bee_0bee;

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_flow_of_layout_1_is_read_byte_by_byte() {
            let old: Vec<u8> = (0..80).collect();
            let new = flow(bytemuck::pod_read_unaligned(&old));
            let bytes = bytemuck::bytes_of(&new);
            assert_eq!(bytes[..8], REHEARSED.to_ne_bytes());
            assert_eq!(bytes[8..68], old[..60]);
            assert_eq!(bytes[68..72], [0; 4]);
            assert_eq!(bytes[72..], old[64..]);
        }
    }
}

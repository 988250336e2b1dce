//! From the embedded object to pinned maps and programs.
//!
//! [`checks`] runs first; [`load`] makes or finds maps and programs, [`attach`] puts the programs
//! on devices and [`cgroup`] those of the socket edge on a cgroup. Nothing here is undone when the process ends: programs, links and maps stay, and
//! the next start finds them.

pub mod attach;
pub mod cgroup;
pub mod checks;
mod clsact;
mod handover;
pub mod lock;
mod migrate;
mod netns;
pub mod pins;
mod programs;
pub mod sizes;
mod socket_programs;
pub mod socket_settings;
mod verify;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::{MapData, MapError, MapInfo};
use aya::pin::PinError;
use aya::programs::ProgramError;
use aya::sys::SyscallError;
use aya::{Ebpf, EbpfError, EbpfLoader};
use proxy_common::abi::LAYOUT_VERSION;
use proxy_common::datapath::crc32c;

pub use self::attach::Place;
use self::checks::Features;
use self::handover::Handover;
use self::migrate::Origin;
pub use self::netns::{netns_of, node_netns};
use self::pins::Pins;
pub use self::programs::{Kind, Program, Programs};
use self::sizes::{MAPS, Pinned, Plan, PlanError, Shape, Sizes, Spec};
pub use self::socket_programs::{SocketHook, SocketProgram, SocketPrograms};
use crate::maps::{List, MapFailure, Maps};

/// The map of `aya-log`; only objects that log have it.
const LOG_MAP: &str = "AYA_LOGS";

/// Loading failed.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A pinned map cannot be used.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A map cannot be read or written.
    #[error(transparent)]
    Map(#[from] MapFailure),
    /// A pinned map cannot be looked at.
    #[error("map {name}: cannot read the pin {}", path.display())]
    Pin {
        /// The map.
        name: &'static str,
        /// Its pin.
        path: PathBuf,
        /// Why.
        source: MapError,
    },
    /// A map cannot be pinned.
    #[error("map {name}: cannot pin it at {}", path.display())]
    NewPin {
        /// The map.
        name: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        source: PinError,
    },
    /// A link cannot take the place of another.
    #[error(transparent)]
    Settle(#[from] attach::AttachError),
    /// A file or folder on bpffs.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel counts maps against a limit that could not be raised.
    #[error(
        "map {name}: the kernel refuses so much locked memory; \
         run with CAP_SYS_RESOURCE or a higher `ulimit -l`"
    )]
    LockedMemory {
        /// The map.
        name: String,
    },
    /// The object cannot be loaded.
    #[error("the kernel programs cannot be loaded")]
    Object(#[source] EbpfError),
    /// The object has no such program.
    #[error("the object has no program {name}")]
    NoProgram {
        /// The program.
        name: &'static str,
    },
    /// The kernel's verifier refuses a program.
    #[error("program {name}: this kernel's verifier refuses it: {reason} (more with --log debug)")]
    Refused {
        /// The program.
        name: &'static str,
        /// The last word of the verifier.
        reason: String,
        /// Why.
        source: io::Error,
    },
    /// The kernel refuses a program otherwise.
    #[error("program {name}: {action} failed")]
    Program {
        /// The program.
        name: &'static str,
        /// What was tried.
        action: &'static str,
        /// Why.
        source: Box<ProgramError>,
    },
}

impl From<EbpfError> for LoadError {
    fn from(error: EbpfError) -> Self {
        if let EbpfError::MapError(MapError::CreateError { name, io_error }) = &error
            && io_error.raw_os_error() == Some(libc::EPERM)
        {
            return Self::LockedMemory { name: name.clone() };
        }
        Self::Object(error)
    }
}

/// Maps and programs, ready to be attached.
pub struct Loaded {
    /// The maps.
    pub maps: Maps,
    /// The programs on devices.
    pub programs: Programs,
    /// Those of the socket edge, if they were asked for; an error if the kernel refuses them.
    pub sockets: Option<Result<SocketPrograms, LoadError>>,
    /// Where they are to be attached.
    pub place: Place,
    /// What is left to do when they are attached.
    pub rest: Rest,
}

/// What is left to do when all devices are attached.
pub struct Rest {
    handover: Handover,
    programs: PathBuf,
    /// Pins that were not there before.
    made: Vec<PathBuf>,
    /// Versions of layouts from which nothing can be carried over.
    strange: Vec<u32>,
}

/// Makes or finds the maps and programs; those of the socket edge only `with_sockets`.
///
/// # Errors
/// If a pinned map does not fit, or the kernel refuses anything but the programs of the socket
/// edge. What this call made is gone then.
pub fn load(
    object: &[u8],
    pins: &Pins,
    sizes: &Sizes,
    features: Features,
    with_sockets: bool,
) -> Result<Loaded, LoadError> {
    let origin = Origin::find(pins)?;
    for folder in [pins.maps(), pins.programs(), pins.links()] {
        std::fs::create_dir_all(&folder).map_err(io_error("create", &folder))?;
    }
    let mut shared = Vec::new();
    if let Some(origin) = &origin {
        tracing::info!("carrying the maps over from layout v{}", origin.version());
        shared = origin.share(pins)?;
    }
    let plans = plans(pins, sizes, origin.as_ref())?;
    let job = Job {
        object,
        pins,
        plans: &plans,
        origin: origin.as_ref(),
        shared,
        features,
        folder: pins.programs_of(digest(object, features)),
        with_sockets,
    };
    match job.reusable()? {
        Some(programs) => job.reuse(programs),
        None => job.load_anew().inspect_err(|_| job.undo()),
    }
}

/// What is to be loaded, and where it is pinned.
struct Job<'a> {
    object: &'a [u8],
    pins: &'a Pins,
    plans: &'a [(Spec, Plan)],
    /// What is carried over from another layout.
    origin: Option<&'a Origin>,
    /// New pins of maps that are shared with it.
    shared: Vec<PathBuf>,
    features: Features,
    /// Of the programs.
    folder: PathBuf,
    with_sockets: bool,
}

impl Job<'_> {
    /// The programs on devices that an earlier start loaded from the same object, if they use the
    /// pinned maps.
    fn reusable(&self) -> Result<Option<Programs>, LoadError> {
        let is_settled = self
            .plans
            .iter()
            .all(|(_, plan)| matches!(plan, Plan::Keep(_)));
        if !is_settled {
            return Ok(None);
        }
        current(self.pins, Programs::open(&self.folder), Programs::maps)
    }

    /// Goes on with these programs; those of the socket edge may have to be loaded.
    fn reuse(&self, programs: Programs) -> Result<Loaded, LoadError> {
        tracing::info!("the pinned programs serve on");
        let sockets = self.with_sockets.then(|| {
            let pinned = SocketPrograms::open(&self.folder);
            match current(self.pins, pinned, SocketPrograms::maps)? {
                Some(pinned) => Ok(pinned),
                None => SocketPrograms::load(&mut self.load_object()?, &self.folder),
            }
        });
        let handover = Handover::begin(self.pins, self.origin)?;
        self.loaded(programs, sockets, handover, Vec::new())
    }

    fn load_anew(&self) -> Result<Loaded, LoadError> {
        tracing::info!("loading the kernel programs");
        discard_grown(self.pins, self.plans)?;
        let mut ebpf = self.load_object()?;
        fill_crc_shifts(self.pins)?;
        remove_folder(&self.folder)?;
        std::fs::create_dir_all(&self.folder).map_err(io_error("create", &self.folder))?;
        let programs = Programs::load(&mut ebpf, &self.folder)?;
        let load_sockets = || SocketPrograms::load(&mut ebpf, &self.folder);
        let sockets = self.with_sockets.then(load_sockets);
        migrate::step("loaded");
        handover::replace_grown(self.pins, self.plans)?;
        let handover = Handover::begin(self.pins, self.origin)?;
        self.loaded(programs, sockets, handover, self.made())
    }

    /// The pins that were not there before.
    fn made(&self) -> Vec<PathBuf> {
        let mut made = made(self.pins, self.plans);
        made.extend(self.shared.iter().cloned());
        made
    }

    fn load_object(&self) -> Result<Ebpf, LoadError> {
        let coarse_clock = u8::from(self.features.coarse_clock);
        let set_retval = u8::from(self.features.set_retval);
        let mut loader = EbpfLoader::new();
        for (spec, plan) in self.plans {
            let path = match plan {
                Plan::Create(_) | Plan::Keep(_) => self.pins.map(spec.name),
                Plan::Grow(_) => self.pins.grown_map(spec.name),
            };
            let _loader = loader
                .map_pin_path(spec.name, path)
                .map_max_entries(spec.name, plan.size());
        }
        let ebpf = loader
            .map_pin_path(LOG_MAP, self.pins.map(LOG_MAP))
            .override_global("COARSE_CLOCK", &coarse_clock, true)
            .override_global("SET_RETVAL", &set_retval, true)
            .load(self.object)?;
        Ok(ebpf)
    }

    fn loaded(
        &self,
        programs: Programs,
        sockets: Option<Result<SocketPrograms, LoadError>>,
        handover: Handover,
        made: Vec<PathBuf>,
    ) -> Result<Loaded, LoadError> {
        let strange = self.strange()?;
        let place = if handover.is_empty() && strange.is_empty() {
            Place::Instead
        } else {
            Place::Behind
        };
        let rest = Rest {
            handover,
            programs: self.folder.clone(),
            made,
            strange,
        };
        Ok(Loaded {
            maps: Maps::open(self.pins)?,
            programs,
            sockets,
            place,
            rest,
        })
    }

    /// The other layouts that mean nothing to us.
    fn strange(&self) -> Result<Vec<u32>, LoadError> {
        let mut others = other_layouts(self.pins)?;
        others.retain(|version| self.origin.is_none_or(|it| it.version() != *version));
        Ok(others)
    }

    /// Removes the maps that did not exist before, and the programs.
    fn undo(&self) {
        let grown = self.plans.iter();
        let grown = grown.map(|(spec, _)| self.pins.grown_map(spec.name));
        for path in self.made().into_iter().chain(grown) {
            warn_if_failed(remove_file(&path));
        }
        warn_if_failed(remove_folder(&self.folder));
        remove_empty_folders(self.pins);
    }
}

impl Rest {
    /// Whether the programs of a predecessor have to serve until our Services are in force: what
    /// it knew cannot be read.
    pub const fn needs_services(&self) -> bool {
        !self.strange.is_empty()
    }

    /// Removes what the load made, if nothing of it was attached.
    pub fn undo(self, pins: &Pins) {
        if let Err(error) = attach::discard_new(pins) {
            tracing::warn!("{error}");
        }
        if self.made.is_empty() {
            return;
        }
        self.made
            .iter()
            .for_each(|path| warn_if_failed(remove_file(path)));
        warn_if_failed(remove_folder(&self.programs));
        remove_empty_folders(pins);
    }

    /// Lets our programs take the place of those behind which they were attached, with all that
    /// these knew, and removes what no attached program uses any more.
    ///
    /// # Errors
    /// If a map or a pin refuses.
    pub async fn finish(
        self,
        pins: &Pins,
        netlink: &rtnetlink::Handle,
        devices: &[attach::Device],
    ) -> Result<(), LoadError> {
        if let Some(programs) = Programs::open(&self.programs) {
            let settle = attach::settle(pins, netlink, devices, &programs);
            self.handover.finish(settle).await?;
        }
        for name in names(&pins.programs())? {
            let folder = pins.programs().join(name);
            if folder != self.programs {
                remove_folder(&folder)?;
            }
        }
        for version in other_layouts(pins)? {
            if self.strange.contains(&version) {
                tracing::warn!(
                    "layout v{version} is not known to this version, whose layout is \
                     v{LAYOUT_VERSION}: flows and affinities are not carried over"
                );
            }
            remove_folder(&pins.of_layout(version).layout())?;
            migrate::step("removed");
        }
        Ok(())
    }
}

fn other_layouts(pins: &Pins) -> Result<Vec<u32>, LoadError> {
    pins.other_layouts().map_err(io_error("read", pins.root()))
}

/// What becomes of each map.
fn plans(
    pins: &Pins,
    sizes: &Sizes,
    origin: Option<&Origin>,
) -> Result<Vec<(Spec, Plan)>, LoadError> {
    let memory = sizes::memory();
    let plan = |spec: Spec| {
        let before = origin.map(|origin| origin.size(spec.name)).transpose()?;
        let before = before.flatten();
        let asked = sizes.asked(spec.name);
        let default = before.unwrap_or_else(|| sizes::default_size(spec.name, memory));
        // One that is made anew is to have room for what it had before.
        let asked = asked.map(|asked| asked.max(before.unwrap_or(0)));
        let pinned = pinned(pins, &spec)?;
        Ok((spec, sizes::plan(&spec, asked, default, pinned)?))
    };
    let mut plans: Vec<_> = MAPS
        .into_iter()
        .map(plan)
        .collect::<Result<_, LoadError>>()?;
    if plans.iter().any(|(_, plan)| matches!(plan, Plan::Grow(_))) {
        // The programs of the old maps are told something that those of the new ones are not.
        for (spec, plan) in &mut plans {
            if spec.name == handover::SETTINGS && matches!(plan, Plan::Keep(_)) {
                *plan = Plan::Grow(plan.size());
            }
        }
    }
    Ok(plans)
}

/// The map that is pinned at `path`, called `name` in messages.
fn map_info(name: &'static str, path: &Path) -> Result<Option<MapInfo>, LoadError> {
    match MapInfo::from_pin(path) {
        Ok(info) => Ok(Some(info)),
        Err(MapError::SyscallError(SyscallError { io_error, .. }))
            if io_error.kind() == io::ErrorKind::NotFound =>
        {
            Ok(None)
        }
        Err(source) => Err(LoadError::Pin {
            name,
            path: path.to_owned(),
            source,
        }),
    }
}

/// Pins a map a second time.
fn pin_map(name: &'static str, from: &Path, to: &Path) -> Result<(), LoadError> {
    let map = MapData::from_pin(from).map_err(|source| LoadError::Pin {
        name,
        path: from.to_owned(),
        source,
    })?;
    // A start that was killed may have left one.
    remove_file(to)?;
    map.pin(to).map_err(|source| LoadError::NewPin {
        name,
        path: to.to_owned(),
        source,
    })
}

fn pinned(pins: &Pins, spec: &Spec) -> Result<Option<Pinned>, LoadError> {
    let path = pins.map(spec.name);
    let failed = |source| LoadError::Pin {
        name: spec.name,
        path: pins.map(spec.name),
        source,
    };
    let Some(info) = map_info(spec.name, &path)? else {
        return Ok(None);
    };
    let shape = Shape {
        map_type: info.map_type().map_err(failed)?,
        key_size: info.key_size(),
        value_size: info.value_size(),
    };
    Ok(Some(Pinned {
        shape,
        size: info.max_entries(),
    }))
}

/// Tells objects apart, with what the loader writes into them. Programs that are pinned under the
/// same digest need not be loaded again. Not a program's tag: that leaves constant data out.
fn digest(object: &[u8], features: Features) -> u64 {
    let mut hasher = DefaultHasher::new();
    object.hash(&mut hasher);
    features.coarse_clock.hash(&mut hasher);
    features.set_retval.hash(&mut hasher);
    hasher.finish()
}

/// These pinned programs, if they use the pinned maps.
fn current<P>(
    pins: &Pins,
    programs: Option<P>,
    maps: impl Fn(&P) -> Option<Vec<MapInfo>>,
) -> Result<Option<P>, LoadError> {
    let Some(programs) = programs else {
        return Ok(None);
    };
    let mut pinned = BTreeMap::new();
    for spec in MAPS {
        let path = pins.map(spec.name);
        let info = MapInfo::from_pin(&path).map_err(|source| LoadError::Pin {
            name: spec.name,
            path,
            source,
        })?;
        let _old = pinned.insert(info.name().to_vec(), info.id());
    }
    // Others than the pinned ones are constant data, or ours from before they were made anew.
    let is_stale = |map: &MapInfo| pinned.get(map.name()).is_some_and(|id| *id != map.id());
    let is_current = maps(&programs).is_some_and(|maps| !maps.iter().any(is_stale));
    Ok(is_current.then_some(programs))
}

/// Writes the table that the datapath repairs SCTP checksums with, unless it stands there already.
fn fill_crc_shifts(pins: &Pins) -> Result<(), LoadError> {
    let mut table: List<u32> = List::open(pins, "CRC_SHIFTS")?;
    for (length, shift) in (0..table.size()).zip(crc32c::shifts()) {
        if table.get(length)? != shift {
            table.set(length, &shift)?;
        }
    }
    Ok(())
}

/// Removes larger maps that a start began to fill and did not finish.
fn discard_grown(pins: &Pins, plans: &[(Spec, Plan)]) -> Result<(), LoadError> {
    plans
        .iter()
        .try_for_each(|(spec, _)| remove_file(&pins.grown_map(spec.name)))
}

/// The pins of maps that do not exist before loading.
fn made(pins: &Pins, plans: &[(Spec, Plan)]) -> Vec<PathBuf> {
    let is_new = |(_, plan): &&(Spec, Plan)| matches!(plan, Plan::Create(_));
    plans
        .iter()
        .filter(is_new)
        .map(|(spec, _)| pins.map(spec.name))
        .collect()
}

/// Removes those of our folders in which nothing is left.
pub(crate) fn remove_empty_folders(pins: &Pins) {
    for folder in [
        pins.maps(),
        pins.programs(),
        pins.links(),
        pins.layout(),
        pins.root().into(),
    ] {
        if let Err(error) = std::fs::remove_dir(&folder) {
            tracing::debug!("{} stays: {error}", folder.display());
        }
    }
}

fn warn_if_failed(result: Result<(), LoadError>) {
    if let Err(error) = result {
        tracing::warn!("{error}");
    }
}

/// Removes `path`; nothing to do if it is not there.
fn remove_file(path: &Path) -> Result<(), LoadError> {
    pins::remove(path)
        .map(drop)
        .map_err(io_error("remove", path))
}

/// Removes `path` and what is in it; nothing to do if it is not there.
fn remove_folder(path: &Path) -> Result<(), LoadError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("remove", path)(error))
        }
        _ => Ok(()),
    }
}

fn names(folder: &Path) -> Result<Vec<String>, LoadError> {
    pins::file_names(folder).map_err(io_error("read", folder))
}

fn io_error(action: &'static str, path: &Path) -> impl Fn(io::Error) -> LoadError {
    move |source| LoadError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_covers_object_and_globals() {
        let old = Features {
            tcx: true,
            coarse_clock: false,
            set_retval: false,
            netns_cookie: true,
        };
        let coarse = Features {
            coarse_clock: true,
            ..old
        };
        let telling = Features {
            set_retval: true,
            ..old
        };
        let other = Features {
            tcx: false,
            netns_cookie: false,
            ..old
        };
        assert_ne!(digest(b"a", old), digest(b"b", old));
        assert_ne!(digest(b"a", old), digest(b"a", coarse));
        assert_ne!(digest(b"a", old), digest(b"a", telling));
        assert_eq!(digest(b"a", old), digest(b"a", other));
    }
}

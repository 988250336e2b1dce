//! The kernel programs, loaded and pinned.

use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::maps::MapInfo;
use aya::programs::{ProgramError, ProgramInfo, SchedClassifier};
use proxy_common::abi::Side;

use super::LoadError;

/// A program for one side of devices of one kind.
pub struct Program {
    /// Which one.
    pub kind: Kind,
    /// The kernel's number of it.
    pub id: u32,
    /// The kernel's hash of its instructions.
    pub tag: u64,
    /// For attaching it.
    pub(super) classifier: SchedClassifier,
}

/// Which program.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// What a pod sends.
    PodIngress,
    /// What a pod gets.
    PodEgress,
    /// What comes in from outside.
    NodeIngress,
    /// What goes out, and what this node's own processes send.
    NodeEgress,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::PodIngress,
        Self::PodEgress,
        Self::NodeIngress,
        Self::NodeEgress,
    ];

    /// Its name in the object.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PodIngress => "pod_ingress",
            Self::PodEgress => "pod_egress",
            Self::NodeIngress => "node_ingress",
            Self::NodeEgress => "node_egress",
        }
    }

    /// On which side of a device it belongs.
    pub const fn side(self) -> Side {
        match self {
            Self::PodIngress | Self::NodeIngress => Side::Ingress,
            Self::PodEgress | Self::NodeEgress => Side::Egress,
        }
    }
}

/// All programs.
pub struct Programs {
    folder: PathBuf,
    /// In the order of [`Kind::ALL`].
    pub all: [Program; 4],
}

/// Whether a program of this name is one of ours.
pub(super) fn is_ours(program: &str) -> bool {
    Kind::ALL.iter().any(|kind| kind.name() == program)
}

impl Programs {
    /// The programs that are pinned in `folder`; `None` if they are not all there.
    pub(super) fn open(folder: &Path) -> Option<Self> {
        let open = |kind: Kind| {
            let classifier = SchedClassifier::from_pin(folder.join(kind.name())).ok()?;
            Program::new(kind, classifier).ok()
        };
        let all = Kind::ALL.map(open);
        let [Some(a), Some(b), Some(c), Some(d)] = all else {
            return None;
        };
        Some(Self {
            folder: folder.to_owned(),
            all: [a, b, c, d],
        })
    }

    /// Has the kernel verify the programs of `ebpf`, and pins them in `folder`.
    pub(super) fn load(ebpf: &mut Ebpf, folder: &Path) -> Result<Self, LoadError> {
        for kind in Kind::ALL {
            load_and_pin(ebpf, kind.name(), folder)?;
        }
        // Opened from the pins, the programs do not depend on `ebpf`, nor end with it.
        Self::open(folder).ok_or(LoadError::NoProgram {
            name: "of all that it should have",
        })
    }

    /// The program of this kind.
    pub(super) fn get_mut(&mut self, kind: Kind) -> Option<&mut Program> {
        self.all.iter_mut().find(|program| program.kind == kind)
    }

    /// Where they are pinned.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The maps that they use; `None` if the kernel does not tell.
    pub(super) fn maps(&self) -> Option<Vec<MapInfo>> {
        let mut maps = Vec::new();
        for program in &self.all {
            for id in program.classifier.info().ok()?.map_ids().ok()?? {
                maps.push(MapInfo::from_id(id).ok()?);
            }
        }
        Some(maps)
    }
}

impl Program {
    fn new(kind: Kind, classifier: SchedClassifier) -> Result<Self, ProgramError> {
        let info: ProgramInfo = classifier.info()?;
        Ok(Self {
            kind,
            id: info.id(),
            tag: info.tag(),
            classifier,
        })
    }
}

fn load_and_pin(ebpf: &mut Ebpf, name: &'static str, folder: &Path) -> Result<(), LoadError> {
    let failed = |action| {
        move |source| LoadError::Program {
            name,
            action,
            source: Box::new(source),
        }
    };
    let program = ebpf
        .program_mut(name)
        .ok_or(LoadError::NoProgram { name })?;
    let classifier: &mut SchedClassifier = program.try_into().map_err(failed("opening"))?;
    classifier.load().map_err(|error| refused(name, error))?;
    let path = folder.join(name);
    classifier
        .pin(&path)
        .map_err(|error| failed("pinning")(pin_error(error)))
}

/// The verifier's log has thousands of lines, of which the last ones say why.
fn refused(name: &'static str, error: ProgramError) -> LoadError {
    let ProgramError::LoadError {
        io_error,
        verifier_log,
    } = error
    else {
        return LoadError::Program {
            name,
            action: "verification",
            source: Box::new(error),
        };
    };
    let log = verifier_log.to_string();
    tracing::debug!("program {name}: {log}");
    LoadError::Refused {
        name,
        reason: reason(&log).to_owned(),
        source: io_error,
    }
}

/// The last line of a verifier's log that is no statistics.
fn reason(log: &str) -> &str {
    const STATISTICS: [&str; 3] = ["verification time", "stack depth", "processed"];
    let is_reason =
        |line: &&str| !line.is_empty() && !STATISTICS.iter().any(|start| line.starts_with(start));
    log.lines()
        .rev()
        .map(str::trim)
        .find(is_reason)
        .unwrap_or("no reason given")
}

fn pin_error(error: aya::pin::PinError) -> ProgramError {
    ProgramError::IOError(std::io::Error::other(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verifiers_reason_is_its_last_word() {
        let log = "0: (b7) r0 = 0\ninvalid access to packet, off=0 size=1\n\
                   R5 offset is outside of the packet\nverification time 2405 usec\n\
                   stack depth 112\nprocessed 207 insns (limit 1000000)\n";
        assert_eq!(reason(log), "R5 offset is outside of the packet");
        assert_eq!(reason(""), "no reason given");
    }
}

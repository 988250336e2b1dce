//! The programs on devices, loaded and pinned.

use std::path::Path;

use aya::Ebpf;
use aya::maps::MapInfo;
use aya::programs::{ProgramError, ProgramInfo, SchedClassifier};
use proxy_common::abi::Side;

use super::{LoadError, verify};

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

/// All of them.
pub struct Programs {
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
        Some(Self { all: [a, b, c, d] })
    }

    /// Has the kernel verify the programs of `ebpf`, and pins them in `folder`.
    pub(super) fn load(ebpf: &mut Ebpf, folder: &Path) -> Result<Self, LoadError> {
        let wanted = Kind::ALL.map(|kind| (kind.name(), ()));
        verify::load_and_pin(ebpf, folder, &wanted, |(), program| {
            let classifier: &mut SchedClassifier = program.try_into()?;
            classifier.load()
        })?;
        // Opened from the pins, the programs do not depend on `ebpf`, nor end with it.
        Self::open(folder).ok_or(LoadError::NoProgram {
            name: "of all that it should have",
        })
    }

    /// The program of this kind.
    pub(super) fn get_mut(&mut self, kind: Kind) -> Option<&mut Program> {
        self.all.iter_mut().find(|program| program.kind == kind)
    }

    /// The maps that they use; `None` if the kernel does not tell.
    pub(super) fn maps(&self) -> Option<Vec<MapInfo>> {
        let programs = self.all.iter();
        verify::maps(programs.map(|program| program.classifier.info()))
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

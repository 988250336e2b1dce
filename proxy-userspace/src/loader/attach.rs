//! The programs on the devices, by TCX links or by clsact filters.
//!
//! Both outlive the process: a TCX link by its pin, a filter by itself. Both are replaced
//! atomically: the link's program by an update of the link, the filter by one with its handle.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{LinkOrder, ProgramError, ProgramInfo, SchedClassifier, TcAttachType};
use aya::sys::SyscallError;
use proxy_common::abi::Side;
use serde::{Deserialize, Serialize};

use super::cgroup::syscall;
use super::checks::Features;
use super::clsact::{self, FilterError};
use super::pins::{self, Pins};
use super::programs::{self, Kind, Program, Programs};

/// A network device.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Device {
    /// Its number in the network namespace.
    pub index: u32,
    /// Its name.
    pub name: Arc<str>,
}

/// How programs are attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// By a link (Linux 6.6).
    Tcx,
    /// By a filter at the qdisc `clsact`.
    Clsact,
}

impl Method {
    /// The best that the kernel offers.
    pub const fn best(features: Features) -> Self {
        if features.tcx {
            Self::Tcx
        } else {
            Self::Clsact
        }
    }

    /// A word for tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcx => "TCX",
            Self::Clsact => "clsact",
        }
    }
}

/// What attaching changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// The program was there.
    Unchanged,
    /// It took the place of another one.
    Replaced,
    /// Nothing was there.
    Created,
}

/// A program that is attached, as the kernel tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attached {
    /// Which side of the device.
    pub side: Side,
    /// How.
    pub method: Method,
    /// The kernel's number of the program.
    pub program: u32,
    /// The hash of its instructions; `None` if the kernel does not tell.
    pub tag: Option<u64>,
}

/// Attaching or detaching failed.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// At TCX.
    #[error("device {device}: TCX {} failed", side.name())]
    Tcx {
        /// The device's name.
        device: Arc<str>,
        /// Which side of it.
        side: Side,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// At clsact.
    #[error("device {device}: clsact {} failed", side.name())]
    Clsact {
        /// The device's name.
        device: Arc<str>,
        /// Which side of it.
        side: Side,
        /// Why.
        source: FilterError,
    },
    /// The pins cannot be read.
    #[error("cannot read {}", path.display())]
    Pins {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A pin cannot be removed.
    #[error("cannot remove {}", path.display())]
    Unpin {
        /// The pin.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Where programs are attached in relation to a predecessor's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// They take their place, in one step.
    Instead,
    /// They see what those leave alone, until [`settle`] lets them take their place.
    Behind,
}

/// Both sides of a device.
pub const SIDES: [Side; 2] = [Side::Ingress, Side::Egress];

/// Puts programs on devices and takes them off.
pub struct Attacher {
    method: Method,
    place: Place,
    pins: Pins,
    netlink: rtnetlink::Handle,
    programs: Programs,
}

impl Attacher {
    /// Attaches `programs` by `method`.
    pub fn new(
        (method, place): (Method, Place),
        pins: Pins,
        netlink: rtnetlink::Handle,
        programs: Programs,
    ) -> Self {
        Self {
            method,
            place,
            pins,
            netlink,
            programs,
        }
    }

    /// How programs are attached.
    pub const fn method(&self) -> Method {
        self.method
    }

    /// Sees to it that these programs are on `device` and none of ours on a side that they leave
    /// free. One that is there takes the other's place in one step.
    ///
    /// # Errors
    /// If the kernel refuses; one side may be attached then.
    pub async fn attach(
        &mut self,
        device: &Device,
        kinds: &[Kind],
    ) -> Result<Vec<Change>, AttachError> {
        let site = Site {
            device,
            pins: &self.pins,
            netlink: &self.netlink,
        };
        let mut changes = Vec::new();
        for side in SIDES {
            let kind = kinds.iter().find(|kind| kind.side() == side);
            match kind.and_then(|kind| self.programs.get_mut(*kind)) {
                Some(program) => {
                    let how = (self.method, self.place);
                    changes.push(site.attach(how, program).await?);
                }
                None => {
                    let _was_there = site.detach(side).await?;
                }
            }
        }
        Ok(changes)
    }

    /// Takes the programs off `device`, however they were attached; says whether any was there.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn detach(&self, device: &Device) -> Result<bool, AttachError> {
        detach(&self.pins, &self.netlink, device).await
    }

    /// Numbers of the devices for which links are pinned.
    ///
    /// # Errors
    /// If the folder of the links cannot be read.
    pub fn pinned(&self) -> Result<BTreeSet<u32>, AttachError> {
        let links = self.pins.pinned_links();
        let links = links.map_err(|source| AttachError::Pins {
            path: self.pins.links(),
            source,
        })?;
        Ok(links.into_iter().map(|(index, _)| index).collect())
    }

    /// Removes the pins that a device left behind which is no more.
    ///
    /// # Errors
    /// If a pin cannot be removed.
    pub fn forget(&self, index: u32) -> Result<bool, AttachError> {
        forget(&self.pins, index)
    }
}

/// Removes the pins of the links at device `index`; says whether there were any.
///
/// # Errors
/// If a pin cannot be removed.
pub fn forget(pins: &Pins, index: u32) -> Result<bool, AttachError> {
    let mut was_there = false;
    for side in SIDES {
        was_there |= unpin(pins.link(index, side))?;
        was_there |= unpin(pins.new_link(index, side))?;
    }
    Ok(was_there)
}

/// Lets programs that were attached behind a predecessor's take its place: with a link's pin goes
/// the link, and with the link the program, in one step at each side of each device. `programs` are
/// those that stay.
///
/// # Errors
/// If a pin cannot be renamed, or the kernel refuses.
pub(super) async fn settle(
    pins: &Pins,
    netlink: &rtnetlink::Handle,
    devices: &[Device],
    programs: &Programs,
) -> Result<(), AttachError> {
    for (index, side) in new_links(pins)? {
        settle_at(pins, index, side)?;
    }
    for device in devices {
        for side in SIDES {
            let settled = clsact::settle(netlink, device.index, side, programs).await;
            settled.map_err(|source| clsact_error(device, side, source))?;
        }
    }
    Ok(())
}

/// Takes off again what was attached behind a predecessor's programs.
///
/// # Errors
/// If a pin cannot be removed.
pub fn discard_new(pins: &Pins) -> Result<(), AttachError> {
    new_links(pins)?
        .into_iter()
        .try_for_each(|(index, side)| unpin(pins.new_link(index, side)).map(drop))
}

fn new_links(pins: &Pins) -> Result<Vec<(u32, Side)>, AttachError> {
    pins.new_links().map_err(|source| AttachError::Pins {
        path: pins.links(),
        source,
    })
}

fn settle_at(pins: &Pins, index: u32, side: Side) -> Result<(), AttachError> {
    let (new, path) = (pins.new_link(index, side), pins.link(index, side));
    let old = syscall::open_pin(&path);
    match std::fs::rename(&new, &path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(AttachError::Unpin { path: new, source }),
    }
    // What it still opened would be known to nobody: it has to be gone before anything else is done.
    if let Ok(old) = old
        && let Err(error) = syscall::detach_link(old.as_fd())
    {
        tracing::debug!("{}: the old link goes by itself: {error}", path.display());
    }
    Ok(())
}

/// Takes our programs off `device`, however they were attached; says whether any was there.
///
/// # Errors
/// If the kernel refuses.
pub async fn detach(
    pins: &Pins,
    netlink: &rtnetlink::Handle,
    device: &Device,
) -> Result<bool, AttachError> {
    let site = Site {
        device,
        pins,
        netlink,
    };
    let mut was_there = false;
    for side in SIDES {
        was_there |= site.detach(side).await?;
    }
    Ok(was_there)
}

/// Our programs on `device`.
///
/// # Errors
/// If the kernel does not tell.
pub async fn attached(
    netlink: &rtnetlink::Handle,
    device: &Device,
) -> Result<Vec<Attached>, AttachError> {
    let mut all = Vec::new();
    for side in SIDES {
        let links = tcx_programs(device, side).unwrap_or_default();
        let ours = links
            .iter()
            .filter(|info| info.name_as_str().is_some_and(programs::is_ours));
        all.extend(ours.map(|info| Attached {
            side,
            method: Method::Tcx,
            program: info.id(),
            tag: Some(info.tag()),
        }));
        let filters = clsact::filters(netlink, device.index, side);
        let filters = filters
            .await
            .map_err(|source| clsact_error(device, side, source))?;
        all.extend(filters.into_iter().map(|filter| Attached {
            side,
            method: Method::Clsact,
            program: filter.program,
            tag: filter.tag,
        }));
    }
    Ok(all)
}

/// A device, and what is needed to work on it.
struct Site<'a> {
    device: &'a Device,
    pins: &'a Pins,
    netlink: &'a rtnetlink::Handle,
}

impl Site<'_> {
    /// First the other way's leftover goes, then the program comes: better a moment without one
    /// than two that both translate.
    async fn attach(
        &self,
        (method, place): (Method, Place),
        program: &mut Program,
    ) -> Result<Change, AttachError> {
        let side = program.kind.side();
        match method {
            Method::Tcx => {
                let _was_there = self.remove_filters(side).await?;
                if place == Place::Instead {
                    // A start may have been killed before it did.
                    settle_at(self.pins, self.device.index, side)?;
                }
                self.link(place, program)
                    .map_err(|error| tcx_error(self.device, side, error))
            }
            Method::Clsact => {
                let _was_there = unpin(self.pins.new_link(self.device.index, side))?;
                let _was_there = unpin(self.pins.link(self.device.index, side))?;
                self.filter(place, program)
                    .await
                    .map_err(|source| clsact_error(self.device, side, source))
            }
        }
    }

    async fn detach(&self, side: Side) -> Result<bool, AttachError> {
        let _was_there = unpin(self.pins.new_link(self.device.index, side))?;
        let had_link = unpin(self.pins.link(self.device.index, side))?;
        let had_filters = self.remove_filters(side).await?;
        Ok(had_link || had_filters)
    }

    async fn filter(&self, place: Place, program: &Program) -> Result<Change, FilterError> {
        let (netlink, index) = (self.netlink, self.device.index);
        match place {
            Place::Instead => clsact::attach(netlink, index, program).await,
            Place::Behind => clsact::attach_behind(netlink, index, program).await,
        }
    }

    async fn remove_filters(&self, side: Side) -> Result<bool, AttachError> {
        clsact::detach(self.netlink, self.device.index, side)
            .await
            .map_err(|source| clsact_error(self.device, side, source))
    }

    fn link(&self, place: Place, program: &mut Program) -> Result<Change, TcxError> {
        let side = program.kind.side();
        let path = self.pins.link(self.device.index, side);
        let new_path = self.pins.new_link(self.device.index, side);
        let Some((link, attached)) = self.attached_link(&path, side)? else {
            // Next to the pod on both sides: others see real addresses only.
            let order = match side {
                Side::Ingress => LinkOrder::first(),
                Side::Egress => LinkOrder::last(),
            };
            self.create_link(program, order, &path)?;
            let _was_there = pins::remove(&new_path)?;
            return Ok(Change::Created);
        };
        if attached == program.id {
            let _was_there = pins::remove(&new_path)?;
            return Ok(Change::Unchanged);
        }
        if place == Place::Instead {
            update_link(program, link)?;
            return Ok(Change::Replaced);
        }
        match self.attached_link(&new_path, side)? {
            Some((_, attached)) if attached == program.id => {}
            Some((link, _)) => update_link(program, link)?,
            None => {
                let old = SchedClassifierLink::try_from(link)?;
                self.create_link(program, LinkOrder::after_link(&old)?, &new_path)?;
            }
        }
        Ok(Change::Replaced)
    }

    /// The pinned link, if it is at this device, and the kernel's number of its program.
    fn attached_link(&self, path: &Path, side: Side) -> Result<Option<(FdLink, u32)>, TcxError> {
        let Some(link) = pinned_link(path)? else {
            return Ok(None);
        };
        let attached = link.info()?.program_id();
        let present = tcx_programs(self.device, side)?;
        if present.iter().any(|info| info.id() == attached) {
            return Ok(Some((link, attached)));
        }
        // The pin of another device that had this index before, or has it in another network
        // namespace.
        std::fs::remove_file(path)?;
        Ok(None)
    }

    fn create_link(
        &self,
        program: &mut Program,
        order: LinkOrder,
        path: &Path,
    ) -> Result<(), TcxError> {
        let options = TcAttachOptions::TcxOrder(order);
        let side = program.kind.side();
        let classifier: &mut SchedClassifier = &mut program.classifier;
        let id = classifier.attach_with_options(&self.device.name, attach_type(side), options)?;
        let link: FdLink = classifier.take_link(id)?.try_into()?;
        drop(link.pin(path)?);
        Ok(())
    }
}

/// Replaces the program of a link.
fn update_link(program: &mut Program, link: FdLink) -> Result<(), TcxError> {
    let link = SchedClassifierLink::try_from(link)?;
    let id = program.classifier.attach_to_link(link)?;
    // The link stays by its pin; dropped here, it would be if the program still owned it.
    drop(program.classifier.take_link(id)?);
    Ok(())
}

/// What can go wrong with a link.
#[derive(Debug, thiserror::Error)]
enum TcxError {
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Pin(#[from] aya::pin::PinError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

fn tcx_error(device: &Device, side: Side, error: TcxError) -> AttachError {
    AttachError::Tcx {
        device: device.name.clone(),
        side,
        source: Box::new(error),
    }
}

fn clsact_error(device: &Device, side: Side, source: FilterError) -> AttachError {
    AttachError::Clsact {
        device: device.name.clone(),
        side,
        source,
    }
}

fn pinned_link(path: &Path) -> Result<Option<FdLink>, LinkError> {
    match PinnedLink::from_pin(path) {
        Ok(link) => Ok(Some(link.into())),
        Err(LinkError::SyscallError(SyscallError { io_error, .. }))
            if io_error.kind() == io::ErrorKind::NotFound =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn tcx_programs(device: &Device, side: Side) -> Result<Vec<ProgramInfo>, ProgramError> {
    Ok(SchedClassifier::query_tcx(&device.name, attach_type(side))?.1)
}

const fn attach_type(side: Side) -> TcAttachType {
    match side {
        Side::Ingress => TcAttachType::Ingress,
        Side::Egress => TcAttachType::Egress,
    }
}

fn unpin(path: PathBuf) -> Result<bool, AttachError> {
    pins::remove(&path).map_err(|source| AttachError::Unpin { path, source })
}

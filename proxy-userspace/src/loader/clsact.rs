//! Filters at the qdisc `clsact`, for kernels without TCX.
//!
//! Ours have a fixed priority and handle on each side of a device, so that a new program takes
//! the place of the old one in one step, and are named after their program. While old and new
//! programs are both needed, there is a second one, next to the first: on ingress, where nothing
//! can be before the first, it has the new program until that takes its place; on egress, where
//! nothing can be behind it, it has the old one.

use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::programs::{ProgramError, ProgramFd, loaded_programs};
use futures::StreamExt as _;
use proxy_common::abi::Side;
use rtnetlink::Handle;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption,
};

use super::attach::Change;
use super::programs::{self, Program, Programs};

/// Tells our filters from others'; what it is does not matter.
const HANDLE: u32 = 0xbee;

const ETH_P_ALL: u16 = 3;

/// Next to the pod on both sides: others see real addresses only.
const fn priority(side: Side) -> u16 {
    match side {
        Side::Ingress => 1,
        Side::Egress => u16::MAX,
    }
}

/// The priority of the second filter.
const fn second_priority(side: Side) -> u16 {
    match side {
        Side::Ingress => priority(side) + 1,
        Side::Egress => priority(side) - 1,
    }
}

/// A request that failed.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The kernel refused.
    #[error("{action}: {source}")]
    Refused {
        /// What was tried.
        action: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The request could not be sent.
    #[error("{action}: no connection to rtnetlink")]
    NoConnection {
        /// What was tried.
        action: &'static str,
    },
    /// A program cannot be got hold of.
    #[error(transparent)]
    Program(#[from] aya::programs::ProgramError),
}

impl FilterError {
    fn code(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            Self::NoConnection { .. } | Self::Program(_) => None,
        }
    }
}

/// One of our filters.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Filter {
    handle: TcHandle,
    info: u32,
    /// The kernel's number of its program.
    pub(super) program: u32,
    /// The hash of the program's instructions.
    pub(super) tag: Option<u64>,
}

impl Filter {
    const fn priority(&self) -> u16 {
        (self.info >> 16) as u16
    }
}

/// Sees to it that `program` is at its side of the device.
pub(super) async fn attach(
    netlink: &Handle,
    index: u32,
    program: &Program,
) -> Result<Change, FilterError> {
    let present = filters(netlink, index, program.kind.side()).await?;
    let is_first = |filter: &&Filter| filter.priority() == priority(program.kind.side());
    let first = present.iter().find(is_first);
    if first.is_some_and(|filter| filter.program == program.id) {
        return Ok(Change::Unchanged);
    }
    add_qdisc(netlink, index).await?;
    let side = program.kind.side();
    put(netlink, index, program, (side, priority(side))).await?;
    Ok(if present.is_empty() {
        Change::Created
    } else {
        Change::Replaced
    })
}

/// Sees to it that `program` is behind whatever program of ours is at its side of the device.
pub(super) async fn attach_behind(
    netlink: &Handle,
    index: u32,
    program: &Program,
) -> Result<Change, FilterError> {
    let side = program.kind.side();
    let present = filters(netlink, index, side).await?;
    let find = |priority| present.iter().find(|it| it.priority() == priority);
    let Some(first) = find(priority(side)) else {
        return attach(netlink, index, program).await;
    };
    if first.program == program.id {
        return Ok(Change::Unchanged);
    }
    let second = find(second_priority(side));
    match side {
        Side::Ingress => {
            let there = (side, second_priority(side));
            put(netlink, index, program, there).await?;
        }
        Side::Egress => {
            if second.is_none() {
                let old = fd_of(first.program)?;
                let name = program.kind.name();
                let attributes = attributes_of(&old, name);
                put_attributes(netlink, index, attributes, (side, second_priority(side))).await?;
            }
            put(netlink, index, program, (side, priority(side))).await?;
        }
    }
    Ok(Change::Replaced)
}

/// Lets a program that is behind another take its place. `programs` are those that stay.
pub(super) async fn settle(
    netlink: &Handle,
    index: u32,
    side: Side,
    programs: &Programs,
) -> Result<(), FilterError> {
    let present = filters(netlink, index, side).await?;
    let second = second_priority(side);
    let Some(second) = present.iter().find(|it| it.priority() == second) else {
        return Ok(());
    };
    let new = programs.all.iter().find(|it| it.id == second.program);
    if side == Side::Ingress
        && let Some(new) = new
    {
        // For a moment it is there twice: what the one has translated the other leaves alone.
        put(netlink, index, new, (side, priority(side))).await?;
    }
    remove(netlink, index, side, second).await
}

/// Puts a program at this side and priority, in place of what is there.
async fn put(
    netlink: &Handle,
    index: u32,
    program: &Program,
    place: (Side, u16),
) -> Result<(), FilterError> {
    let attributes = attributes(program)?;
    put_attributes(netlink, index, attributes, place).await
}

async fn put_attributes(
    netlink: &Handle,
    index: u32,
    attributes: Vec<TcAttribute>,
    (side, priority): (Side, u16),
) -> Result<(), FilterError> {
    let mut message = message(index, side, priority);
    message.attributes = attributes;
    let new = RouteNetlinkMessage::NewTrafficFilter(message);
    request(netlink, "adding the filter", new, NLM_F_ACK | NLM_F_CREATE)
        .await
        .map(drop)
}

async fn remove(
    netlink: &Handle,
    index: u32,
    side: Side,
    filter: &Filter,
) -> Result<(), FilterError> {
    let mut message = message(index, side, filter.priority());
    message.header.handle = filter.handle;
    message.header.info = filter.info;
    let delete = RouteNetlinkMessage::DelTrafficFilter(message);
    request(netlink, "removing the filter", delete, NLM_F_ACK)
        .await
        .map(drop)
}

/// The program with this number of the kernel's.
fn fd_of(id: u32) -> Result<ProgramFd, FilterError> {
    let found = loaded_programs()
        .filter_map(Result::ok)
        .find(|info| info.id() == id);
    let missing = || ProgramError::NotLoaded;
    Ok(found.ok_or_else(missing)?.fd()?)
}

/// Removes our filters from one side of the device; says whether there were any.
pub(super) async fn detach(netlink: &Handle, index: u32, side: Side) -> Result<bool, FilterError> {
    let present = filters(netlink, index, side).await?;
    for filter in &present {
        remove(netlink, index, side, filter).await?;
    }
    Ok(!present.is_empty())
}

/// Our filters at one side of the device; none if it has no such qdisc.
pub(super) async fn filters(
    netlink: &Handle,
    index: u32,
    side: Side,
) -> Result<Vec<Filter>, FilterError> {
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.parent = parent(side);
    let get = RouteNetlinkMessage::GetTrafficFilter(message);
    match request(netlink, "reading the filters", get, NLM_F_DUMP).await {
        Ok(answers) => Ok(answers
            .iter()
            .filter_map(|answer| ours(answer, index))
            .collect()),
        Err(error) if matches!(error.code(), Some(libc::EINVAL | libc::ENOENT)) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The answer as one of our filters.
fn ours(answer: &RouteNetlinkMessage, index: u32) -> Option<Filter> {
    let RouteNetlinkMessage::NewTrafficFilter(message) = answer else {
        return None;
    };
    if message.header.index != index.cast_signed() {
        return None;
    }
    let options = message.attributes.iter().find_map(|attribute| {
        if let TcAttribute::Options(options) = attribute {
            Some(options)
        } else {
            None
        }
    })?;
    let options = || {
        options.iter().filter_map(|option| {
            if let TcOption::Bpf(option) = option {
                Some(option)
            } else {
                None
            }
        })
    };
    let is_ours = options().any(
        |option| matches!(option, TcFilterBpfOption::ProgName(name) if programs::is_ours(name)),
    );
    let program = options().find_map(|option| {
        if let TcFilterBpfOption::ProgId(id) = option {
            Some(*id)
        } else {
            None
        }
    });
    let tag = options().find_map(|option| {
        if let TcFilterBpfOption::ProgTag(tag) = option {
            Some(u64::from_be_bytes(*tag))
        } else {
            None
        }
    });
    is_ours.then_some(Filter {
        handle: message.header.handle,
        info: message.header.info,
        program: program?,
        tag,
    })
}

/// Adds the qdisc, unless the device has it.
async fn add_qdisc(netlink: &Handle, index: u32) -> Result<(), FilterError> {
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.handle = TcHandle {
        major: 0xffff,
        minor: 0,
    };
    message.header.parent = TcHandle::CLSACT;
    message
        .attributes
        .push(TcAttribute::Kind("clsact".to_owned()));
    let new = RouteNetlinkMessage::NewQueueDiscipline(message);
    let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    match request(netlink, "adding the qdisc clsact", new, flags).await {
        Err(error) if error.code() != Some(libc::EEXIST) => Err(error),
        _ => Ok(()),
    }
}

fn message(index: u32, side: Side, priority: u16) -> TcMessage {
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.parent = parent(side);
    message.header.handle = TcHandle::from(HANDLE);
    let protocol = ETH_P_ALL.to_be();
    message.header.info = u32::from(TcHandle {
        major: priority,
        minor: protocol,
    });
    message
}

fn attributes(program: &Program) -> Result<Vec<TcAttribute>, FilterError> {
    let fd = program.classifier.fd()?;
    Ok(attributes_of(fd, program.kind.name()))
}

fn attributes_of(fd: &ProgramFd, name: &str) -> Vec<TcAttribute> {
    let options = [
        TcFilterBpfOption::ProgFd(fd.as_fd().as_raw_fd().cast_unsigned()),
        TcFilterBpfOption::ProgName(name.to_owned()),
        TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
    ];
    let options = options.into_iter().map(TcOption::Bpf).collect();
    vec![
        TcAttribute::Kind(TcFilterBpf::KIND.to_owned()),
        TcAttribute::Options(options),
    ]
}

const fn parent(side: Side) -> TcHandle {
    let minor = match side {
        Side::Ingress => TcHandle::MIN_INGRESS,
        Side::Egress => TcHandle::MIN_EGRESS,
    };
    TcHandle {
        major: 0xffff,
        minor,
    }
}

async fn request(
    netlink: &Handle,
    action: &'static str,
    message: RouteNetlinkMessage,
    flags: u16,
) -> Result<Vec<RouteNetlinkMessage>, FilterError> {
    let mut request = NetlinkMessage::from(message);
    request.header.flags = NLM_F_REQUEST | flags;
    let mut netlink = netlink.clone();
    let mut answers = netlink
        .request(request)
        .map_err(|_| FilterError::NoConnection { action })?;
    let mut messages = Vec::new();
    while let Some(answer) = answers.next().await {
        if let NetlinkPayload::Error(error) = &answer.payload
            && error.code.is_some()
        {
            let source = error.to_io();
            return Err(FilterError::Refused { action, source });
        }
        if let NetlinkPayload::InnerMessage(message) = answer.payload {
            messages.push(message);
        }
    }
    Ok(messages)
}

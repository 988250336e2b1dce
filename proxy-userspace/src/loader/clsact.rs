//! Filters at the qdisc `clsact`, for kernels without TCX.
//!
//! Ours have a fixed priority and handle on each side of a device, so that a new program takes
//! the place of the old one in one step, and are named after their program.

use std::os::fd::{AsFd as _, AsRawFd as _};

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
use super::programs::{self, Program};

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
    /// The program is not loaded.
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

/// Sees to it that `program` is at its side of the device.
pub(super) async fn attach(
    netlink: &Handle,
    index: u32,
    program: &Program,
) -> Result<Change, FilterError> {
    let present = filters(netlink, index, program.kind.side()).await?;
    if present.iter().any(|filter| filter.program == program.id) {
        return Ok(Change::Unchanged);
    }
    add_qdisc(netlink, index).await?;
    let mut message = message(index, program.kind.side());
    message.attributes = attributes(program)?;
    let new = RouteNetlinkMessage::NewTrafficFilter(message);
    let _answers = request(netlink, "adding the filter", new, NLM_F_ACK | NLM_F_CREATE).await?;
    Ok(if present.is_empty() {
        Change::Created
    } else {
        Change::Replaced
    })
}

/// Removes our filters from one side of the device; says whether there were any.
pub(super) async fn detach(netlink: &Handle, index: u32, side: Side) -> Result<bool, FilterError> {
    let present = filters(netlink, index, side).await?;
    for filter in &present {
        let mut message = message(index, side);
        message.header.handle = filter.handle;
        message.header.info = filter.info;
        let delete = RouteNetlinkMessage::DelTrafficFilter(message);
        let _answers = request(netlink, "removing the filter", delete, NLM_F_ACK).await?;
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

fn message(index: u32, side: Side) -> TcMessage {
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.parent = parent(side);
    message.header.handle = TcHandle::from(HANDLE);
    let protocol = ETH_P_ALL.to_be();
    message.header.info = u32::from(TcHandle {
        major: priority(side),
        minor: protocol,
    });
    message
}

fn attributes(program: &Program) -> Result<Vec<TcAttribute>, FilterError> {
    let fd = program.classifier.fd()?.as_fd().as_raw_fd();
    let options = [
        TcFilterBpfOption::ProgFd(fd.cast_unsigned()),
        TcFilterBpfOption::ProgName(program.kind.name().to_owned()),
        TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
    ];
    let options = options.into_iter().map(TcOption::Bpf).collect();
    Ok(vec![
        TcAttribute::Kind(TcFilterBpf::KIND.to_owned()),
        TcAttribute::Options(options),
    ])
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

//! Why a Service is not in force as desired.

use std::error::Error;
use std::fmt;

use proxy_common::abi::FrontendKey;

use super::dump::describe;
use super::room::Shortage;
use super::target::Write;
use crate::causes;
use crate::model::ObjectName;

/// The reason, worded for an administrator.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// Maps have no room; the Service stays as it was.
    #[error("{_0}")]
    Full(Box<Shortage>),
    /// `SERVICES` can't hold the name.
    #[error(
        "field metadata.name: namespace, name and port name have {length} bytes together, \
         at most {} are possible",
        proxy_common::abi::ServiceName::CAPACITY
    )]
    LongName { length: usize },
    /// The target failed.
    #[error("map {map}: write failed: {cause}")]
    Write { map: &'static str, cause: String },
    /// Others have its frontends. The rest of the Service is in force.
    #[error("{}", list(.0))]
    Taken(Vec<Clash>),
}

/// A frontend that two Services claim.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Clash {
    pub(super) key: FrontendKey,
    /// Who has it in force.
    pub(super) rival: ObjectName,
}

impl fmt::Display for Clash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} belongs to Service {} already",
            describe(&self.key),
            self.rival
        )
    }
}

fn list(clashes: &[Clash]) -> String {
    clashes
        .iter()
        .map(Clash::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}

impl Refusal {
    pub(super) fn write(write: &Write, error: &dyn Error) -> Self {
        Self::Write {
            map: map_of(write),
            cause: causes::line(error),
        }
    }

    /// Whether a grace period may make the room that lacks.
    pub(super) fn is_curable(&self) -> bool {
        matches!(self, Self::Full(shortage) if shortage.is_curable())
    }
}

fn map_of(write: &Write) -> &'static str {
    match write {
        Write::Service { .. } | Write::RemoveService { .. } => "SERVICES",
        Write::Backend { .. } => "BACKENDS",
        Write::Slots { .. } => "SLOTS",
        Write::Frontend { .. } | Write::RemoveFrontend { .. } => "FRONTENDS",
        Write::Address { .. } | Write::RemoveAddress { .. } => "ADDRESSES",
        Write::SourceRange { .. } | Write::RemoveSourceRange { .. } => "SOURCE_RANGES",
    }
}

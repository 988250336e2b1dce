//! The programs of the socket edge, loaded and pinned.

use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use aya::Ebpf;
use aya::maps::MapInfo;
use aya::programs::links::{FdLink, LinkError};
use aya::programs::{
    CgroupAttachMode, CgroupSock, CgroupSockAddr, CgroupSockAddrAttachType, CgroupSockAttachType,
    Program, ProgramError, ProgramInfo,
};

use super::{LoadError, remove_file, verify};

/// Where in a socket's life a program runs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum SocketHook {
    /// It ends.
    SockRelease,
    /// An IPv4 datagram was received.
    Recvmsg4,
    /// An IPv6 datagram was received.
    Recvmsg6,
    /// It asks for the address of an IPv4 peer.
    Getpeername4,
    /// It asks for the address of an IPv6 peer.
    Getpeername6,
    /// It sends an IPv4 datagram to an address.
    Sendmsg4,
    /// It sends an IPv6 datagram to an address.
    Sendmsg6,
    /// It connects to an IPv4 address.
    Connect4,
    /// It connects to an IPv6 address.
    Connect6,
}

impl SocketHook {
    /// All of them, in the order in which they are attached: nothing is pointed at a backend
    /// before the way back is there. They are detached in reverse.
    pub const ALL: [Self; 9] = [
        Self::SockRelease,
        Self::Recvmsg4,
        Self::Recvmsg6,
        Self::Getpeername4,
        Self::Getpeername6,
        Self::Sendmsg4,
        Self::Sendmsg6,
        Self::Connect4,
        Self::Connect6,
    ];

    /// The program's name in the object.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SockRelease => "sock_release",
            Self::Recvmsg4 => "recvmsg4",
            Self::Recvmsg6 => "recvmsg6",
            Self::Getpeername4 => "getpeername4",
            Self::Getpeername6 => "getpeername6",
            Self::Sendmsg4 => "sendmsg4",
            Self::Sendmsg6 => "sendmsg6",
            Self::Connect4 => "connect4",
            Self::Connect6 => "connect6",
        }
    }

    /// The kernel's name for it; `None`: it is about a socket, not about an address.
    const fn address_type(self) -> Option<CgroupSockAddrAttachType> {
        use CgroupSockAddrAttachType as Type;
        match self {
            Self::SockRelease => None,
            Self::Recvmsg4 => Some(Type::UDPRecvMsg4),
            Self::Recvmsg6 => Some(Type::UDPRecvMsg6),
            Self::Getpeername4 => Some(Type::GetPeerName4),
            Self::Getpeername6 => Some(Type::GetPeerName6),
            Self::Sendmsg4 => Some(Type::UDPSendMsg4),
            Self::Sendmsg6 => Some(Type::UDPSendMsg6),
            Self::Connect4 => Some(Type::Connect4),
            Self::Connect6 => Some(Type::Connect6),
        }
    }
}

/// One of them.
pub struct SocketProgram {
    /// Which one.
    pub hook: SocketHook,
    /// The kernel's number of it.
    pub id: u32,
    kind: SocketKind,
}

enum SocketKind {
    Address(CgroupSockAddr),
    Socket(CgroupSock),
}

/// All of them.
pub struct SocketPrograms {
    /// In the order of [`SocketHook::ALL`].
    pub(super) all: Vec<SocketProgram>,
}

impl SocketPrograms {
    /// The programs that are pinned in `folder`; `None` if they are not all there.
    pub(super) fn open(folder: &Path) -> Option<Self> {
        let open = |hook| SocketProgram::open(hook, folder).ok();
        let all: Option<_> = SocketHook::ALL.into_iter().map(open).collect();
        all.map(|all| Self { all })
    }

    /// Has the kernel verify the programs of `ebpf`, and pins them in `folder`; all or none.
    pub(super) fn load(ebpf: &mut Ebpf, folder: &Path) -> Result<Self, LoadError> {
        let wanted = SocketHook::ALL.map(|hook| (hook.name(), hook));
        verify::load_and_pin(ebpf, folder, &wanted, load).inspect_err(|_| discard(folder))?;
        // Opened from the pins, the programs do not depend on `ebpf`, nor end with it.
        Self::open(folder).ok_or(LoadError::NoProgram {
            name: "of all that the socket edge should have",
        })
    }

    /// The program for this hook.
    pub(super) fn get_mut(&mut self, hook: SocketHook) -> Option<&mut SocketProgram> {
        self.all.iter_mut().find(|program| program.hook == hook)
    }

    /// The maps that they use; `None` if the kernel does not tell.
    pub(super) fn maps(&self) -> Option<Vec<MapInfo>> {
        verify::maps(self.all.iter().map(SocketProgram::info))
    }
}

impl SocketProgram {
    fn open(hook: SocketHook, folder: &Path) -> Result<Self, ProgramError> {
        let pin = folder.join(hook.name());
        let kind = match hook.address_type() {
            Some(attach_type) => SocketKind::Address(CgroupSockAddr::from_pin(pin, attach_type)?),
            None => SocketKind::Socket(CgroupSock::from_pin(
                pin,
                CgroupSockAttachType::SockRelease,
            )?),
        };
        let mut program = Self { hook, id: 0, kind };
        program.id = program.info()?.id();
        Ok(program)
    }

    fn info(&self) -> Result<ProgramInfo, ProgramError> {
        match &self.kind {
            SocketKind::Address(program) => program.info(),
            SocketKind::Socket(program) => program.info(),
        }
    }

    /// Makes a link of it to the cgroup, beside whatever is attached there.
    pub(super) fn attach(&mut self, cgroup: &File) -> Result<FdLink, AttachFailure> {
        let mode = CgroupAttachMode::Single;
        Ok(match &mut self.kind {
            SocketKind::Address(program) => {
                let id = program.attach(cgroup, mode)?;
                program.take_link(id)?.try_into()?
            }
            SocketKind::Socket(program) => {
                let id = program.attach(cgroup, mode)?;
                program.take_link(id)?.try_into()?
            }
        })
    }

    /// Its file descriptor.
    pub(super) fn fd(&self) -> Result<BorrowedFd<'_>, ProgramError> {
        let fd = match &self.kind {
            SocketKind::Address(program) => program.fd()?,
            SocketKind::Socket(program) => program.fd()?,
        };
        Ok(fd.as_fd())
    }
}

/// No link could be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttachFailure {
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    Link(#[from] LinkError),
}

fn load(hook: SocketHook, program: &mut Program) -> Result<(), ProgramError> {
    if hook.address_type().is_some() {
        let program: &mut CgroupSockAddr = program.try_into()?;
        program.load()
    } else {
        let program: &mut CgroupSock = program.try_into()?;
        program.load()
    }
}

/// Removes the pins of those that were loaded.
fn discard(folder: &Path) {
    for hook in SocketHook::ALL {
        if let Err(error) = remove_file(&folder.join(hook.name())) {
            tracing::warn!("{error}");
        }
    }
}

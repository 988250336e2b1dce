//! A program in a cgroup that is somebody else's.

use std::fs::File;
use std::path::Path;

use aya::Ebpf;
use aya::programs::{CgroupAttachMode, CgroupSockAddr};
use object::write::{Object, Symbol, SymbolSection};
use object::{
    Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope,
};

const NAME: &str = "no_port";

/// Attached as long as it lives: it has `connect()` to one port of IPv4 addresses fail with
/// `EPERM`.
pub(crate) struct ForeignProgram {
    _ebpf: Ebpf,
}

impl ForeignProgram {
    /// Attaches it beside whatever is there.
    pub(crate) fn attach(cgroup: &Path, port: u16) -> Self {
        let mut ebpf = Ebpf::load(&object(&code(port))).unwrap();
        let program: &mut CgroupSockAddr = ebpf.program_mut(NAME).unwrap().try_into().unwrap();
        program.load().unwrap();
        let folder = File::open(cgroup).unwrap();
        program.attach(folder, CgroupAttachMode::Single).unwrap();
        Self { _ebpf: ebpf }
    }
}

/// Instructions: opcode, registers, offset, and a number.
fn code(port: u16) -> Vec<u8> {
    const USER_PORT: i16 = 24;
    let port = i32::from(port.to_be());
    let instructions: [(u8, u8, i16, i32); 5] = [
        // r2 = context.user_port
        (0x61, 0x12, USER_PORT, 0),
        // r0 = 1: go on
        (0xb7, 0x00, 0, 1),
        // if r2 != port, skip one
        (0x55, 0x02, 1, port),
        // r0 = 0: fail
        (0xb7, 0x00, 0, 0),
        // return r0
        (0x95, 0x00, 0, 0),
    ];
    let bytes = instructions.map(|(opcode, registers, offset, number)| {
        let [a, b] = offset.to_le_bytes();
        let [c, d, e, f] = number.to_le_bytes();
        [opcode, registers, a, b, c, d, e, f]
    });
    bytes.concat()
}

/// An object file with this program.
fn object(code: &[u8]) -> Vec<u8> {
    let mut object = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
    let add = |object: &mut Object<'_>, name: &str, kind| {
        object.add_section(Vec::new(), name.as_bytes().to_vec(), kind)
    };
    let license = add(&mut object, "license", SectionKind::Data);
    let _offset = object.append_section_data(license, b"GPL\0", 1);
    let section = add(&mut object, "cgroup/connect4", SectionKind::Text);
    let value = object.append_section_data(section, code, 8);
    let _symbol = object.add_symbol(Symbol {
        name: NAME.as_bytes().to_vec(),
        value,
        size: code.len() as u64,
        kind: SymbolKind::Text,
        scope: SymbolScope::Dynamic,
        weak: false,
        section: SymbolSection::Section(section),
        flags: SymbolFlags::None,
    });
    object.write().unwrap()
}

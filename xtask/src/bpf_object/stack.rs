//! How much of the kernel's stack a program takes.
//!
//! The kernel gives a program and all that it calls 512 bytes together (`check_max_stack_depth` in
//! `kernel/bpf/verifier.c`). Up to 6.7 it rounds each frame up to 32 bytes, later on to 16: a
//! program that a new kernel takes may be too much for an old one.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use aya_obj::generated::bpf_insn;

/// What a program and all that it calls may take, bytes.
const LIMIT: u32 = 512;
/// What frames are rounded up to, bytes.
const STEP: u32 = 32;

/// The frame pointer.
const R10: u8 = 10;
/// A call of a function of the program itself (`BPF_PSEUDO_CALL`).
const OWN: u8 = 1;
/// `BPF_JMP | BPF_CALL`.
const CALL: u8 = 0x85;
/// `BPF_ALU64 | BPF_MOV | BPF_X`.
const MOVE: u8 = 0xbf;
/// `BPF_ALU64 | BPF_ADD | BPF_K`.
const ADD: u8 = 0x07;

/// One function: its frame in bytes, and the functions that it calls, by their first instruction.
#[derive(Default)]
struct Frame {
    bytes: u32,
    calls: Vec<usize>,
}

/// Checks a program with all its functions behind it, calls resolved.
///
/// # Errors
/// If it takes too much on some way through its calls.
pub(super) fn check(instructions: &[bpf_insn]) -> Result<()> {
    let frames = frames(instructions);
    let most = depth(&frames, 0);
    ensure!(
        most <= LIMIT,
        "takes {most} bytes of stack, frames rounded up to {STEP}; {LIMIT} are allowed"
    );
    Ok(())
}

/// The deepest way down from a function. Programs do not recurse.
fn depth(frames: &BTreeMap<usize, Frame>, function: usize) -> u32 {
    frames.get(&function).map_or(0, |frame| {
        let below = frame.calls.iter().map(|&callee| depth(frames, callee));
        frame.bytes.max(1).next_multiple_of(STEP) + below.max().unwrap_or(0)
    })
}

fn frames(instructions: &[bpf_insn]) -> BTreeMap<usize, Frame> {
    let calls = instructions.iter().enumerate().filter_map(callee);
    let mut frames: BTreeMap<usize, Frame> = calls.map(|at| (at, Frame::default())).collect();
    let _main = frames.insert(0, Frame::default());
    for (at, instruction) in instructions.iter().enumerate() {
        let Some((_, frame)) = frames.range_mut(..=at).next_back() else {
            continue;
        };
        frame.calls.extend(callee((at, instruction)));
        let next = instructions.get(at + 1);
        let reach = reach(instruction).max(next.map_or(0, |next| address(instruction, next)));
        frame.bytes = frame.bytes.max(reach);
    }
    frames
}

/// The function that an instruction calls, by its first instruction.
fn callee((at, instruction): (usize, &bpf_insn)) -> Option<usize> {
    let is_call = instruction.code == CALL && instruction.src_reg() == OWN;
    let target = i64::try_from(at).ok()? + 1 + i64::from(instruction.imm);
    usize::try_from(target).ok().filter(|_| is_call)
}

/// How far below the frame pointer an instruction reads or writes.
fn reach(instruction: &bpf_insn) -> u32 {
    let base = match instruction.code & 0x07 {
        // BPF_LDX
        0x01 => instruction.src_reg(),
        // BPF_ST, BPF_STX
        0x02 | 0x03 => instruction.dst_reg(),
        _ => return 0,
    };
    if base == R10 {
        u32::from(instruction.off.min(0).unsigned_abs())
    } else {
        0
    }
}

/// How far below the frame pointer the address is that two instructions make.
fn address(first: &bpf_insn, second: &bpf_insn) -> u32 {
    let is_copy = first.code == MOVE && first.src_reg() == R10;
    let is_moved = second.code == ADD && second.dst_reg() == first.dst_reg();
    if is_copy && is_moved {
        second.imm.min(0).unsigned_abs()
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instruction(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> bpf_insn {
        bpf_insn {
            code,
            _bitfield_align_1: [],
            _bitfield_1: bpf_insn::new_bitfield_1(dst, src),
            off,
            imm,
        }
    }

    const EXIT: u8 = 0x95;
    /// `BPF_STX | BPF_MEM | BPF_DW`.
    const STORE: u8 = 0x7b;

    /// A function that stores at `-off` and makes the address `-address`, and one that it calls.
    fn program(off: i16, address: i32, callee: i16) -> Vec<bpf_insn> {
        vec![
            instruction(STORE, R10, 1, -off, 0),
            instruction(MOVE, 2, R10, 0, 0),
            instruction(ADD, 2, 0, 0, -address),
            instruction(CALL, 0, OWN, 0, 1),
            instruction(EXIT, 0, 0, 0, 0),
            instruction(STORE, R10, 1, -callee, 0),
            instruction(EXIT, 0, 0, 0, 0),
        ]
    }

    #[test]
    fn frames_are_rounded_up_and_added_up() {
        let depth_of = |program: &[bpf_insn]| depth(&frames(program), 0);
        assert_eq!(depth_of(&program(8, 8, 8)), 64);
        assert_eq!(depth_of(&program(200, 8, 24)), 224 + 32);
        assert_eq!(depth_of(&program(8, 264, 33)), 288 + 64);
    }

    #[test]
    fn too_much_is_too_much() {
        check(&program(256, 8, 256)).unwrap();
        check(&program(264, 8, 256)).unwrap_err();
        check(&program(8, 257, 256)).unwrap_err();
    }
}

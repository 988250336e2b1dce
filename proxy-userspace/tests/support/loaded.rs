//! All of Beeline's programs, as the kernel has verified them.

use anyhow::{Context as _, Result, bail};
use aya::programs::{Program as Loaded, ProgramType};
use aya::sys::{BpfHelper, is_helper_supported};
use aya::{Ebpf, EbpfLoader};
use xtask::figures::Program;

/// Entries of maps that have a default that would take much memory.
const FLOWS: u32 = 65_536;

/// Loads the object and has the kernel verify every program in it, as the daemon would.
///
/// # Errors
/// Without root's privileges, or if the kernel refuses something.
pub(crate) fn load() -> Result<Ebpf> {
    let object = aya::include_bytes_aligned!(env!("BEELINE_BPF_OBJECT"));
    let has = |program, helper| u8::from(is_helper_supported(program, helper).unwrap_or_default());
    let coarse_clock = has(
        ProgramType::SchedClassifier,
        BpfHelper::BPF_FUNC_ktime_get_coarse_ns,
    );
    let set_retval = has(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval);
    let mut loader = EbpfLoader::new();
    let mut bpf = loader
        .override_global("COARSE_CLOCK", &coarse_clock, true)
        .override_global("SET_RETVAL", &set_retval, true)
        .map_max_entries("FLOWS", FLOWS)
        .load(object)
        .context("cannot load the programs; are you root?")?;
    for (name, program) in bpf.programs_mut() {
        if let Loaded::SchedClassifier(program) = program {
            program.load()
        } else if let Loaded::CgroupSockAddr(program) = program {
            program.load()
        } else if let Loaded::CgroupSock(program) = program {
            program.load()
        } else {
            bail!("program {name} is of a kind that Beeline has not")
        }
        .with_context(|| format!("program {name}"))?;
    }
    Ok(bpf)
}

/// What the kernel tells of the programs, by name.
///
/// # Errors
/// If it does not.
pub(crate) fn programs(bpf: &Ebpf) -> Result<Vec<Program>> {
    let mut programs = Vec::new();
    for (name, program) in bpf.programs() {
        let info = program.info().with_context(|| format!("program {name}"))?;
        programs.push(Program {
            name: name.to_owned(),
            verified: info.verified_instruction_count(),
            bytes: info.size_translated(),
        });
    }
    programs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(programs)
}

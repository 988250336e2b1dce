//! What can be said of a BPF object without a kernel.

mod stack;

use std::collections::{BTreeMap, HashSet};

use anyhow::{Context, Result, ensure};
use aya_obj::Object;

/// What the kernel takes for a licence that is compatible with its own
/// (`include/linux/license.h`).
const LICENCES: [&str; 6] = [
    "GPL",
    "GPL v2",
    "GPL and additional rights",
    "Dual BSD/GPL",
    "Dual MIT/GPL",
    "Dual MPL/GPL",
];

/// Checks that the loader can read the object, that nothing in it is left to be resolved, and
/// that it has programs, a licence that the kernel's helpers accept, BTF, and room on the stack of
/// every kernel.
///
/// # Errors
/// The first of these that is not so.
pub(crate) fn check(bytes: &[u8]) -> Result<()> {
    let mut object = Object::parse(bytes).context("not a BPF object")?;
    ensure!(!object.programs.is_empty(), "no programs");
    let licence = object.license.to_string_lossy();
    ensure!(
        LICENCES.contains(&&*licence),
        "licence {licence:?} keeps the kernel's helpers shut"
    );
    ensure!(object.btf.is_some(), "no BTF");
    let text = object
        .functions
        .keys()
        .map(|(section, _)| *section)
        .collect::<HashSet<usize>>();
    object
        .relocate_calls(&text)
        .context("a call leads nowhere")?;
    let programs: BTreeMap<_, _> = object.programs.iter().collect();
    for (name, program) in programs {
        let function = object.functions.get(&program.function_key());
        let instructions = &function.context("no function")?.instructions;
        stack::check(instructions).with_context(|| format!("program {name}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_program_is_no_bpf_object() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        check(&own).unwrap_err();
        check(b"").unwrap_err();
    }
}

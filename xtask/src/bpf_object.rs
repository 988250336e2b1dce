//! What can be said of a BPF object without a kernel.

use std::collections::HashSet;

use anyhow::{Context, Result, ensure};
use aya_obj::Object;

/// Checks that the loader can read the object, that nothing in it is left to be resolved, and
/// that it has programs, a licence that the kernel's helpers accept, and BTF.
///
/// # Errors
/// The first of these that is not so.
pub(crate) fn check(bytes: &[u8]) -> Result<()> {
    let mut object = Object::parse(bytes).context("not a BPF object")?;
    ensure!(!object.programs.is_empty(), "no programs");
    ensure!(
        object.license.to_bytes().starts_with(b"GPL"),
        "licence {:?} is not GPL",
        object.license
    );
    ensure!(object.btf.is_some(), "no BTF");
    let text = object
        .functions
        .keys()
        .map(|(section, _)| *section)
        .collect::<HashSet<usize>>();
    object.relocate_calls(&text).context("a call leads nowhere")
}

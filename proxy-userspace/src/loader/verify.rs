//! Has the kernel verify programs, and looks at those that it has verified.

use std::path::Path;
use std::thread;

use aya::Ebpf;
use aya::maps::MapInfo;
use aya::programs::{Program, ProgramError, ProgramInfo};

use super::{LoadError, remove_file};

/// Has `load` load the programs of `ebpf` that are `wanted`, and pins them in `folder` in place of
/// what was there.
///
/// All at the same time: the kernel takes a second to verify the largest.
pub(super) fn load_and_pin<K: Copy + Send>(
    ebpf: &mut Ebpf,
    folder: &Path,
    wanted: &[(&'static str, K)],
    load: impl Fn(K, &mut Program) -> Result<(), ProgramError> + Sync,
) -> Result<(), LoadError> {
    if let Some(&(name, _)) = wanted.iter().find(|(name, _)| ebpf.program(name).is_none()) {
        return Err(LoadError::NoProgram { name });
    }
    let load = &load;
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for (name, program) in ebpf.programs_mut() {
            if let Some(&(name, kind)) = wanted.iter().find(|(wanted, _)| *wanted == name) {
                let load = move |program: &mut Program| load(kind, program);
                threads.push(scope.spawn(move || load_and_pin_one(program, name, folder, load)));
            }
        }
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })
}

fn load_and_pin_one(
    program: &mut Program,
    name: &'static str,
    folder: &Path,
    load: impl FnOnce(&mut Program) -> Result<(), ProgramError>,
) -> Result<(), LoadError> {
    load(program).map_err(|error| refused(name, error))?;
    let path = folder.join(name);
    remove_file(&path)?;
    program.pin(&path).map_err(|error| LoadError::Program {
        name,
        action: "pinning",
        source: Box::new(ProgramError::IOError(std::io::Error::other(error))),
    })
}

/// The maps that these programs use; `None` if the kernel does not tell.
pub(super) fn maps(
    programs: impl Iterator<Item = Result<ProgramInfo, ProgramError>>,
) -> Option<Vec<MapInfo>> {
    let mut maps = Vec::new();
    for program in programs {
        for id in program.ok()?.map_ids().ok()?? {
            maps.push(MapInfo::from_id(id).ok()?);
        }
    }
    Some(maps)
}

/// The verifier's log has thousands of lines, of which the last ones say why.
fn refused(name: &'static str, error: ProgramError) -> LoadError {
    let ProgramError::LoadError {
        io_error,
        verifier_log,
    } = error
    else {
        return LoadError::Program {
            name,
            action: "verification",
            source: Box::new(error),
        };
    };
    let log = verifier_log.to_string();
    tracing::debug!("program {name}: {log}");
    LoadError::Refused {
        name,
        reason: reason(&log).to_owned(),
        source: io_error,
    }
}

/// The last line of a verifier's log that is no statistics.
fn reason(log: &str) -> &str {
    const STATISTICS: [&str; 3] = ["verification time", "stack depth", "processed"];
    let is_reason =
        |line: &&str| !line.is_empty() && !STATISTICS.iter().any(|start| line.starts_with(start));
    log.lines()
        .rev()
        .map(str::trim)
        .find(is_reason)
        .unwrap_or("no reason given")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verifiers_reason_is_its_last_word() {
        let log = "0: (b7) r0 = 0\ninvalid access to packet, off=0 size=1\n\
                   R5 offset is outside of the packet\nverification time 2405 usec\n\
                   stack depth 112\nprocessed 207 insns (limit 1000000)\n";
        assert_eq!(reason(log), "R5 offset is outside of the packet");
        assert_eq!(reason(""), "no reason given");
    }
}

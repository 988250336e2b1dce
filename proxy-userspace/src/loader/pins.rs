//! Where things are pinned on bpffs.
//!
//! ```text
//! <bpffs>/beeline/
//!   links/<ifindex>-<side>        TCX links; shared by all layouts, so that an upgrade replaces
//!                                 the program of a link instead of attaching a second one
//!   links/cgroup-<program>        links of the socket edge's programs to a cgroup, likewise
//!   v<layout>/maps/<NAME>         maps, one folder for each version of their layout
//!   v<layout>/programs/<digest>/  the programs that are attached, by digest of the object
//! ```

use std::io;
use std::path::{Path, PathBuf};

use proxy_common::abi::{LAYOUT_VERSION, Side};

/// The paths of all pins below one bpffs.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    /// The pins on the bpffs that is mounted at `bpffs`.
    pub fn new(bpffs: &Path) -> Self {
        Self {
            root: bpffs.join("beeline"),
        }
    }

    /// The folder of everything that is ours.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of this version's layout.
    pub fn layout(&self) -> PathBuf {
        self.root.join(format!("v{LAYOUT_VERSION}"))
    }

    /// The folder of the maps.
    pub fn maps(&self) -> PathBuf {
        self.layout().join("maps")
    }

    /// The pin of the map `name`.
    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    /// The pin of the map `name` while it is being filled to take the place of a smaller one.
    /// No dots: bpffs refuses them.
    pub fn grown_map(&self, name: &str) -> PathBuf {
        self.maps().join(format!("{name}-grown"))
    }

    /// The folder of all programs.
    pub fn programs(&self) -> PathBuf {
        self.layout().join("programs")
    }

    /// The folder of the programs that were loaded from the object with this digest.
    pub fn programs_of(&self, digest: u64) -> PathBuf {
        self.programs().join(format!("{digest:016x}"))
    }

    /// The folder of the links.
    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// The pin of the TCX link at one side of a device.
    pub fn link(&self, ifindex: u32, side: Side) -> PathBuf {
        self.links().join(format!("{ifindex}-{}", side.name()))
    }

    /// The pin of the link of a program of the socket edge to its cgroup.
    pub fn socket_link(&self, program: &str) -> PathBuf {
        self.links().join(format!("cgroup-{program}"))
    }

    /// The pin of such a link until it takes its place. No dots: bpffs refuses them.
    pub fn new_socket_link(&self, program: &str) -> PathBuf {
        self.links().join(format!("cgroup-{program}-new"))
    }

    /// The devices and sides for which a TCX link is pinned.
    ///
    /// # Errors
    /// If the folder is there but cannot be read.
    pub fn pinned_links(&self) -> io::Result<Vec<(u32, Side)>> {
        let names = file_names(&self.links())?;
        Ok(names.iter().filter_map(|name| parse_link(name)).collect())
    }

    /// Folders of other layouts' maps and programs.
    ///
    /// # Errors
    /// If the root is there but cannot be read.
    pub fn other_layouts(&self) -> io::Result<Vec<PathBuf>> {
        let ours = format!("v{LAYOUT_VERSION}");
        let names = file_names(&self.root)?;
        let others = names
            .iter()
            .filter(|name| is_layout(name) && **name != ours);
        Ok(others.map(|name| self.root.join(name)).collect())
    }
}

/// Removes a file; says whether it was there.
///
/// # Errors
/// If it is there and stays.
pub fn remove(path: &Path) -> io::Result<bool> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Names of the files and folders in `folder`, sorted; none if it does not exist.
///
/// # Errors
/// If the folder cannot be read.
pub fn file_names(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

fn is_layout(name: &str) -> bool {
    name.strip_prefix('v')
        .is_some_and(|version| version.parse::<u32>().is_ok())
}

fn parse_link(name: &str) -> Option<(u32, Side)> {
    let (ifindex, side) = name.split_once('-')?;
    let side = [Side::Ingress, Side::Egress]
        .into_iter()
        .find(|known| known.name() == side)?;
    Some((ifindex.parse().ok()?, side))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_outlive_the_layout_and_maps_do_not() {
        let pins = Pins::new(Path::new("/sys/fs/bpf"));
        let layout = format!("/sys/fs/bpf/beeline/v{LAYOUT_VERSION}");
        assert_eq!(pins.map("FLOWS"), Path::new(&layout).join("maps/FLOWS"));
        assert_eq!(
            pins.link(7, Side::Egress),
            Path::new("/sys/fs/bpf/beeline/links/7-egress")
        );
        assert_eq!(
            pins.programs_of(255),
            Path::new(&layout).join("programs/00000000000000ff")
        );
    }

    #[test]
    fn link_names_are_read_back() {
        for (index, side) in [(1, Side::Ingress), (u32::MAX, Side::Egress)] {
            let path = Pins::new(Path::new("/x")).link(index, side);
            assert_eq!(
                parse_link(path.file_name().unwrap().to_str().unwrap()),
                Some((index, side))
            );
        }
        for wrong in ["", "7", "7-", "x-ingress", "7-sideways", "cgroup-connect4"] {
            assert_eq!(parse_link(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn no_name_has_a_dot() {
        let pins = Pins::new(Path::new("/b"));
        for path in [
            pins.grown_map("FLOWS"),
            pins.link(1, Side::Ingress),
            pins.new_socket_link("sock_release"),
            pins.programs_of(1),
        ] {
            assert!(!path.to_str().unwrap().contains('.'));
        }
    }

    #[test]
    fn other_layouts_are_found_by_name() {
        assert!(is_layout("v0") && is_layout("v12"));
        assert!(!is_layout("links") && !is_layout("v") && !is_layout("vx"));
    }
}

//! Where things are pinned on bpffs.
//!
//! ```text
//! <bpffs>/beeline/
//!   links/<ifindex>-<side>        TCX links; shared by all layouts, so that an upgrade replaces
//!                                 the program of a link instead of attaching a second one
//!   links/<ifindex>-<side>-new    those that will take their place, while both are needed
//!   links/cgroup-<program>        links of the socket edge's programs to a cgroup, likewise
//!   v<layout>/maps/<NAME>         maps, one folder for each version of their layout
//!   v<layout>/maps/<NAME>-grown   a larger one while it is filled
//!   v<layout>/maps/<NAME>-outgrown  the smaller one until no program uses it any more
//!   v<layout>/programs/<digest>/  the programs that are attached, by digest of the object
//! ```

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use proxy_common::abi::{LAYOUT_VERSION, Side};

/// The paths of all pins below one bpffs.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
    version: u32,
}

impl Pins {
    /// The pins on the bpffs that is mounted at `bpffs`.
    pub fn new(bpffs: &Path) -> Self {
        Self {
            root: bpffs.join("beeline"),
            version: LAYOUT_VERSION,
        }
    }

    /// Those of another layout beside these.
    pub(super) fn of_layout(&self, version: u32) -> Self {
        Self {
            version,
            ..self.clone()
        }
    }

    /// The version of the layout.
    pub(super) const fn version(&self) -> u32 {
        self.version
    }

    /// The folder of everything that is ours.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of this version's layout.
    pub fn layout(&self) -> PathBuf {
        self.root.join(format!("v{}", self.version))
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

    /// The pin of the map `name` that a larger one has taken the place of, until no program uses it
    /// any more.
    pub fn outgrown_map(&self, name: &str) -> PathBuf {
        self.maps().join(format!("{name}-outgrown"))
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

    /// The pin of the link that will take its place. No dots: bpffs refuses them.
    pub fn new_link(&self, ifindex: u32, side: Side) -> PathBuf {
        self.links().join(format!("{ifindex}-{}-new", side.name()))
    }

    /// The pin of the link of a program of the socket edge to its cgroup.
    pub fn socket_link(&self, program: &str) -> PathBuf {
        self.links().join(format!("cgroup-{program}"))
    }

    /// The names of the socket edge's programs whose links are pinned, in their place or for it.
    ///
    /// # Errors
    /// If the folder is there but cannot be read.
    pub fn socket_links(&self) -> io::Result<BTreeSet<String>> {
        let names = file_names(&self.links())?;
        let names = names.iter().filter_map(|name| name.strip_prefix("cgroup-"));
        let names = names.map(|name| name.strip_suffix("-new").unwrap_or(name));
        Ok(names.map(str::to_owned).collect())
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

    /// The devices and sides for which a link is pinned that will take another's place.
    ///
    /// # Errors
    /// If the folder is there but cannot be read.
    pub fn new_links(&self) -> io::Result<Vec<(u32, Side)>> {
        let names = file_names(&self.links())?;
        let names = names.iter().filter_map(|name| name.strip_suffix("-new"));
        Ok(names.filter_map(parse_link).collect())
    }

    /// Versions of the other layouts of which there are maps or programs, in order.
    ///
    /// # Errors
    /// If the root is there but cannot be read.
    pub fn other_layouts(&self) -> io::Result<Vec<u32>> {
        let names = file_names(&self.root)?;
        let versions = names.iter().filter_map(|name| parse_layout(name));
        let mut others: Vec<_> = versions.filter(|it| *it != self.version).collect();
        others.sort_unstable();
        Ok(others)
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

fn parse_layout(name: &str) -> Option<u32> {
    name.strip_prefix('v')?.parse().ok()
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
        for wrong in [
            "",
            "7",
            "7-",
            "x-ingress",
            "7-sideways",
            "cgroup-connect4",
            "7-ingress-new",
        ] {
            assert_eq!(parse_link(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn no_name_has_a_dot() {
        let pins = Pins::new(Path::new("/b"));
        for path in [
            pins.grown_map("FLOWS"),
            pins.outgrown_map("FLOWS"),
            pins.new_link(1, Side::Ingress),
            pins.link(1, Side::Ingress),
            pins.new_socket_link("sock_release"),
            pins.programs_of(1),
        ] {
            assert!(!path.to_str().unwrap().contains('.'));
        }
    }

    #[test]
    fn other_layouts_are_found_by_name() {
        let root = tempfile::tempdir().unwrap();
        let pins = Pins::new(root.path());
        assert!(pins.other_layouts().unwrap().is_empty());
        for name in ["v90", "v9", "links", "v", "vx"] {
            std::fs::create_dir_all(pins.root().join(name)).unwrap();
        }
        std::fs::create_dir_all(pins.layout()).unwrap();
        assert_eq!(pins.other_layouts().unwrap(), [9, 90]);
        assert_eq!(pins.of_layout(9).maps(), pins.root().join("v9/maps"));
    }

    #[test]
    fn links_that_wait_for_their_place_are_told_apart() {
        let root = tempfile::tempdir().unwrap();
        let pins = Pins::new(root.path());
        std::fs::create_dir_all(pins.links()).unwrap();
        for path in [
            pins.link(7, Side::Ingress),
            pins.new_link(7, Side::Egress),
            pins.new_socket_link("connect4"),
        ] {
            std::fs::write(path, "").unwrap();
        }
        std::fs::write(pins.socket_link("bind4"), "").unwrap();
        let programs = BTreeSet::from(["bind4", "connect4"].map(str::to_owned));
        assert_eq!(pins.socket_links().unwrap(), programs);
        assert_eq!(pins.pinned_links().unwrap(), [(7, Side::Ingress)]);
        assert_eq!(pins.new_links().unwrap(), [(7, Side::Egress)]);
    }
}

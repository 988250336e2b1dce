//! The initramfs of a test machine: busybox, a few real tools, kernel modules and the payload.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::fetch::KernelFiles;
use super::modules;
use super::payload::Payload;
use crate::process;

/// Certificates that a node has; without any, no client of the API server can be made.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

const INIT: &str = include_str!("init.sh");

/// Tools that busybox has too, but not well enough, and those of
/// [`TEST_PACKAGES`](crate::setup::TEST_PACKAGES).
const TOOLS: [&str; 11] = [
    "ip",
    "tc",
    "ethtool",
    "curl",
    "dig",
    "dnsmasq",
    "iperf3",
    "nft",
    "nc.openbsd",
    "redis-check-rdb",
    "redis-cli",
];

/// Paths that are one folder in the machine, as on a merged-usr system.
const LINKS: [(&str, &str); 6] = [
    ("bin", "usr/bin"),
    ("sbin", "usr/bin"),
    ("usr/sbin", "bin"),
    ("lib", "usr/lib"),
    ("lib64", "usr/lib64"),
    ("var/run", "../run"),
];

const FOLDERS: [&str; 12] = [
    "dev",
    "etc",
    "proc",
    "root",
    "run",
    "sys",
    "tmp",
    "usr/bin",
    "usr/lib",
    "usr/lib64",
    "var",
    "var/lib",
];

/// Writes the initramfs of one kernel into `folder` and returns its path.
pub(super) fn assemble(kernel: &KernelFiles, payload: &Payload, folder: &Path) -> Result<PathBuf> {
    let stage = Stage::empty(&folder.join("root"))?;
    stage.add_layout()?;
    stage.add_busybox()?;
    for tool in TOOLS {
        stage.add_tool(tool)?;
    }
    stage.add_modules(kernel)?;

    let path = folder.join("initramfs");
    let mut archive =
        File::create(&path).with_context(|| format!("{}: not created", path.display()))?;
    stage.pack(&archive)?;
    // The kernel unpacks archives that follow one another into the same root.
    let mut payload = File::open(payload.archive())?;
    io::copy(&mut payload, &mut archive).context("payload: not appended")?;
    Ok(path)
}

/// A folder that becomes a cpio archive.
pub(super) struct Stage {
    root: PathBuf,
}

impl Stage {
    /// Starts afresh at `root`.
    pub(super) fn empty(root: &Path) -> Result<Self> {
        if root.exists() {
            fs::remove_dir_all(root)
                .with_context(|| format!("folder {}: not removed", root.display()))?;
        }
        fs::create_dir_all(root)
            .with_context(|| format!("folder {}: not created", root.display()))?;
        Ok(Self {
            root: root.to_owned(),
        })
    }

    fn add_layout(&self) -> Result<()> {
        for folder in FOLDERS {
            fs::create_dir_all(self.root.join(folder))?;
        }
        for (link, target) in LINKS {
            symlink(target, self.root.join(link))?;
        }
        fs::write(
            self.root.join("etc/hosts"),
            "127.0.0.1 localhost\n::1 localhost\n",
        )?;
        fs::write(
            self.root.join("etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\n",
        )?;
        self.add_file(
            Path::new(CERTIFICATES),
            CERTIFICATES.trim_start_matches('/'),
        )?;
        self.add_script("init", INIT)
    }

    fn add_busybox(&self) -> Result<()> {
        let busybox = find_program("busybox")?;
        require_static(&busybox)?;
        self.add_file(&busybox, "usr/bin/busybox")?;
        let applets = process::output(Command::new(&busybox).arg("--list"))?;
        for applet in applets
            .lines()
            .filter(|name| *name != "busybox" && !TOOLS.contains(name))
        {
            symlink("busybox", self.root.join("usr/bin").join(applet))?;
        }
        Ok(())
    }

    fn add_tool(&self, name: &str) -> Result<()> {
        let program = find_program(name)?;
        for library in shared_libraries(&program)? {
            let relative = library.strip_prefix("/").unwrap_or(&library);
            self.add_file(&library, relative)?;
        }
        self.add_file(&program, Path::new("usr/bin").join(name))
    }

    fn add_modules(&self, kernel: &KernelFiles) -> Result<()> {
        let read = |name| {
            let path = kernel.modules.join(name);
            fs::read_to_string(&path).with_context(|| format!("{}: not readable", path.display()))
        };
        let folder = Path::new("lib/modules").join(&kernel.release);
        let paths = modules::select(&read("modules.dep")?, &read("modules.builtin")?)?;
        for path in &paths {
            self.add_file(&kernel.modules.join(path), folder.join(path))?;
        }
        for index in [
            "modules.builtin",
            "modules.builtin.modinfo",
            "modules.order",
        ] {
            self.add_file(&kernel.modules.join(index), folder.join(index))?;
        }
        self.decompress(paths.iter().filter(|path| path.ends_with(".xz")), &folder)?;
        let mut depmod = Command::new("depmod");
        process::run(depmod.arg("--basedir").arg(&self.root).arg(&kernel.release))
    }

    /// busybox loads plain modules only.
    fn decompress<'a>(&self, paths: impl Iterator<Item = &'a String>, folder: &Path) -> Result<()> {
        let mut paths = paths.peekable();
        if paths.peek().is_none() {
            return Ok(());
        }
        let mut xz = Command::new("xz");
        process::run(
            xz.arg("--decompress")
                .args(paths)
                .current_dir(self.root.join(folder)),
        )
    }

    /// Adds an executable script at the root.
    pub(super) fn add_script(&self, name: &str, text: &str) -> Result<()> {
        let path = self.root.join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, Permissions::from_mode(0o755))?;
        Ok(())
    }

    /// Copies a file of the host, following links; its folders are created.
    pub(super) fn add_file(&self, from: &Path, to: impl AsRef<Path>) -> Result<()> {
        let to = self.root.join(to);
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::copy(from, &to)
            .with_context(|| format!("{}: not copied to {}", from.display(), to.display()))?;
        Ok(())
    }

    /// Writes everything as one uncompressed archive; everything in it belongs to root.
    pub(super) fn pack(&self, archive: &File) -> Result<()> {
        let mut find = Command::new("find")
            .args([".", "-print0"])
            .current_dir(&self.root)
            .stdout(Stdio::piped())
            .spawn()
            .context("find: not started")?;
        let names = find.stdout.take().context("find: no output")?;
        let status = Command::new("cpio")
            .args([
                "--create",
                "--quiet",
                "--null",
                "--format=newc",
                "--owner=0:0",
            ])
            .current_dir(&self.root)
            .stdin(names)
            .stdout(archive.try_clone()?)
            .status()
            .context("cpio: not started")?;
        if !find.wait()?.success() || !status.success() {
            bail!("cpio of {}: {status}", self.root.display());
        }
        Ok(())
    }
}

/// Fails unless a program needs nothing else to run.
pub(super) fn require_static(program: &Path) -> Result<()> {
    if let Some(library) = shared_libraries(program)?.first() {
        bail!(
            "{}: not static, needs {}",
            program.display(),
            library.display()
        );
    }
    Ok(())
}

/// The shared libraries and the loader that a program needs; none for a static one.
fn shared_libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = process::finish(Command::new("ldd").arg(program))?;
    parse_ldd(&String::from_utf8_lossy(&output.stdout))
        .with_context(|| format!("{}: libraries", program.display()))
}

fn parse_ldd(text: &str) -> Result<Vec<PathBuf>> {
    if let Some(line) = text.lines().find(|line| line.contains("not found")) {
        bail!("{}", line.trim());
    }
    let words = text.lines().flat_map(str::split_whitespace);
    Ok(words
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect())
}

/// Finds a program where the system keeps those for root too.
fn find_program(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from))
        .map(|folder| folder.join(OsStr::new(name)))
        .find(|candidate| candidate.is_file())
        .with_context(|| format!("program {name}: not found"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_loader_of_a_dynamic_program() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\
            \tlibmnl.so.0 => /lib/x86_64-linux-gnu/libmnl.so.0 (0x00007f1)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f2)\n";
        assert_eq!(
            parse_ldd(text).unwrap(),
            [
                "/lib/x86_64-linux-gnu/libmnl.so.0",
                "/lib64/ld-linux-x86-64.so.2"
            ]
            .map(PathBuf::from)
        );
    }

    #[test]
    fn a_static_program_needs_no_library() {
        assert_eq!(
            parse_ldd("\tstatically linked\n").unwrap(),
            Vec::<PathBuf>::new()
        );
        assert_eq!(
            parse_ldd("\tnot a dynamic executable\n").unwrap(),
            Vec::<PathBuf>::new()
        );
    }

    #[test]
    fn a_missing_library_is_named() {
        let error = parse_ldd("\tlibelf.so.1 => not found\n").unwrap_err();
        assert_eq!(error.to_string(), "libelf.so.1 => not found");
    }
}

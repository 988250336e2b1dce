//! Who may use what.

use super::Mention;

/// A rule: nothing but `except` among the files under `modules` mentions any of `paths`.
struct Rule {
    /// Paths of modules or folders from the root, without `.rs`.
    modules: &'static [&'static str],
    /// Modules of these that may.
    except: &'static [&'static str],
    /// Paths, with everything below them; macros and keywords.
    paths: &'static [&'static str],
    /// Whether tests may.
    tests_may: bool,
    /// What a finding says after the path.
    because: &'static str,
}

const RULES: [Rule; 5] = [
    Rule {
        modules: &[
            "proxy-userspace/src/model",
            "proxy-userspace/src/desired",
            "proxy-userspace/src/sync",
            "proxy-userspace/src/node",
        ],
        except: &[],
        paths: &[
            "aya",
            "getrandom",
            "kube",
            "libc",
            "nix",
            "rand",
            "rtnetlink",
            "std::env",
            "std::fs",
            "std::net::TcpListener",
            "std::net::TcpStream",
            "std::net::UdpSocket",
            "std::process",
            "std::thread",
            "std::time::Instant",
            "std::time::SystemTime",
            "tokio",
        ],
        tests_may: true,
        because: "has no place in model, desired, sync and node: they do no I/O, and read no clock",
    },
    Rule {
        modules: &["proxy-common/src/datapath", "proxy-common/src/abi"],
        except: &[],
        paths: &["alloc", "aya", "aya_ebpf", "crate::testing", "libc", "std"],
        tests_may: true,
        because: "has no place in what the kernel programs share: only core, bytemuck and this \
                  crate have",
    },
    Rule {
        modules: &[
            "proxy-common",
            "proxy-ebpf",
            "proxy-userspace",
            "semantics",
            "xtask",
        ],
        except: &[
            "proxy-ebpf/src/context",
            "proxy-ebpf/src/kernel",
            "proxy-ebpf/src/maps",
            // `Raw`, which makes every bytemuck type one of aya's.
            "proxy-userspace/src/maps/kinds",
            // A request of bpf(2) that aya does not make for arrays.
            "proxy-userspace/src/maps/batch",
            // Requests of bpf(2) that aya does not make for programs of cgroups.
            "proxy-userspace/src/loader/cgroup/syscall",
            // Socket options for rules of iptables-legacy, which no crate has.
            "proxy-userspace/src/kube_proxy/legacy/option",
            // Socket options that no crate can set.
            "proxy-userspace/tests/kernel/socket_option",
            // Packet sockets, which no crate binds or reads so.
            "semantics/src/kernel/host",
            "semantics/src/kernel/wire",
            // An ethtool request, for which no crate has a safe call.
            "xtask/src/testbed/device",
        ],
        paths: &["unsafe"],
        tests_may: false,
        because: "is kept to a few files (xtask/src/tidy/layers.rs lists them)",
    },
    Rule {
        modules: &["proxy-common", "proxy-ebpf", "proxy-userspace/src"],
        except: &[
            "proxy-userspace/src/cli",
            "proxy-userspace/src/main",
            "proxy-userspace/src/run",
        ],
        paths: &["anyhow"],
        tests_may: true,
        because: "is for the command and xtask: libraries have errors that name what failed",
    },
    Rule {
        modules: &[
            "proxy-common",
            "proxy-ebpf",
            "proxy-userspace",
            "semantics",
            "xtask",
        ],
        except: &[],
        paths: &["todo!", "unimplemented!"],
        tests_may: false,
        because: "is unfinished work",
    },
];

/// What breaks the rules, as line and message.
pub(super) fn check(file: &str, mentions: &[Mention]) -> Vec<(usize, String)> {
    let broken = |rule: &'static Rule| {
        let breaks = move |mention: &&Mention| rule.is_broken_by(file, mention);
        let message =
            |mention: &Mention| (mention.line, format!("`{}` {}", mention.path, rule.because));
        mentions.iter().filter(breaks).map(message)
    };
    RULES
        .iter()
        .filter(|rule| rule.covers(file))
        .flat_map(broken)
        .collect()
}

impl Rule {
    fn covers(&self, file: &str) -> bool {
        self.modules.iter().any(|module| is_in(file, module))
            && !self.except.iter().any(|module| is_in(file, module))
    }

    fn is_broken_by(&self, file: &str, mention: &Mention) -> bool {
        let is_test = mention.is_test || is_test_file(file);
        !(self.tests_may && is_test) && self.paths.iter().any(|path| is_under(&mention.path, path))
    }
}

/// Whether a file is the module or in its folder.
fn is_in(file: &str, module: &str) -> bool {
    file.strip_prefix(module)
        .is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
}

/// Whether a mention is the path or something below it. A crate's bare name does not count:
/// variables are called so too.
fn is_under(mention: &str, path: &str) -> bool {
    let rest = mention.strip_prefix(path);
    let may_be_a_variable =
        path.chars().all(|c| c.is_alphanumeric() || c == '_') && path != "unsafe";
    rest.is_some_and(|rest| rest.starts_with("::") || rest.is_empty() && !may_be_a_variable)
}

fn is_test_file(file: &str) -> bool {
    file.contains("/tests/") || file.ends_with("/tests.rs")
}

#[cfg(test)]
mod tests {
    use super::super::mentions;
    use super::*;

    fn lines(file: &str, text: &str) -> Vec<usize> {
        let found = check(file, &mentions::of(text).unwrap());
        found.into_iter().map(|(line, _)| line).collect()
    }

    #[test]
    fn pure_modules_do_no_io() {
        let text = "use std::{collections::BTreeMap, fs};\nuse std::net::IpAddr;\nfn f() {\n    \
                    let now = std::time::Instant::now();\n    let kube = tokio::spawn(x);\n}\n";
        for file in [
            "model.rs",
            "model/world.rs",
            "desired/choose.rs",
            "sync.rs",
            "sync/plan.rs",
        ] {
            let file = format!("proxy-userspace/src/{file}");
            assert_eq!(lines(&file, text), [1, 4, 5], "{file}");
        }
        assert!(lines("proxy-userspace/src/loader.rs", text).is_empty());
        assert!(lines("proxy-userspace/src/synchronous.rs", text).is_empty());
    }

    #[test]
    fn their_tests_may() {
        let text = "#[cfg(test)]\nmod tests {\n    use std::fs;\n}\n";
        assert!(lines("proxy-userspace/src/desired.rs", text).is_empty());
        let text = "use std::fs;\n";
        assert!(lines("proxy-userspace/src/desired/tests.rs", text).is_empty());
        assert_eq!(lines("proxy-userspace/src/desired/rules.rs", text), [1]);
    }

    #[test]
    fn the_datapath_uses_core_and_bytemuck() {
        let text = "use core::fmt;\nuse bytemuck::Pod;\nuse std::vec::Vec;\nuse super::Packet;\n";
        assert_eq!(lines("proxy-common/src/datapath/parse.rs", text), [3]);
        assert!(lines("proxy-common/src/testing/frame.rs", text).is_empty());
    }

    #[test]
    fn unsafe_code_has_its_places() {
        let text = "#[unsafe(no_mangle)]\nstatic A: u8 = 0;\nfn f() { unsafe { g() } }\n";
        assert_eq!(lines("proxy-ebpf/src/tc.rs", text), [3]);
        assert_eq!(lines("proxy-userspace/tests/kernel/main.rs", text), [3]);
        assert!(lines("proxy-ebpf/src/context/skb.rs", text).is_empty());
        assert!(lines("proxy-userspace/src/maps/kinds.rs", text).is_empty());
    }

    #[test]
    fn libraries_have_errors_of_their_own() {
        let text = "fn f() -> anyhow::Result<()> { Ok(()) }\n";
        assert_eq!(lines("proxy-userspace/src/loader/pins.rs", text), [1]);
        assert!(lines("proxy-userspace/src/run.rs", text).is_empty());
        assert!(lines("xtask/src/build.rs", text).is_empty());
    }

    #[test]
    fn unfinished_work_is_found_in_tests_too() {
        let text = "#[cfg(test)]\nmod tests {\n    fn f() { todo!() }\n}\nfn todo() {}\n";
        assert_eq!(lines("xtask/src/run.rs", text), [3]);
    }
}

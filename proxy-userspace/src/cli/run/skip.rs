//! Which pods the socket edge leaves alone.

use clap::Args;

use crate::pods::{Namespaces, PodSelector, Skip};

/// Pods whose sockets are not pointed at backends.
#[derive(Args, Debug)]
pub(super) struct SkipArgs {
    /// Namespaces whose pods see the addresses of Services, as the sidecars of a mesh must: they
    /// are served packet by packet. Has this node's Pods watched.
    #[arg(long, value_name = "NAMESPACE,…")]
    socket_lb_skip_namespaces: Option<Namespaces>,
    /// The same for pods of all namespaces with labels like these, such as
    /// `sidecar.istio.io/inject=true,app notin (a,b)`. May be given several times: a pod that one
    /// of the selectors selects is left out.
    #[arg(long, value_name = "SELECTOR")]
    socket_lb_skip_pods: Vec<PodSelector>,
}

impl SkipArgs {
    /// The pods that are meant.
    pub(super) fn skip(&self) -> Skip {
        Skip {
            namespaces: self.socket_lb_skip_namespaces.clone().unwrap_or_default(),
            selectors: self.socket_lb_skip_pods.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser, Debug)]
    struct Command {
        #[command(flatten)]
        skip: SkipArgs,
    }

    fn read(arguments: &[&str]) -> Result<Skip, String> {
        let command = Command::try_parse_from([&["beeline"], arguments].concat());
        let line = |error: clap::Error| error.to_string().lines().next().unwrap().to_owned();
        command.map(|it| it.skip.skip()).map_err(line)
    }

    #[test]
    fn each_selector_has_an_option_of_its_own() {
        let pods = "--socket-lb-skip-pods";
        let arguments = [
            "--socket-lb-skip-namespaces=a,b",
            pods,
            "x in (a,b)",
            pods,
            "!y",
        ];
        let skip = read(&arguments).unwrap();
        assert_eq!(skip.namespaces.to_string(), "a,b");
        let selectors: Vec<_> = skip.selectors.iter().map(ToString::to_string).collect();
        assert_eq!(selectors, ["x in (a,b)", "!y"]);
        assert_eq!(read(&[]).unwrap(), Skip::default());
    }

    #[test]
    fn errors_name_the_option() {
        for (argument, expected) in [
            (
                "--socket-lb-skip-pods=app notin a",
                "error: invalid value 'app notin a' for '--socket-lb-skip-pods <SELECTOR>': \
                 expected '(' after notin, found 'a'",
            ),
            (
                "--socket-lb-skip-namespaces=a,B",
                "error: invalid value 'a,B' for '--socket-lb-skip-namespaces <NAMESPACE,…>': \
                 'B' is not the name of a namespace",
            ),
        ] {
            assert_eq!(read(&[argument]).unwrap_err(), expected);
        }
    }
}

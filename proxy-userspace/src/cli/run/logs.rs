//! What is logged, and how.

use clap::{Args, ValueEnum};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

#[derive(Args, Debug)]
pub(super) struct LogArgs {
    /// What to log: error, warn, info, debug or trace, or directives such as
    /// `info,beeline::sync=debug`. A single word is about Beeline itself, not about what it is
    /// made of.
    #[arg(long, value_name = "FILTER", default_value = "info", value_parser = filter)]
    log: String,
    /// How to log.
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

fn filter(text: &str) -> Result<String, String> {
    match EnvFilter::try_new(directives(text)) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn directives(text: &str) -> String {
    match text.parse::<LevelFilter>() {
        // What kube has to say is among the problems of the source already.
        Ok(level) => {
            let others = level.min(LevelFilter::WARN);
            format!("{others},kube_client=off,beeline={level}")
        }
        Err(_) => text.to_owned(),
    }
}

/// Logs to standard error from now on.
pub(super) fn log_to_stderr(args: &LogArgs) {
    use std::io::{IsTerminal as _, stderr};
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(directives(&args.log)))
        .with_writer(stderr);
    match args.log_format {
        LogFormat::Text => builder
            .with_target(false)
            .with_ansi(stderr().is_terminal())
            .init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_level_is_about_ourselves() {
        assert_eq!(directives("debug"), "warn,kube_client=off,beeline=debug");
        assert_eq!(directives("error"), "error,kube_client=off,beeline=error");
        assert_eq!(directives("info,aya=debug"), "info,aya=debug");
        assert!(filter("beeline=loud").is_err());
    }
}

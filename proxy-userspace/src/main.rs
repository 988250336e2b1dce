//! The `beeline` command.

/// Gives back what the first lists needed: that is more than what is kept of them, and in between.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    beeline::cli::main()
}

//! The verbs that are made from the definition of the command line itself: `completions`, `man`.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, CommandFactory, ValueEnum};
use clap_complete::Shell;
use clap_complete::aot::generate;

use crate::Cli;
use crate::console::Console;
use crate::exit::Outcome;

/// Print a completion script for a shell
#[derive(Args)]
#[command(after_help = "Example:\n  kvctl completions bash > kvctl.bash")]
pub struct CompletionsRequest {
    /// The shell that will read the script
    #[arg(value_enum)]
    shell: KnownShell,
}

/// The shells whose scripts are supported.
#[derive(Clone, Copy, ValueEnum)]
enum KnownShell {
    Bash,
    Zsh,
    Fish,
}

pub fn completions(request: &CompletionsRequest, console: &mut Console) -> anyhow::Result<Outcome> {
    let shell = match request.shell {
        KnownShell::Bash => Shell::Bash,
        KnownShell::Zsh => Shell::Zsh,
        KnownShell::Fish => Shell::Fish,
    };
    // The generator panics where it cannot write, so it writes to memory.
    let mut script = Vec::new();
    generate(shell, &mut Cli::command(), "kvctl", &mut script);
    console.write_all(&script)?;
    Ok(Outcome::Yes)
}

/// Write the man pages, one a verb, into a directory
#[derive(Args)]
#[command(after_help = "Example:\n  kvctl man man1")]
pub struct ManRequest {
    /// Created if it does not exist
    dir: PathBuf,
}

pub fn man(request: &ManRequest) -> anyhow::Result<Outcome> {
    let dir = &request.dir;
    fs::create_dir_all(dir)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), dir))
        .with_context(|| format!("cannot write man pages to {}", dir.display()))?;
    Ok(Outcome::Yes)
}

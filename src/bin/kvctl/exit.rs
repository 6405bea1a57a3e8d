//! How a run ends: one place turns results and errors into exit codes and messages.

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use slotdb::Error as StoreError;

use crate::console::{self, Console};

/// What a verb that did not fail has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done, or the answer is yes.
    Yes,
    /// Key absent, condition not met, not verified.
    No,
    /// The verb ran, and what it found is that the store is damaged.
    Damaged,
}

/// Arguments that clap accepted and the verb could not read.
#[derive(Debug)]
pub struct Usage(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

const NO: u8 = 1;
const USAGE: u8 = 2;
const DAMAGED: u8 = 3;
const TIMED_OUT: u8 = 4;
const FAILED: u8 = 5;

/// The exit code of an error. `None` is a closed pipe: whoever read our output has had enough.
fn code(error: &anyhow::Error) -> Option<u8> {
    if let Some(io) = error.downcast_ref::<io::Error>() {
        return (io.kind() != io::ErrorKind::BrokenPipe).then_some(FAILED);
    }
    if error.is::<Usage>() {
        return Some(USAGE);
    }
    Some(match error.downcast_ref::<StoreError>() {
        Some(
            StoreError::NotAStore { .. }
            | StoreError::Version { .. }
            | StoreError::Features { .. }
            | StoreError::Corrupt { .. }
            | StoreError::Truncated { .. },
        ) => DAMAGED,
        Some(StoreError::Timeout { .. }) => TIMED_OUT,
        Some(StoreError::Invalid { .. }) => USAGE,
        _ => FAILED,
    })
}

/// Ends a verb: its output reaches stdout only if it did not fail.
pub fn of_verb(mut console: Console, result: anyhow::Result<Outcome>) -> ExitCode {
    let colour = console.stderr_colour();
    let result = match result {
        Ok(outcome) => console.flush().map(|()| outcome).map_err(Into::into),
        Err(error) => Err(error),
    };
    // What is left in the buffer belongs to a failed operation or to a closed pipe.
    console.discard();
    match result {
        Ok(Outcome::Yes) => ExitCode::SUCCESS,
        Ok(Outcome::No) => ExitCode::from(NO),
        Ok(Outcome::Damaged) => ExitCode::from(DAMAGED),
        Err(error) => of_error(&error, colour),
    }
}

/// Ends a run that clap stopped: help and version are results, the rest is wrong usage.
pub fn of_parsing(stopped: &clap::Error) -> ExitCode {
    let colour = console::stderr_takes_colour();
    if stopped.use_stderr() {
        // Nobody is left to tell if stderr is closed.
        let _ = stopped.print();
        return ExitCode::from(USAGE);
    }
    match stopped.print().and_then(|()| io::stdout().flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => of_error(&console::stdout_failed(&error).into(), colour),
    }
}

/// Becomes true when somebody asks this process to end: what it made must be taken away first.
pub fn on_interrupt() -> io::Result<Arc<AtomicBool>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    Ok(interrupted)
}

/// Makes the limit of `ulimit -f` an error that is told instead of a death that leaves half a file.
pub fn outlive_file_limit() -> io::Result<()> {
    signal_hook::flag::register(SIGXFSZ, Arc::default()).map(drop)
}

/// Ends an agent: its parent reads its lines, people read its errors.
pub fn of_agent(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => of_error(&error, console::stderr_takes_colour()),
    }
}

fn of_error(error: &anyhow::Error, colour: bool) -> ExitCode {
    match code(error) {
        None => ExitCode::SUCCESS,
        Some(code) => {
            console::complain(&message(error), colour);
            ExitCode::from(code)
        }
    }
}

/// The error and its causes on one line, each cause only if the text before does not tell it.
fn message(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let part = cause.to_string();
        if text.is_empty() {
            text = part;
        } else if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use std::time::Duration;

    fn code_of(error: StoreError) -> Option<u8> {
        code(&anyhow::Error::new(error).context("while testing"))
    }

    #[test]
    fn every_error_has_its_code() {
        let path = PathBuf::from("app.db");
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let why = || String::from("why");
        let waited = Duration::from_secs(1);
        for (error, code) in [
            (StoreError::NotAStore { path: path.clone(), why: why() }, DAMAGED),
            (StoreError::Version { path: path.clone(), found: 9 }, DAMAGED),
            (StoreError::Features { path: path.clone(), bits: 1 }, DAMAGED),
            (StoreError::Corrupt { path: path.clone(), offset: 7, what: why() }, DAMAGED),
            (StoreError::Truncated { path: path.clone(), expected: 2, found: 1 }, DAMAGED),
            (StoreError::Timeout { path: path.clone(), what: "a lock", waited, holder: None }, TIMED_OUT),
            (StoreError::NotFound { path: path.clone() }, FAILED),
            (StoreError::Exists { path: path.clone() }, FAILED),
            (StoreError::Full { path: path.clone(), needed: 1, source: full(), held: None }, FAILED),
            (StoreError::MaxSize { path: path.clone(), needed: 1, max: 1, held: None }, FAILED),
            (StoreError::Poisoned { path: path.clone() }, FAILED),
            (StoreError::KeyTooLong { len: 70_000 }, FAILED),
            (StoreError::Invalid { what: why() }, USAGE),
        ] {
            assert_eq!(code_of(error), Some(code));
        }
    }

    #[test]
    fn only_a_closed_pipe_is_no_failure() {
        let of = |kind| code(&io::Error::from(kind).into());
        assert_eq!(of(io::ErrorKind::BrokenPipe), None);
        assert_eq!(of(io::ErrorKind::StorageFull), Some(FAILED));
        // A pipe that breaks inside the store is not our output.
        let source = io::Error::from(io::ErrorKind::BrokenPipe);
        let inside = StoreError::Io { path: PathBuf::from("app.db"), op: "write", offset: None, source };
        assert_eq!(code_of(inside), Some(FAILED));
    }
}

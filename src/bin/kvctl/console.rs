//! What a verb talks to: buffered stdout, notes and complaints on stderr, colours.

use std::env;
use std::io::{self, BufWriter, IsTerminal, Stdout, Write};

use anstyle::{AnsiColor, Style};
use clap::{Args, ValueEnum};
use serde::Serialize;

const BUFFER: usize = 64 * 1024;

const OUTPUT: &str = "Output";

/// Options that every verb takes.
#[derive(Args)]
pub struct ConsoleArgs {
    /// Print JSON: one document, or one object a line where it streams
    ///
    /// Bytes that are not UTF-8 appear as {"base64": "..."}.
    #[arg(long, global = true, help_heading = OUTPUT)]
    json: bool,

    /// No progress bars and no notes on stderr, errors only
    #[arg(long, short, global = true, help_heading = OUTPUT)]
    quiet: bool,

    /// Colours; NO_COLOR in the environment always wins
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN", help_heading = OUTPUT)]
    color: Colour,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Colour {
    /// On a terminal
    #[default]
    Auto,
    Always,
    Never,
}

impl Colour {
    fn on(self, terminal: bool) -> bool {
        let refused = env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty());
        let dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
        !refused && (self == Colour::Always || (self == Colour::Auto && terminal && !dumb))
    }
}

/// Stdout, and the manner of speaking that the options asked for.
pub struct Console {
    out: BufWriter<Stdout>,
    colour: Colour,
    pub json: bool,
    pub quiet: bool,
}

impl Console {
    pub fn new(args: &ConsoleArgs) -> Console {
        let out = BufWriter::with_capacity(BUFFER, io::stdout());
        Console { out, colour: args.color, json: args.json, quiet: args.quiet }
    }

    /// Writes one JSON document and ends the line.
    pub fn document(&mut self, document: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, document)?;
        writeln!(self.out)
    }

    /// Tells people what is not a result, unless they asked for silence.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            // Nobody is left to tell if stderr is closed.
            let _ = writeln!(io::stderr(), "kvctl: {text}");
        }
    }

    pub fn stdout_is_terminal(&self) -> bool {
        self.out.get_ref().is_terminal()
    }

    /// A progress bar is for people: on a terminal, and not in between results.
    pub fn shows_progress(&self) -> bool {
        !self.quiet && io::stderr().is_terminal()
    }

    /// The style if stdout takes colours, else the plain one.
    pub fn style(&self, style: Style) -> Style {
        if self.colour.on(self.stdout_is_terminal()) { style } else { Style::new() }
    }

    pub fn stderr_colour(&self) -> bool {
        self.colour.on(io::stderr().is_terminal())
    }

    /// Throws away what was not flushed; dropping the buffer would write it.
    pub fn discard(self) {
        let _ = self.out.into_parts();
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes).map_err(|error| stdout_failed(&error))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush().map_err(|error| stdout_failed(&error))
    }
}

/// Says what could not be written; the kind stays, since a closed pipe is no failure.
pub fn stdout_failed(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot write to stdout: {error}"))
}

/// The choice before the options are known.
pub fn stderr_takes_colour() -> bool {
    Colour::Auto.on(io::stderr().is_terminal())
}

/// One error line on stderr.
pub fn complain(text: &str, colour: bool) {
    let style = if colour { AnsiColor::Red.on_default().bold() } else { Style::new() };
    // Nobody is left to tell if stderr is closed.
    let _ = writeln!(io::stderr(), "{style}kvctl:{style:#} {text}");
}

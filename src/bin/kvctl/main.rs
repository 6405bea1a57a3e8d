//! `kvctl`, the command line of slotdb: every verb parses into a typed request, runs, and ends in
//! an exit code (see `exit`).

mod agent;
mod args;
mod bank;
mod bytes;
mod compact;
mod console;
mod crew;
mod data;
mod demo;
mod exit;
mod generate;
mod integrity;
mod json;
mod lab;
mod ledger;
mod look;
mod operate;
mod power_cut;
mod progress;
mod records;
mod torture;
mod transfer;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use console::Console;
use exit::Outcome;

/// Read, write, watch over and move slotdb stores
///
/// A store is one file that any number of processes share. Exit status: 0 done or yes,
/// 1 no (key absent, condition not met), 2 wrong usage, 3 the store is damaged or not a slotdb
/// file, 4 timed out waiting for a lock, 5 any other failure.
#[derive(Parser)]
#[command(name = "kvctl", bin_name = "kvctl", version, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    console: console::ConsoleArgs,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Create(data::CreateRequest),
    Put(data::PutRequest),
    Get(data::GetRequest),
    Del(data::DelRequest),
    Count(data::CountRequest),
    Scan(data::ScanRequest),
    Stat(look::StatRequest),
    Who(look::WhoRequest),
    Check(integrity::CheckRequest),
    Checkpoint(operate::CheckpointRequest),
    Sync(operate::SyncRequest),
    Compact(compact::CompactRequest),
    Dump(transfer::DumpRequest),
    Load(transfer::LoadRequest),
    Demo(demo::DemoRequest),
    Torture(torture::TortureRequest),
    Completions(generate::CompletionsRequest),
    Man(generate::ManRequest),
}

fn main() -> ExitCode {
    if let Some(order) = agent::order_of_this_process() {
        return exit::of_agent(agent::obey(&order));
    }
    match Cli::try_parse() {
        Err(stopped) => exit::of_parsing(&stopped),
        Ok(cli) => {
            let mut console = Console::new(&cli.console);
            let result = exit::outlive_file_limit().map_err(Into::into).and_then(|()| run(&cli.verb, &mut console));
            exit::of_verb(console, result)
        }
    }
}

fn run(verb: &Verb, console: &mut Console) -> anyhow::Result<Outcome> {
    match verb {
        Verb::Create(request) => data::create(request, console),
        Verb::Put(request) => data::put(request, console),
        Verb::Get(request) => data::get(request, console),
        Verb::Del(request) => data::del(request, console),
        Verb::Count(request) => data::count(request, console),
        Verb::Scan(request) => data::scan(request, console),
        Verb::Stat(request) => look::stat(request, console),
        Verb::Who(request) => look::who(request, console),
        Verb::Check(request) => integrity::check(request, console),
        Verb::Checkpoint(request) => operate::checkpoint(request, console),
        Verb::Sync(request) => operate::sync(request, console),
        Verb::Compact(request) => compact::compact(request, console),
        Verb::Dump(request) => transfer::dump(request, console),
        Verb::Load(request) => transfer::load(request, console),
        Verb::Demo(request) => demo::demo(request, console),
        Verb::Torture(request) => torture::torture(request, console),
        Verb::Completions(request) => generate::completions(request, console),
        Verb::Man(request) => generate::man(request),
    }
}

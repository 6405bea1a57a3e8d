//! slotdb beside other stores, in one run. See README.md.

mod args;
mod chart;
mod child;
mod data;
mod device;
mod engine;
mod engines;
mod machine;
mod measure;
mod report;
mod results;
mod runner;
mod workload;

use serde_json::json;

use crate::args::Args;
use crate::engine::{Engine, Result};
use crate::results::Results;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let done = match words.split_first() {
        Some((word, rest)) if word == child::WORD => child::main(&engines::all(), rest),
        Some((word, _)) if word == "--help" || word == "-h" => {
            println!("{}", args::USAGE);
            Ok(())
        }
        _ => Args::parse(&words).and_then(|args| run(&args, &words)),
    };
    if let Err(error) = done {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

/// The engines that are asked for and here; the others are skipped by name.
fn available(args: &Args, results: &mut Results) -> Vec<Engine> {
    let wanted = engines::all().into_iter().filter(|engine| args.wants_engine(engine.name));
    wanted
        .filter(|engine| match (engine.version)() {
            Ok(version) => {
                results.note(&["versions", engine.name], json!(version));
                true
            }
            Err(error) => {
                eprintln!("skipped: {}: {error}; see benches/peers/setup.sh", engine.name);
                results.note(&["missing", engine.name], json!(error.to_string()));
                false
            }
        })
        .collect()
}

fn run(args: &Args, words: &[String]) -> Result<()> {
    let former = args.json.as_deref().filter(|json| (args.merge || !args.measure) && json.exists());
    let mut results = former.map_or_else(|| Ok(Results::default()), Results::read)?;
    let floors: Vec<_> = engines::floors().into_iter().filter(|floor| args.wants_engine(floor.name)).collect();
    if args.measure {
        std::fs::create_dir_all(&args.dir)?;
        if device::is_ram(&args.dir) {
            return Err(format!("{} is RAM: what is durable there costs nothing; use --dir", args.dir.display()).into());
        }
        let here = available(args, &mut results);
        machine::note(args, words, &mut results);
        let mut runner = runner::Runner::new(args, &here, &floors, results);
        let ran = runner.run();
        results = runner.results;
        ran?;
    }
    if let Some(path) = &args.markdown {
        std::fs::write(path, report::markdown(&engines::all(), &engines::floors(), &results, args.svg.is_some())?)?;
    }
    if let Some(dir) = &args.svg {
        chart::charts(dir, &engines::all(), &results)?;
    }
    Ok(())
}

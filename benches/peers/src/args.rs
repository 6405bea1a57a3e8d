//! The command line.

use std::path::PathBuf;

use crate::engine::Result;
use crate::workload;

pub const USAGE: &str = "\
cargo run --release --manifest-path benches/peers/Cargo.toml -- [OPTION VALUE]...

  --n N              records (1000000)
  --rounds N         rounds (3)
  --json FILE        where results go; FILE.notes.json beside it has what is no number of a workload
  --merge yes        keep what FILE has of workloads and engines that are not measured now
  --markdown FILE    a table of all results in the JSON file
  --svg DIR          a chart of each workload
  --only A,B         these workloads
  --engines A,B      these engines
  --seconds S        how long each is timed, about (0.4)
  --overwrite-limit S  seconds after which size_after_3n_overwrites gives an engine up (180)
  --dir DIR          where the stores live (target/peers-stores): a disk, not RAM
  --measure no       only write table and charts";

#[derive(Clone)]
pub struct Args {
    pub n: u64,
    pub rounds: usize,
    pub json: Option<PathBuf>,
    pub merge: bool,
    pub markdown: Option<PathBuf>,
    pub svg: Option<PathBuf>,
    pub only: Vec<String>,
    pub engines: Vec<String>,
    pub seconds: f64,
    pub overwrite_limit: f64,
    pub dir: PathBuf,
    pub measure: bool,
}

fn list(value: &str) -> Vec<String> {
    value.split(',').filter(|name| !name.is_empty()).map(str::to_string).collect()
}

impl Args {
    pub fn parse(words: &[String]) -> Result<Args> {
        let mut args = Args {
            n: 1_000_000,
            rounds: 3,
            json: None,
            merge: false,
            markdown: None,
            svg: None,
            only: vec![],
            engines: vec![],
            seconds: 0.4,
            overwrite_limit: 180.0,
            dir: PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/peers-stores"),
            measure: true,
        };
        let mut words = words.iter();
        while let Some(option) = words.next() {
            let value = words.next().ok_or_else(|| format!("{option} needs a value\n\n{USAGE}"))?;
            match option.as_str() {
                "--n" => args.n = value.replace('_', "").parse()?,
                "--rounds" => args.rounds = value.parse()?,
                "--json" => args.json = Some(value.into()),
                "--merge" => args.merge = value == "yes",
                "--markdown" => args.markdown = Some(value.into()),
                "--svg" => args.svg = Some(value.into()),
                "--only" => args.only = list(value),
                "--engines" => args.engines = list(value),
                "--seconds" => args.seconds = value.parse()?,
                "--overwrite-limit" => args.overwrite_limit = value.parse()?,
                "--dir" => args.dir = value.into(),
                "--measure" => args.measure = value != "no",
                _ => return Err(format!("no option {option}\n\n{USAGE}").into()),
            }
        }
        if let Some(name) = args.only.iter().find(|name| workload::named(name).is_none()) {
            let names: Vec<&str> = workload::all().map(|workload| workload.name).collect();
            return Err(format!("no workload {name}; there are {}", names.join(", ")).into());
        }
        if !(10_000..=100_000_000).contains(&args.n) {
            return Err("--n must be from 10,000 to 100,000,000".into());
        }
        Ok(args)
    }

    pub fn wants(&self, workload: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == workload)
    }

    pub fn wants_engine(&self, engine: &str) -> bool {
        self.engines.is_empty() || self.engines.iter().any(|name| name == engine)
    }
}

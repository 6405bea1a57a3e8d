//! What a run was made on and with.

use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::args::Args;
use crate::results::Results;

fn output(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    output.map_or(String::new(), |output| String::from_utf8_lossy(&output.stdout).trim().to_string())
}

/// The value of a line `name : value` of a file of /proc.
fn field(file: &str, name: &str) -> String {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    line.split_once(':').map_or("unknown", |(_, value)| value.trim()).to_string()
}

fn file_system(dir: &Path) -> String {
    let dir = dir.to_string_lossy();
    output("findmnt", &["-n", "-o", "FSTYPE", "-T", &dir])
}

pub fn note(args: &Args, words: &[String], results: &mut Results) {
    let cores = std::thread::available_parallelism().map_or(0, |n| n.get());
    let memory = field("/proc/meminfo", "MemTotal").split(' ').next().and_then(|kib| kib.parse::<f64>().ok());
    let machine = format!(
        "{}, {cores} cores, {:.0} GiB of RAM, Linux {}, stores on {}, {}",
        field("/proc/cpuinfo", "model name"),
        memory.unwrap_or(0.0) / f64::from(1 << 20),
        output("uname", &["-r"]),
        file_system(&args.dir),
        output("rustc", &["--version"]),
    );
    results.note(&["run", "machine"], json!(machine));
    let command = format!("`cargo run --release --manifest-path benches/peers/Cargo.toml -- {}`", words.join(" "));
    let former = results.noted(&["run", "command"]).and_then(|former| former.as_str());
    let command = former.filter(|_| args.merge).map_or(command.clone(), |former| format!("{former}, {command}"));
    results.note(&["run", "command"], json!(command));
    results.note(&["run", "date"], json!(output("date", &["-u", "+%Y-%m-%d"])));
    results.note(
        &["run", "records"],
        json!(format!("{} in {} rounds", crate::report::number(args.n as f64), args.rounds)),
    );
}

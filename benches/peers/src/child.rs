//! Processes that work at the same time: this program again, told by its arguments what to do and by its input when.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::data::Sequence;
use crate::engine::{Engine, How, Mode, Result};
use crate::measure::{Run, Task, Timed, sum, warm};
use crate::workload::{Keys, Kind, named};

/// The word that makes this program a child.
pub const WORD: &str = "child";

/// Order of what a child is told, besides the engine and the directory.
struct Orders {
    workload: String,
    n: u64,
    index: u64,
    seconds: f64,
    shared: bool,
}

fn spawn(engine: &Engine, dir: &Path, orders: &Orders) -> Result<(Child, BufReader<std::process::ChildStdout>)> {
    let mut child = Command::new(std::env::current_exe()?)
        .args([WORD, engine.name])
        .arg(dir)
        .arg(&orders.workload)
        .args([orders.n, orders.index].map(|number| number.to_string()))
        .args([orders.seconds.to_string(), orders.shared.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let output = child.stdout.take().ok_or("no pipe")?;
    Ok((child, BufReader::new(output)))
}

fn read_line(from: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    if line.is_empty() { Err("a child has ended".into()) } else { Ok(line.trim_end().to_string()) }
}

/// Runs a workload by several processes that begin at the same time; their rates added.
pub fn run(engine: &Engine, dir: &Path, workload: &str, n: u64, seconds: f64, count: usize) -> Result<Timed> {
    let orders = |index| Orders { workload: workload.into(), n, index, seconds, shared: count > 1 };
    let mut children = (0..count as u64).map(|index| spawn(engine, dir, &orders(index))).collect::<Result<Vec<_>>>()?;
    let timed = || -> Result<Timed> {
        for (_, output) in &mut children {
            read_line(output)?;
        }
        for (child, _) in &mut children {
            writeln!(child.stdin.as_mut().ok_or("no pipe")?, "go")?;
        }
        let mut times = Vec::new();
        for (_, output) in &mut children {
            let line = read_line(output)?;
            let (ops, seconds) = line.split_once(' ').ok_or("a child that babbles")?;
            times.push(Timed { ops: ops.parse()?, seconds: seconds.parse()? });
        }
        sum(times)
    }();
    for (child, _) in &mut children {
        if timed.is_err() {
            child.kill()?;
        }
        child.wait()?;
    }
    timed
}

/// Lets a process put, and kills it in the middle of that.
pub fn kill_a_writer(engine: &Engine, dir: &Path, n: u64) -> Result<()> {
    let orders = Orders { workload: "put_eventual".into(), n, index: 0, seconds: 1e9, shared: false };
    let (mut child, mut output) = spawn(engine, dir, &orders)?;
    let ready = read_line(&mut output);
    if ready.is_ok() {
        writeln!(child.stdin.as_mut().ok_or("no pipe")?, "go")?;
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
    child.kill()?;
    child.wait()?;
    ready.map(drop)
}

/// The child's side.
pub fn main(engines: &[Engine], args: &[String]) -> Result<()> {
    let [engine, dir, workload, n, index, seconds, shared] = args else { return Err("7 words".into()) };
    let engine = engines.iter().find(|known| known.name == engine).ok_or("an unknown engine")?;
    let (n, index, seconds): (u64, u64, f64) = (n.parse()?, index.parse()?, seconds.parse()?);
    let workload = named(workload).ok_or("an unknown workload")?;
    let (task, keys, count) = match workload.kind {
        Kind::Processes(task, count, keys) => (task, keys, count),
        _ => (Task::Put, Keys::Uniform, 1),
    };
    let read_only = !task.writes() && engine.processes == crate::engine::Processes::Readers;
    let mode = if read_only { Mode::ReadOnly } else { workload.mode };
    let store = (engine.open)(Path::new(dir), How { mode, n, shared: shared == "true" })?;
    let sequence = match keys {
        Keys::Uniform => Sequence::uniform(n, 500_000, 1000 + index),
        Keys::Zipfian => Sequence::zipfian(n, 500_000, 1000 + index),
    };
    {
        let mut session = store.session()?;
        if mode != Mode::Immediate {
            warm(&mut *session, n)?;
        }
        let mut line = String::new();
        println!("ready");
        std::io::stdin().read_line(&mut line)?;
        let durable = mode == Mode::Immediate;
        let alone = count == 1;
        let run = Run { task, sequence: &sequence, from: 0, seconds, present: true, durable, alone };
        let timed = run.time(&mut *session)?;
        println!("{} {}", timed.ops, timed.seconds);
    }
    store.close()
}

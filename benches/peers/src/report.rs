//! The table of results, as Markdown.

use std::fmt::Write as _;

use crate::engine::{Class, Engine, Mode, Processes, Result};
use crate::engines::Floor;
use crate::results::{Cell, Results};
use crate::workload::{self, Workload};

/// A row of a workload's table.
pub struct Row<'a> {
    pub engine: &'a str,
    pub class: Class,
    pub cell: Cell,
    /// Its place among those of its class.
    pub rank: usize,
}

/// Rows of a workload: by guarantee, the best of each first.
pub fn rows<'a>(workload: &Workload, engines: &[Engine], results: &'a Results) -> Vec<Row<'a>> {
    let class = |name: &str| {
        let engine = engines.iter().find(|engine| engine.name == name);
        engine.map_or(Class::Ceiling, |engine| engine.promise(workload.mode).0)
    };
    let sign = if workload.more_is_better() { -1.0 } else { 1.0 };
    let mut rows: Vec<Row> = results
        .engines_of(workload.name)
        .into_iter()
        .map(|(engine, cell)| Row { engine, class: class(engine), cell, rank: 0 })
        .collect();
    rows.sort_by(|a, b| a.class.cmp(&b.class).then((sign * a.cell.median).total_cmp(&(sign * b.cell.median))));
    let mut last = None;
    let mut rank = 0;
    for row in &mut rows {
        rank = if last == Some(row.class) { rank + 1 } else { 1 };
        (last, row.rank) = (Some(row.class), rank);
    }
    rows
}

/// A number as people read it.
pub fn number(value: f64) -> String {
    let digits = usize::from(value < 100.0) + usize::from(value < 10.0);
    let text = format!("{value:.digits$}");
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut grouped = String::new();
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + rest
}

fn engines_table(engines: &[Engine], floors: &[Floor], results: &Results, out: &mut String) -> Result<()> {
    writeln!(out, "## Engines\n")?;
    writeln!(out, "| engine | version | configuration | eventual commit | immediate commit | open in |")?;
    writeln!(out, "|---|---|---|---|---|---|")?;
    for engine in engines {
        let version = results.noted(&["versions", engine.name]).and_then(|v| v.as_str()).unwrap_or("not measured");
        let promise = |mode| {
            let (class, words) = engine.promise(mode);
            format!("**{}**: {words}", class.name())
        };
        let processes = match engine.processes {
            Processes::Many => "many processes",
            Processes::ManyDurable => "many processes, if all commits are durable",
            Processes::Readers => "one process, or many that only read",
            Processes::One => "one process",
        };
        let (eventual, immediate) = (promise(Mode::Eventual), promise(Mode::Immediate));
        let Engine { name, about, .. } = engine;
        writeln!(out, "| {name} | {version} | {about} | {eventual} | {immediate} | {processes} |")?;
    }
    for floor in floors {
        writeln!(out, "| {} | | {} | **ceiling** of `{}` | | |", floor.name, floor.about, floor.workload)?;
    }
    Ok(())
}

fn workload_table(
    workload: &Workload,
    engines: &[Engine],
    results: &Results,
    charts: bool,
    out: &mut String,
) -> Result<()> {
    let rows = rows(workload, engines, results);
    if rows.is_empty() {
        return Ok(());
    }
    let Workload { name, about, unit, .. } = workload;
    writeln!(out, "\n### {name}\n\n{about}; {unit}.\n")?;
    let device = results.noted(&["device", name]);
    let (more, line) = if device.is_some() { (" flushes | KiB |", "---:|---:|") } else { ("", "") };
    writeln!(out, "| engine | guarantee | rank | median | range | slotdb is |{more}")?;
    writeln!(out, "|---|---|---:|---:|---|---:|{line}")?;
    let own = results.cell(name, "slotdb").map(|cell| cell.median);
    for Row { engine, class, cell, rank } in &rows {
        let ratio = own.map_or(String::new(), |own| {
            let better = if workload.more_is_better() { own / cell.median } else { cell.median / own };
            format!("{better:.2} x")
        });
        let guarantee = class.name();
        let median = number(cell.median);
        let range = format!("{} to {}", number(cell.min), number(cell.max));
        write!(out, "| {engine} | {guarantee} | {rank} | {median} | {range} | {ratio} |")?;
        if device.is_some() {
            let told = |what| {
                let value = results.noted(&["device", name, engine, what]).and_then(serde_json::Value::as_f64);
                value.map_or(String::new(), |value| format!("{value:.2}"))
            };
            write!(out, " {} | {} |", told("flushes"), told("kib"))?;
        }
        writeln!(out)?;
    }
    let left_out = results.noted(&["left_out", name]).and_then(serde_json::Value::as_object);
    let reasons: Vec<String> = left_out
        .into_iter()
        .flatten()
        .filter(|(engine, why)| why.as_str() != Some("not asked") && results.cell(name, engine).is_none())
        .map(|(engine, why)| format!("{engine}: {}", why.as_str().unwrap_or_default()))
        .collect();
    if !reasons.is_empty() {
        writeln!(out, "\nNot in the table: {}.", reasons.join("; "))?;
    }
    if charts {
        writeln!(out, "\n![{name}](bench-{name}.svg)")?;
    }
    Ok(())
}

/// The whole document.
pub fn markdown(engines: &[Engine], floors: &[Floor], results: &Results, charts: bool) -> Result<String> {
    let mut out = String::new();
    writeln!(out, "{}", include_str!("report.md").trim_end())?;
    let text = |name: &str| results.noted(&["run", name]).and_then(|v| v.as_str()).unwrap_or("unknown").to_string();
    writeln!(out, "\n## This run\n")?;
    for (title, name) in [("Machine", "machine"), ("Command", "command"), ("Date", "date"), ("Records", "records")] {
        writeln!(out, "- {title}: {}", text(name))?;
    }
    let missing = results.noted(&["missing"]).and_then(serde_json::Value::as_object);
    for (engine, why) in missing.into_iter().flatten() {
        writeln!(out, "- Skipped: {engine}, {}", why.as_str().unwrap_or_default())?;
    }
    writeln!(out)?;
    engines_table(engines, floors, results, &mut out)?;
    writeln!(out, "\n## Results")?;
    for workload in workload::all() {
        workload_table(&workload, engines, results, charts, &mut out)?;
    }
    Ok(out)
}

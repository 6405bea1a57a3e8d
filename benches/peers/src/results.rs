//! What was measured, in memory and as JSON.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::engine::Result;
use crate::workload::{self, Workload};

/// Median and range of one engine in one workload.
#[derive(Clone, Copy)]
pub struct Cell {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

/// Measurements by workload and engine, in the order of measuring.
#[derive(Default)]
pub struct Results {
    values: BTreeMap<(String, String), Vec<f64>>,
    /// Read from a file, or made of the values.
    cells: BTreeMap<(String, String), Cell>,
    /// What is no number of a workload: by topic, by key.
    pub notes: Map<String, Value>,
}

fn notes_path(json: &Path) -> PathBuf {
    let mut name = json.as_os_str().to_os_string();
    name.push(".notes.json");
    name.into()
}

fn object(path: &Path) -> Result<Map<String, Value>> {
    match serde_json::from_str(&std::fs::read_to_string(path)?)? {
        Value::Object(map) => Ok(map),
        _ => Err(format!("{} is no object", path.display()).into()),
    }
}

impl Results {
    /// What a former run wrote.
    pub fn read(json: &Path) -> Result<Results> {
        let mut results = Results::default();
        for (workload, engines) in object(json)? {
            for (engine, cell) in engines.as_object().into_iter().flatten() {
                let number = |name: &str| cell.get(name).and_then(Value::as_f64).ok_or("a result without numbers");
                let cell = Cell { median: number("median")?, min: number("min")?, max: number("max")? };
                results.cells.insert((workload.clone(), engine.clone()), cell);
            }
        }
        results.notes = object(&notes_path(json)).unwrap_or_default();
        Ok(results)
    }

    pub fn add(&mut self, workload: &str, engine: &str, value: f64) {
        let key = (workload.to_string(), engine.to_string());
        let values = self.values.entry(key.clone()).or_default();
        values.push(value);
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        self.cells.insert(key, Cell { median, min: sorted[0], max: sorted[sorted.len() - 1] });
    }

    /// Takes an engine out of a workload, and notes why.
    pub fn leave_out(&mut self, workload: &str, engine: &str, why: &str) {
        let key = (workload.to_string(), engine.to_string());
        self.values.remove(&key);
        self.cells.remove(&key);
        self.note(&["left_out", workload, engine], json!(why));
    }

    pub fn note(&mut self, path: &[&str], value: Value) {
        fn set(map: &mut Map<String, Value>, path: &[&str], value: Value) {
            match path {
                [] => {}
                [last] => drop(map.insert((*last).to_string(), value)),
                [first, rest @ ..] => {
                    let below = map.entry((*first).to_string()).or_insert_with(|| json!({}));
                    if let Some(below) = below.as_object_mut() {
                        set(below, rest, value);
                    }
                }
            }
        }
        set(&mut self.notes, path, value);
    }

    pub fn noted(&self, path: &[&str]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        rest.iter().try_fold(self.notes.get(*first)?, |value, name| value.get(*name))
    }

    pub fn cell(&self, workload: &str, engine: &str) -> Option<Cell> {
        self.cells.get(&(workload.to_string(), engine.to_string())).copied()
    }

    pub fn engines_of(&self, workload: &str) -> Vec<(&str, Cell)> {
        let all = self.cells.iter().filter(|((name, _), _)| name == workload);
        all.map(|((_, engine), cell)| (engine.as_str(), *cell)).collect()
    }

    /// Writes both files anew, so that a run that is ended early keeps what it has.
    /// Writes the files that were asked for.
    pub fn write_if(&self, args: &crate::args::Args) -> Result<()> {
        args.json.as_deref().map_or(Ok(()), |json| self.write(json))
    }

    pub fn write(&self, json: &Path) -> Result<()> {
        let mut workloads = Map::new();
        for Workload { name, unit, .. } in workload::all() {
            let mut engines = Map::new();
            for (engine, cell) in self.engines_of(name) {
                let value = json!({"median": cell.median, "min": cell.min, "max": cell.max, "unit": unit});
                engines.insert(engine.to_string(), value);
            }
            if !engines.is_empty() {
                workloads.insert(name.to_string(), Value::Object(engines));
            }
        }
        let write = |path: &Path, map: &Map<String, Value>| -> Result<()> {
            Ok(std::fs::write(path, serde_json::to_string_pretty(map)? + "\n")?)
        };
        write(json, &workloads)?;
        write(&notes_path(json), &self.notes)
    }
}

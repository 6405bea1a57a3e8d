//! The rules of the house, as far as a program can tell: what imports what, where `unsafe` is, which comments must be
//! there, how long files and lines are.

use std::fs;
use std::path::{Path, PathBuf};

/// A source file.
struct Source {
    /// From the root of the repository.
    path: PathBuf,
    text: String,
}

impl Source {
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate()
    }

    fn at(&self, line: usize, what: &str) -> String {
        format!("{}:{}: {what}", self.path.display(), line + 1)
    }

    /// The part before the unit tests.
    fn shipped(&self) -> &str {
        self.text.split("#[cfg(test)]\nmod ").next().unwrap_or_default()
    }

    /// The module directly below `src`.
    fn module(&self) -> &str {
        let below = self.path.components().nth(1).map(|part| part.as_os_str().to_str().unwrap_or_default());
        below.unwrap_or_default().trim_end_matches(".rs")
    }
}

/// All Rust files below these directories.
fn sources(directories: &[&str]) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut todo: Vec<PathBuf> = directories.iter().map(|name| root.join(name)).collect();
    let mut found = Vec::new();
    while let Some(directory) = todo.pop() {
        for entry in fs::read_dir(&directory).expect("a directory of the repository") {
            let path = entry.expect("a directory entry").path();
            if path.ends_with("target") {
                // What a crate of its own was built into.
                continue;
            }
            if path.is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("source is text");
                let path = path.strip_prefix(root).expect("below the root").to_path_buf();
                found.push(Source { path, text });
            }
        }
    }
    assert!(!found.is_empty());
    found
}

fn library() -> Vec<Source> {
    sources(&["src"]).into_iter().filter(|source| !source.path.starts_with("src/bin")).collect()
}

/// Fails with all complaints at once.
fn none(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with("//")
}

/// The line without a comment at its end.
fn code(line: &str) -> &str {
    if is_comment(line) { "" } else { line.split(" // ").next().unwrap_or_default() }
}

/// From top to bottom; imports go downward, or stay on their floor.
const FLOORS: [&[&str]; 8] = [
    &["lib", "sim"],
    &["db", "options", "stats"],
    &["txn"],
    &["engine"],
    &["index"],
    &["log"],
    &["space", "blobs", "growth", "folio", "pages", "readers", "guard", "reach", "control", "geometry", "fault"],
    &["format", "sys"],
];

/// Plain values that all floors share; and an engine is made from options.
fn is_everywhere(from: &str, path: &str) -> bool {
    let values = ["error", "Error", "Result", "MAX_KEY", "MAX_VALUE"];
    let first = path.split("::").next().unwrap_or_default();
    values.contains(&first) || path == "options::Durability" || from == "engine" && first == "options"
}

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|modules| modules.contains(&module))
}

/// What a line names with `crate::`, the parts of a group one by one.
fn crate_paths(line: &str) -> Vec<&str> {
    let word = |c: char| !(c.is_alphanumeric() || c == '_' || c == ':');
    let mut paths = Vec::new();
    for rest in line.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            Some(group) => paths.extend(group.split([',', '}', ';']).map(str::trim).filter(|part| !part.is_empty())),
            None => paths.extend(rest.split(word).next()),
        }
    }
    paths
}

#[test]
fn imports_go_downward() {
    let mut complaints = Vec::new();
    for source in library() {
        let from = source.module();
        let Some(own) = floor(from) else {
            if from != "error" {
                complaints.push(format!("{}: on no floor", source.path.display()));
            }
            continue;
        };
        for (n, line) in source.lines() {
            for path in crate_paths(code(line)) {
                let module = path.split("::").next().unwrap_or_default();
                let downward = floor(module).is_some_and(|floor| floor >= own);
                if !downward && !is_everywhere(from, path) {
                    complaints.push(source.at(n, &format!("{from} imports {path}, which is above it")));
                }
            }
        }
    }
    none(complaints);
}

#[test]
fn sys_and_format_do_not_know_each_other() {
    let strangers = |source: &Source, other: &str| {
        let knows = |(n, line)| crate_paths(code(line)).iter().any(|path| path.starts_with(other)).then_some(n);
        source.lines().filter_map(knows).map(|n| source.at(n, &format!("knows {other}"))).collect::<Vec<_>>()
    };
    let library = library();
    let complaints = library.iter().flat_map(|source| match source.module() {
        "sys" => strangers(source, "format"),
        "format" => strangers(source, "sys"),
        _ => Vec::new(),
    });
    none(complaints.collect());
}

#[test]
fn unsafe_code_is_in_one_room_and_says_why_it_is_sound() {
    let mut complaints = Vec::new();
    for source in sources(&["src"]) {
        let lines: Vec<&str> = source.text.lines().collect();
        for (n, line) in source.lines() {
            let mut words = code(line).split(|c: char| !(c.is_alphanumeric() || c == '_'));
            if !words.any(|word| word == "unsafe") {
                continue;
            }
            if !source.path.starts_with("src/sys") {
                complaints.push(source.at(n, "unsafe outside src/sys"));
            }
            let above = &lines[n.saturating_sub(8)..=n];
            if !above.iter().any(|line| is_comment(line) && (line.contains("SAFETY:") || line.contains("# Safety"))) {
                complaints.push(source.at(n, "unsafe without a SAFETY comment"));
            }
        }
    }
    none(complaints);
}

#[test]
fn every_ordering_says_what_it_pairs_with() {
    let mut complaints = Vec::new();
    for source in library() {
        let lines: Vec<&str> = source.shipped().lines().collect();
        for (n, line) in lines.iter().enumerate() {
            let strong = ["Acquire", "Release", "AcqRel", "SeqCst"].map(|name| format!("Ordering::{name}"));
            if strong.iter().any(|ordering| code(line).contains(ordering)) {
                // A statement has a few lines at most.
                let near = &lines[n.saturating_sub(4)..=n];
                if !near.iter().any(|line| line.contains("// ")) {
                    complaints.push(source.at(n, "an ordering without a comment"));
                }
            }
        }
    }
    none(complaints);
}

#[test]
fn files_and_lines_are_short() {
    let mut complaints = Vec::new();
    for source in sources(&["src", "tests", "benches"]) {
        let count = source.lines().count();
        if count > 500 {
            complaints.push(format!("{}: {count} lines", source.path.display()));
        }
        let long = source.lines().filter(|(_, line)| line.chars().count() > 120);
        complaints.extend(long.map(|(n, line)| source.at(n, &format!("{} columns", line.chars().count()))));
    }
    none(complaints);
}

#[test]
fn nothing_is_left_for_later() {
    // In two parts, or this file would complain of itself.
    let marks = [
        ("TO", "DO"),
        ("FIX", "ME"),
        ("XX", "X"),
        ("dbg", "!("),
        ("to", "do!("),
        ("unimplemented", "!("),
        ("#[igno", "re]"),
    ];
    let mut complaints = Vec::new();
    for source in sources(&["src", "tests", "benches"]) {
        for (n, line) in source.lines() {
            let left = marks.iter().map(|(a, b)| format!("{a}{b}")).find(|mark| line.contains(mark));
            complaints.extend(left.map(|mark| source.at(n, &mark)));
        }
    }
    none(complaints);
}

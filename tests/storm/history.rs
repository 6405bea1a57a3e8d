//! What processes said they did to each key, and whether one key that nobody shares could have behaved so.

use std::collections::BTreeMap;

use stateright::semantics::{ConsistencyTester, LinearizabilityTester, SequentialSpec};

/// What a key should be: one value or none, and each operation happens at once.
#[derive(Clone, Debug, Default)]
struct Cell(Option<u64>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Get,
    Put(u64),
    /// Puts, and gives what was there before.
    Swap(u64),
    /// Gives whether there was anything.
    Delete,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ret {
    Ok,
    Value(Option<u64>),
    Was(bool),
}

impl SequentialSpec for Cell {
    type Op = Op;
    type Ret = Ret;

    fn invoke(&mut self, op: &Op) -> Ret {
        match *op {
            Op::Get => Ret::Value(self.0),
            Op::Put(value) => {
                self.0 = Some(value);
                Ret::Ok
            }
            Op::Swap(value) => Ret::Value(self.0.replace(value)),
            Op::Delete => Ret::Was(self.0.take().is_some()),
        }
    }
}

/// One operation on one key.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Who does one operation after the other.
    who: usize,
    op: Op,
    from: u64,
    /// When it was over and what it gave; none if that is not known.
    end: Option<(u64, Ret)>,
}

/// The operations on all keys.
#[derive(Default)]
pub struct History {
    keys: BTreeMap<String, Vec<Entry>>,
    /// What each process is about to do.
    begun: BTreeMap<usize, (u64, Vec<(String, Op)>)>,
    pub operations: u64,
    pub unknown: u64,
}

/// What a line means for who listens.
pub enum Heard {
    /// It has begun its operation of this number.
    Began(u64),
    /// It has ended one.
    Ended,
    /// It cannot tell what became of its operation; what it does from now on it does as somebody else.
    Doubts,
    /// It says something else.
    Else(String),
}

impl History {
    /// Takes in what a process says.
    pub fn take(&mut self, who: usize, line: String) -> Heard {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["?", n, time, ref operations @ ..] => {
                self.begin(who, number(time), operations);
                Heard::Began(number(n))
            }
            ["!", _, "doubt"] => {
                self.lose(who);
                Heard::Doubts
            }
            ["!", _, "failed"] => {
                self.begun.remove(&who);
                Heard::Ended
            }
            ["!", time, ref results @ ..] => {
                self.end(who, number(time), results);
                Heard::Ended
            }
            _ => Heard::Else(line),
        }
    }

    fn begin(&mut self, who: usize, from: u64, operations: &[&str]) {
        let mut parsed = Vec::new();
        let mut rest = operations;
        while let [verb, key, more @ ..] = rest {
            let (op, more) = match (*verb, more) {
                ("get", more) => (Op::Get, more),
                ("delete", more) => (Op::Delete, more),
                ("put", [value, more @ ..]) => (Op::Put(number(value)), more),
                ("swap", [value, more @ ..]) => (Op::Swap(number(value)), more),
                _ => panic!("{operations:?}"),
            };
            parsed.push((key.to_string(), op));
            rest = more;
        }
        let before = self.begun.insert(who, (from, parsed));
        assert!(before.is_none(), "process {who} begins anew");
    }

    fn end(&mut self, who: usize, time: u64, results: &[&str]) {
        let (from, operations) = self.begun.remove(&who).expect("it has begun");
        assert_eq!(results.len(), operations.len(), "{operations:?} gave {results:?}");
        let mut keys_before = Vec::new();
        for ((key, op), result) in operations.into_iter().zip(results) {
            let ret = match *result {
                "ok" => Ret::Ok,
                "none" => Ret::Value(None),
                "true" => Ret::Was(true),
                "false" => Ret::Was(false),
                value => Ret::Value(Some(number(value))),
            };
            // Two gets of one key by one snapshot are one operation to it.
            if !keys_before.contains(&key) {
                self.add(&key, Entry { who, op, from, end: Some((time, ret)) });
                keys_before.push(key);
            }
        }
    }

    /// The process is dead, or in doubt: whatever it was about to do may happen at any time, or never.
    pub fn lose(&mut self, who: usize) {
        let Some((from, operations)) = self.begun.remove(&who) else { return };
        self.unknown += 1;
        for (key, op) in operations.into_iter().filter(|(_, op)| *op != Op::Get) {
            self.add(&key, Entry { who, op, from, end: None });
        }
    }

    fn add(&mut self, key: &str, entry: Entry) {
        self.operations += 1;
        self.keys.entry(key.to_string()).or_default().push(entry);
    }

    pub fn keys(&self) -> impl Iterator<Item = &String> {
        self.keys.keys()
    }

    /// How many keys there are, if each of them behaved.
    pub fn check(&self) -> Result<usize, String> {
        assert!(self.begun.is_empty(), "somebody is still at work");
        for (key, entries) in &self.keys {
            if !is_linearizable(entries) {
                let mut entries = entries.clone();
                entries.sort_by_key(|entry| entry.from);
                let told: Vec<String> = entries.iter().map(|entry| format!("  {entry:?}")).collect();
                return Err(format!("no order of these explains {key}:\n{}", told.join("\n")));
            }
        }
        Ok(self.keys.len())
    }
}

fn number(word: &str) -> u64 {
    word.parse().unwrap_or_else(|_| panic!("not a number: {word}"))
}

fn is_linearizable(entries: &[Entry]) -> bool {
    // Where two times are equal the operations count as concurrent: the beginning comes first.
    let mut events: Vec<(u64, bool, usize)> = Vec::new();
    for (n, entry) in entries.iter().enumerate() {
        events.push((entry.from, false, n));
        events.extend(entry.end.map(|(to, _)| (to, true, n)));
    }
    events.sort_unstable();
    let mut tester = LinearizabilityTester::new(Cell::default());
    for (_, ends, n) in events {
        let Entry { who, op, end, .. } = entries[n];
        let told = match end {
            Some((_, ret)) if ends => tester.on_return(who, ret),
            _ => tester.on_invoke(who, op),
        };
        told.expect("everybody does one thing after the other");
    }
    tester.is_consistent()
}

/// The judge must find what is wrong, or it proves nothing.
#[test]
fn impossible_histories_are_refused() {
    let check = |lines: &[(usize, &str)]| {
        let mut history = History::default();
        for &(who, line) in lines {
            assert!(!matches!(history.take(who, line.into()), Heard::Else(_)), "{line}");
        }
        (0..4).for_each(|who| history.lose(who));
        history.check()
    };
    let good: [&[(usize, &str)]; 4] = [
        &[(1, "? 0 10 put a 7"), (1, "! 20 ok"), (2, "? 0 30 get a get b"), (2, "! 40 7 none")],
        // Beside the put, before or after it.
        &[
            (1, "? 0 10 put a 7"),
            (2, "? 0 11 get a"),
            (2, "! 12 none"),
            (1, "! 20 ok"),
            (2, "? 1 21 delete a"),
            (2, "! 22 true"),
        ],
        // What the dead had begun may come late.
        &[(1, "? 0 10 put a 7"), (2, "? 0 30 get a"), (2, "! 40 none"), (2, "? 1 50 get a"), (2, "! 60 7")],
        &[
            (1, "? 0 10 swap a 7"),
            (2, "? 0 11 swap a 8"),
            (1, "! 30 8"),
            (2, "! 31 none"),
            (2, "? 1 40 get a"),
            (2, "! 41 7"),
        ],
    ];
    for lines in good {
        check(lines).expect("this can be");
    }
    let bad: [&[(usize, &str)]; 5] = [
        // A lost commit.
        &[(1, "? 0 10 put a 7"), (1, "! 20 ok"), (2, "? 0 30 get a"), (2, "! 40 none")],
        // A commit that was seen and is gone.
        &[(1, "? 0 10 put a 7"), (2, "? 0 30 get a"), (2, "! 40 7"), (2, "? 1 50 get a"), (2, "! 60 none")],
        // A lost update.
        &[(1, "? 0 10 swap a 7"), (2, "? 0 11 swap a 8"), (1, "! 30 none"), (2, "! 31 none")],
        // A value that was overwritten before.
        &[
            (1, "? 0 1 put a 6"),
            (1, "! 2 ok"),
            (1, "? 1 10 put a 7"),
            (1, "! 20 ok"),
            (2, "? 0 30 get a"),
            (2, "! 40 6"),
        ],
        // A value that nobody put.
        &[(2, "? 0 30 get a"), (2, "! 40 6")],
    ];
    for lines in bad {
        check(lines).expect_err("this cannot be");
    }
    assert!(check(&[(1, "? 0 10 delete a"), (1, "! 20 failed"), (1, "? 1 30 get a"), (1, "! 40 none")]).is_ok());
}

//! The demo's processes as their parent sees them: started, listened to, killed, stopped.

use std::fmt;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::demo_agent::{self, Role};

/// A process that works for the demo. Dropping it kills it.
pub struct Agent {
    role: Role,
    child: Child,
    listener: Option<JoinHandle<Said>>,
}

const STOPPING: Duration = Duration::from_secs(30);
const GLANCE: Duration = Duration::from_millis(5);

impl Agent {
    /// Only for the main thread: the kernel kills an agent when the thread that started it ends.
    pub fn start(role: Role, store: &Path) -> anyhow::Result<Agent> {
        let mut child = demo_agent::command(role, store)
            .and_then(|mut command| command.spawn())
            .with_context(|| format!("cannot start the {role}"))?;
        let stdout = child.stdout.take().with_context(|| format!("the {role} has no stdout"))?;
        let listener = Some(thread::spawn(move || Said::listen(stdout)));
        Ok(Agent { role, child, listener })
    }

    pub fn has_ended(&mut self) -> io::Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Kills the agent wherever it is, and gives what it said until then.
    pub fn kill(&mut self) -> Said {
        self.reap()
    }

    /// Asks the agent to stop, and gives what it said and what is wrong with its end. Why it
    /// failed, if it did, it wrote to stderr.
    pub fn stop(mut self) -> (Said, Option<String>) {
        drop(self.child.stdin.take());
        let deadline = Instant::now() + STOPPING;
        let wrong = loop {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => break None,
                Ok(Some(status)) => break Some(format!("the {} ended with {status}", self.role)),
                Ok(None) if Instant::now() < deadline => thread::sleep(GLANCE),
                Ok(None) => break Some(format!("the {} did not stop", self.role)),
                Err(error) => break Some(format!("the {}: {error}", self.role)),
            }
        };
        (self.reap(), wrong)
    }

    fn reap(&mut self) -> Said {
        // Both fail only for a process that has ended already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let said = self.listener.take().map(JoinHandle::join);
        said.and_then(Result::ok).unwrap_or_default()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.reap();
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Role::Writer(writer) => write!(f, "writer {writer}"),
            Role::Reader => f.write_str("reader"),
            Role::ReadOnlyReader => f.write_str("read-only reader"),
        }
    }
}

/// All that one agent told its parent.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// The latest transfer that a writer found when it started.
    pub resumed: Option<u64>,
    /// Acknowledged by this process.
    pub commits: u64,
    /// The latest transfer found or acknowledged.
    pub latest: u64,
    pub snapshots: u64,
    pub gets: u64,
    /// The first line that made no sense, for example after a gap.
    pub garbled: Option<String>,
}

impl Said {
    fn listen(stdout: ChildStdout) -> Said {
        let mut said = Said::default();
        let mut lines = BufReader::new(stdout);
        let mut line = String::new();
        // A line without its end was cut off by the kill: nothing was acknowledged by it.
        while lines.read_line(&mut line).is_ok() && line.ends_with('\n') {
            if said.note(&line).is_none() && said.garbled.is_none() {
                said.garbled = Some(line.trim_end().into());
            }
            line.clear();
        }
        said
    }

    /// Takes a line in; `None` if it makes no sense.
    fn note(&mut self, line: &str) -> Option<()> {
        let mut words = line.split_ascii_whitespace();
        let what = words.next()?;
        let number = words.next()?.parse().ok()?;
        match what {
            "resumed" => {
                self.resumed = Some(number);
                self.latest = number;
            }
            "commit" => {
                let expected = self.latest + 1;
                self.latest = number;
                self.commits += 1;
                return (number == expected).then_some(());
            }
            "read" => {
                self.snapshots = number;
                self.gets = words.next()?.parse().ok()?;
            }
            _ => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_add_up() {
        let mut said = Said::default();
        for line in ["resumed 7\n", "commit 8\n", "commit 9\n", "read 3 198\n"] {
            assert_eq!(said.note(line), Some(()), "{line}");
        }
        let all = Said { resumed: Some(7), commits: 2, latest: 9, snapshots: 3, gets: 198, garbled: None };
        assert_eq!(said, all);
        for line in ["commit 11\n", "commit\n", "commit x\n", "read 3\n", "\n", "hello 1\n"] {
            assert_eq!(said.note(line), None, "{line}");
        }
    }
}

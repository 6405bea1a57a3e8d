//! The processes of `demo` and `torture` as their parent sees them: started, listened to, killed, paused, stopped.

use std::fmt;
use std::io::{self, BufRead, BufReader};
use std::process::{Child, ChildStdout};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Context;
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};

use crate::agent::{self, Job, Role};
use crate::ledger::Ledger;

/// A process that works. Dropping it kills it.
pub struct Agent {
    pub role: Role,
    pub paused: bool,
    child: Child,
    said: Arc<Mutex<Said>>,
    listener: Option<JoinHandle<()>>,
}

const STOPPING: Duration = Duration::from_secs(30);
const GLANCE: Duration = Duration::from_millis(5);

impl Agent {
    /// Only for the main thread: the kernel kills an agent when the thread that started it ends.
    pub fn start(role: Role, job: &Job, seed: u64) -> anyhow::Result<Agent> {
        let mut child = agent::command(role, job, seed)
            .and_then(|mut command| command.spawn())
            .with_context(|| format!("cannot start the {role}"))?;
        let stdout = child.stdout.take().with_context(|| format!("the {role} has no stdout"))?;
        let said = Arc::new(Mutex::new(Said::default()));
        let heard = Arc::clone(&said);
        let listener = Some(thread::spawn(move || Said::listen(stdout, &heard)));
        Ok(Agent { role, paused: false, child, said, listener })
    }

    /// What it has said so far, as far as it was heard.
    pub fn said(&self) -> Said {
        self.said.lock().clone()
    }

    /// Stops the process where it stands.
    pub fn pause(&mut self) -> io::Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::STOP)?;
        self.paused = true;
        Ok(())
    }

    pub fn go_on(&mut self) -> io::Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::CONT)?;
        self.paused = false;
        Ok(())
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
    fn stop(mut self) -> (Said, Option<String>) {
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

    /// Asks the agent to stop, and enters what it said.
    pub fn stop_for(self, ledger: &mut Ledger) {
        let role = self.role;
        let (said, wrong) = self.stop();
        ledger.faults.extend(wrong);
        ledger.take_in(role, said, false);
    }

    fn reap(&mut self) -> Said {
        // Both fail only for a process that has ended already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
        // It ends with the pipe, and what it has heard until then stays, whatever becomes of it.
        let _ = self.listener.take().map(JoinHandle::join);
        self.said()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.reap();
    }
}

/// Whether an agent ended although nobody asked it to; stopping it tells how.
pub fn has_lost_one(crew: &mut [Agent]) -> io::Result<bool> {
    for agent in crew {
        if agent.has_ended()? {
            return Ok(true);
        }
    }
    Ok(false)
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// The latest transfer that a writer found when it started.
    pub resumed: Option<u64>,
    /// Acknowledged by this process.
    pub commits: u64,
    /// The latest transfer found or acknowledged.
    pub latest: u64,
    /// The latest transfer and the latest seq that a durable commit acknowledged.
    pub durable: u64,
    pub durable_seq: u64,
    pub snapshots: u64,
    pub gets: u64,
    /// The first line that made no sense, for example after a gap.
    pub garbled: Option<String>,
}

impl Said {
    fn listen(stdout: ChildStdout, said: &Mutex<Said>) {
        let mut lines = BufReader::new(stdout);
        let mut line = String::new();
        // A line without its end was cut off by the kill: nothing was acknowledged by it.
        while lines.read_line(&mut line).is_ok() && line.ends_with('\n') {
            let mut said = said.lock();
            if said.note(&line).is_none() && said.garbled.is_none() {
                said.garbled = Some(line.trim_end().into());
            }
            line.clear();
        }
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
            "commit" | "durable" => {
                let seq = words.next()?.parse().ok()?;
                let expected = self.latest + 1;
                if what == "durable" {
                    (self.durable, self.durable_seq) = (number, seq);
                }
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
        for line in ["resumed 7\n", "durable 8 20\n", "commit 9 21\n", "read 3 198\n"] {
            assert_eq!(said.note(line), Some(()), "{line}");
        }
        let all = Said {
            resumed: Some(7),
            commits: 2,
            latest: 9,
            durable: 8,
            durable_seq: 20,
            snapshots: 3,
            gets: 198,
            garbled: None,
        };
        assert_eq!(said, all);
        for line in ["commit 11 30\n", "commit 12\n", "commit\n", "commit x\n", "read 3\n", "\n", "hello 1\n"] {
            assert_eq!(said.note(line), None, "{line}");
        }
    }
}

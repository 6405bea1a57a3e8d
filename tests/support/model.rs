//! What a store should hold.

use std::collections::BTreeMap;

use super::Agent;
use super::data::{Digest, Write, bytes, filling};

/// The pairs of a store, and how orders change them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model(BTreeMap<Vec<u8>, Vec<u8>>);

impl Model {
    /// The states that an order leads through, one a commit; none for orders that write nothing.
    pub fn states_after(&self, order: &str) -> Vec<Model> {
        let mut state = self.clone();
        let step = |writes: Vec<Write>| {
            state.apply(writes);
            state.clone()
        };
        commits(order).into_iter().map(step).collect()
    }

    fn apply(&mut self, writes: Vec<Write>) {
        for write in writes {
            match write {
                Write::Put(key, value) => drop(self.0.insert(key, value)),
                Write::Delete(key) => drop(self.0.remove(&key)),
            }
        }
    }

    /// Gives the order to an agent, which must obey, and keeps pace.
    #[track_caller]
    pub fn tell(&mut self, agent: &mut Agent, order: &str) {
        agent.well(order);
        self.keep_pace(order);
    }

    /// Takes an order as obeyed.
    pub fn keep_pace(&mut self, order: &str) {
        commits(order).into_iter().for_each(|writes| self.apply(writes));
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// What `scan` answers.
    pub fn digest(&self) -> String {
        let mut digest = Digest::default();
        self.0.iter().for_each(|(key, value)| digest.add(key, value));
        digest.to_string()
    }

    /// The store is this, to the last pair, and in order.
    #[track_caller]
    pub fn is_in(&self, agent: &mut Agent) {
        agent.says("scan", &self.digest());
        agent.says("len", &self.len().to_string());
        agent.is_clean();
    }
}

/// The commits of an order, each with its writes.
fn commits(order: &str) -> Vec<Vec<Write>> {
    let words: Vec<&str> = order.split_whitespace().collect();
    let number = |word: &str| word.parse().unwrap_or_else(|_| panic!("{order}"));
    match words[..] {
        ["put", key, value] => vec![vec![Write::Put(bytes(key), bytes(value))]],
        ["delete", key] => vec![vec![Write::Delete(bytes(key))]],
        ["batch", "immediate" | "eventual", ref writes @ ..] | ["batch", ref writes @ ..] => {
            vec![writes.iter().map(|word| Write::parse(word)).collect()]
        }
        ["fill", prefix, from, to, len] => {
            let writes = filling(prefix, number(from), number(to), number(len) as usize);
            writes.map(|(key, value)| vec![Write::Put(key.into_bytes(), bytes(&value))]).collect()
        }
        _ => Vec::new(),
    }
}

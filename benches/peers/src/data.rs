//! Keys, values and the order of access: the same for every engine.

#[path = "../../common/mod.rs"]
mod common;

pub use common::{KEY, Key, Rng, VALUE, key};
use common::{Zipf, shuffled};

pub type Value = [u8; VALUE];

/// Bytes that do not compress, for the rest of values: long enough that no block of a store has many of them twice.
static FILLING: [u8; 1 << 16] = {
    let mut bytes = [0; 1 << 16];
    let (mut word, mut at) = (0x9e37_79b9_7f4a_7c15u64, 0);
    while at < bytes.len() {
        // Xorshift64 (Marsaglia, 2003).
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        bytes[at] = (word >> 32) as u8;
        at += 1;
    }
    bytes
};

/// A key's value: its second half, a version, and filling.
pub fn value(key: &Key, version: u64) -> Value {
    let mut value = [0; VALUE];
    value[..8].copy_from_slice(&key[8..]);
    value[8..16].copy_from_slice(&version.to_le_bytes());
    let at = check(key).wrapping_add(version.wrapping_mul(0x9e37)) as usize % (FILLING.len() - VALUE);
    value[16..].copy_from_slice(&FILLING[at..at + VALUE - 16]);
    value
}

/// What must stand first in a key's value.
pub fn check(key: &Key) -> u64 {
    u64::from_le_bytes(key[8..].try_into().expect("8 bytes"))
}

/// The first two words of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub check: u64,
    pub version: u64,
}

impl Head {
    #[inline]
    pub fn of(value: &[u8]) -> Head {
        let word = |at: usize| value.get(at..at + 8).map_or(0, |b| u64::from_le_bytes(b.try_into().expect("8 bytes")));
        // A value of another length has no head that passes a check.
        if value.len() == VALUE { Head { check: word(0), version: word(8) } } else { Head { check: 0, version: 0 } }
    }
}

/// What a run of reads has met.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Seen {
    pub found: u64,
    pub sum: u64,
}

impl Seen {
    #[inline]
    pub fn add(&mut self, value: &[u8]) {
        self.found += 1;
        self.sum = self.sum.wrapping_add(Head::of(value).check);
    }

    pub fn merge(&mut self, other: Seen) {
        self.found += other.found;
        self.sum = self.sum.wrapping_add(other.sum);
    }

    /// What reads of these keys must meet.
    pub fn expect<'a>(keys: impl Iterator<Item = &'a Key>) -> Seen {
        keys.fold(Seen::default(), |seen, key| Seen { found: seen.found + 1, sum: seen.sum.wrapping_add(check(key)) })
    }
}

/// Keys in the order in which a run uses them.
pub struct Sequence {
    pub keys: Vec<Key>,
    /// What each operation draws its kind from: uniform in 0..100.
    pub dice: Vec<u8>,
}

impl Sequence {
    fn of(keys: Vec<Key>, seed: u64) -> Sequence {
        let mut rng = Rng(seed ^ 0xd1ce);
        let dice = keys.iter().map(|_| rng.below(100) as u8).collect();
        Sequence { keys, dice }
    }

    /// `len` of the first `n` keys, shuffled, each once as far as they go.
    pub fn uniform(n: u64, len: u64, seed: u64) -> Sequence {
        Sequence::of(shuffled(n, len, seed), seed)
    }

    /// Keys that are in no store.
    pub fn misses(n: u64, len: u64, seed: u64) -> Sequence {
        let mut rng = Rng(seed);
        Sequence::of((0..len).map(|_| key(n + rng.below(n))).collect(), seed)
    }

    /// Zipfian with theta 0.99, the ranks scattered over the keys, as YCSB does.
    pub fn zipfian(n: u64, len: u64, seed: u64) -> Sequence {
        let zipf = Zipf::new(n, 0.99);
        let mut rng = Rng(seed);
        Sequence::of((0..len).map(|_| key(zipf.pick(&mut rng))).collect(), seed)
    }
}

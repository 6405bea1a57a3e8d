//! Keys, values and the order of access: the same for every engine.

pub const KEY: usize = 16;
pub const VALUE: usize = 100;

pub type Key = [u8; KEY];
pub type Value = [u8; VALUE];

/// SplitMix64 (Steele and others, 2014).
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The n-th key: 16 random bytes.
pub fn key(n: u64) -> Key {
    let mut rng = Rng::new(n);
    let mut key = [0; KEY];
    key[..8].copy_from_slice(&rng.next().to_le_bytes());
    key[8..].copy_from_slice(&rng.next().to_le_bytes());
    key
}

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
        let mut rng = Rng::new(seed ^ 0xd1ce);
        let dice = keys.iter().map(|_| rng.below(100) as u8).collect();
        Sequence { keys, dice }
    }

    /// `len` of the first `n` keys, shuffled, each once as far as they go.
    pub fn uniform(n: u64, len: u64, seed: u64) -> Sequence {
        let mut order: Vec<u32> = (0..n as u32).collect();
        let mut rng = Rng::new(seed);
        let len = len.min(n);
        for i in 0..len {
            let j = i + rng.below(n - i);
            order.swap(i as usize, j as usize);
        }
        Sequence::of(order[..len as usize].iter().map(|&i| key(u64::from(i))).collect(), seed)
    }

    /// Keys that are in no store.
    pub fn misses(n: u64, len: u64, seed: u64) -> Sequence {
        let mut rng = Rng::new(seed);
        Sequence::of((0..len).map(|_| key(n + rng.below(n))).collect(), seed)
    }

    /// Zipfian with theta 0.99, the ranks scattered over the keys, as YCSB does.
    pub fn zipfian(n: u64, len: u64, seed: u64) -> Sequence {
        let zipf = Zipf::new(n, 0.99);
        let mut rng = Rng::new(seed);
        Sequence::of((0..len).map(|_| key(zipf.pick(&mut rng))).collect(), seed)
    }
}

/// Gray and others, "Quickly generating billion-record synthetic databases", SIGMOD 1994.
struct Zipf {
    n: f64,
    theta: f64,
    alpha: f64,
    zeta: f64,
    eta: f64,
}

impl Zipf {
    fn new(n: u64, theta: f64) -> Zipf {
        let zeta = |n: u64| (1..=n).map(|i| (i as f64).powf(-theta)).sum::<f64>();
        let (two, all) = (zeta(2), zeta(n));
        let n = n as f64;
        let eta = (1.0 - (2.0 / n).powf(1.0 - theta)) / (1.0 - two / all);
        Zipf { n, theta, alpha: 1.0 / (1.0 - theta), zeta: all, eta }
    }

    fn pick(&self, rng: &mut Rng) -> u64 {
        let u = rng.unit();
        let uz = u * self.zeta;
        let rank = if uz < 1.0 {
            0.0
        } else if uz < 1.0 + 0.5f64.powf(self.theta) {
            1.0
        } else {
            self.n * (self.eta * u - self.eta + 1.0).powf(self.alpha)
        };
        Rng::new(rank as u64).below(self.n as u64)
    }
}

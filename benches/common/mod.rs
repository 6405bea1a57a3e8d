//! What several benchmarks need: keys, values, the order of access. `benches/peers` uses it too.

#![allow(dead_code, reason = "no program needs all of it")]

pub const KEY: usize = 16;
pub const VALUE: usize = 100;

pub type Key = [u8; KEY];

/// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014).
pub struct Rng(pub u64);

impl Rng {
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
    let mut rng = Rng(n);
    let mut key = [0; KEY];
    key[..8].copy_from_slice(&rng.next().to_le_bytes());
    key[8..].copy_from_slice(&rng.next().to_le_bytes());
    key
}

/// `len` of the first `n` keys, shuffled, each once as far as they go.
pub fn shuffled(n: u64, len: u64, seed: u64) -> Vec<Key> {
    let mut order: Vec<u32> = (0..n as u32).collect();
    let mut rng = Rng(seed);
    let len = len.min(n);
    for i in 0..len {
        let j = i + rng.below(n - i);
        order.swap(i as usize, j as usize);
    }
    order[..len as usize].iter().map(|&i| key(u64::from(i))).collect()
}

/// Zipfian ranks, scattered over the keys (Gray and others, "Quickly generating billion-record synthetic databases",
/// SIGMOD 1994).
pub struct Zipf {
    n: f64,
    theta: f64,
    alpha: f64,
    zeta: f64,
    eta: f64,
}

impl Zipf {
    pub fn new(n: u64, theta: f64) -> Zipf {
        let zeta = |n: u64| (1..=n).map(|i| (i as f64).powf(-theta)).sum::<f64>();
        let (two, all) = (zeta(2), zeta(n));
        let n = n as f64;
        let eta = (1.0 - (2.0 / n).powf(1.0 - theta)) / (1.0 - two / all);
        Zipf { n, theta, alpha: 1.0 / (1.0 - theta), zeta: all, eta }
    }

    pub fn pick(&self, rng: &mut Rng) -> u64 {
        let u = rng.unit();
        let uz = u * self.zeta;
        let rank = if uz < 1.0 {
            0.0
        } else if uz < 1.0 + 0.5f64.powf(self.theta) {
            1.0
        } else {
            self.n * (self.eta * u - self.eta + 1.0).powf(self.alpha)
        };
        Rng(rank as u64).below(self.n as u64)
    }
}

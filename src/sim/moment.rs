//! What a power cut may leave.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use super::{SECTOR, place};
use crate::format::PAGE;

/// What a power cut at one moment may leave.
#[derive(Clone, Debug)]
pub struct Moment {
    /// What the medium holds for certain, its length included.
    pub(super) durable: Arc<Vec<u8>>,
    /// Lengths the file has had since.
    pub(super) lens: Vec<u64>,
    /// Values other than the durable one that a sector has had since.
    pub(super) maybe: BTreeMap<u64, Vec<Arc<[u8]>>>,
    /// Those of them that were written by a call, not through the map.
    pub(super) written: BTreeSet<u64>,
    /// Never read after a power cut.
    pub(super) volatile: Range<u64>,
    /// Calls before it.
    pub calls: u64,
    /// What the test has noted last.
    pub note: u64,
    /// Seq up to which the store says that it is durable.
    pub claimed: u64,
}

impl Moment {
    /// How many outcomes each choice has: the length first, then the sectors that calls have written.
    pub fn choices(&self) -> Vec<u64> {
        let sectors = self.written.iter().map(|sector| 1 + self.maybe[sector].len() as u64);
        [1 + self.lens.len() as u64].into_iter().chain(sectors).collect()
    }

    /// The file after a power cut with these outcomes. Noise decides what was stored through the map.
    pub fn cut(&self, picks: &[u64], noise: u64) -> Vec<u8> {
        let mut noise = Noise(noise);
        let len = *self.lens.get((picks[0] as usize).wrapping_sub(1)).unwrap_or(&(self.durable.len() as u64));
        let mut image = self.start(len);
        let picks: BTreeMap<u64, u64> = self.written.iter().copied().zip(picks[1..].iter().copied()).collect();
        for (&sector, values) in &self.maybe {
            let pick = picks.get(&sector).copied().unwrap_or_else(|| noise.below(1 + values.len() as u64));
            if let Some(value) = values.get((pick as usize).wrapping_sub(1)) {
                put(&mut image, sector, value);
            }
        }
        self.spoil_volatile(&mut image, &mut noise);
        image
    }

    /// The file after a power cut where noise decides everything: also lengths in between, and torn sectors.
    pub fn cut_anyhow(&self, noise: u64) -> Vec<u8> {
        let mut noise = Noise(noise);
        let first = self.durable.len() as u64;
        let last = self.lens.iter().copied().fold(first, u64::max);
        let whole = *[first, last].get(noise.below(2) as usize).unwrap_or(&last);
        let odd = first + noise.below((last - first) / PAGE + 1) * PAGE;
        let mut image = self.start(if noise.below(4) == 0 { odd } else { whole });
        // Some cuts come early, some late: else of many sectors nearly half would always be old.
        let bias = noise.below(9);
        for (&sector, values) in &self.maybe {
            if noise.below(8) >= bias {
                continue;
            }
            let late = noise.below(2) == 0;
            let pick = if late { values.len() - 1 } else { noise.below(values.len() as u64) as usize };
            let torn = if noise.below(16) == 0 { noise.below(SECTOR / 8) * 8 } else { SECTOR };
            put(&mut image, sector, &values[pick][..torn as usize]);
        }
        self.spoil_volatile(&mut image, &mut noise);
        image
    }

    /// The file after a power cut that tears all sectors that calls have written, each in the midst of what is new.
    /// None: these are not two to eight.
    pub fn cut_all_torn(&self, noise: u64) -> Option<Vec<u8>> {
        let mut noise = Noise(noise);
        if !(2..=8).contains(&self.written.len()) {
            return None;
        }
        let mut image = self.start(self.lens.last().copied().unwrap_or(self.durable.len() as u64));
        for &sector in &self.written {
            let values = &self.maybe[&sector];
            let value = &values[noise.below(values.len() as u64) as usize];
            let Some(old) = image.get(place(sector)) else { continue };
            let differs: Vec<usize> = (0..value.len()).filter(|&n| old[n] != value[n]).map(|n| n / 8).collect();
            // What is there already cannot be torn.
            let (Some(first), Some(last)) = (differs.first(), differs.last()) else { continue };
            let torn = first + 1 + noise.below((last - first).max(1) as u64) as usize;
            put(&mut image, sector, &value[..torn * 8]);
        }
        self.spoil_volatile(&mut image, &mut noise);
        Some(image)
    }

    fn start(&self, len: u64) -> Vec<u8> {
        let mut image = self.durable.to_vec();
        image.resize(len as usize, 0);
        image
    }

    /// The durable value is the only one.
    pub(super) fn forget(&mut self, sector: u64) {
        self.maybe.remove(&sector);
        self.written.remove(&sector);
    }

    fn spoil_volatile(&self, image: &mut [u8], noise: &mut Noise) {
        let end = self.volatile.end.min(image.len() as u64);
        let word = noise.next().to_le_bytes();
        let spoiled = &mut image[self.volatile.start as usize..end as usize];
        spoiled.as_chunks_mut::<8>().0.iter_mut().for_each(|bytes| *bytes = word);
    }
}

/// Puts the beginning of a sector, as far as the file reaches.
fn put(image: &mut [u8], sector: u64, value: &[u8]) {
    let at = (sector * SECTOR) as usize;
    if let Some(place) = image.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

/// SplitMix64.
pub(super) struct Noise(pub u64);

impl Noise {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

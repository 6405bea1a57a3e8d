//! The cleaner: copies live records out of mostly dead segments, so that whole segments become free.
//!
//! It works inside commits, in proportion to what they write, once dead bytes exceed the limit. The victim is the
//! segment with the least live share (greedy; Rosenblum and Ousterhout, "The design and implementation of a
//! log-structured file system", 1992). A moved record is put again with `MOVED` and its old position as `prev`, so
//! snapshots older than the move still find the old one, and it takes effect with the batch that it is part of.

use std::cmp::Reverse;

use crate::control::{Core, Ends, Word};
use crate::engine::{Engine, Settings};
use crate::error::Result;
use crate::format::extent::Kind as Use;
use crate::format::hash_key;
use crate::format::record::{Kind, SEGMENT_HEADER};
use crate::index::GROUP;
use crate::log::Record;
use crate::log::append::Batch;

/// Bytes of a victim that a commit walks for each byte that it writes itself: enough to gain on it at 80 % live.
const PACE: u64 = 8;
/// Once begun, cleaning goes on until a checkpoint, or until the dead share is so much of the limit.
const UNTIL: f64 = 0.6;
/// Most bytes of a victim that one commit walks.
pub const MOST: u64 = 1 << 20;
/// A store's dead bytes are not worth a cleaner up to this share of its slack.
const DEAD_SHARE: u64 = 8;

/// How far a commit has walked its victim.
#[derive(Clone, Copy, Debug)]
pub struct Cleaning {
    /// Position of the victim.
    segment: u64,
    /// How far the walk came.
    walked: Walked,
    /// Bytes of this walk.
    pub bytes: u64,
}

/// How far a walk through a victim came.
#[derive(Clone, Copy, Debug)]
enum Walked {
    /// The next commit goes on here.
    To(u64),
    /// To the link at the end: all that was live is in this batch, or was in earlier ones.
    ToTheEnd,
    /// To a record that is not whole. What stands behind it cannot be found this way.
    ToDamage(u64),
}

/// Which segments are worth copying.
#[derive(Clone, Copy, Debug)]
pub struct Worth {
    /// Those with at most so much alive, in 65,536ths.
    pub live: u64,
    /// Those that reach to this extent, whatever they hold.
    pub cutoff: u64,
    /// Those that were begun with an earlier seq only.
    pub before: u64,
    /// Of those that hold a value of many extents, only what reaches to the cutoff and has no more extents than this.
    pub longest: u64,
}

impl Worth {
    /// Whether a segment of so many bytes is worth it for what little lives in it.
    pub fn covers(&self, lives: u64, size: u64) -> bool {
        share(lives, size) < self.live
    }
}

/// In 65,536ths.
fn share(lives: u64, size: u64) -> u64 {
    lives.saturating_mul(1 << 16) / size
}

/// How much of a victim one step takes.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Bytes to walk.
    pub bytes: u64,
    /// Records to move.
    pub records: u64,
}

/// Commits leave segments alone that would give less than a tenth.
pub const COMMIT: Worth = Worth { live: (1 << 16) * 9 / 10, cutoff: u64::MAX, before: u64::MAX, longest: 0 };

impl Engine {
    /// Adds live records of the victim to a batch, if there is too much dead space.
    pub fn clean_into(&self, batch: &mut Batch, ends: Ends) -> Result<Option<Cleaning>> {
        if !self.core.wants_cleaning(ends, &self.settings) {
            return Ok(None);
        }
        let pace = Pace { bytes: batch.bytes() * PACE, records: u64::MAX };
        self.clean_step(batch, ends, COMMIT, pace)
    }

    /// Adds live records of the victim to a batch: those in the next bytes of it, at most 1 MiB.
    pub fn clean_step(&self, batch: &mut Batch, ends: Ends, worth: Worth, pace: Pace) -> Result<Option<Cleaning>> {
        let core = &self.core;
        let tail = core.head_of(ends.tail)?;
        let Some((segment, at)) = core.victim(tail, worth) else { return Ok(None) };
        let (_, end) = core.segment_of(segment)?;
        let walked = match core.extent(core.extent_of(segment)).live() {
            // Counts are never too low. Left behind by a dead writer that had not begun to use it, it holds no records.
            0 => Walked::ToTheEnd,
            _ => core.walk(batch, at, end, pace)?,
        };
        let to = match walked {
            Walked::To(at) | Walked::ToDamage(at) => at,
            Walked::ToTheEnd => end,
        };
        Ok(Some(Cleaning { segment, walked, bytes: to - at }))
    }

    /// The batch is applied: notes how far the walk came, and retires a victim without live records.
    pub fn cleaned(&self, cleaning: Cleaning, seq: u64) {
        let core = &self.core;
        let head = core.extent_of(cleaning.segment);
        let extent = core.extent(head);
        if extent.state().kind() != Use::Log {
            return;
        }
        match cleaning.walked {
            Walked::To(at) => {
                core.set(Word::CleanAt, at);
                core.set(Word::CleanSegment, cleaning.segment);
            }
            Walked::ToDamage(at) => {
                core.keep_segment(head, at);
                core.set(Word::CleanSegment, 0);
            }
            Walked::ToTheEnd => {
                // A death may have left the count too high; the walk has seen each record.
                extent.set_live(0);
                core.retire_segment(head, seq);
            }
        }
    }
}

impl Core {
    /// Whether dead bytes of the log pass the limit, or did since the last checkpoint: what is cleaned is reused only
    /// after the next one, and a victim that is taken shortly before it has lost more records than one that was taken
    /// long before. While a reader holds back what is retired already, copying gives nothing back, so that counts
    /// against it.
    fn wants_cleaning(&self, ends: Ends, settings: &Settings) -> bool {
        let extent = self.geometry.extent;
        let log = self.get(Word::LogExtents).saturating_mul(extent);
        // Headers and padding of a record take about 32 bytes.
        let live = ends.live_bytes.saturating_add(ends.live_keys.saturating_mul(32));
        let dead = log.saturating_sub(live);
        let next = self.get(Word::Generation) + 1;
        let begun = self.get(Word::CleaningUntil) == next;
        let limit = settings.max_dead_ratio * if begun { UNTIL } else { 1.0 };
        let enough = |dead: u64| dead > settings.slack / DEAD_SHARE && dead as f64 > log as f64 * limit;
        if !enough(dead) {
            return false;
        }
        let held = if self.oldest_pin() < self.get(Word::Checkpoint) { self.get(Word::Retired) } else { 0 };
        let wants = enough(dead.saturating_sub(held.saturating_mul(extent)));
        if wants && !begun {
            self.set(Word::CleaningUntil, next);
        }
        wants
    }

    /// The victim and where to go on in it: the one in hand, else the segment with the least live share.
    pub fn victim(&self, tail: u64, worth: Worth) -> Option<(u64, u64)> {
        let segment = self.get(Word::CleanSegment);
        if segment != 0 && self.extent_of(segment) != tail {
            return Some((segment, self.get(Word::CleanAt)));
        }
        // Of those with the same share the rearmost, so that the file ends earlier.
        let (_, head) = self.victims(tail, worth).min_by_key(|&(live, head)| (live, Reverse(head)))?;
        Some((self.position_of(head), self.position_of(head) + SEGMENT_HEADER))
    }

    /// Live share and first extent of the segments that are worth copying.
    fn victims(&self, tail: u64, worth: Worth) -> impl Iterator<Item = (u64, u64)> {
        (0..self.extents()).filter_map(move |n| {
            let extent = self.extent(n);
            let size = extent.run() * self.geometry.extent;
            let is_behind = n + extent.run() > worth.cutoff;
            // A value of many extents is not copied for the sake of what lies beside it.
            let small = extent.live() <= self.geometry.extent / 2 || extent.run() <= self.geometry.block();
            let may_move = small || is_behind && extent.run() <= worth.longest;
            // One with damage counts as full of live records.
            let is_one = extent.state().kind() == Use::Log && n != tail && may_move && extent.live() < size;
            let live_share = share(extent.live(), size);
            let is_worth = is_one && (worth.covers(extent.live(), size) || is_behind);
            (is_worth && self.is_begun_before(n, worth.before)).then_some((live_share, n))
        })
    }

    /// Bytes of the segments that are worth copying, without what of them was walked. A picture of a moving store.
    pub fn left_to_walk(&self, tail: u64, worth: Worth) -> u64 {
        let segment = self.get(Word::CleanSegment);
        let left = |(_, n)| {
            let position = self.position_of(n);
            let walked = if position == segment { self.get(Word::CleanAt).saturating_sub(position) } else { 0 };
            (self.extent(n).run() * self.geometry.extent).saturating_sub(walked)
        };
        self.victims(tail, worth).map(left).sum()
    }

    /// Bytes that live in the segments that are worth copying.
    pub fn left_to_move(&self, tail: u64, worth: Worth) -> u64 {
        self.victims(tail, worth).map(|(_, n)| self.extent(n).live()).fold(0, u64::saturating_add)
    }

    /// Adds the live ones of a segment's records to the batch: those that begin in the next bytes, and one at least.
    /// The index is asked about a group of records at a time, so that its misses overlap.
    fn walk(&self, batch: &mut Batch, from: u64, end: u64, pace: Pace) -> Result<Walked> {
        let stop = from + pace.bytes.clamp(1, MOST);
        let most = pace.records.max(1).saturating_add(batch.len() as u64);
        let mut group = [(0, 0); GROUP];
        let mut walked = Walked::To(from);
        while let Walked::To(at) = walked
            && at < stop
            && (batch.len() as u64) < most
        {
            let size = (most - batch.len() as u64).min(GROUP as u64) as usize;
            let count;
            (count, walked) = self.walk_group(&mut group[..size], at, end.min(stop), end);
            if at == from {
                // The lines of the index that the batch's own writes need have come meanwhile.
                self.prefetch_group(batch, 0);
            }
            for &(position, hash) in &group[..count] {
                let record = self.record(position)?;
                if let Some(kind) = record.header.kind()
                    && self.is_newest(hash, position)?
                    && batch.find(hash, record.key()).is_none()
                {
                    batch.push_moved(kind, hash, record.key(), record.value(), position);
                }
            }
        }
        Ok(walked)
    }

    /// Positions and hashes of the next puts and deletes of a segment. A record that is not whole is not copied, which
    /// would give it a right checksum, and its length leads nowhere.
    fn walk_group(&self, group: &mut [(u64, u64)], from: u64, stop: u64, end: u64) -> (usize, Walked) {
        let (mut at, mut count) = (from, 0);
        while count < group.len() && at < stop {
            let in_segment = |record: &Record| at + record.header.len() <= end;
            let Some(record) = self.try_record(at).filter(|record| in_segment(record) && record.is_whole()) else {
                return (count, Walked::ToDamage(at));
            };
            match record.header.kind() {
                // Each segment but the one at the tail ends with a link.
                Some(Kind::Link) => return (count, Walked::ToTheEnd),
                Some(Kind::Put | Kind::Delete) => {
                    let hash = hash_key(record.key(), self.geometry.seed);
                    self.prefetch_line(hash);
                    group[count] = (at, hash);
                    count += 1;
                }
                Some(Kind::Session | Kind::Commit) => {}
                None => return (count, Walked::ToDamage(at)),
            }
            at += record.header.len();
        }
        (count, if at < end { Walked::To(at) } else { Walked::ToDamage(at) })
    }
}

//! Forged stores: edits of a good one, after which each checksum is set right again, so that what stands behind the
//! checksums is reached. Edits are read from the fuzzer's bytes, which are so mutated edit by edit.

use std::sync::LazyLock;

use crate::common::raw::{Image, LAST, LINK, Record, chain};

/// Bytes of the fuzzer, read as numbers; zeros when there are no more.
pub struct Choices<'a>(pub &'a [u8]);

impl Choices<'_> {
    pub fn is_done(&self) -> bool {
        self.0.is_empty()
    }

    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let len = N.min(self.0.len());
        bytes[..len].copy_from_slice(&self.0[..len]);
        self.0 = &self.0[len..];
        bytes
    }

    pub fn byte(&mut self) -> u8 {
        self.bytes::<1>()[0]
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        u64::from(u32::from_le_bytes(self.bytes())) % bound.max(1)
    }

    pub fn pick<'t, T>(&mut self, choices: &'t [T]) -> &'t T {
        &choices[usize::from(self.byte()) % choices.len()]
    }
}

/// A part of the file that a target edits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Fields of the header slots.
    Header,
    /// Header, pages and runs of the blob.
    Blob,
    /// Words of index pages.
    Page,
    /// Records of the log since the checkpoint, and those that the index points to.
    Record,
    /// Headers of log segments.
    Segment,
    /// Any bytes.
    Anywhere,
    /// The length of the file, or one range copied over another.
    Shape,
}

/// Offset and size of the fields of a header slot.
const HEADER_FIELDS: [(u64, usize); 20] = [
    (0, 8),
    (8, 4),
    (12, 4),
    (16, 4),
    (20, 4),
    (24, 8),
    (40, 8),
    (48, 8),
    (56, 8),
    (64, 8),
    (72, 8),
    (80, 4),
    (84, 4),
    (88, 8),
    (96, 8),
    (104, 8),
    (112, 8),
    (120, 8),
    (128, 8),
    (144, 8),
];
const BLOB_FIELDS: [(u64, usize); 6] = [(0, 8), (8, 8), (16, 8), (24, 4), (32, 8), (40, 8)];
const PAGE_FIELDS: [(u64, usize); 4] = [(0, 8), (8, 4), (12, 4), (16, 4)];
const RUN_FIELDS: [(u64, usize); 4] = [(0, 8), (8, 4), (12, 4), (16, 8)];
const RECORD_FIELDS: [(u64, usize); 11] =
    [(0, 4), (4, 4), (8, 2), (10, 1), (11, 1), (12, 4), (16, 8), (22, 6), (28, 1), (28, 8), (36, 8)];
const SEGMENT_FIELDS: [(u64, usize); 8] = [(0, 4), (8, 8), (16, 8), (24, 8), (40, 8), (48, 8), (56, 4), (60, 4)];

/// A good store, and where its parts are.
pub struct Base {
    image: Image,
    slots: [u64; 2],
    blob: u64,
    pages: Vec<u64>,
    runs: u64,
    /// Those of the index first, then those of the log since the checkpoint.
    records: Vec<u64>,
    segments: Vec<u64>,
    /// What is worth writing into a field.
    values: Vec<u64>,
}

/// The golden store: 200 keys at its checkpoint, then batches with tombstones and links.
static GOLDEN: LazyLock<Base> = LazyLock::new(|| Base::of(golden()));

/// The golden store as of its checkpoint.
static CLEAN: LazyLock<Base> = LazyLock::new(|| {
    let mut image = golden();
    let log = image.header().log;
    image.put(log, &[0; 28]);
    Base::of(image)
});

fn golden() -> Image {
    Image::from_text(include_str!("../golden/version-1.txt"))
}

impl Base {
    fn of(image: Image) -> Base {
        let header = image.header();
        let (blob, contents) = (image.blob(&header), image.contents());
        let pages: Vec<u64> = blob.pages.iter().map(|page| page.position).collect();
        let slots = blob.pages.iter().flat_map(|page| image.page(page)).flatten();
        let mut records: Vec<u64> = slots.map(|slot| slot.position()).collect();
        records.extend(contents.batches.iter().flat_map(|batch| &batch.records).map(|record| record.position));
        let is_segment = |at: &u64| image.slice(*at, 4) == b"sSEG";
        let segments = (0..image.0.len() as u64).step_by(header.extent as usize).filter(is_segment).collect();
        let mut values = vec![0, 1, 2, 3, 5, 8, 16, 28, 30, 31, 32, 48, 63, 64, 96, 255, 4096, 0xffff];
        values.extend((31..=63).flat_map(|bit| [1u64 << bit, (1u64 << bit).wrapping_sub(8)]));
        values.extend([header.log, header.blob, header.blob_len, header.file_len, header.seq, header.extent]);
        values.extend(pages.iter().chain(&segments));
        values.extend(records.iter().rev().take(40));
        values.push(u64::MAX);
        let slots = [0, header.extent / 2];
        let runs = blob.runs.len() as u64;
        Base { slots, blob: header.blob, pages, runs, records, segments, values, image }
    }

    /// The store that the bytes ask for: which base, which checksums stay wrong, then edits.
    pub fn forge(choices: &mut Choices, parts: &[Part]) -> Image {
        let base: &Base = if choices.byte() & 1 == 0 { &GOLDEN } else { &CLEAN };
        let unsealed = choices.byte();
        let mut image = base.image.clone();
        for _ in 0..32 {
            if choices.is_done() {
                break;
            }
            let part = *choices.pick(parts);
            base.edit(&mut image, choices, part);
        }
        base.seal(&mut image, unsealed);
        image
    }

    fn edit(&self, image: &mut Image, choices: &mut Choices, part: Part) {
        let len = image.0.len() as u64;
        let fields = |choices: &mut Choices, start: u64, fields: &[(u64, usize)]| {
            let (offset, size) = *choices.pick(fields);
            (start + offset, size)
        };
        let (at, size) = match part {
            Part::Header => {
                // In both slots, as long as the bytes do not say otherwise.
                let (at, size) = fields(choices, 0, &HEADER_FIELDS);
                let (which, value) = (choices.byte() % 3, self.value(image, choices, at, size));
                for (n, slot) in self.slots.into_iter().enumerate() {
                    if which != n as u8 + 1 {
                        put(image, slot + at, &value.to_le_bytes()[..size]);
                    }
                }
                return;
            }
            Part::Blob => match choices.byte() % 3 {
                0 => fields(choices, self.blob, &BLOB_FIELDS),
                1 => {
                    let n = choices.below(self.pages.len() as u64);
                    fields(choices, self.blob + 64 + 24 * n, &PAGE_FIELDS)
                }
                _ => {
                    let n = self.pages.len() as u64 + choices.below(self.runs);
                    fields(choices, self.blob + 64 + 24 * n, &RUN_FIELDS)
                }
            },
            Part::Page => (*choices.pick(&self.pages) + choices.below(1024) * 4, 4 << (choices.byte() & 1)),
            Part::Record => {
                // From the end, since the log comes last.
                let n = choices.below(self.records.len() as u64) as usize;
                fields(choices, self.records[self.records.len() - 1 - n], &RECORD_FIELDS)
            }
            Part::Segment => {
                let segment = *choices.pick(&self.segments);
                fields(choices, segment, &SEGMENT_FIELDS)
            }
            Part::Anywhere => (choices.below(len), *choices.pick(&[1, 2, 4, 8])),
            Part::Shape => return self.reshape(image, choices),
        };
        let value = self.value(image, choices, at, size);
        put(image, at, &value.to_le_bytes()[..size]);
    }

    /// A new value for a field: one worth trying, one near the old one, or any.
    fn value(&self, image: &Image, choices: &mut Choices, at: u64, size: usize) -> u64 {
        let mut old = [0; 8];
        if at + 8 <= image.0.len() as u64 {
            old[..size].copy_from_slice(image.slice(at, size as u64));
        }
        let old = u64::from_le_bytes(old);
        match choices.byte() % 6 {
            0 => *choices.pick(&self.values),
            1 => *choices.pick(&self.values) / 8,
            2 => old.wrapping_add_signed(i64::from(choices.byte() as i8)),
            3 => old.wrapping_add_signed(i64::from(choices.byte() as i8) * 4096),
            4 => old ^ 1 << (choices.byte() % 64),
            _ => u64::from_le_bytes(choices.bytes()),
        }
    }

    fn reshape(&self, image: &mut Image, choices: &mut Choices) {
        let len = image.0.len() as u64;
        match choices.byte() % 4 {
            0 => image.0.truncate(choices.below(len + 1) as usize),
            1 => image.0.resize((len + choices.below(20 << 16)) as usize, 0),
            kind => {
                let unit = if kind == 2 { 4096 } else { 8 };
                let bytes = (unit * (1 + choices.below(512 / (unit / 8)))).min(len);
                let place = |n: u64| (n * unit).min(len - bytes);
                let (from, to) = (place(choices.below(len / unit)), place(choices.below(len / unit)));
                image.0.copy_within(from as usize..(from + bytes) as usize, to as usize);
            }
        }
    }

    /// Sets checksums right, but for those whose bit is set: records, chains, pages, segments, blob, header slots A and
    /// B.
    fn seal(&self, image: &mut Image, unsealed: u8) {
        let wants = |n: u8| unsealed & 1 << n == 0;
        let whole =
            |image: &Image, at: u64, bytes: u64| at.checked_add(bytes).is_some_and(|e| e <= image.0.len() as u64);
        if wants(0) {
            for &at in &self.records {
                seal_record(image, at);
            }
            self.seal_log(image, wants(1));
        }
        for &at in self.segments.iter().filter(|_| wants(3)) {
            if whole(image, at, 64) {
                let crc = image.crc(at, 64, 4, 4);
                image.put(at + 4, &crc.to_le_bytes());
            }
        }
        // The first slot says where the blob is now.
        if !whole(image, self.slots[1], 512) {
            return;
        }
        let (blob, len) = (image.u64(88), image.u64(96));
        if whole(image, blob, len) && len >= 64 {
            if wants(2) {
                seal_pages(image, blob, len);
            }
            let crc = crc32fast::hash(image.slice(blob, len));
            for slot in self.slots.into_iter().filter(|_| wants(4)) {
                image.put(slot + 84, &crc.to_le_bytes());
            }
        }
        for (n, slot) in self.slots.into_iter().enumerate() {
            if wants(5 + n as u8) {
                image.seal_slot(slot);
            }
        }
    }

    /// Goes along the log as it stands, and sets each record's checksum and each batch's chain.
    fn seal_log(&self, image: &mut Image, chains: bool) {
        if image.0.len() < 512 {
            return;
        }
        let (mut at, mut before, mut crcs) = (image.u64(72), image.u32(80), Vec::new());
        for _ in 0..1_000 {
            let Some(record) = seal_record(image, at) else { return };
            crcs.push(record.crc());
            let next = at + record.len();
            if record.kind == LINK && record.value.len() == 16 {
                at = Image(record.value).u64(0).saturating_add(64);
                continue;
            }
            if record.flags & LAST != 0 {
                before = chain(before, &crcs);
                if chains {
                    image.put(at + 12, &before.to_le_bytes());
                }
                crcs.clear();
            }
            at = next;
        }
    }
}

/// Sets the checksum of what stands at a position, if it may be a record.
fn seal_record(image: &mut Image, at: u64) -> Option<Record> {
    let record = image.unproved(at).filter(|record| (1..=5).contains(&record.kind))?;
    image.put(at, &record.crc().to_le_bytes());
    Some(record)
}

/// Sets the checksums of the pages that a blob names, in the blob and in the page.
fn seal_pages(image: &mut Image, blob: u64, len: u64) {
    for n in 0..image.u64(blob + 32).min((len - 64) / 24) {
        let entry = blob + 64 + 24 * n;
        let page = image.u64(entry);
        if page.checked_add(4096).is_some_and(|end| end <= image.0.len() as u64) {
            let crc = image.crc(page, 4096, 24, 8).to_le_bytes();
            image.put(page + 24, &crc);
            image.put(entry + 12, &crc);
        }
    }
}

/// Puts bytes, if the file is long enough.
fn put(image: &mut Image, at: u64, bytes: &[u8]) {
    if at.checked_add(bytes.len() as u64).is_some_and(|end| end <= image.0.len() as u64) {
        image.put(at, bytes);
    }
}

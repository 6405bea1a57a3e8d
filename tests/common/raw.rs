//! The file format a second time, written from `docs/FORMAT.md` and from nothing in `src/`. It asserts where that page
//! says what a writer writes, and answers `None` where it says what a reader takes for the end of the log.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use xxhash_rust::xxh3::xxh3_64_with_seed;

pub const PUT: u8 = 1;
pub const DELETE: u8 = 2;
pub const LINK: u8 = 3;
pub const SESSION: u8 = 4;
pub const COMMIT: u8 = 5;
pub const LAST: u8 = 1;
pub const MOVED: u8 = 2;
/// The kind of runs of extents that hold log.
pub const LOG: u32 = 1;
/// Bytes that are written together.
const PIECE: usize = 4096;
/// Bytes of control words and tables from extent 1 on.
pub const VOLATILE: u64 = 528_384;

/// The header slot that counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    pub at: u64,
    pub uuid: Vec<u8>,
    pub seed: u64,
    pub extent: u64,
    pub generation: u64,
    pub seq: u64,
    pub log: u64,
    pub chain: u32,
    pub blob: u64,
    pub blob_len: u64,
    pub blob_crc: u32,
    pub live_keys: u64,
    pub live_bytes: u64,
    pub file_len: u64,
    pub max_size: u64,
    pub created: u64,
}

/// The checkpoint blob.
#[derive(Clone, Debug, Default)]
pub struct Blob {
    pub generation: u64,
    pub seq: u64,
    pub depth: u32,
    pub pages: Vec<BlobPage>,
    pub runs: Vec<Run>,
}

#[derive(Clone, Debug)]
pub struct BlobPage {
    pub position: u64,
    pub suffix: u32,
    pub crc: u32,
    pub depth: u32,
}

/// A run of extents: 1 log, 2 index, 3 blob.
#[derive(Clone, Debug)]
pub struct Run {
    pub first: u64,
    pub run: u32,
    pub kind: u32,
    pub live: u64,
}

/// A slot of an index page.
#[derive(Clone, Debug)]
pub struct Slot {
    pub tag: u32,
    pub pointer: u64,
}

impl Slot {
    pub fn position(&self) -> u64 {
        (self.pointer & ((1 << 44) - 1)) * 8
    }

    pub fn is_tombstone(&self) -> bool {
        self.pointer >> 44 & 1 == 1
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    pub position: u64,
    pub kind: u8,
    pub flags: u8,
    pub seq: u64,
    pub prev: u64,
    pub chain: u32,
    pub key: Vec<u8>,
    pub value: Vec<u8>,
}

impl Record {
    /// Bytes in the file.
    pub fn len(&self) -> u64 {
        ((28 + self.key.len() + self.value.len()) as u64).next_multiple_of(8)
    }

    pub fn crc(&self) -> u32 {
        let bytes = self.bytes_with(0);
        let covered = [&self.position.to_le_bytes(), &bytes[4..12], &bytes[16..28], &self.key, &self.value];
        crc32fast::hash(&covered.concat())
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.bytes_with(self.crc())
    }

    fn bytes_with(&self, crc: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(crc.to_le_bytes());
        bytes.extend((self.value.len() as u32).to_le_bytes());
        bytes.extend((self.key.len() as u16).to_le_bytes());
        bytes.extend([self.kind, self.flags]);
        bytes.extend(self.chain.to_le_bytes());
        let seq_prev = u128::from(self.seq) | u128::from(self.prev / 8) << 52;
        bytes.extend(&seq_prev.to_le_bytes()[..12]);
        bytes.extend(&self.key);
        bytes.extend(&self.value);
        bytes.resize(self.len() as usize, 0);
        bytes
    }
}

/// The chain of a batch of records with these checksums.
pub fn chain(before: u32, crcs: &[u32]) -> u32 {
    let mut bytes = before.to_le_bytes().to_vec();
    crcs.iter().for_each(|crc| bytes.extend(crc.to_le_bytes()));
    bytes.extend((crcs.len() as u32).to_le_bytes());
    crc32fast::hash(&bytes)
}

/// A whole batch.
#[derive(Clone, Debug)]
pub struct Batch {
    pub records: Vec<Record>,
    /// The chain before it.
    pub before: u32,
    pub tail: u64,
    pub chain: u32,
}

/// All that a store holds, and its log since the checkpoint.
#[derive(Clone, Debug)]
pub struct Contents {
    pub pairs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub batches: Vec<Batch>,
    pub tail: u64,
    pub chain: u32,
}

/// A store as bytes.
#[derive(Clone)]
pub struct Image(pub Vec<u8>);

impl Image {
    /// A store as text: a line for each 64 bytes that are not all zero, offset and bytes in hexadecimal, the length
    /// first.
    pub fn from_text(text: &str) -> Image {
        let mut lines = text.lines().filter(|line| !line.starts_with('#'));
        let mut image = Image(vec![0; lines.next().expect("a length").parse().expect("a number")]);
        for line in lines {
            let (at, hex) = line.split_once(' ').expect("offset and bytes");
            let digit = |pair: &[u8]| str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok());
            let bytes: Option<Vec<u8>> = hex.as_bytes().chunks(2).map(digit).collect();
            let at = u64::from_str_radix(at, 16).expect("an offset");
            image.put(at, &bytes.expect("bytes in hexadecimal"));
        }
        image
    }

    pub fn read(path: &Path) -> Image {
        // As of one moment: a checkpoint may be running beside it.
        let read = || std::fs::read(path).expect("the store can be read");
        let mut image = read();
        loop {
            let again = read();
            if again == image {
                return Image(image);
            }
            image = again;
        }
    }

    /// Writes the file, with holes where there are only zeros, which is most of it.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        let file = File::create(path)?;
        file.set_len(self.0.len() as u64)?;
        for (n, piece) in self.0.chunks(PIECE).enumerate().filter(|(_, piece)| **piece != [0; PIECE][..piece.len()]) {
            file.write_all_at(piece, (n * PIECE) as u64)?;
        }
        Ok(())
    }

    pub fn slice(&self, at: u64, len: u64) -> &[u8] {
        &self.0[at as usize..][..len as usize]
    }

    pub fn u32(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.slice(at, 4).try_into().expect("4 bytes"))
    }

    pub fn u64(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.slice(at, 8).try_into().expect("8 bytes"))
    }

    pub fn put(&mut self, at: u64, bytes: &[u8]) {
        self.0[at as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    fn is_zero(&self, at: u64, len: u64) -> bool {
        self.slice(at, len).iter().all(|&b| b == 0)
    }

    /// CRC-32 of a range in which the `hole` bytes at `at + from` count as zero.
    pub fn crc(&self, at: u64, len: u64, from: usize, hole: usize) -> u32 {
        let mut bytes = self.slice(at, len).to_vec();
        bytes[from..from + hole].fill(0);
        crc32fast::hash(&bytes)
    }

    /// Sets the checksum of the header slot at a position.
    pub fn seal_slot(&mut self, at: u64) {
        self.put(at + 12, &self.crc(at, 512, 12, 4).to_le_bytes());
    }

    fn slot(&self, at: u64) -> Option<Header> {
        let valid = self.0.len() as u64 >= at + 512
            && self.slice(at, 8) == b"slotdb\r\n"
            && self.u32(at + 12) == self.crc(at, 512, 12, 4);
        if !valid {
            return None;
        }
        assert_eq!((self.u32(at + 8), self.u32(at + 16), self.u32(at + 20)), (1, 0, 0), "version, features");
        assert!(self.is_zero(at + 144, 368), "reserved bytes of a header slot");
        Some(Header {
            at,
            uuid: self.slice(at + 24, 16).to_vec(),
            seed: self.u64(at + 40),
            extent: self.u64(at + 48),
            generation: self.u64(at + 56),
            seq: self.u64(at + 64),
            log: self.u64(at + 72),
            chain: self.u32(at + 80),
            blob_crc: self.u32(at + 84),
            blob: self.u64(at + 88),
            blob_len: self.u64(at + 96),
            live_keys: self.u64(at + 104),
            live_bytes: self.u64(at + 112),
            file_len: self.u64(at + 120),
            max_size: self.u64(at + 128),
            created: self.u64(at + 136),
        })
    }

    /// The slot that counts. Slot A is whole in all stores that the tests read so.
    pub fn header(&self) -> Header {
        let a = self.slot(0).expect("slot A");
        let b = self.slot(a.extent / 2).expect("slot B");
        if b.generation > a.generation { b } else { a }
    }

    pub fn blob(&self, header: &Header) -> Blob {
        let at = header.blob;
        assert_eq!(crc32fast::hash(self.slice(at, header.blob_len)), header.blob_crc);
        assert_eq!(self.slice(at, 8), b"slotblob");
        assert!(self.u32(at + 28) == 0 && self.is_zero(at + 48, 16), "reserved bytes of a blob");
        let (pages, runs) = (self.u64(at + 32), self.u64(at + 40));
        assert_eq!(header.blob_len, 64 + 24 * (pages + runs));
        let page = |n| {
            let at = at + 64 + 24 * n;
            assert_eq!(self.u32(at + 20), 0);
            BlobPage {
                position: self.u64(at),
                suffix: self.u32(at + 8),
                crc: self.u32(at + 12),
                depth: self.u32(at + 16),
            }
        };
        let run = |n| {
            let at = at + 64 + 24 * (pages + n);
            Run { first: self.u64(at), run: self.u32(at + 8), kind: self.u32(at + 12), live: self.u64(at + 16) }
        };
        Blob {
            generation: self.u64(at + 8),
            seq: self.u64(at + 16),
            depth: self.u32(at + 24),
            pages: (0..pages).map(page).collect(),
            runs: (0..runs).map(run).collect(),
        }
    }

    /// The slots of a page by line, after a look at all else that is in it.
    pub fn page(&self, page: &BlobPage) -> Vec<Vec<Slot>> {
        let at = page.position;
        assert_eq!(self.slice(at, 8), b"slotpage");
        assert_eq!((self.u32(at + 12), self.u64(at + 16)), (page.depth, u64::from(page.suffix)));
        assert_eq!((self.u32(at + 24), self.crc(at, 4096, 24, 8)), (page.crc, page.crc));
        // Between them a stamp, of whatever kind.
        assert!(self.is_zero(at + 32, 32), "reserved bytes of a page");
        let line = |n: u64| {
            let line = at + 64 + 64 * n;
            let slot = |m: u64| Slot { tag: self.u32(line + 4 * m), pointer: self.u64(line + 24 + 8 * m) };
            (0..5).map(slot).take_while(|slot| slot.pointer != 0).collect()
        };
        let lines: Vec<Vec<Slot>> = (0..63).map(line).collect();
        assert_eq!(lines.iter().map(Vec::len).sum::<usize>(), self.u32(at + 8) as usize, "slots in use");
        lines
    }

    pub fn overflowed(&self, page: &BlobPage, line: u64) -> bool {
        self.u32(page.position + 64 + 64 * line + 20) != 0
    }

    /// The record at a position, if its checksum is right.
    pub fn record(&self, position: u64) -> Option<Record> {
        self.unproved(position).filter(|record| self.u32(position) == record.crc())
    }

    /// What stands at a position, taken for a record; its checksum is not looked at.
    pub fn unproved(&self, position: u64) -> Option<Record> {
        let end = self.0.len() as u64;
        let at = Some(position).filter(|p| *p < end && p + 28 <= end)?;
        let (value_len, lens) = (u64::from(self.u32(at + 4)), self.u64(at + 8));
        let key_len = lens & 0xffff;
        let body = (at + 28 + key_len + value_len <= end).then(|| self.slice(at + 28, key_len + value_len))?;
        let mut seq_prev = [0; 16];
        seq_prev[..12].copy_from_slice(self.slice(at + 16, 12));
        let seq_prev = u128::from_le_bytes(seq_prev);
        Some(Record {
            position,
            kind: (lens >> 16) as u8,
            flags: (lens >> 24) as u8,
            seq: (seq_prev & ((1 << 52) - 1)) as u64,
            prev: (seq_prev >> 52) as u64 * 8,
            chain: self.u32(at + 12),
            key: body[..key_len as usize].to_vec(),
            value: body[key_len as usize..].to_vec(),
        })
    }

    /// The batch of `seq` at a position, if a whole one stands there.
    pub fn batch(&self, header: &Header, mut at: u64, seq: u64, before: u32) -> Option<Batch> {
        let (mut records, mut crcs, mut segments) = (Vec::new(), Vec::new(), Vec::new());
        loop {
            let record = self.record(at)?;
            if !(PUT..=COMMIT).contains(&record.kind) || record.flags & !(LAST | MOVED) != 0 || record.seq != seq {
                return None;
            }
            crcs.push(record.crc());
            at += record.len();
            if record.kind == LINK {
                let segment = self.link(header, &record).filter(|segment| !segments.contains(segment))?;
                at = segment.0 + 64;
                segments.push(segment);
            }
            let ends = record.kind != LINK && record.flags & LAST != 0;
            let stored = record.chain;
            records.push(record);
            if ends {
                let chain = chain(before, &crcs);
                return (stored == chain).then_some(Batch { records, before, tail: at, chain });
            }
        }
    }

    /// The segment that a link names, if the file can have one there.
    fn link(&self, header: &Header, link: &Record) -> Option<(u64, u64)> {
        let value = Some(Image(link.value.clone())).filter(|value| value.0.len() == 16)?;
        let (at, len) = (value.u64(0), value.u64(8));
        let whole = at.is_multiple_of(header.extent) && len.is_multiple_of(header.extent) && len > 0;
        let first = (1 + VOLATILE.div_ceil(header.extent)) * header.extent;
        let inside = at >= first && at.checked_add(len).is_some_and(|end| end <= self.0.len() as u64);
        (whole && inside).then_some((at, len))
    }

    /// What a writer leaves at a link: the header of the next segment says where it comes from.
    pub fn look_at_links(&self, header: &Header, batch: &Batch) {
        for link in batch.records.iter().filter(|record| record.kind == LINK) {
            assert!(link.key.is_empty());
            let (at, len) = self.link(header, link).expect("a link of a whole batch");
            self.segment(header, at, len);
            let came_from = (self.u64(at + 48), self.u32(at + 56));
            assert_eq!(came_from, (link.seq, batch.before), "seq and chain of a segment");
            let previous = self.u64(at + 40);
            assert!((previous..previous + self.u64(previous + 16)).contains(&link.position), "the segment before");
        }
    }

    /// Looks at the first bytes of a segment.
    pub fn segment(&self, header: &Header, at: u64, len: u64) {
        assert_eq!(self.slice(at, 4), b"sSEG");
        assert_eq!(self.u32(at + 4), self.crc(at, 64, 4, 4));
        assert_eq!((self.u64(at + 8), self.u64(at + 16)), (at, len));
        assert_eq!(self.slice(at + 24, 16), header.uuid);
        assert_eq!(self.u32(at + 60), 0);
    }

    /// Reads the store: the checkpoint, then the log since.
    pub fn contents(&self) -> Contents {
        let header = self.header();
        let mut pairs = BTreeMap::new();
        for page in &self.blob(&header).pages {
            for slot in self.page(page).into_iter().flatten().filter(|slot| !slot.is_tombstone()) {
                let record = self.record(slot.position()).expect("a whole record at a slot's position");
                pairs.insert(record.key, record.value);
            }
        }
        let batches = self.batches(&header);
        for record in batches.iter().flat_map(|batch| &batch.records) {
            match record.kind {
                PUT => drop(pairs.insert(record.key.clone(), record.value.clone())),
                DELETE => drop(pairs.remove(&record.key)),
                _ => {}
            }
        }
        let (tail, chain) = batches.last().map_or((header.log, header.chain), |batch| (batch.tail, batch.chain));
        Contents { pairs, batches, tail, chain }
    }

    /// The whole batches since the checkpoint.
    pub fn batches(&self, header: &Header) -> Vec<Batch> {
        let (mut batches, mut tail, mut chain) = (Vec::new(), header.log, header.chain);
        while let Some(batch) = self.batch(header, tail, header.seq + 1 + batches.len() as u64, chain) {
            (tail, chain) = (batch.tail, batch.chain);
            batches.push(batch);
        }
        batches
    }
}

pub fn hash(key: &[u8], seed: u64) -> u64 {
    xxh3_64_with_seed(key, seed)
}

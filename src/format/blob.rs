//! The checkpoint blob: the directory and the extent table as of one seq.
//!
//! `BlobHeader`, then one `BlobPage` for each index page in the order of its suffix's first directory index, then one
//! `BlobExtent` for each run of extents in use by log, index or blob. The header slot holds the CRC-32 of it all.

use std::mem::size_of;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::slot::{MAX_DEPTH, depth_limit, suffix};
use super::{MAX_POSITION, PAGE};

/// First bytes of a blob.
pub const BLOB_MAGIC: [u8; 8] = *b"slotblob";

/// A blob's first 64 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct BlobHeader {
    /// `BLOB_MAGIC`.
    pub magic: [u8; 8],
    /// Generation of the checkpoint.
    pub generation: U64,
    /// Seq it images.
    pub seq: U64,
    /// Hash bits that index the directory.
    pub depth: U32,
    /// Zero.
    pub reserved: U32,
    /// How many pages follow.
    pub pages: U64,
    /// How many extent runs follow them.
    pub extents: U64,
    /// Zero.
    pub reserved2: [u8; 16],
}

/// One index page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct BlobPage {
    /// Position of the page.
    pub position: U64,
    /// The hash bits its keys share.
    pub suffix: U32,
    /// CRC-32 of the page with the third word of its header zero.
    pub crc: U32,
    /// How many bits they are.
    pub depth: U32,
    /// Zero.
    pub reserved: U32,
}

/// One run of extents in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct BlobExtent {
    /// Number of the first extent.
    pub first: U64,
    /// Extents of the run.
    pub run: U32,
    /// 1 log, 2 index, 3 blob.
    pub kind: U32,
    /// Bytes of live records (log); 0 otherwise.
    pub live: U64,
}

const _: () = {
    assert!(size_of::<BlobHeader>() == 64);
    assert!(size_of::<BlobPage>() == 24);
    assert!(size_of::<BlobExtent>() == 24);
};

/// `BlobExtent::kind` of a log segment.
pub const BLOB_LOG: u32 = 1;
/// `BlobExtent::kind` of an extent of index pages.
pub const BLOB_INDEX: u32 = 2;
/// `BlobExtent::kind` of the blob's own extents.
pub const BLOB_BLOB: u32 = 3;

/// A blob in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// Generation of the checkpoint.
    pub generation: u64,
    /// Seq it images.
    pub seq: u64,
    /// Hash bits that index the directory.
    pub depth: u32,
    /// Index pages, by first directory index.
    pub pages: Vec<BlobPage>,
    /// Extent runs in use.
    pub extents: Vec<BlobExtent>,
}

/// Bytes of a blob with so many pages and extent runs.
pub fn blob_len(pages: u64, extents: u64) -> u64 {
    (size_of::<BlobHeader>() as u64) + pages * size_of::<BlobPage>() as u64 + extents * size_of::<BlobExtent>() as u64
}

impl Blob {
    /// The bytes to write.
    pub fn encode(&self) -> Vec<u8> {
        let mut header = BlobHeader::new_zeroed();
        header.magic = BLOB_MAGIC;
        header.generation = U64::new(self.generation);
        header.seq = U64::new(self.seq);
        header.depth = U32::new(self.depth);
        header.pages = U64::new(self.pages.len() as u64);
        header.extents = U64::new(self.extents.len() as u64);
        [header.as_bytes(), self.pages.as_bytes(), self.extents.as_bytes()].concat()
    }

    /// The blob in `bytes`, whose checksum was right, for a file of `extents` extents; or what is wrong with it.
    pub fn decode(bytes: &[u8], extents: u64) -> Result<Blob, &'static str> {
        let (header, rest) = BlobHeader::read_from_prefix(bytes).map_err(|_| "blob shorter than its header")?;
        if header.magic != BLOB_MAGIC {
            return Err("not a checkpoint blob");
        }
        let depth = header.depth.get();
        if depth > MAX_DEPTH {
            return Err("directory too deep");
        }
        let (pages, runs) = (header.pages.get(), header.extents.get());
        if pages > rest.len() as u64 || runs > rest.len() as u64 || blob_len(pages, runs) != bytes.len() as u64 {
            return Err("blob length does not fit its counts");
        }
        let (page_bytes, run_bytes) = rest.split_at(pages as usize * size_of::<BlobPage>());
        let pages = <[BlobPage]>::ref_from_bytes(page_bytes).map_err(|_| "page list")?.to_vec();
        let runs = <[BlobExtent]>::ref_from_bytes(run_bytes).map_err(|_| "extent list")?.to_vec();
        let blob = Blob { generation: header.generation.get(), seq: header.seq.get(), depth, pages, extents: runs };
        blob.check(extents).map(|()| blob)
    }

    /// Pages tile the hash space once and lie in index extents; runs lie in the file and apart from each other.
    pub fn check(&self, extents: u64) -> Result<(), &'static str> {
        // A directory doubles only for a page that needs it.
        if self.depth > self.pages.iter().map(|page| page.depth.get()).max().unwrap_or(0).saturating_add(1) {
            return Err("directory deeper than its pages");
        }
        if self.depth > depth_limit(self.pages.len() as u64) {
            return Err("directory out of proportion to its pages");
        }
        for page in &self.pages {
            let (depth, bits) = (page.depth.get(), u64::from(page.suffix.get()));
            if depth > self.depth || suffix(bits, depth) != bits {
                return Err("page suffix longer than its depth");
            }
            if !page.position.get().is_multiple_of(PAGE) || page.position.get() >= MAX_POSITION {
                return Err("page position");
            }
        }
        self.check_tiling()?;
        let mut end = 0;
        for run in &self.extents {
            let first = run.first.get();
            if first < end || run.run.get() == 0 || first >= extents || u64::from(run.run.get()) > extents - first {
                return Err("extent run outside the file or over another");
            }
            if !matches!(run.kind.get(), BLOB_LOG | BLOB_INDEX | BLOB_BLOB) {
                return Err("extent kind");
            }
            end = first + u64::from(run.run.get());
        }
        Ok(())
    }
}

impl Blob {
    /// Each hash ends in the suffix of one page, and each page has one suffix. Read backwards, suffixes are intervals.
    fn check_tiling(&self) -> Result<(), &'static str> {
        let interval = |page: &BlobPage| {
            let start = u64::from(page.suffix.get().reverse_bits());
            (start, start + (1 << (32 - page.depth.get())))
        };
        let mut intervals: Vec<(u64, u64)> = self.pages.iter().map(interval).collect();
        intervals.sort_unstable();
        let covered = intervals.iter().try_fold(0, |end, next| (next.0 == end).then_some(next.1));
        if covered != Some(1 << 32) {
            return Err("pages do not cover the directory once");
        }
        let mut positions: Vec<u64> = self.pages.iter().map(|page| page.position.get()).collect();
        positions.sort_unstable();
        if positions.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err("two suffixes name one page");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(position: u64, bits: u32, depth: u32) -> BlobPage {
        BlobPage {
            position: U64::new(position),
            suffix: U32::new(bits),
            crc: U32::new(5),
            depth: U32::new(depth),
            reserved: U32::ZERO,
        }
    }

    fn run(first: u64, run: u32) -> BlobExtent {
        BlobExtent { first: U64::new(first), run: U32::new(run), kind: U32::new(BLOB_LOG), live: U64::new(9) }
    }

    fn sample() -> Blob {
        Blob {
            generation: 3,
            seq: 8,
            depth: 2,
            pages: vec![page(PAGE, 0, 1), page(2 * PAGE, 1, 2), page(3 * PAGE, 3, 2)],
            extents: vec![run(2, 3), run(5, 1)],
        }
    }

    #[test]
    fn bytes_and_back() {
        let blob = sample();
        assert_eq!(Blob::decode(&blob.encode(), 6), Ok(blob));
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(Blob::decode(&sample().encode(), 5).is_err());
        assert!(Blob::decode(&sample().encode()[..70], 6).is_err());
        let mut gap = sample();
        gap.pages.pop();
        assert!(gap.check(6).is_err());
        // As many hashes as there are, some twice and some not at all.
        let mut twice = sample();
        twice.pages[2] = page(3 * PAGE, 1, 2);
        assert!(twice.check(6).is_err());
        let mut same = sample();
        same.pages[2] = page(PAGE, 3, 2);
        assert!(same.check(6).is_err());
        let mut overlap = sample();
        overlap.extents[1].first = U64::new(4);
        assert!(overlap.check(6).is_err());
    }
}

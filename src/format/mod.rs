//! Pure bytes <-> values: every byte of the file is described here and in `docs/FORMAT.md`, and nowhere else.
//!
//! All numbers are little-endian. Structures that recovery reads (header, record, segment header, blob, index page)
//! never change within a format version; the volatile ones (`extent`, control words) are made anew by each first
//! opener.

pub mod blob;
pub mod extent;
pub mod header;
pub mod record;
pub mod slot;

use std::sync::LazyLock;

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Index pages, header blocks and the working directory are counted in these: 4 KiB.
pub const PAGE: u64 = 4096;
/// The smallest extent a store can be created with.
pub const MIN_EXTENT: u64 = 64 << 10;
/// The largest extent a store can be created with.
pub const MAX_EXTENT: u64 = 64 << 20;
/// Positions are stored divided by 8 in 44 bits, so a store ends below this.
pub const MAX_POSITION: u64 = 1 << 47;

/// The hash of a key: XXH3-64 with the random seed of the file.
#[inline]
pub fn hash_key(key: &[u8], seed: u64) -> u64 {
    match <&[u8; 16]>::try_from(key) {
        // Of one length the compiler makes twenty instructions, without a call.
        Ok(key) => xxh3_64_with_seed(key, seed),
        Err(_) => hash_any(key, seed),
    }
}

#[inline(never)]
fn hash_any(key: &[u8], seed: u64) -> u64 {
    xxh3_64_with_seed(key, seed)
}

/// A CRC-32 of nothing yet. Made once, since making one asks what the processor can do.
pub fn crc() -> crc32fast::Hasher {
    static NEW: LazyLock<crc32fast::Hasher> = LazyLock::new(crc32fast::Hasher::new);
    NEW.clone()
}

/// `n` rounded up to a multiple of the power of two `unit`.
pub const fn round_up(n: u64, unit: u64) -> u64 {
    (n + unit - 1) & !(unit - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_matches_the_vectors_in_the_format_document() {
        for (key, seed, hash) in [
            (&b""[..], 0, 0x2d06_8005_38d3_94c2),
            (b"slotdb", 0, 0x9530_8b48_6200_52f3),
            (b"slotdb", 42, 0x6916_2ef0_d64d_a5a5),
        ] {
            assert_eq!(hash_key(key, seed), hash, "{key:?} with seed {seed}: {:#x}", hash_key(key, seed));
        }
    }

    #[test]
    fn rounding_keeps_multiples() {
        assert_eq!((round_up(0, 8), round_up(1, 8), round_up(8, 8)), (0, 8, 8));
    }
}

//! Where the parts of a store lie that have their place for ever, and the sizes that follow from its extents.

use std::sync::Arc;

use crate::control::{VOLATILE_LEN, VolatilePane};
use crate::format::header::Header;
use crate::format::{PAGE, round_up};
use crate::sys::map::{HUGE_PAGE, Map};

/// What a store is, for as long as it exists.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    /// Bytes of an extent.
    pub extent: u64,
    /// Seed of the key hash.
    pub seed: u64,
    /// Identity.
    pub uuid: [u8; 16],
    /// Creation time, nanoseconds since the epoch.
    pub created: u64,
    /// Where the extents begin that may hold records: behind the header and the volatile words.
    pub records_from: u64,
}

impl Geometry {
    /// The geometry a header names.
    pub fn of(header: &Header) -> Geometry {
        Geometry::new(header.extent_size.get(), header.hash_seed.get(), header.uuid, header.created.get())
    }

    /// The geometry of a store with extents of so many bytes.
    pub fn new(extent: u64, seed: u64, uuid: [u8; 16], created: u64) -> Geometry {
        let records_from = extent + VOLATILE_LEN.next_multiple_of(extent);
        Geometry { extent, seed, uuid, created, records_from }
    }

    /// Extents that hold the header and the volatile words.
    pub fn fixed_extents(&self) -> u64 {
        self.records_from / self.extent
    }

    /// Pages of an extent.
    pub fn pages(&self) -> u64 {
        self.extent / PAGE
    }

    /// Extents of a block: as many as a huge page holds.
    pub fn block(&self) -> u64 {
        (HUGE_PAGE / self.extent).max(1)
    }

    /// Pages at the start of an index extent that hold its page map.
    pub fn map_pages(&self) -> u64 {
        round_up(self.pages() * 8, PAGE) / PAGE
    }

    /// Pages of an index extent that hold slots.
    pub fn slot_pages(&self) -> u64 {
        self.pages() - self.map_pages()
    }

    /// The control words and tables that have their place for ever.
    pub fn pane(&self, map: &Arc<Map>) -> Option<VolatilePane> {
        map.pane(self.extent)
    }

    /// Position of header slot B.
    pub fn slot_b(&self) -> u64 {
        self.extent / 2
    }

    /// Position and length of the header slots and of the volatile words. What lies between them stays a hole.
    pub fn fixed_ranges(&self) -> [(u64, u64); 3] {
        [(0, PAGE), (self.slot_b(), PAGE), (self.extent, VOLATILE_LEN)]
    }
}

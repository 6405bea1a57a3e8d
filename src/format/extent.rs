//! Packed volatile words of space: extent states and page states.

/// What an extent holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing, and its space is reserved.
    Free,
    /// Headers, control words and tables: never handed out.
    Fixed,
    /// A log segment, or with jumbo values several extents of one.
    Log,
    /// Index pages.
    Index,
    /// The working directory.
    Directory,
    /// A part of the extent table.
    Table,
    /// A checkpoint blob.
    Blob,
    /// Out of use since a seq, not yet reusable.
    Retired,
    /// Not the first extent of its run.
    Inner,
    /// Nothing, and it may have no space: `allocate` before use.
    Hole,
    /// On its way from free to hole.
    Punching,
}

impl Kind {
    /// Whether it is stored to through the map. What is to become an index extent is handed out as a fixed one.
    pub fn is_stored_to(self) -> bool {
        matches!(self, Kind::Index | Kind::Directory | Kind::Table | Kind::Fixed)
    }

    /// Whether it can be handed out, a hole once it has its space again.
    pub fn is_vacant(self) -> bool {
        matches!(self, Kind::Free | Kind::Hole)
    }
}

/// The state word of an extent: kind in 4 bits, three flags, and 52 bits of seq (retired) or of distance to the head
/// (inner).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtentState(u64);

const UNSEEN: u64 = 1 << 4;
const HOLLOW: u64 = 1 << 5;
const LEAVING: u64 = 1 << 6;

impl ExtentState {
    /// The first extent of a run in use, or a free one.
    pub fn new(kind: Kind) -> ExtentState {
        ExtentState(kind as u64)
    }

    /// Retired at `seq`. Without `seen` no checkpoint can name it, so only readers hold it back.
    pub fn retired(seq: u64, seen: bool) -> ExtentState {
        ExtentState(Kind::Retired as u64 | if seen { 0 } else { UNSEEN } | seq << 8)
    }

    /// The same; it may have no space and is to become a hole.
    pub fn hollow(self) -> ExtentState {
        ExtentState(self.0 | HOLLOW)
    }

    /// The same; its index pages move elsewhere, and no others come.
    pub fn leaving(self) -> ExtentState {
        ExtentState(self.0 | LEAVING)
    }

    /// The `distance`-th extent of a run, counted from its head.
    pub fn inner(distance: u64) -> ExtentState {
        ExtentState(Kind::Inner as u64 | distance << 8)
    }

    /// The word as loaded.
    pub fn from_raw(raw: u64) -> ExtentState {
        ExtentState(raw)
    }

    /// The word to store.
    pub fn raw(self) -> u64 {
        self.0
    }

    /// What the extent holds; an unknown kind counts as in use for ever.
    pub fn kind(self) -> Kind {
        const KINDS: [Kind; 11] = [
            Kind::Free,
            Kind::Fixed,
            Kind::Log,
            Kind::Index,
            Kind::Directory,
            Kind::Table,
            Kind::Blob,
            Kind::Retired,
            Kind::Inner,
            Kind::Hole,
            Kind::Punching,
        ];
        KINDS.get((self.0 & 15) as usize).copied().unwrap_or(Kind::Fixed)
    }

    /// Seq of retirement, or distance to the head.
    pub fn number(self) -> u64 {
        self.0 >> 8
    }

    /// Whether it may have no space.
    pub fn is_hollow(self) -> bool {
        self.0 & HOLLOW != 0
    }

    /// Whether no more index pages are to be handed out here.
    pub fn is_leaving(self) -> bool {
        self.0 & LEAVING != 0
    }

    /// Whether a checkpoint may name it.
    pub fn is_seen(self) -> bool {
        self.0 & UNSEEN == 0
    }
}

/// The state of an index page, one word a page in its extent's page map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageState {
    /// Nothing.
    Free,
    /// Holds slots; born in this checkpoint epoch.
    Used(u64),
    /// Out of use since `seq`; `seen`: a checkpoint may name it.
    Retired {
        /// Seq of the commit that replaced it.
        seq: u64,
        /// Whether a checkpoint may name it.
        seen: bool,
    },
    /// Holds the page map itself.
    Map,
}

impl PageState {
    /// The state a word stands for.
    pub fn from_raw(raw: u64) -> PageState {
        match raw & 7 {
            0 => PageState::Free,
            1 => PageState::Used(raw >> 8),
            2 => PageState::Retired { seq: raw >> 8, seen: true },
            3 => PageState::Retired { seq: raw >> 8, seen: false },
            _ => PageState::Map,
        }
    }

    /// The word to store.
    pub fn raw(self) -> u64 {
        match self {
            PageState::Free => 0,
            PageState::Used(epoch) => 1 | epoch << 8,
            PageState::Retired { seq, seen: true } => 2 | seq << 8,
            PageState::Retired { seq, seen: false } => 3 | seq << 8,
            PageState::Map => 4,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_survive_their_words() {
        use Kind::{Blob, Directory, Fixed, Free, Hole, Index, Log, Punching, Table};
        for kind in [Free, Fixed, Log, Index, Directory, Table, Blob, Hole, Punching] {
            assert_eq!(ExtentState::from_raw(ExtentState::new(kind).raw()).kind(), kind);
        }
        let r = ExtentState::retired(1 << 51, false);
        assert_eq!((r.kind(), r.number(), r.is_seen()), (Kind::Retired, 1 << 51, false));
        assert!(!r.is_hollow() && r.hollow().is_hollow() && r.hollow().number() == 1 << 51);
        let x = ExtentState::new(Index);
        assert!(!x.is_leaving() && x.leaving().is_leaving() && x.leaving().kind() == Index);
        let i = ExtentState::inner(1500);
        assert_eq!((i.kind(), i.number()), (Kind::Inner, 1500));
        for state in [
            PageState::Free,
            PageState::Used(7),
            PageState::Map,
            PageState::Retired { seq: 9, seen: true },
            PageState::Retired { seq: 9, seen: false },
        ] {
            assert_eq!(PageState::from_raw(state.raw()), state);
        }
    }
}

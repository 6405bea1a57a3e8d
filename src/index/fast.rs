//! What nearly every search comes to, without a call and with few branches: the key stands in its home line or
//! nowhere, and its newest record is a put that the snapshot sees.
//!
//! A search waits for memory twice, and the processor goes on with the next one meanwhile, as far as it looks ahead:
//! the fewer instructions, the more of that.

use crate::control::{Core, load};
use crate::format::record::Kind;
use crate::format::slot::{DirEntry, PAGE_WORDS, home_line, suffix, tag};
use crate::index::CACHE_LINE;
use crate::index::page::Page;
use crate::log::Record;

impl Core {
    /// What `search_at` finds; none where only that can tell. So it is where older versions or other lines have to be
    /// looked at, where something is damaged, and beyond what this process has seen of the file.
    #[inline(always)]
    pub fn find_fast(&self, hash: u64, key: &[u8], seq: u64) -> Option<Option<Record<'_>>> {
        let (words, bytes, root) = (self.map.words_window(), self.map.bytes_window(), self.root());
        let [cell] = words.words(root.position() + suffix(hash, root.depth()) * 8)?;
        let entry = DirEntry::from_raw(load(cell));
        if entry.depth() > root.depth() {
            return None;
        }
        let line = Page::new(words.words::<PAGE_WORDS>(entry.page())?).line(home_line(hash));
        let matches = line.matches(tag(hash));
        if matches == 0 {
            return if line.overflowed() { None } else { Some(None) };
        }
        let pointer = line.pointer(matches.trailing_zeros() as usize);
        let position = pointer.position();
        // What a put does not take for the key's slot is none here: it makes another.
        if position < self.geometry.records_from || !pointer.matches(hash) {
            return None;
        }
        // Where the value begins is known with the first line of the record only, and mostly it is in the second.
        bytes.prefetch(position + CACHE_LINE);
        let record = Record::at(&bytes, position)?;
        let is_plain = record.has_key(key)
            && record.header.seq() <= seq
            && record.header.kind() == Some(Kind::Put)
            && !self.verify;
        if is_plain { Some(Some(record)) } else { None }
    }
}

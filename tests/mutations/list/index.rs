//! Sabotages of the index and scans.

use super::Mutation;

pub const ALL: &[Mutation] = &[
    Mutation {
        name: "overflow_not_marked",
        file: "src/index/page.rs",
        before: "            line.set_overflowed();\n",
        after: "",
        test: "--lib every_slot_can_be_used",
        why: "a key beyond its home line is not found",
    },
    Mutation {
        name: "tombstones_ignore_readers",
        file: "src/index/mod.rs",
        before: "let bound = self.horizon()?.min(self.get(Word::Checkpoint));",
        after: "let bound = self.get(Word::Checkpoint);",
        test: "--test model few_keys",
        why: "a snapshot loses a key that was deleted later",
    },
    Mutation {
        name: "tombstone_not_marked",
        file: "src/index/mod.rs",
        before: "SlotWord::new(hash, record.position, record.is_tombstone())",
        after: "SlotWord::new(hash, record.position, false)",
        test: "--test model few_keys",
        why: "a slot and its record differ",
    },
    Mutation {
        name: "newest_version_for_all",
        file: "src/log/mod.rs",
        before: "while record.header.seq() > seq {",
        after: "while record.header.seq() > seq.max(u64::MAX >> 1) {",
        test: "--test model few_keys",
        why: "snapshots change",
    },
    Mutation {
        name: "split_keeps_all_slots_low",
        file: "src/index/mod.rs",
        before: "halves[(slot.tag >> depth & 1) as usize]",
        after: "halves[(slot.tag >> depth & 0) as usize]",
        test: "--test model many_keys",
        why: "half of a page's keys are not found",
    },
    Mutation {
        name: "scan_repeats_a_split",
        file: "src/txn/scan.rs",
        before: "u64::from(slot.tag.reverse_bits()) << 32 < cursor;",
        after: "u64::from(slot.tag.reverse_bits()) << 32 < cursor.min(0);",
        test: "RUSTFLAGS=--cfg=loom --lib --target-dir target/loom a_scan_beside",
        why: "a scan beside a split meets a key twice",
    },
    Mutation {
        name: "key_not_compared",
        file: "src/index/mod.rs",
        before: "            if record.has_key(key) {",
        after: "            if record.key().len() == key.len() {",
        test: "--test format keys_whose_hash_bits",
        why: "two keys whose hashes agree are one",
    },
];

//! Sabotages of space and its reuse.

use super::Mutation;

pub const ALL: &[Mutation] = &[
    Mutation {
        name: "reuse_one_early",
        file: "src/space.rs",
        before: "    horizon >= retired &&",
        after: "    horizon + 1 >= retired &&",
        test: "--test model few_keys",
        why: "space is reused under the last reader that may use it",
    },
    Mutation {
        name: "reuse_before_the_checkpoint",
        file: "src/space.rs",
        before: " && (checkpoint >= retired || !seen)",
        after: " && (checkpoint >= retired || !seen || true)",
        test: "SLOTDB_SEED=1 --test power random_cuts",
        why: "space that the durable checkpoint names is reused",
    },
    Mutation {
        name: "no_standing_reserve",
        file: "src/space.rs",
        before: "        2 + self.next_blob()",
        after: "        0 * self.next_blob()",
        test: "--test bad_input stays_usable",
        why: "a full store cannot delete or checkpoint",
    },
    Mutation {
        name: "page_retired_as_unseen",
        file: "src/index/mod.rs",
        before: "self.retire_page(entry.page(), change.seq, true);",
        after: "self.retire_page(entry.page(), change.seq, false);",
        test: "SLOTDB_SEED=1 --test power random_cuts",
        why: "a page that the checkpoint names is reused",
    },
    Mutation {
        name: "busy_segment_retired",
        file: "src/index/mod.rs",
        before: "if live == 0 && !change.busy.contains(&head) {",
        after: "if live == 0 {",
        test: "--test model few_keys",
        why: "the segment of the tail is retired",
    },
    Mutation {
        name: "live_bytes_not_added",
        file: "src/index/mod.rs",
        before: "                    self.add_live_at(record.position, record.header.len())?;\n                    \
            page.set_pointer",
        after: "                    page.set_pointer",
        test: "--test model few_keys",
        why: "a segment with live records is retired",
    },
    Mutation {
        name: "damaged_records_are_copied",
        file: "src/engine/clean.rs",
        before: "self.try_record(at).filter(Record::is_whole)",
        after: "self.try_record(at).filter(|r| r.is_whole() || true)",
        test: "--test bad_input the_cleaner",
        why: "the cleaner gives damaged bytes a right checksum",
    },
    Mutation {
        name: "dead_records_are_copied",
        file: "src/engine/clean.rs",
        before: ".is_some_and(|newest| newest.position == at);",
        after: ".is_some();",
        test: "--test format what_the_store_writes",
        why: "the cleaner brings old values back",
    },
    Mutation {
        name: "hole_without_space",
        file: "src/growth.rs",
        before: " && self.disk.allocate(self.position_of(n), extent).is_ok()",
        after: "",
        test: "--test bad_input stays_usable",
        why: "a store to a hole finds the disk full",
    },
];

//! Sabotages of the log.

use super::Mutation;

pub const ALL: &[Mutation] = &[
    Mutation {
        name: "chain_without_its_past",
        file: "src/format/record.rs",
        before: "hasher.update(&before.to_le_bytes());",
        after: "let _ = before;",
        test: "--test format the_golden_store_is_readable",
        why: "a batch of another history fits",
    },
    Mutation {
        name: "chain_not_compared",
        file: "src/log/replay.rs",
        before: "(header.chain() == found.chain).then_some(found)",
        after: "Some(found)",
        test: "--test format a_batch_that_breaks_one_rule",
        why: "a batch of another history is replayed",
    },
    Mutation {
        name: "seq_not_compared",
        file: "src/log/replay.rs",
        before: "header.seq() != seq || ",
        after: "",
        test: "--test format a_batch_that_breaks_one_rule",
        why: "an old batch is replayed as the next one",
    },
    Mutation {
        name: "unknown_flags_accepted",
        file: "src/log/replay.rs",
        before: " || header.flags() & !KNOWN_FLAGS != 0",
        after: "",
        test: "--test format a_batch_that_breaks_one_rule",
        why: "what a later version means is guessed",
    },
    Mutation {
        name: "record_checksum_not_compared",
        file: "src/log/replay.rs",
        before: " || !record.is_whole()",
        after: "",
        test: "--test format a_batch_that_breaks_one_rule",
        why: "torn records are replayed",
    },
    Mutation {
        name: "record_position_not_summed",
        file: "src/format/record.rs",
        before: "head[..8].copy_from_slice(&position.to_le_bytes());",
        after: "let _ = position;",
        test: "--test format the_golden_store_is_readable",
        why: "a record that was copied elsewhere passes for whole",
    },
    Mutation {
        name: "no_room_for_the_link",
        file: "src/log/append.rs",
        before: "if self.position + entry.len() + TAIL_ROOM > self.end ||",
        after: "if self.position + entry.len() > self.end ||",
        test: "--test model few_keys",
        why: "the link at the end of a segment lies beyond it",
    },
    Mutation {
        name: "moved_not_marked",
        file: "src/log/append.rs",
        before: "| if entry.moved { MOVED } else { 0 }",
        after: "| if entry.moved { 0 } else { 0 }",
        test: "--test format what_the_store_writes",
        why: "a moved record is counted twice",
    },
    Mutation {
        name: "pointers_in_front_of_the_log",
        file: "src/log/mod.rs",
        before: "if position < self.geometry.records_from {",
        after: "if position < 8 {",
        test: "--test bad_input in_front_of_the_log",
        why: "a forged pointer reads bytes that change",
    },
];

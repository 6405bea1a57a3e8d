//! Sabotages of what processes share: openers, readers, forks.

use super::Mutation;

pub const ALL: &[Mutation] = &[
    Mutation {
        name: "attach_byte_not_asked",
        file: "src/engine/open.rs",
        before: "let alone = locks.try_byte(bytes::ATTACH, Mode::Exclusive).map_err(io)?;",
        after: "let alone = true;",
        test: "--test processes others_come_and_go",
        why: "an opener sets up the words that others use",
    },
    Mutation {
        name: "reader_does_not_attach",
        file: "src/engine/open.rs",
        before: "locks.try_byte(bytes::ATTACH, Mode::Shared).map_err(io)?;\n    Ok(Role::ReadsShared)",
        after: "Ok(Role::ReadsShared)",
        test: "--test processes a_read_only_snapshot_outlives",
        why: "the words are set up anew under a reader",
    },
    Mutation {
        name: "shorter_than_its_header",
        file: "src/engine/open.rs",
        before: "if len < header.file_len.get() {",
        after: "if len == 1 {",
        test: "--test bad_input a_truncated_store",
        why: "a truncated store is opened",
    },
    Mutation {
        name: "reader_cells_not_asked",
        file: "src/readers.rs",
        before: "(self.pins().fold(visible, u64::min), visible)",
        after: "(self.pins().fold(visible, |_, _| visible), visible)",
        test: "--test model few_keys",
        why: "space is reused under a snapshot",
    },
    Mutation {
        name: "read_only_pins_not_asked",
        file: "src/readers.rs",
        before: "let horizon = self.oldest_byte_pin(oldest);",
        after: "let horizon = Ok(oldest);",
        test: "--test processes a_read_only_snapshot",
        why: "space is reused under a read-only snapshot",
    },
    Mutation {
        name: "sweeper_needs_no_byte",
        file: "src/readers.rs",
        before: " || !self.try_process_byte(number)? {",
        after: " {",
        test: "--test processes",
        why: "cells of living processes are cleared",
    },
    Mutation {
        name: "fork_not_noticed",
        file: "src/engine/mod.rs",
        before: "fork::generation() != self.fork_generation",
        after: "fork::generation() < self.fork_generation",
        test: "--test processes a_forked_child",
        why: "a child uses what is its parent's",
    },
    Mutation {
        name: "child_keeps_descriptors",
        file: "src/sys/fork.rs",
        before: "unsafe { rustix::io::close(fd) };",
        after: "let _ = fd;",
        test: "--lib a_living_child",
        why: "a child keeps the locks of its dead parent",
    },
    Mutation {
        name: "no_descriptor_closed",
        file: "src/sys/fork.rs",
        before: "if fd != FREE {",
        after: "if fd == i32::MIN {",
        test: "--test processes a_child_that_outlives",
        why: "a child keeps the locks of its dead parent",
    },
];

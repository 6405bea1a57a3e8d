//! Sabotages of the command line.

use super::Mutation;

pub const ALL: &[Mutation] = &[
    Mutation {
        name: "backslash_not_escaped",
        file: "src/bin/kvctl/bytes.rs",
        before: r#"b'\\' => text.extend_from_slice(b"\\\\"),"#,
        after: r"b'\\' => text.push(byte),",
        test: "--features cli --test kvctl dump_and_load",
        why: "a dumped value comes back changed",
    },
    Mutation {
        name: "damage_exits_as_failure",
        file: "src/bin/kvctl/exit.rs",
        before: "Ok(Outcome::Damaged) => ExitCode::from(DAMAGED),",
        after: "Ok(Outcome::Damaged) => ExitCode::from(FAILED),",
        test: "--features cli --test kvctl check_finds",
        why: "scripts cannot tell damage from a failed call",
    },
    Mutation {
        name: "lost_values_are_printed",
        file: "src/bin/kvctl/data.rs",
        before: "    txn.get(&keys[0])?;\n",
        after: "",
        test: "--features cli --test kvctl a_store_that_is_cut",
        why: "zeros are printed for a value that was lost, and the exit code says that all is well",
    },
];

//! What is fuzzed: five functions of bytes that panic if the store breaks its word.

mod endure;
mod forge;
mod operations;

use endure::endure;
use forge::{Base, Choices, Part};

/// Header slots whose fields are anything.
pub fn header(data: &[u8]) {
    endure(&Base::forge(&mut Choices(data), &[Part::Header, Part::Header, Part::Shape]));
}

/// The walk through the log. What is found is compared with what a second reader of the format finds.
pub fn record(data: &[u8]) {
    let image = Base::forge(&mut Choices(data), &[Part::Record, Part::Record, Part::Record, Part::Segment]);
    if let Some(seq) = endure(&image) {
        let header = image.header();
        assert_eq!(seq, header.seq + image.batches(&header).len() as u64, "the end of the log");
    }
}

/// The checkpoint blob, and the pages that it names.
pub fn blob(data: &[u8]) {
    endure(&Base::forge(&mut Choices(data), &[Part::Blob, Part::Blob, Part::Page, Part::Shape]));
}

/// All parts of a file together.
pub fn whole_file(data: &[u8]) {
    use Part::{Anywhere, Blob, Header, Page, Record, Segment, Shape};
    endure(&Base::forge(&mut Choices(data), &[Anywhere, Header, Blob, Page, Record, Record, Segment, Shape]));
}

/// Operations on a store and on a `BTreeMap`.
pub fn operations(data: &[u8]) {
    operations::run(&mut Choices(data));
}

type Target = fn(&[u8]);

/// The names that `fuzz/fuzz_targets/` and `tests/regressions/` have for them.
pub const TARGETS: [(&str, Target); 5] =
    [("header", header), ("record", record), ("blob", blob), ("whole_file", whole_file), ("operations", operations)];

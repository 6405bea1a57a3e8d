//! What the last writer left behind when it died, or when its append failed.

use crate::control::Word;
use crate::engine::Engine;
use crate::error::Result;

impl Engine {
    /// Under the writer lock, with `writer_active` found set: finishes the announced change of the directory; applies
    /// the batch at the tail if it is whole, else leaves it to be overwritten. An Immediate batch is visible once it
    /// is durable: `last_immediate` was raised before its first byte.
    pub fn take_over(&self) -> Result<()> {
        let core = &self.core;
        core.finish_announced()?;
        let (applied, ends) = core.ends();
        if let Some(found) = core.read_batch(ends.tail, applied + 1, ends.chain) {
            log::info!("{}: finishing batch {} of a dead writer", core.path.display(), applied + 1);
            let log_total = ends.log_total + found.log_len();
            let mut after = crate::control::Ends { tail: found.tail, chain: found.chain, log_total, ..ends };
            core.apply(applied + 1, core.hashed(&found.records), &found.segments, &mut after)?;
        }
        // A lost page makes no batch whole: whoever can read it decides.
        core.check_map()?;
        core.set(Word::WriterActive, 0);
        Ok(())
    }
}

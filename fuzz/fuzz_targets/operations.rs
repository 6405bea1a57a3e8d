#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| slotdb_fuzz::targets::operations(data));

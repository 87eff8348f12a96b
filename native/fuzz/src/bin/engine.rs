//! The target of libFuzzer. `script/fuzz` builds and runs it.
#![no_main]

libfuzzer_sys::fuzz_target!(|play: fuzz::Play| play.perform());

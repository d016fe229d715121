//! The splitter: lines do not depend on how the network split the bytes, and equal a plain split.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| llmchat_fuzz::lines(data));

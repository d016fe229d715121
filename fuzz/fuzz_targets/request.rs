//! The request reader: no panic, and what it lets through is what it says it is.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| llmchat_fuzz::request(data));

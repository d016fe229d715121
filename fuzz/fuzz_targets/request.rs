//! The request parser: it does not panic, and an accepted request keeps the promises of its types.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| llmchat_fuzz::request(data));

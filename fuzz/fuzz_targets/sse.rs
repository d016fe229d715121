//! The framing: an independent parser reads every framed event back unchanged.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| llmchat_fuzz::sse(data));

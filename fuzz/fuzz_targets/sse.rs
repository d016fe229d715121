//! The framing: whatever is framed is read back as the same event by somebody else's parser.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| llmchat_fuzz::sse(data));

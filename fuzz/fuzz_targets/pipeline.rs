//! The whole path from Ollama's bytes to events and a stored reply.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| llmchat_fuzz::pipeline(data));

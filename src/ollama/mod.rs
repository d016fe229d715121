//! Ollama's chat API: what is sent, what comes back, and the call itself.
//!
//! Knows no database and no SSE. The wire format is that of `/api/chat` as Ollama v0.33 writes
//! it; older versions differ only in that a final line may lack its `message`.

pub mod body;
pub mod call;
pub mod wire;

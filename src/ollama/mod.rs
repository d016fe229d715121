//! Ollama's chat API, as far as it is asked: the request, its sending, and answers that refuse it.
//!
//! Knows no database and no SSE. What Ollama streams back is parsed in [`crate::reply::wire`].

pub mod body;
pub mod call;
pub mod refusal;

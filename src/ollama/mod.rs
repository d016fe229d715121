//! Ollama's API, as far as it is asked: the requests, their sending, and answers that refuse them.
//!
//! Knows no database and no SSE. What Ollama streams back is parsed in [`crate::reply::wire`].

pub mod body;
pub mod call;
pub mod object;
pub mod refusal;

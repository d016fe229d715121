//! What our host alone has, or tells.

mod memory;
mod server;
mod stopping;
mod threads;
mod tls;

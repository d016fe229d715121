//! What our host alone has, or tells: leave these out on Spin, with `--skip native::`.

mod akamai;
mod idle;
mod limits;
mod memory;
mod rebinding;
mod server;
mod stopping;
mod threads;
mod tls;

//! The stand-in for Ollama as a program, for running llmchat on Spin without a model.

use std::net::SocketAddr;

use clap::Parser;
use ollama_stand_in::{Config, Server};

/// A stand-in for Ollama: its wire format, and no model behind it. It counts a token for every 4 bytes begun, and
/// says on stderr how each answer ended.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The address to listen on: by default Ollama's.
    #[arg(long, default_value = "127.0.0.1:11434")]
    listen: SocketAddr,

    /// Tokens per second; 0 is as fast as the client reads.
    #[arg(long, default_value_t = 20.0)]
    rate: f64,

    /// Tokens per reply; by default as many as its text has.
    #[arg(long)]
    tokens: Option<usize>,

    /// What stands before its paths, as behind a gateway, such as /ollama
    #[arg(long, default_value = "")]
    prefix: String,

    /// The bearer token without which nobody is answered
    #[arg(long)]
    key: Option<String>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let server = Server::start(Config {
        listen: arguments.listen,
        rate: (arguments.rate > 0.0).then_some(arguments.rate),
        tokens: arguments.tokens,
        prefix: arguments.prefix,
        key: arguments.key,
        logs: true,
    })
    .await?;
    let url = server.url();
    println!("The stand-in for Ollama listens on {url}; no model is behind it.");
    std::future::pending().await
}

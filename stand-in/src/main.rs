//! The stand-in for Ollama as a program, for those who run llmchat with Spin and have no model.

use std::net::SocketAddr;

use clap::Parser;
use ollama_stand_in::{Config, Server};

/// A stand-in for Ollama: its wire format, and no model behind it.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Where to listen: by default where Ollama would.
    #[arg(long, default_value = "127.0.0.1:11434")]
    listen: SocketAddr,

    /// Tokens a second; 0 is as fast as they are taken.
    #[arg(long, default_value_t = 20.0)]
    rate: f64,

    /// How many tokens a reply has; by default as many as it takes to say what it is.
    #[arg(long)]
    tokens: Option<usize>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let server = Server::start(Config {
        listen: arguments.listen,
        rate: (arguments.rate > 0.0).then_some(arguments.rate),
        tokens: arguments.tokens,
        ..Config::default()
    })
    .await?;
    println!(
        "The stand-in for Ollama listens on {}; no model is behind it.",
        server.url()
    );
    server.run().await
}

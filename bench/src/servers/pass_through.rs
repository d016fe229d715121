//! A proxy that copies bytes: hyper on both sides, no database, no parsing. The limit for anything
//! in the middle.

use std::net::SocketAddr;

use anyhow::Result;
use hyper::body::Incoming;
use hyper::client::conn::http1::handshake;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;

pub async fn serve(listener: TcpListener, upstream: SocketAddr) -> Result<()> {
    loop {
        let (client, _) = listener.accept().await?;
        // A connection that breaks is reported by the client.
        tokio::spawn(forward(client, upstream));
    }
}

/// Each of the clients' connections has its own connection to `upstream`.
async fn forward(client: TcpStream, upstream: SocketAddr) -> Result<()> {
    let server = TcpStream::connect(upstream).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioIo::new(server)).await?;
    tokio::spawn(connection);
    let sender = Mutex::new(sender);
    let service = service_fn(async |mut request: Request<Incoming>| {
        let host = upstream.to_string().parse()?;
        request.headers_mut().insert(header::HOST, host);
        let mut sender = sender.lock().await;
        sender.ready().await?;
        anyhow::Ok(sender.send_request(request).await?)
    });
    let connection = http1::Builder::new().serve_connection(TokioIo::new(client), service);
    Ok(connection.await?)
}

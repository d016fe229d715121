//! A proxy that copies bytes: hyper on both sides, no database, no parsing. The limit for anything
//! that stands in the middle.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::service::service_fn;
use hyper::{Request, Response, header};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;

/// Serves; each of its clients' connections has one of its own to `upstream`, kept as long.
pub async fn serve(listener: TcpListener, upstream: SocketAddr) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let kept = Arc::new(Mutex::new(None));
        let service = service_fn(move |request| {
            let kept = kept.clone();
            async move { forward(request, upstream, &kept).await }
        });
        // How a connection ends is its client's business.
        tokio::spawn(
            hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service),
        );
    }
}

async fn forward(
    mut request: Request<Incoming>,
    upstream: SocketAddr,
    kept: &Mutex<Option<SendRequest<Incoming>>>,
) -> Result<Response<Incoming>> {
    request
        .headers_mut()
        .insert(header::HOST, upstream.to_string().parse()?);
    let mut kept = kept.lock().await;
    if let Some(sender) = kept.as_mut()
        && sender.ready().await.is_err()
    {
        *kept = None;
    }
    let sender = match kept.as_mut() {
        Some(sender) => sender,
        None => kept.insert(connect(upstream).await?),
    };
    Ok(sender.send_request(request).await?)
}

async fn connect(upstream: SocketAddr) -> Result<SendRequest<Incoming>> {
    let stream = TcpStream::connect(upstream).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

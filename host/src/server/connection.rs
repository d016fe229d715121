//! One client connection: requests in, responses out, and what goes wrong in between.

use std::pin::pin;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::uri::{Authority, Scheme};
use http::{Request, Response, StatusCode, Uri, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use wasmtime_wasi_http::Error;
use wasmtime_wasi_http::handler::{self, InstantiationError, ProxyHandler};

use super::instances::Instances;
use super::requests::{Outcome, PendingRequest, ResponseBody};

/// How long a connection may take over the head of its next request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a request waits for room in the pool of instances, in pieces.
const INSTANTIATION_PAUSE: Duration = Duration::from_millis(20);
const INSTANTIATION_TRIES: u32 = 50;

/// Serves a connection until its client leaves or, once `draining` is set, its response has ended.
pub(super) async fn serve(stream: TcpStream, server: Arc<Server>, draining: CancellationToken) {
    // Each write of the component leaves at once.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| {
        let server = server.clone();
        async move { Ok::<_, std::convert::Infallible>(server.respond(request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    // An error is the client's: it left, or sent no HTTP.
    let _ = tokio::select! {
        result = connection.as_mut() => result,
        () = draining.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
}

type Body = UnsyncBoxBody<Bytes, Error>;

/// Answers the requests of one worker's connections.
pub(super) struct Server(pub(super) ProxyHandler<Instances>);

impl Server {
    async fn respond(&self, request: Request<Incoming>) -> Response<Body> {
        let host = self.0.state();
        if !host.program.manifest.serves(request.uri().path()) {
            return plain(StatusCode::NOT_FOUND);
        }
        let Some(request) = with_authority(request) else {
            return plain(StatusCode::BAD_REQUEST);
        };
        let pending = host.requests.arrive();
        let state = pending.response.clone();
        let request = request.map(|body| body.map_err(Error::from).boxed_unsync());
        // Dropping this (the client leaves) does not stop the component: its response is discarded,
        // and its writes fail.
        match self.handle(pending, request).await {
            Ok(response) => response.map(|body| ResponseBody { body, state }.boxed_unsync()),
            Err(error) => {
                state.set(Outcome::Ended);
                let output = &host.services.output;
                output.line(format_args!("a request failed: {error:#}"));
                plain(StatusCode::INTERNAL_SERVER_ERROR)
            }
        }
    }

    /// Waits for the head of the response and, if a burst has filled the pool of instances, for
    /// room in it: each instance serves many requests, so that there will soon be some.
    async fn handle(
        &self,
        mut pending: PendingRequest,
        mut request: handler::Request,
    ) -> wasmtime::Result<handler::Response> {
        let mut tries = 0;
        loop {
            let error = match self.0.handle(pending, request).await {
                Ok(response) => return Ok(response),
                Err(error) => error.downcast::<InstantiationError<PendingRequest>>()?,
            };
            tries += 1;
            if tries > INSTANTIATION_TRIES {
                return Err(wasmtime::Error::msg(format!(
                    "no instance could be created: {:#}",
                    error.error
                )));
            }
            pending = error.request_data;
            request = error
                .request
                .into_inner()
                .unwrap_or_else(PoisonError::into_inner);
            tokio::time::sleep(INSTANTIATION_PAUSE).await;
        }
    }
}

/// A response of the host's own.
fn plain(status: StatusCode) -> Response<Body> {
    let body = Full::new(Bytes::from(status.to_string())).map_err(|never| match never {});
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = status;
    response
}

/// Fills in what the request line leaves out: a component receives an absolute URI.
fn with_authority(mut request: Request<Incoming>) -> Option<Request<Incoming>> {
    let host = request
        .headers()
        .get(header::HOST)
        .map(|host| host.to_str().ok()?.parse::<Authority>().ok());
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    let authority = match (host, parts.authority.take()) {
        // A `Host` that does not parse, or contradicts the request line.
        (Some(None), _) | (None, None) => return None,
        (Some(Some(host)), Some(authority)) if host != authority => return None,
        (Some(Some(authority)), _) | (None, Some(authority)) => authority,
    };
    parts.authority = Some(authority);
    parts.scheme = Some(Scheme::HTTP);
    *request.uri_mut() = Uri::from_parts(parts).ok()?;
    Some(request)
}

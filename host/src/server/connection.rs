//! One connection: requests in, responses out, and whatever goes wrong in between.

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
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use wasmtime_wasi_http::Error;
use wasmtime_wasi_http::handler::{self, InstantiationError, ProxyHandler};

use super::instances::Instances;
use super::turns::{Ticket, TurnBody, Turns};
use crate::{Output, Program};

/// How long a connection may take over the head of its next request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a request waits for room in the pool of instances, in pieces.
const INSTANTIATION_PAUSE: Duration = Duration::from_millis(20);
const INSTANTIATION_TRIES: u32 = 50;

/// Serves a connection until its client leaves; once `closing` is set, until its response has ended.
pub(super) async fn serve(stream: TcpStream, server: Arc<Server>, closing: CancellationToken) {
    // One write an event, and each leaves at once.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| {
        let server = server.clone();
        async move { Ok::<_, std::convert::Infallible>(server.respond(request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    // How a connection ends is the client's business: it leaves, or speaks no HTTP.
    let _ = tokio::select! {
        result = connection.as_mut() => result,
        () = closing.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
}

type Body = UnsyncBoxBody<Bytes, Error>;

/// What answers the requests of one worker's connections.
pub(super) struct Server {
    program: Program,
    handler: ProxyHandler<Instances>,
    turns: Arc<Turns>,
    head: Option<Duration>,
    output: Output,
}

impl Server {
    pub(super) fn new(instances: Instances) -> Self {
        Self {
            program: instances.program.clone(),
            turns: instances.turns.clone(),
            head: instances.limits.head,
            output: instances.services.output.clone(),
            handler: ProxyHandler::new(instances),
        }
    }

    async fn respond(&self, request: Request<Incoming>) -> Response<Body> {
        if !self.program.manifest().serves(request.uri().path()) {
            return plain(StatusCode::NOT_FOUND);
        }
        let Some(request) = with_authority(request) else {
            return plain(StatusCode::BAD_REQUEST);
        };
        let ticket = self.turns.arrive();
        let turn = ticket.turn.clone();
        let request = request.map(|body| body.map_err(Error::from).boxed_unsync());
        // Dropped (the client leaves, the head takes too long), this leaves the component
        // alone: its response goes nowhere, and its writes fail.
        let response = self.handle(ticket, request);
        let response = match self.head {
            None => response.await,
            Some(limit) => match timeout(limit, response).await {
                Ok(response) => response,
                Err(_) => return plain(StatusCode::GATEWAY_TIMEOUT),
            },
        };
        match response {
            Ok(response) => response.map(|body| TurnBody { body, turn }.boxed_unsync()),
            Err(error) => {
                turn.end();
                self.output
                    .line(format_args!("a request failed: {error:#}"));
                plain(StatusCode::INTERNAL_SERVER_ERROR)
            }
        }
    }
}

impl Server {
    /// Waits for a response's head, and for room where a burst has filled the pool of
    /// instances: each of those takes many requests, so that there will soon be some.
    async fn handle(
        &self,
        mut ticket: Ticket,
        mut request: handler::Request,
    ) -> wasmtime::Result<handler::Response> {
        let mut tries = 0;
        loop {
            let error = match self.handler.handle(ticket, request).await {
                Ok(response) => return Ok(response),
                Err(error) => error.downcast::<InstantiationError<Ticket>>()?,
            };
            tries += 1;
            if tries > INSTANTIATION_TRIES {
                return Err(wasmtime::Error::msg(format!(
                    "no instance could be made: {:#}",
                    error.error
                )));
            }
            ticket = error.request_data;
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

/// Fills in what the request line leaves out: a component sees a whole address.
fn with_authority(mut request: Request<Incoming>) -> Option<Request<Incoming>> {
    let host = request
        .headers()
        .get(header::HOST)
        .map(|host| host.to_str().ok()?.parse::<Authority>().ok());
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    let authority = match (host, parts.authority.take()) {
        // What does not parse, or contradicts itself, is nobody's address.
        (Some(None), _) | (None, None) => return None,
        (Some(Some(host)), Some(authority)) if host != authority => return None,
        (Some(Some(authority)), _) | (None, Some(authority)) => authority,
    };
    parts.authority = Some(authority);
    parts.scheme = Some(Scheme::HTTP);
    *request.uri_mut() = Uri::from_parts(parts).ok()?;
    Some(request)
}

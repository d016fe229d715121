//! A web server with one page, under as many names as a test wants, and with another server behind it.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

/// The server of a page, gone when dropped.
#[derive(Debug)]
pub struct Site {
    address: SocketAddr,
    shared: Arc<Shared>,
    told: mpsc::UnboundedReceiver<Value>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    script: Mutex<String>,
    behind: Mutex<Option<SocketAddr>>,
    passed: Mutex<Vec<String>>,
    told: mpsc::UnboundedSender<Value>,
}

const HTML: &str = r#"<!doctype html><meta charset="utf-8"><title>A test</title>
<script>
// One after the other, so that the test is told in order.
let told = Promise.resolve();
const tell = (value) =>
  (told = told.then(() => fetch("/told", { method: "POST", body: JSON.stringify(value) })));
addEventListener("error", ({ message }) => tell({ thrown: message }));
addEventListener("unhandledrejection", ({ reason }) => tell({ thrown: String(reason) }));
</script>
<body><script type="module" src="/page.js"></script>"#;

impl Site {
    /// The path of the page.
    pub(crate) const PAGE: &str = "/page";

    /// A site that has nothing to show yet.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (sender, told) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            script: Mutex::default(),
            behind: Mutex::default(),
            passed: Mutex::default(),
            told: sender,
        });
        let task = tokio::spawn(serve(listener, shared.clone()));
        Ok(Self {
            address,
            shared,
            told,
            task,
        })
    }

    /// Its origin under a name: `localhost`, an address, or any name that ends with `.example`.
    pub fn origin(&self, name: &str) -> String {
        format!("http://{name}:{}", self.address.port())
    }

    /// All that is not the page is another server's from now on, and the same for it as without this one: `Host` too.
    pub fn lead_to(&self, server: SocketAddr) {
        *lock(&self.shared.behind) = Some(server);
    }

    /// The requests that the server behind has answered, as `POST /llmchat/ 200`.
    pub fn passed(&self) -> Vec<String> {
        lock(&self.shared.passed).clone()
    }

    pub(crate) fn show(&self, script: &str, given: &Value) {
        // Chromium itself says no more than "Script error." of what a module throws late.
        *lock(&self.shared.script) = format!(
            "const given = {given};
try {{
{script}
}} catch (error) {{
tell({{ thrown: String(error) }});
}}"
        );
    }

    pub(crate) async fn told(&mut self) -> Result<Value> {
        self.told.recv().await.context("the site is gone")
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let shared = shared.clone();
                let answer = service_fn(move |request| {
                    let shared = shared.clone();
                    async move { Ok::<_, Infallible>(answer(request, &shared).await) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), answer);
                // The browser leaves as it likes.
                connections.spawn(async { drop(connection.await) });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

type Body = BoxBody<Bytes, hyper::Error>;

async fn answer(request: Request<Incoming>, shared: &Shared) -> Response<Body> {
    let method = request.method().clone();
    let answered = match (method, request.uri().path()) {
        (Method::GET, Site::PAGE) => text("text/html", HTML.to_owned()),
        (Method::GET, "/page.js") => text("text/javascript", lock(&shared.script).clone()),
        (Method::POST, "/told") => tell(request, shared).await,
        _ => pass(request, shared).await,
    };
    answered.unwrap_or_else(|error| {
        let mut response = Response::new(full(error.to_string()));
        *response.status_mut() = StatusCode::BAD_GATEWAY;
        response
    })
}

fn text(kind: &str, text: String) -> Result<Response<Body>> {
    let response = Response::builder()
        .header("content-type", kind)
        .header("cache-control", "no-store");
    Ok(response.body(full(text))?)
}

fn full(text: String) -> Body {
    Full::new(text.into()).map_err(|no| match no {}).boxed()
}

async fn tell(request: Request<Incoming>, shared: &Shared) -> Result<Response<Body>> {
    let body = request.into_body().collect().await?.to_bytes();
    let told = serde_json::from_slice(&body).unwrap_or(json!({ "thrown": "no JSON" }));
    shared.told.send(told)?;
    text("text/plain", String::new())
}

/// Passes the request on, and the answer back as it comes.
async fn pass(request: Request<Incoming>, shared: &Shared) -> Result<Response<Body>> {
    let behind = *lock(&shared.behind);
    let behind = behind.context("there is no such page")?;
    let line = format!("{} {}", request.method(), request.uri());
    let stream = TcpStream::connect(behind).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // It ends with the answer.
    tokio::spawn(connection);
    let answer = sender.send_request(request).await?;
    lock(&shared.passed).push(format!("{line} {}", answer.status().as_u16()));
    Ok(answer.map(BodyExt::boxed))
}

//! What a person wants to know at the start: where it listens, what it stores in, whether
//! Ollama is there, and a request to paste.
//!
//! Neither a password nor a key is ever shown: of a database's address only host, port and name are.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use llmchat_host::variables::environment_name;
use llmchat_host::{Manifest, Options, Output, Variables};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_postgres::config::Host;
use tokio_util::task::AbortOnDropHandle;

use crate::say;

/// The variable with Ollama's address.
pub(crate) const OLLAMA_URL: &str = "ollama_url";
/// The variable with what the component may call of it.
pub(crate) const OLLAMA_HOST: &str = "ollama_host";
const OLLAMA_API_KEY: &str = "ollama_api_key";
const DATABASE_URL: &str = "database_url";

/// Ollama runs on this machine or nearby: the start does not wait longer for it.
const PATIENCE: Duration = Duration::from_secs(1);

/// The first instance starts, on a machine that may be busy.
const CHECK_PATIENCE: Duration = Duration::from_secs(30);

pub(crate) async fn print(
    manifest: &Manifest,
    options: &Options,
    address: SocketAddr,
    stand_in: bool,
) -> Result<()> {
    let variables = Variables::resolve(manifest, &options.variables)?;
    let url = variables.get(OLLAMA_URL).unwrap_or_default();
    let key = variables.get(OLLAMA_API_KEY).map(str::trim);
    let key = key.filter(|key| !key.is_empty());
    let models = models(url, key).await;
    let ollama = match &models {
        _ if stand_in => format!("the built-in stand-in at {url}: made-up text, no model"),
        Ok(models) if models.is_empty() => {
            format!("{url}, which has no model yet: `ollama pull llama3.2`")
        }
        Ok(models) => format!("{url}, with {}", models.join(", ")),
        Err(error) => format!(
            "{url} does not answer ({error:#})\n          \
             start it, set {}, or try it without: `--stand-in`",
            environment_name(OLLAMA_URL),
        ),
    };
    if let Some(warning) = not_allowed(manifest, &variables, url) {
        Output::default().line(format_args!("warning: {warning}"));
    }
    let models = models.unwrap_or_default();
    let model = models.first().map_or("llama3.2", String::as_str);

    say(format_args!(
        "\n{} listens on http://{address}\n\n  store   {}\n  Ollama  {ollama}\n\n  \
         curl -N http://{}/llmchat/ -d '{{\"appID\":\"first\",\"model\":\"{model}\",\
         \"messages\":[{{\"role\":\"user\",\"content\":\"Hello!\"}}]}}'\n",
        manifest.name(),
        store(manifest, options, &variables),
        reachable(address),
    ));
    Ok(())
}

/// No request can be sent to `0.0.0.0`.
fn reachable(address: SocketAddr) -> SocketAddr {
    let loopback = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(loopback, address.port())
}

fn store(manifest: &Manifest, options: &Options, variables: &Variables) -> String {
    match variables.get(DATABASE_URL) {
        None | Some("") => {
            let dir = options.state_dir.clone();
            let dir = dir.unwrap_or_else(|| manifest.state_dir());
            let file = llmchat_host::sqlite_file(&dir);
            format!("SQLite, {} ({DATABASE_URL} is not set)", file.display())
        }
        Some(url) => database(url)
            .unwrap_or_else(|| format!("PostgreSQL, but {DATABASE_URL} is no address of one")),
    }
}

fn database(url: &str) -> Option<String> {
    let config: tokio_postgres::Config = url.parse().ok()?;
    let ports = config.get_ports();
    let hosts = config.get_hosts().iter().enumerate().map(|(index, host)| {
        let port = ports.get(index).or(ports.first()).copied().unwrap_or(5432);
        match host {
            Host::Tcp(host) => format!("{host}:{port}"),
            Host::Unix(path) => path.display().to_string(),
        }
    });
    let hosts = hosts.collect::<Vec<_>>().join(", ");
    let name = config.get_dbname().or(config.get_user()).unwrap_or("?");
    Some(format!("PostgreSQL, database {name} at {hosts}"))
}

/// What to set, if the component may not call Ollama where it is.
fn not_allowed(manifest: &Manifest, variables: &Variables, url: &str) -> Option<String> {
    let uri: Uri = url.parse().ok()?;
    let (scheme, host) = (uri.scheme_str()?, uri.host()?);
    // Why nothing at all may be called is told by the host.
    if llmchat_host::may_call(manifest, variables, scheme, host, uri.port_u16()).unwrap_or(true) {
        return None;
    }
    Some(format!(
        "the component may not call {OLLAMA_URL}: set {}={scheme}://{}",
        environment_name(OLLAMA_HOST),
        uri.authority()?
    ))
}

/// The models that Ollama has; an error if it is not there.
async fn models(url: &str, key: Option<&str>) -> Result<Vec<String>> {
    let url = format!("{}/api/tags", url.trim_end_matches('/'));
    let body = timeout(PATIENCE, get(&url, key)).await;
    let (status, body) = body.context("no answer within a second")??;
    let is_guarded = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
    ensure!(
        !is_guarded,
        "it answers {status}: {} may be wrong or missing",
        environment_name(OLLAMA_API_KEY)
    );
    ensure!(status.is_success(), "it answers {status}");
    let body: serde_json::Value = serde_json::from_slice(&body).context("it is no Ollama")?;
    let models = body.get("models").and_then(|models| models.as_array());
    let names = models
        .into_iter()
        .flatten()
        .filter_map(|model| model.get("name")?.as_str());
    Ok(names.map(str::to_owned).collect())
}

/// Has the component look at its variables: it does before it refuses the method.
pub(crate) async fn check(address: SocketAddr) -> Result<()> {
    let url = format!("http://{}/llmchat/", reachable(address));
    let answer = timeout(CHECK_PATIENCE, get(&url, None)).await;
    let (status, body) = answer.context("the component does not answer")??;
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let error = body.get("error").and_then(|error| error.as_str());
    ensure!(
        !status.is_server_error(),
        "{}",
        error.unwrap_or("the component fails: see above")
    );
    Ok(())
}

/// Asks for a page, with a bearer token if there is one; returns with the status and the body.
async fn get(url: &str, key: Option<&str>) -> Result<(StatusCode, Bytes)> {
    const LIMIT: usize = 1 << 20;
    let uri: Uri = url.parse().context("no URL")?;
    ensure!(
        uri.scheme_str() == Some("http"),
        "not asked: only http is, at the start"
    );
    let authority = uri.authority().context("no host in it")?;
    let host = authority.host().trim_matches(['[', ']']);
    let stream = TcpStream::connect((host, authority.port_u16().unwrap_or(80))).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let mut request = Request::get(uri.path()).header(header::HOST, authority.as_str());
    if let Some(key) = key {
        request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
    }
    let request = request.body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), LIMIT).collect().await;
    Ok((status, body.map_err(anyhow::Error::from_boxed)?.to_bytes()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn a_password_is_not_shown() {
        for (url, shown) in [
            (
                "postgres://me:secret@db.example:5433/chats",
                "PostgreSQL, database chats at db.example:5433",
            ),
            (
                "postgres://me:secret@db.example",
                "PostgreSQL, database me at db.example:5432",
            ),
            (
                "host=a,b user=me password=secret dbname=d",
                "PostgreSQL, database d at a:5432, b:5432",
            ),
        ] {
            assert_eq!(database(url).unwrap(), shown);
        }
        assert_eq!(database("secret?"), None);
    }
}

//! The program itself, as an operator starts and stops it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use llmchat_host::Manifest;
use ollama_stand_in::{Config, Server};
use tempfile::TempDir;

/// Nothing takes this long, however slow the machine is.
const LONG: Duration = Duration::from_secs(60);

/// The running program; killed when it is dropped.
struct Program {
    child: Child,
    address: String,
    _state: TempDir,
}

impl Program {
    /// Starts it with the stand-in, and waits for its banner.
    fn start(arguments: &[&str]) -> Self {
        Self::spawn(command(arguments))
    }

    fn spawn(mut command: Command) -> Self {
        let state = tempfile::tempdir().unwrap();
        let mut child = command
            .args(["--listen", "127.0.0.1:0", "--stand-in", "--state-dir"])
            .arg(state.path())
            .spawn()
            .unwrap();
        let banner = BufReader::new(child.stdout.as_mut().unwrap());
        let address = banner.lines().find_map(|line| {
            let line = line.unwrap();
            let (_, address) = line.split_once("listens on http://")?;
            Some(address.to_owned())
        });
        Self {
            address: address.unwrap(),
            child,
            _state: state,
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream
    }

    /// Sends a request with this `Host`; returns with the answer.
    fn get(&self, host: &str) -> String {
        let mut stream = self.connect();
        write!(
            stream,
            "GET /llmchat/ HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Sends a prompt; returns with the first bytes of the answer.
    fn begin(&self) -> (TcpStream, String) {
        let body = r#"{"appID":"a","model":"m","messages":[{"role":"user","content":"Hi"}]}"#;
        let mut stream = self.connect();
        let (address, length) = (&self.address, body.len());
        write!(
            stream,
            "POST /llmchat/ HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut start = [0; 4096];
        let length = stream.read(&mut start).unwrap();
        let start = String::from_utf8_lossy(start.get(..length).unwrap()).into_owned();
        assert!(start.starts_with("HTTP/1.1 200"), "{start}");
        (stream, start)
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let status = Command::new("kill").args(["-s", name, &id]).status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(arguments: &[&str]) -> Command {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../spin.toml");
    Manifest::load(&manifest).unwrap().build().unwrap();
    let program = env!("CARGO_BIN_EXE_llmchat-runner");
    let mut command = if cfg!(target_os = "linux") {
        // Under `nohup` the tests ignore SIGHUP, and so would the program.
        let mut command = Command::new("env");
        command.args(["--default-signal=HUP", program]);
        command
    } else {
        Command::new(program)
    };
    command
        .arg("--no-build")
        .arg("--manifest")
        .arg(manifest)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

#[test]
fn a_program_whose_terminal_has_gone_lets_its_replies_end() {
    for signal in ["TERM", "HUP"] {
        let mut program = Program::start(&["--stand-in-rate", "20"]);
        drop((program.child.stdout.take(), program.child.stderr.take()));
        let (mut stream, mut answer) = program.begin();
        assert!(!answer.contains("\"done\":true"), "still running");
        program.signal(signal);
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("\"done\":true"), "{signal}: {answer}");
        assert!(program.child.wait().unwrap().success(), "{signal}");
    }
}

#[test]
fn on_loopback_only_loopback_names_and_those_that_are_allowed_are_answered() {
    let program = Program::start(&["--allow-host", "chat.example"]);
    for host in [
        "localhost",
        "127.0.0.1:1",
        "[::1]",
        "chat.example",
        "CHAT.example:80",
    ] {
        let answer = program.get(host);
        assert!(answer.starts_with("HTTP/1.1 405"), "{host}: {answer}");
    }
    for host in ["evil.example", "0.0.0.0", "localhost.evil.example"] {
        let answer = program.get(host);
        assert!(answer.starts_with("HTTP/1.1 403"), "{host}: {answer}");
        assert!(
            answer.contains("origin_refused") && answer.contains("--allow-host"),
            "{answer}"
        );
    }
}

#[test]
fn a_wrong_variable_is_named_at_the_start() {
    for (variable, named) in [
        ("turn_timeout=soon", "turn_timeout"),
        ("on_busy=wait", "on_busy"),
        ("database_url=nonsense", "database_url"),
    ] {
        let output = command(&["--listen", "127.0.0.1:0", "--variable", variable])
            .env("SPIN_VARIABLE_OLAMA_URL", "http://localhost:1")
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{variable}: {error}");
        assert!(error.contains(named), "{variable}: {error}");
        assert!(
            error.contains("is SPIN_VARIABLE_OLLAMA_URL meant?"),
            "{error}"
        );
    }
}

/// What the program prints up to the request to paste, on stdout and stderr.
fn banner(url: &str, key: &str, variables: &[&str]) -> [String; 2] {
    let state = tempfile::tempdir().unwrap();
    let url = format!("ollama_url={url}");
    let variables = [&[&*url], variables].concat();
    let mut child = command(&["--listen", "127.0.0.1:0", "--state-dir"])
        .arg(state.path())
        .args(variables.iter().flat_map(|it| ["--variable", it]))
        .env("SPIN_VARIABLE_OLLAMA_API_KEY", key)
        .spawn()
        .unwrap();
    let mut printed = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    while !printed.contains("curl -N") && stdout.read_line(&mut printed).unwrap() > 0 {}
    child.kill().unwrap();
    let error = child.wait_with_output().unwrap().stderr;
    [printed, String::from_utf8(error).unwrap()]
}

#[test]
fn the_banner_finds_an_ollama_behind_a_path_and_a_key_and_does_not_show_it() {
    const KEY: &str = "s3cret/key";
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let config = Config {
        prefix: "/behind/it".to_owned(),
        key: Some(KEY.to_owned()),
        ..Config::default()
    };
    let ollama = runtime.block_on(Server::start(config)).unwrap();
    for (key, said) in [
        (KEY, "with stand-in"),
        ("s3cret", "SPIN_VARIABLE_OLLAMA_API_KEY may be wrong"),
    ] {
        let [printed, error] = banner(&ollama.url(), key, &[]);
        assert!(printed.contains(said), "{printed}{error}");
        assert!(!printed.contains("s3cret"), "{printed}");
        assert_eq!(error, "");
    }
}

#[test]
fn what_an_ollama_on_another_machine_needs_is_said_at_the_start() {
    // Another loopback address: as far away as another machine, and nobody listens there.
    let [printed, error] = banner("http://127.0.0.2:9/behind/it", "s3cret", &[]);
    assert!(printed.contains("does not answer"), "{printed}");
    let advice = "set SPIN_VARIABLE_OLLAMA_HOST=http://127.0.0.2:9\n";
    assert!(error.contains(advice), "{error}");
    assert!(!error.contains("s3cret") && !printed.contains("s3cret"));
}

#[test]
fn a_secret_in_the_command_line_is_warned_of_and_one_in_a_file_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("keys");
    std::fs::write(&file, "ann:s3cret\n").unwrap();
    let in_file = format!("api_keys=@{}", file.display());
    for (variable, is_warned_of) in [("api_keys=ann:s3cret", true), (&in_file, false)] {
        let [printed, error] = banner("http://127.0.0.1:9", "", &[variable]);
        assert_eq!(
            error.contains("api_keys is a secret"),
            is_warned_of,
            "{error}"
        );
        assert!(!printed.contains("s3cret") && !error.contains("s3cret"));
    }
}

/// More connections than there are descriptors, without a request.
#[test]
fn idle_connections_close_the_server_for_nobody() {
    let whole = command(&["--stand-in-rate", "1000", "--threads", "1"]);
    let mut limited = Command::new("sh");
    limited
        .args(["-c", "ulimit -n 256; exec \"$0\" \"$@\""])
        .arg(whole.get_program())
        .args(whole.get_args())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut program = Program::spawn(limited);
    drop((program.child.stdout.take(), program.child.stderr.take()));
    let idle: Vec<_> = (0..300).map(|_| program.connect()).collect();
    let (mut stream, mut answer) = program.begin();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("\"done\":true"), "{answer}");
    drop(idle);
}

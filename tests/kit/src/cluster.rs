//! A throw-away PostgreSQL server for one run: started when the first test needs it, gone with the
//! process however that ends.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;
use tokio::sync::OnceCell;
use tokio_postgres::{Client, Config, NoTls};

use crate::database::Database;
use crate::disk::Disk;

/// The superuser's password, which must be in nothing that is printed or sent.
pub const PASSWORD: &str = "pw-7f3a-must-never-show";

pub(crate) const USER: &str = "llmchat";

/// The `application_name` of the kit's own connections.
pub(crate) const APPLICATION: &str = "llmchat-testkit";

const READY: &str = "ready to accept connections";

const NOT_INSTALLED: &str = "\
PostgreSQL's server programs (`initdb` and `postgres`) were not found, and the tests need them.
Install them:
    Debian, Ubuntu    sudo apt-get install postgresql
    Fedora            sudo dnf install postgresql-server
    macOS             brew install postgresql
or set LLMCHAT_PG_BIN to the directory that holds them. No running server is needed or used.";

/// Restarts the server with each signal whose name it reads. When its stdin is closed, it stops the
/// server and removes the directory.
const KEEPER: &str = r#"
run() { "$1/postgres" -D "$2/data" </dev/null >>"$2/log" 2>&1 & server=$!; }
run "$1" "$2"
while read -r signal; do
    kill -"$signal" $server
    wait $server
    run "$1" "$2"
done
kill -INT $server
wait $server
rm -rf "$2"
"#;

/// A running server.
#[derive(Debug)]
pub struct Cluster {
    directory: PathBuf,
    address: SocketAddr,
    keeper: Mutex<ChildStdin>,
}

impl Cluster {
    /// The one that this process shares.
    pub async fn shared() -> Result<&'static Self> {
        static SHARED: OnceCell<Cluster> = OnceCell::const_new();
        SHARED.get_or_try_init(Self::start).await
    }

    /// One for a test of its own, with TLS: its certificate and key, in PEM, are for `localhost`.
    pub async fn with_tls(certificate: &str, key: &str) -> Result<&'static Self> {
        Ok(Box::leak(Box::new(
            Self::start_with(Some((certificate, key))).await?,
        )))
    }

    async fn start() -> Result<Self> {
        Self::start_with(None).await
    }

    async fn start_with(tls: Option<(&str, &str)>) -> Result<Self> {
        let binaries = find_binaries().context(NOT_INSTALLED)?;
        // The keeper removes it, after the server has left it.
        let directory = TempDir::with_prefix("llmchat-pg-")?.keep();
        let owner = give_away(&directory)?;
        let password = directory.join("password");
        fs::write(&password, PASSWORD)?;
        let initdb = command(&binaries.join("initdb"), owner)
            .arg("--pgdata")
            .arg(directory.join("data"))
            // Checked, but not hashed: an unoptimised client is slow at that.
            .args(["--username", USER, "--auth", "password", "--pwfile"])
            .arg(password)
            .args(["--encoding", "UTF8", "--no-locale", "--no-sync"])
            .current_dir(&directory)
            .output()
            .context("cannot run initdb")?;
        let stderr = String::from_utf8_lossy(&initdb.stderr);
        ensure!(initdb.status.success(), "initdb failed: {stderr}");
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        configure(&directory, address)?;
        if let Some((certificate, key)) = tls {
            use_tls(&directory, owner, certificate, key)?;
        }

        let sh = command(Path::new("sh"), owner);
        let mut keeper = start_keeper(sh, KEEPER, [&binaries, &directory])?;
        let stdin = keeper.stdin.take().context("the keeper has no stdin")?;
        let cluster = Self {
            directory,
            address,
            keeper: Mutex::new(stdin),
        };
        cluster.ready().await?;
        Ok(cluster)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Restarts it: after a crash, or (`crash` is false) after an orderly stop.
    pub async fn restart(&self, crash: bool) -> Result<()> {
        let starts = || anyhow::Ok(self.log()?.matches(READY).count());
        let before = starts()?;
        let signal = if crash { "QUIT\n" } else { "INT\n" };
        self.keeper
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write_all(signal.as_bytes())?;
        crate::until("PostgreSQL's restart", async || Ok(starts()? > before)).await?;
        self.ready().await
    }

    /// An empty database.
    pub async fn database(&'static self) -> Result<Database> {
        Database::create(self).await
    }

    /// The URL of an empty database in another encoding than UTF-8.
    pub async fn database_in(&self, encoding: &str) -> Result<String> {
        let name = format!("in_{}", encoding.to_lowercase());
        let admin = self.connect("postgres").await?;
        let create =
            format!("CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0");
        admin.batch_execute(&create).await?;
        Ok(format!(
            "postgres://{USER}:{PASSWORD}@{}/{name}",
            self.address
        ))
    }

    /// Everything that it has logged, each executed statement included.
    pub fn log(&self) -> Result<String> {
        let log = fs::read(self.directory.join("log"))?;
        Ok(String::from_utf8_lossy(&log).into_owned())
    }

    /// A small disk that is there for as long as this server.
    pub(crate) fn disk(&self, mebibytes: usize) -> Result<Disk> {
        let disk = Disk::mount(mebibytes, Some(&self.directory))?;
        give_away(disk.path())?;
        Ok(disk)
    }

    async fn ready(&self) -> Result<()> {
        let begun = Instant::now();
        while let Err(error) = self.connect("postgres").await {
            if begun.elapsed() > Duration::from_secs(60) {
                bail!("PostgreSQL did not start: {error:#}\n{}", self.log()?);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    pub(crate) async fn connect(&self, database: &str) -> Result<Client> {
        let (client, connection) = Config::new()
            .host(self.address.ip().to_string())
            .port(self.address.port())
            .user(USER)
            .password(PASSWORD)
            .dbname(database)
            .application_name(APPLICATION)
            .connect(NoTls)
            .await?;
        tokio::spawn(connection);
        Ok(client)
    }
}

/// The directory that holds the server's programs; of several versions, the newest.
fn find_binaries() -> Option<PathBuf> {
    let is_complete = |directory: &PathBuf| {
        ["initdb", "postgres"]
            .iter()
            .all(|program| directory.join(program).is_file())
    };
    if let Some(chosen) = std::env::var_os("LLMCHAT_PG_BIN") {
        return Some(PathBuf::from(chosen)).filter(is_complete);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut candidates: Vec<_> = std::env::split_paths(&path).collect();
    for (parent, prefix) in [
        ("/usr/lib/postgresql", ""),
        ("/usr", "pgsql"),
        ("/usr", "postgresql"),
        ("/opt/homebrew/opt", "postgresql"),
        ("/usr/local/opt", "postgresql"),
    ] {
        let mut found = Vec::new();
        for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(prefix) {
                found.push((version(&name), entry.path().join("bin")));
            }
        }
        found.sort();
        candidates.extend(found.into_iter().rev().map(|(_, path)| path));
    }
    candidates.into_iter().find(is_complete)
}

/// `15` of `15`, `pgsql-15` and `postgresql@15`.
fn version(name: &str) -> u32 {
    let digits = name.trim_start_matches(|c: char| !c.is_ascii_digit());
    digits.parse().unwrap_or(0)
}

/// PostgreSQL refuses to run as root: gives our directory to another user if we are root, and
/// returns that user and its group.
pub(crate) fn give_away(directory: &Path) -> Result<Option<(u32, u32)>> {
    if fs::metadata(directory)?.uid() != 0 {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd")?;
    let ids = |user: &str| {
        let mut lines = users.lines();
        let line = lines.find(|line| line.split(':').next() == Some(user))?;
        let mut ids = line.split(':').skip(2).map(str::parse);
        Some((ids.next()?.ok()?, ids.next()?.ok()?))
    };
    let owner @ (user, group) = ids("postgres").or_else(|| ids("nobody")).context(
        "PostgreSQL refuses to run as root, and there is no user `postgres` or `nobody`",
    )?;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
    chown(directory, Some(user), Some(group))?;
    Ok(Some(owner))
}

/// Starts a shell whose script waits for the end of its stdin, which is that of this process, and cleans up.
pub(crate) fn start_keeper(mut sh: Command, script: &str, arguments: [&Path; 2]) -> Result<Child> {
    sh.args(["-c", script, "keeper"])
        .args(arguments)
        .current_dir("/")
        // Out of reach of a Ctrl-C, which it must outlive to clean up.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run sh")
}

pub(crate) fn command(program: &Path, owner: Option<(u32, u32)>) -> Command {
    let mut command = Command::new(program);
    // PGPORT and the like would be obeyed.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    if let Some((user, group)) = owner {
        command.uid(user).gid(group);
    }
    command
}

fn configure(directory: &Path, address: SocketAddr) -> Result<()> {
    let settings = format!(
        "
listen_addresses = '{}'
port = {}
unix_socket_directories = ''
max_connections = 300
# Off: only a crash of the machine would lose anything, not one of the server.
fsync = off
full_page_writes = off
logging_collector = off
log_destination = 'stderr'
log_statement = 'all'
log_line_prefix = '%d|%a|'
log_parameter_max_length = 0
",
        address.ip(),
        address.port()
    );
    let path = directory.join("data/postgresql.conf");
    let file = OpenOptions::new().append(true).open(path);
    let mut file = file.context("initdb wrote no postgresql.conf")?;
    Ok(file.write_all(settings.as_bytes())?)
}

fn use_tls(
    directory: &Path,
    owner: Option<(u32, u32)>,
    certificate: &str,
    key: &str,
) -> Result<()> {
    let data = directory.join("data");
    fs::write(data.join("server.crt"), certificate)?;
    let path = data.join("server.key");
    fs::write(&path, key)?;
    // The server refuses a key that others may read.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    if let Some((user, group)) = owner {
        chown(&path, Some(user), Some(group))?;
    }
    let configuration = OpenOptions::new()
        .append(true)
        .open(data.join("postgresql.conf"));
    Ok(configuration?.write_all(b"ssl = on\n")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_comes_back_and_is_gone_with_its_owner() -> Result<()> {
        let cluster = Cluster::start().await?;
        for crash in [true, false] {
            cluster.restart(crash).await?;
            let client = cluster.connect("postgres").await?;
            client.batch_execute("SELECT 1").await?;
        }
        let directory = cluster.directory.clone();
        drop(cluster);
        crate::until("its end", async || Ok(!directory.exists())).await
    }
}

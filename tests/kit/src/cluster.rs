//! PostgreSQL for one test run: a throw-away cluster, started when the first test asks for it,
//! gone with the process however that ends.

use std::fs;
use std::io::{ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use tokio::sync::OnceCell;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use crate::rows::{self, Row};

/// The superuser's password, to be searched for in everything that is printed or sent.
pub const PASSWORD: &str = "pw-7f3a-must-never-show";

const USER: &str = "llmchat";

const NOT_INSTALLED: &str = "\
PostgreSQL's server programs (`initdb` and `postgres`) were not found, and the tests need them.
Install them:
    Debian, Ubuntu    sudo apt-get install postgresql
    Fedora            sudo dnf install postgresql-server
    macOS             brew install postgresql
or set LLMCHAT_PG_BIN to the directory that holds them. No running server is needed or used.";

/// The server's keeper: starts it again when a signal's name is read (and sent to it), and when
/// nobody is left to write one, stops it and clears up.
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

/// A running server of its own.
#[derive(Debug)]
pub struct Cluster {
    directory: PathBuf,
    address: SocketAddr,
    /// Its stdin: once that is closed, the server goes.
    orders: Mutex<ChildStdin>,
}

impl Cluster {
    /// The one that the tests of this process share.
    pub async fn shared() -> Result<&'static Self> {
        static SHARED: OnceCell<Cluster> = OnceCell::const_new();
        SHARED.get_or_try_init(Self::start).await
    }

    /// One for a single test, to be restarted by it.
    pub async fn start() -> Result<Self> {
        let binaries = find_binaries().context(NOT_INSTALLED)?;
        let owner = owner()?;
        let directory = make_directory(owner)?;
        let mut command = as_owner(&binaries.join("initdb"), owner);
        let password_file = directory.join("password");
        fs::write(&password_file, PASSWORD)?;
        let initdb = command
            .arg("--pgdata")
            .arg(directory.join("data"))
            // Checked, and not hashed by an unoptimised client at each connection.
            .args(["--username", USER, "--auth", "password"])
            .arg("--pwfile")
            .arg(&password_file)
            .args(["--encoding", "UTF8", "--no-locale", "--no-sync"])
            .current_dir(&directory)
            .output()
            .context("cannot run initdb")?;
        ensure!(
            initdb.status.success(),
            "initdb failed: {}",
            String::from_utf8_lossy(&initdb.stderr)
        );
        let address = free_address()?;
        configure(&directory, address)?;

        let mut keeper = as_owner(Path::new("sh"), owner)
            .args(["-c", KEEPER, "keeper"])
            .args([&binaries, &directory])
            .current_dir("/")
            // Out of reach of a Ctrl-C, which it must outlive to clear up.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run sh")?;
        let orders = keeper.stdin.take().context("the keeper has no stdin")?;
        let cluster = Self {
            directory,
            address,
            orders: Mutex::new(orders),
        };
        cluster.ready().await?;
        Ok(cluster)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops it as a crash would, or (`crash` is false) in order, and starts it again.
    pub async fn restart(&self, crash: bool) -> Result<()> {
        let ready = self.log()?.matches("ready to accept connections").count();
        let signal = if crash { "QUIT\n" } else { "INT\n" };
        {
            let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
            orders.write_all(signal.as_bytes())?;
        }
        crate::eventually("PostgreSQL's restart", async || {
            let now = self.log()?.matches("ready to accept connections").count();
            Ok((now > ready).then_some(()))
        })
        .await?;
        self.ready().await
    }

    /// An empty database.
    pub async fn database(&'static self) -> Result<Database> {
        Database::create(self).await
    }

    /// Everything that it has logged: each statement that was executed, among others.
    pub fn log(&self) -> Result<String> {
        let log = fs::read(self.directory.join("log"))?;
        Ok(String::from_utf8_lossy(&log).into_owned())
    }

    async fn ready(&self) -> Result<()> {
        let begun = Instant::now();
        loop {
            let error = match self.connect("postgres").await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            if begun.elapsed() > Duration::from_secs(60) {
                bail!("PostgreSQL did not start: {error:#}\n{}", self.log()?);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn connect(&self, database: &str) -> Result<Client> {
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

/// A database that one test has for itself.
#[derive(Debug)]
pub struct Database {
    cluster: &'static Cluster,
    name: String,
    /// For what a test looks up.
    client: tokio::sync::Mutex<Option<Arc<Client>>>,
}

impl Database {
    async fn create(cluster: &'static Cluster) -> Result<Self> {
        let name = format!("t{}", uuid::Uuid::now_v7().simple());
        let admin = cluster.connect("postgres").await?;
        admin
            .batch_execute(&format!("CREATE DATABASE {name}"))
            .await?;
        Ok(Self {
            cluster,
            name,
            client: tokio::sync::Mutex::default(),
        })
    }

    /// The server's own address.
    pub fn address(&self) -> SocketAddr {
        self.cluster.address
    }

    /// Its URL, password included, by way of `address`: the server's own, or a wire's.
    pub fn url_at(&self, address: SocketAddr) -> String {
        format!("postgres://{USER}:{PASSWORD}@{address}/{}", self.name)
    }

    /// The same for a new role that may read and write but not create.
    pub async fn url_without_create(&self) -> Result<String> {
        let role = format!("limited_{}", self.name);
        self.execute(&format!(
            "CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'; REVOKE CREATE ON SCHEMA public FROM PUBLIC"
        ))
        .await?;
        Ok(format!(
            "postgres://{role}:{PASSWORD}@{}/{}",
            self.address(),
            self.name
        ))
    }

    /// Runs SQL, several statements even.
    pub async fn execute(&self, sql: &str) -> Result<()> {
        Ok(self.client().await?.batch_execute(sql).await?)
    }

    /// The first column of a query's rows.
    pub async fn query(&self, sql: &str) -> Result<Vec<String>> {
        let client = self.client().await?;
        let rows = client.simple_query(sql).await?;
        let values = rows.iter().filter_map(|row| match row {
            SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("NULL").to_owned()),
            _ => None,
        });
        Ok(values.collect())
    }

    /// Whether the component has made its table.
    pub async fn has_table(&self) -> Result<bool> {
        let found = self
            .query("SELECT 1 WHERE to_regclass('chatts') IS NOT NULL")
            .await?;
        Ok(!found.is_empty())
    }

    /// A connection of the test's own, for a lock or a transaction that stays open.
    pub async fn connect(&self) -> Result<Client> {
        self.cluster.connect(&self.name).await
    }

    /// A conversation's rows, in their order.
    pub async fn rows(&self, app_id: &str) -> Result<Vec<Row>> {
        rows::postgres(&*self.client().await?, app_id).await
    }

    /// The test's own connection; a new one where a restart has closed it.
    async fn client(&self) -> Result<Arc<Client>> {
        let mut shared = self.client.lock().await;
        if let Some(client) = shared.as_ref().filter(|client| !client.is_closed()) {
            return Ok(client.clone());
        }
        let client = Arc::new(self.cluster.connect(&self.name).await?);
        Ok(shared.insert(client).clone())
    }

    /// The statements that were executed in this database by others than the test, in order.
    pub fn statements(&self) -> Result<Vec<String>> {
        self.logged("execute ")
    }

    /// What was sent to it as text, without being prepared, by others than the test: a pool's cleaning
    /// up.
    pub fn texts(&self) -> Result<Vec<String>> {
        self.logged("statement")
    }

    fn logged(&self, kind: &str) -> Result<Vec<String>> {
        let log = self.cluster.log()?;
        let ours = format!("{}|", self.name);
        let logged = log.lines().filter_map(|line| {
            let (application, event) = line.strip_prefix(&ours)?.split_once('|')?;
            let statement = event.strip_prefix("LOG:  ")?.strip_prefix(kind)?;
            let (_, sql) = statement.split_once(": ")?;
            (application != APPLICATION).then(|| sql.to_owned())
        });
        Ok(logged.collect())
    }
}

/// What the tests' own connections call themselves.
const APPLICATION: &str = "llmchat-tests";

fn find_binaries() -> Option<PathBuf> {
    let complete = |directory: &PathBuf| {
        let has = |name| directory.join(name).is_file();
        has("initdb") && has("postgres")
    };
    if let Some(chosen) = std::env::var_os("LLMCHAT_PG_BIN") {
        return Some(PathBuf::from(chosen)).filter(complete);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<_> = std::env::split_paths(&path).collect();
    for (parent, below) in [
        ("/usr/lib/postgresql", "bin"),
        ("/usr", "bin"),
        ("/opt/homebrew/opt", "bin"),
        ("/usr/local/opt", "bin"),
    ] {
        let Ok(entries) = fs::read_dir(parent) else {
            continue;
        };
        let mut found: Vec<_> = entries
            .flatten()
            .filter(|entry| parent.ends_with("lib/postgresql") || is_postgres(&entry.file_name()))
            .map(|entry| (version(&entry.file_name()), entry.path().join(below)))
            .collect();
        found.sort();
        places.extend(found.into_iter().rev().map(|(_, path)| path));
    }
    places.into_iter().find(complete)
}

fn is_postgres(name: &std::ffi::OsStr) -> bool {
    let name = name.to_string_lossy();
    name.starts_with("pgsql") || name.starts_with("postgresql")
}

/// `15` of `15`, `pgsql-15` and `postgresql@15`.
fn version(name: &std::ffi::OsStr) -> u32 {
    let name = name.to_string_lossy();
    let digits = name.trim_start_matches(|c: char| !c.is_ascii_digit());
    digits.parse().unwrap_or(0)
}

/// Who the server runs as: it refuses to be root. `None` is whoever we are.
fn owner() -> Result<Option<(u32, u32)>> {
    let ours = fs::metadata("/proc/self").map(|own| std::os::unix::fs::MetadataExt::uid(&own));
    let ours = match ours {
        Ok(uid) => uid,
        // No /proc: ask the shell's tools.
        Err(_) => String::from_utf8(Command::new("id").arg("-u").output()?.stdout)?
            .trim()
            .parse()?,
    };
    if ours != 0 {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd")?;
    let id = |user: &str| {
        let line = users
            .lines()
            .find(|line| line.split(':').next() == Some(user))?;
        let mut ids = line.split(':').skip(2).map(str::parse);
        Some((ids.next()?.ok()?, ids.next()?.ok()?))
    };
    let found = id("postgres").or_else(|| id("nobody"));
    found.map(Some).ok_or_else(|| {
        anyhow!("PostgreSQL refuses to run as root, and there is no user `postgres` or `nobody`")
    })
}

fn as_owner(program: &Path, owner: Option<(u32, u32)>) -> Command {
    let mut command = Command::new(program);
    // Nobody's settings but ours: PGPORT and its like would be obeyed.
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

fn make_directory(owner: Option<(u32, u32)>) -> Result<PathBuf> {
    // Not a `TempDir`: the keeper removes it, after the server has left it.
    let directory = tempfile::Builder::new()
        .prefix("llmchat-pg-")
        .tempdir()?
        .keep();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
    if let Some((user, group)) = owner {
        chown(&directory, Some(user), Some(group))?;
    }
    Ok(directory)
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

fn configure(directory: &Path, address: SocketAddr) -> Result<()> {
    let settings = format!(
        "
listen_addresses = '{}'
port = {}
unix_socket_directories = ''
max_connections = 300
# A crash of the server loses nothing without it, only one of the machine would.
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
    match fs::OpenOptions::new().append(true).open(&path) {
        Ok(mut file) => Ok(file.write_all(settings.as_bytes())?),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("initdb wrote no postgresql.conf")
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_test_has_a_database_of_its_own() -> Result<()> {
        let cluster = Cluster::shared().await?;
        let (one, other) = (cluster.database().await?, cluster.database().await?);
        one.execute("CREATE TABLE t AS SELECT 7 AS n").await?;
        assert_eq!(one.query("SELECT n FROM t").await?, ["7"]);
        assert!(other.query("SELECT n FROM t").await.is_err());
        Ok(())
    }

    #[tokio::test]
    async fn executed_statements_are_counted_by_database() -> Result<()> {
        let cluster = Cluster::shared().await?;
        let (one, other) = (cluster.database().await?, cluster.database().await?);
        one.query("SELECT 'by the test'").await?;
        let (client, connection) =
            tokio_postgres::connect(&one.url_at(one.address()), NoTls).await?;
        tokio::spawn(connection);
        client.query("SELECT 1\n + 1", &[]).await?;
        assert_eq!(one.statements()?, ["SELECT 1"]);
        assert_eq!(other.statements()?, [""; 0]);
        Ok(())
    }

    #[tokio::test]
    async fn a_server_comes_back_and_is_gone_with_its_owner() -> Result<()> {
        let cluster = Cluster::start().await?;
        for crash in [true, false] {
            cluster.restart(crash).await?;
            cluster
                .connect("postgres")
                .await?
                .batch_execute("SELECT 1")
                .await?;
        }
        let directory = cluster.directory.clone();
        drop(cluster);
        crate::eventually("its end", async || Ok((!directory.exists()).then_some(()))).await
    }
}

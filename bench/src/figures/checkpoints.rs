//! What checkpoints cost: the CPU time of the host and its database beside the same without them, and statements.

use llmchat_testkit::prompt;

use super::*;

const INTERVAL: Duration = Duration::from_secs(1);

/// The interval is longer than any turn, and the lease is longer than the interval.
const NONE: [&str; 2] = [
    "--variable=checkpoint_interval=1h",
    "--variable=turn_lease=2h",
];

/// What an instance executes once an interval, and for whom.
const STATEMENTS: [(&str, &str); 2] = [
    (
        "turns",
        include_str!("../../../src/store/postgres/checkpoint.sql"),
    ),
    (
        "followers",
        include_str!("../../../src/store/postgres/follow.sql"),
    ),
];

pub async fn measure(bench: &Bench) -> Result<Vec<Figure>> {
    let mut figures = cpu(bench).await?;
    figures.extend(statements(bench).await?);
    Ok(figures)
}

fn figure(name: impl Into<String>, unit: &'static str, values: Values) -> Figure {
    Figure::new("Checkpoints", name, unit, Relation::None, values)
}

async fn cpu(bench: &Bench) -> Result<Vec<Figure>> {
    let (rounds, seconds) = if bench.quick {
        (1, 2.0)
    } else {
        (bench.rounds.min(3), 20.0)
    };
    let rate = 20.0;
    let reply = Reply {
        tokens: (seconds * rate) as usize,
        rate,
    };
    bench.environment.set_reply(reply)?;
    let [with, without, ratio] = repeat(rounds, &bench.servers, async |server| {
        let streams = match server.kind {
            Kind::Sqlite | Kind::Postgres if bench.quick => 20,
            Kind::Sqlite => 100,
            Kind::Postgres => 1_000,
            _ => return Ok([f64::NAN; 3]),
        };
        let run = async |arguments| {
            let server = bench
                .environment
                .start_server(server.kind.clone(), arguments)
                .await?;
            cpu_of_a_stream(bench, &server, reply, streams).await
        };
        let (with, without) = (run(&[]).await?, run(&NONE).await?);
        Ok([with, without, with / without])
    })
    .await?;
    let streams = format!("a stream of {seconds} s");
    Ok(vec![
        figure(format!("CPU of {streams}, one each second"), "ms", with),
        figure(format!("CPU of {streams}, none"), "ms", without),
        figure("CPU with them", "× without", ratio).goals(Bound::AtMost(1.15)),
    ])
}

/// CPU time of a server and its database for each of many streams, in milliseconds.
async fn cpu_of_a_stream(
    bench: &Bench,
    server: &Server,
    reply: Reply,
    streams: usize,
) -> Result<f64> {
    let mut load = server.load(reply);
    load.fresh_connections = true;
    // The table is created.
    load.run(2, Duration::ZERO, Schedule::Count(1)).await;
    let postgres = server
        .database
        .as_ref()
        .zip(bench.environment.postgres.as_ref());
    let used = async || {
        let database = match postgres {
            Some((database, postgres)) => {
                // What it puts off is paid now.
                database.execute("VACUUM").await?;
                database.execute("CHECKPOINT").await?;
                postgres.cpu_seconds().await?
            }
            None => 0.0,
        };
        anyhow::Ok(server.cpu_seconds() + database)
    };
    let before = used().await?;
    let spread = Duration::from_secs(if bench.quick { 0 } else { 4 });
    let run = load.run(streams, spread, Schedule::Count(1)).await;
    let used = used().await? - before;
    bench.checked(server, run);
    Ok(used / streams as f64 * 1e3)
}

/// Of one instance, all of whose turns are followed.
async fn statements(bench: &Bench) -> Result<Vec<Figure>> {
    let environment = &bench.environment;
    let Some(postgres) = &environment.postgres else {
        return Ok(Vec::new());
    };
    // The requests of a thread share an instance, one after the other.
    let server = environment
        .start_server(Kind::Postgres, &["--threads=1"])
        .await?;
    let database = server.database.as_ref().context("no database")?;
    environment.set_reply(Reply::at_full_speed(1))?;
    let client = server.client();
    client
        .prompt(&prompt("first", "Hello"))
        .await?
        .read()
        .await?;
    let seconds = if bench.quick { 2.5 } else { 8.5 };
    let rate = 20.0;
    environment.set_reply(Reply {
        tokens: (seconds * rate) as usize,
        rate,
    })?;
    let turns = async {
        let begun = Instant::now();
        let mut answers = Vec::new();
        for _ in 0..8 {
            let answer = client
                .prompt(&prompt(&prompts::new_name(), "Hello"))
                .await?;
            let path = answer.header("location").context("no location")?;
            let follower = client.get(path, &[("accept", "text/event-stream")]).await?;
            answers.extend([follower, answer]);
        }
        for answer in answers {
            answer.read().await?;
        }
        anyhow::Ok(begun.elapsed())
    };
    let (elapsed, executed) = postgres.statements(database, turns).await?;
    let intervals = elapsed?.as_secs_f64() / INTERVAL.as_secs_f64();
    let mut figures = Vec::new();
    for (whose, sql) in STATEMENTS {
        // The log is read line by line.
        let first = sql.lines().next();
        let own = executed.iter().filter(|line| Some(line.as_str()) == first);
        let count = own.count();
        ensure!(
            count > 0,
            "none of the statements for its {whose} was logged"
        );
        let values = vec![(Kind::Postgres, vec![count as f64 / intervals])];
        let name = format!("statements for its {whose}");
        let figure = figure(name, "an instance and interval", values);
        figures.push(figure.goal(Kind::Postgres, Bound::AtMost(1.0)));
    }
    Ok(figures)
}

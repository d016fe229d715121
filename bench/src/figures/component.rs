//! What an instance of the component costs whatever the reply: statements to PostgreSQL (counted in
//! the server's log), its start and end, the size of its code.

use super::*;

pub async fn measure(bench: &Bench) -> Result<Vec<Figure>> {
    let mut figures = statements(bench).await?;
    let environment = &bench.environment;
    let shared = environment.start_server(Kind::Sqlite, &[]).await?;
    let own = environment
        .start_server(Kind::Sqlite, &["--requests=1"])
        .await?;
    let mut instance = Vec::new();
    for _ in 0..bench.rounds {
        instance.push(refusal(bench, &own).await? - refusal(bench, &shared).await?);
    }
    let size = std::fs::metadata(manifest()?.source())?.len() as f64 / 1024.0;
    figures.extend([
        figure("start and end", "ms", Kind::Sqlite, instance, 0.05),
        figure("its code (.wasm)", "KiB", Kind::Sqlite, vec![size], 640.0),
    ]);
    Ok(figures)
}

fn figure(name: &str, unit: &'static str, kind: Kind, rounds: Vec<f64>, most: f64) -> Figure {
    let values = vec![(kind.clone(), rounds)];
    let figure = Figure::new("An instance", name, unit, Relation::None, values);
    figure.goal(kind, Bound::AtMost(most))
}

async fn statements(bench: &Bench) -> Result<Vec<Figure>> {
    let mut servers = bench.servers.iter();
    let server = servers.find(|server| server.kind == Kind::Postgres);
    let Some((server, postgres)) = server.zip(bench.environment.postgres.as_ref()) else {
        return Ok(Vec::new());
    };
    let reply = Reply::at_full_speed(3);
    bench.set_reply(reply).await?;
    let load = server.load(reply);
    let prompts = load.sequence(if bench.quick { 5 } else { 50 });
    let database = server.database.as_ref().context("no database")?;
    let (run, statements) = postgres.statements(database, prompts).await?;
    let turns = bench.checked(server, run).durations.len();
    let count = vec![statements.len() as f64 / turns as f64];
    let statements = figure("statements", "a turn", Kind::Postgres, count, 2.0);
    Ok(vec![statements])
}

/// The median time of a request that the component refuses without database and model, in
/// milliseconds. Where each request has an instance of its own, this includes the instance's start
/// and end.
async fn refusal(bench: &Bench, server: &Server) -> Result<f64> {
    let load = server.load(Reply::at_full_speed(1));
    let mut connection = Connection::open(load.address).await?;
    let mut times = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < bench.window / 3 {
        connection.ready().await?;
        let start = Instant::now();
        let status = connection.status("/nothing-is-here").await?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        ensure!(status == 404, "status {status} instead of 404");
    }
    Ok(percentile(&mut times, 0.5))
}

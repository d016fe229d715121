//! Many streams at once: whether each ends in time, and how much memory an open one takes.
//!
//! Each server is started anew, so that its memory is that of the streams and of nothing before
//! them. The streams begin within two fifths of their length, and in a second run all at once.

use std::convert::Infallible;

use super::*;

/// How much longer than the model a stream may take, in percent.
const MAX_OVER: f64 = 10.0;

pub async fn measure(bench: &Bench) -> Result<Vec<Figure>> {
    let (streams, seconds) = if bench.quick { (60, 0.5) } else { (1_000, 5.0) };
    let spread = Duration::from_secs_f64(seconds * 0.4);
    let rate = 20.0;
    let tokens = (seconds * rate) as usize;
    let [late, over, late_at_once, over_at_once, memory, connections] =
        repeat(1, &bench.servers, async |server| {
            let fresh = match &server.kind {
                Kind::Direct | Kind::Other(_) => None,
                kind => Some(bench.environment.start_server(kind.clone(), &[]).await?),
            };
            let server = fresh.as_ref().unwrap_or(server);
            let reply = Reply { tokens, rate };
            bench.environment.set_reply(reply)?;
            let mut load = server.load(reply);
            load.fresh_connections = true;
            // What is loaded or created only once is there after this.
            load.run(8, Duration::ZERO, Schedule::Count(1)).await;
            let idle = server.memory();
            let (mut memory, mut connections) = (f64::NAN, f64::NAN);
            let run = tokio::select! {
                run = load.run(streams, spread, Schedule::Count(1)) => run,
                Err(error) = observe(server, &mut memory, &mut connections) => return Err(error),
            };
            let [late, over] = lateness(&bench.checked(server, run), reply);
            let run = load.run(streams, Duration::ZERO, Schedule::Count(1)).await;
            let [late_at_once, over_at_once] = lateness(&bench.checked(server, run), reply);
            let memory = (memory - idle) / streams as f64;
            Ok([late, over, late_at_once, over_at_once, memory, connections])
        })
        .await?;
    let figure = |what: &str, unit, values| {
        let name = format!("{streams} of {seconds} s{what}");
        Figure::new("Many streams", name, unit, Relation::None, values)
    };
    let within = format!(", begun within {} s", spread.as_secs_f64());
    let none = Bound::AtMost(0.0);
    Ok(vec![
        figure(&format!("{within}: over +10 %"), "streams", late).goals(none),
        figure(&format!("{within}: the last one over by"), "%", over),
        figure(", begun at once: over +10 %", "streams", late_at_once).goals(none),
        figure(", begun at once: the last one over by", "%", over_at_once),
        figure(": memory of each", "KiB", memory).goals(Bound::AtMost(100.0)),
        figure(": PostgreSQL's connections", "open", connections),
    ])
}

/// Keeps the greatest memory and number of connections to PostgreSQL, until it is dropped.
async fn observe(server: &Server, memory: &mut f64, connections: &mut f64) -> Result<Infallible> {
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        *memory = memory.max(server.memory());
        *connections = connections.max(server.connections().await?);
    }
}

/// How many streams failed or took too long, and how much longer than the model the slowest took,
/// in percent.
fn lateness(run: &Run, reply: Reply) -> [f64; 2] {
    // The model sends its first token at once.
    let model = (reply.tokens as f64 - 1.0) / reply.rate;
    let over = run.durations.iter();
    let over = over.map(|duration| (duration / model - 1.0) * 100.0);
    let late = over.clone().filter(|&over| over > MAX_OVER).count();
    let worst = over.fold(f64::NAN, f64::max);
    [(late + run.failures.len()) as f64, worst]
}

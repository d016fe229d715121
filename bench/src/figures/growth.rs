//! The first token and the turns a second in conversations that are long already.
//!
//! `direct` and `pass-through` store nothing: there the client sends the whole conversation, so
//! that what the model's side takes to read it is part of the reference too.

use super::*;

pub async fn measure(bench: &Bench) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let lengths: &[usize] = match bench.quick {
        true => &[10, 200],
        false => &[10, 1_000, 10_000],
    };
    for &length in lengths {
        let reply = Reply::at_full_speed(1);
        bench.set_reply(reply).await?;
        let mut prompts = Vec::new();
        for server in &bench.servers {
            prompts.push((&server.kind, seed(bench, server, reply, length).await?));
        }
        let schedule = Schedule::Closed(bench.window / 2);
        let [p50, p99, rate, memory] = bench
            .rounds(reply, async |server| {
                let mut load = server.load(reply);
                let own = prompts.iter().find(|(kind, _)| **kind == server.kind);
                load.prompts = own.context("no conversations")?.1.clone();
                let run = load.run(1, Duration::ZERO, schedule).await;
                let mut times = bench.checked(server, run).first_tokens;
                let run = load.run(8, Duration::ZERO, schedule).await;
                let run = bench.checked(server, run);
                Ok([
                    percentile(&mut times, 0.5),
                    percentile(&mut times, 0.99),
                    run.durations.len() as f64 / run.elapsed.as_secs_f64(),
                    server.memory() / 1024.0,
                ])
            })
            .await?;
        let figure = |what, unit, relation, values| {
            let name = format!("{length} messages: {what}");
            Figure::new("Long conversations", name, unit, relation, values)
        };
        figures.extend([
            figure("first token, p50", "ms", AddedToDirect, p50),
            figure("first token, p99", "ms", AddedToDirect, p99),
            figure("8 clients", "turns/s", TimesPassThrough, rate),
            figure("memory afterwards", "MiB", Relation::None, memory),
        ]);
    }
    Ok(figures)
}

/// Stores conversations of `length` messages, if the server can, and makes prompts for them.
async fn seed(bench: &Bench, server: &Server, reply: Reply, length: usize) -> Result<Prompts> {
    if !server.stores_conversations() {
        return Ok(prompts::cycle(vec![prompts::body(None, 0..length + 1)]));
    }
    // A conversation grows by two messages a turn: many short ones stay short.
    let conversations = (2_000 / length).clamp(4, 200);
    let names: Vec<_> = (0..conversations).map(|_| prompts::new_name()).collect();
    let mut load = server.load(reply);
    for name in &names {
        let bodies = prompts::seeds(name, length);
        let count = bodies.len();
        load.prompts = prompts::cycle(bodies);
        let run = bench.checked(server, load.sequence(count).await);
        ensure!(run.failures.is_empty(), "a conversation was not stored");
    }
    let bodies = names.iter().map(|name| prompts::body(Some(name), 0..1));
    Ok(prompts::cycle(bodies.collect()))
}

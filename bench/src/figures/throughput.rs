//! Turns and tokens a second with the model at full speed, and the CPU time that they cost.
//!
//! Client, stand-in and server share the machine, so a rate is the whole machine's; the server's
//! CPU time is its own and carries over to other machines.

use super::*;

pub async fn measure(bench: &Bench) -> Result<Vec<Figure>> {
    // A reply of one token is a turn; 16 clients let commits share a write to the disk.
    let mut figures = Vec::from(replies(bench, 1, 16).await?);
    figures.extend(replies(bench, 100, 4).await?);
    let [rate, cpu] = replies(bench, 2_000, 4).await?;
    figures.extend([rate.goals(Bound::AtLeast(0.5)), cpu]);
    Ok(figures)
}

async fn replies(bench: &Bench, tokens: usize, clients: usize) -> Result<[Figure; 2]> {
    let reply = Reply::at_full_speed(tokens);
    let [rate, cpu] = bench
        .rounds(reply, async |server| {
            let load = server.load(reply);
            let before = server.cpu_seconds();
            let schedule = Schedule::Closed(bench.window);
            let run = load.run(clients, Duration::ZERO, schedule).await;
            let cpu = server.cpu_seconds() - before;
            let run = bench.checked(server, run);
            let tokens = run.tokens as f64;
            Ok([tokens / run.elapsed.as_secs_f64(), cpu / tokens * 1e6])
        })
        .await?;
    let figure = |what, unit, values| {
        let name = format!("replies of {tokens}, {clients} clients{what}");
        Figure::new("Full speed", name, unit, TimesPassThrough, values)
    };
    Ok([
        figure("", "tokens/s", rate),
        figure(": CPU of a token", "µs", cpu),
    ])
}

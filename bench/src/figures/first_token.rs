//! Time to the first token: what a user waits before anything shows.
//!
//! One client sends its next prompt when it has its reply; 32 clients send theirs at fixed moments,
//! few enough that no queue builds up even before the slowest server.

use super::*;

/// Of each of 32 clients: 107 turns a second in all.
const INTERVAL: Duration = Duration::from_millis(300);

pub async fn measure(bench: &Bench) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let reply = Reply::at_full_speed(1);
    let closed = Schedule::Closed(bench.window);
    let open = Schedule::Open {
        interval: INTERVAL,
        window: bench.window.max(INTERVAL * 2),
    };
    for (name, clients, schedule, fresh) in [
        ("1 client, kept alive", 1, closed, false),
        ("1 client, fresh", 1, closed, true),
        ("32 clients, kept alive", 32, open, false),
        ("32 clients, fresh", 32, open, true),
    ] {
        let values = bench
            .rounds(reply, async |server| {
                let mut load = server.load(reply);
                load.fresh_connections = fresh;
                let run = load.run(clients, INTERVAL, schedule).await;
                let mut times = bench.checked(server, run).first_tokens;
                Ok([0.5, 0.99].map(|share| percentile(&mut times, share)))
            })
            .await?;
        for (share, values) in ["p50", "p99"].into_iter().zip(values) {
            let name = format!("{name}, {share}");
            let mut figure = Figure::new("First token", name, "ms", AddedToDirect, values);
            if (clients, fresh, share) == (1, false, "p50") {
                figure = figure
                    .goal(Kind::Sqlite, Bound::AtMost(0.5))
                    .goal(Kind::Postgres, Bound::AtMost(0.7));
            }
            figures.push(figure);
        }
    }
    Ok(figures)
}

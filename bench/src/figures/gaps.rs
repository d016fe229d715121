//! Gaps between tokens, when the model sends one every 20 ms: whether the reply flows.

use super::*;

const STEP: Duration = Duration::from_millis(20);

pub async fn measure(bench: &Bench) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let reply = Reply {
        tokens: 25,
        rate: 1.0 / STEP.as_secs_f64(),
    };
    for (name, streams) in [("1 stream", 1), ("32 streams", 32)] {
        let [gap_p50, gap_p99, delay_p50, delay_p99] = bench
            .rounds(reply, async |server| {
                let mut load = server.load(reply);
                load.time_tokens = true;
                let schedule = Schedule::Closed(bench.window);
                let run = bench.checked(server, load.run(streams, STEP, schedule).await);
                let (mut gaps, mut delays) = (run.gaps(), run.delays.concat());
                Ok([
                    percentile(&mut gaps, 0.5),
                    percentile(&mut gaps, 0.99),
                    percentile(&mut delays, 0.5),
                    percentile(&mut delays, 0.99),
                ])
            })
            .await?;
        let figure = |what, values| {
            let name = format!("{name}: {what}");
            Figure::new("A token every 20 ms", name, "ms", AddedToDirect, values)
        };
        figures.extend([
            figure("gap longer by, p50", gap_p50),
            figure("gap longer by, p99", gap_p99).goals(Bound::AtMost(1.0)),
            figure("token delayed by, p50", delay_p50),
            figure("token delayed by, p99", delay_p99),
        ]);
    }
    Ok(figures)
}

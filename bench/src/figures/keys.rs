//! Keys: whether the time of a refusal tells one wrong key from another, and what keys and limits cost a turn.
//!
//! All kinds of refusal come by turns over one kept connection, so that whatever slows the machine down slows all of
//! them. One kind is there twice: how far its two series are apart is the noise.

use super::*;
use crate::stats::trimmed_mean;

const OWNERS: usize = 20;
/// Tries of each kind in a round.
const TRIES: usize = 10_000;

pub async fn measure(bench: &Bench) -> Result<Vec<Figure>> {
    let mut figures = refusals(bench).await?;
    figures.extend(cost(bench).await?);
    Ok(figures)
}

/// As long as what `openssl rand -base64 32` prints.
fn token(owner: usize) -> String {
    format!("{owner:02}3vQ8sT1xWb7LdN5yHc0RfJ9uGp2MaE4oXiVtBqKw6Zk")
}

fn with_keys() -> String {
    let entries = (0..OWNERS).map(|owner| format!("owner-{owner}:{}", token(owner)));
    format!(
        "--variable=api_keys={}",
        entries.collect::<Vec<_>>().join(" ")
    )
}

/// Times of refusals, as the ratio to those of a wrong key that is as long as the right ones.
async fn refusals(bench: &Bench) -> Result<Vec<Figure>> {
    // A refusal needs neither database nor model.
    let keys = with_keys();
    let environment = &bench.environment;
    let server = environment.start_server(Kind::Sqlite, &[&keys]).await?;
    let right = format!("Bearer {}", token(OWNERS - 1));
    let wrong = format!("Bearer {}", "x".repeat(token(0).len()));
    let mut all_but_one = right.clone();
    all_but_one.replace_range(right.len() - 1.., "!");
    let kinds = [
        ("", Some(wrong.clone())),
        ("the same again: the noise", Some(wrong.clone())),
        ("a right key but for its last byte", Some(all_but_one)),
        (
            "a right key, another scheme",
            Some(right.replace("Bearer", "Digest")),
        ),
        ("no key", None),
    ];
    let address = server.load(Reply::at_full_speed(1)).address;
    let mut ratios = vec![[Vec::new(), Vec::new()]; kinds.len()];
    for _ in 0..bench.rounds {
        let tries = if bench.quick { TRIES / 50 } else { TRIES };
        let mut connection = Connection::open(address).await?;
        let mut times = vec![Vec::with_capacity(tries); kinds.len()];
        for number in 0..tries {
            for place in 0..kinds.len() {
                // Each kind comes after each other one: their number is a prime.
                let kind = (place * (1 + number % (kinds.len() - 1)) + number) % kinds.len();
                let (Some((_, key)), Some(times)) = (kinds.get(kind), times.get_mut(kind)) else {
                    continue;
                };
                connection.authorization.clone_from(key);
                connection.ready().await?;
                let start = Instant::now();
                let status = connection.status("/llmchat/").await?;
                times.push(start.elapsed().as_secs_f64());
                ensure!(status == 401, "status {status} instead of 401");
            }
        }
        let of_round = times
            .iter_mut()
            .map(|times| [percentile(times, 0.5), trimmed_mean(times, 0.1)]);
        let of_round: Vec<_> = of_round.collect();
        let [median, mean] = of_round.first().copied().context("no kinds")?;
        for ([medians, means], of_kind) in ratios.iter_mut().zip(of_round) {
            medians.push(of_kind[0] / median);
            means.push(of_kind[1] / mean);
        }
    }
    let mut figures = Vec::new();
    for ((name, _), [medians, means]) in kinds.iter().zip(ratios).skip(1) {
        for (of, rounds) in [("medians", medians), ("means", means)] {
            let values = vec![(Kind::Sqlite, rounds)];
            let name = format!("{name}, {of}");
            let figure = Figure::new(
                "Refused keys",
                name,
                "× a wrong key",
                Relation::None,
                values,
            );
            figures.push(figure.goal(Kind::Sqlite, Bound::AsOne(0.02)));
        }
    }
    Ok(figures)
}

/// What a turn of one token costs with a setting, as the ratio to one without.
async fn cost(bench: &Bench) -> Result<Vec<Figure>> {
    let reply = Reply::at_full_speed(1);
    bench.set_reply(reply).await?;
    let keys = with_keys();
    let settings = [
        ("20 keys", keys.as_str()),
        (
            "counted, and never at the limit",
            "--variable=max_turns_per_minute=1000000",
        ),
    ];
    let mut figures = Vec::new();
    for (name, setting) in settings {
        let (mut times, mut cpus) = (Values::new(), Values::new());
        for kind in &bench.databases {
            let servers = [
                bench.environment.start_server(kind.clone(), &[]).await?,
                bench
                    .environment
                    .start_server(kind.clone(), &[setting])
                    .await?,
            ];
            let [time, cpu] = repeat(bench.rounds, &servers, async |server| {
                let mut load = server.load(reply);
                // The first server takes no notice of it.
                load.authorization = Some(format!("Bearer {}", token(OWNERS - 1)));
                let before = server.cpu_seconds();
                let run = load
                    .run(1, Duration::ZERO, Schedule::Closed(bench.window))
                    .await;
                let cpu = server.cpu_seconds() - before;
                let mut run = bench.checked(server, run);
                Ok([
                    percentile(&mut run.first_tokens, 0.5),
                    cpu / run.durations.len() as f64,
                ])
            })
            .await?;
            times.push((kind.clone(), ratios(&time)));
            cpus.push((kind.clone(), ratios(&cpu)));
        }
        let figure = |what, values| {
            let name = format!("{name}: {what}");
            Figure::new(
                "A turn with keys",
                name,
                "× without",
                Relation::None,
                values,
            )
        };
        figures.extend([
            figure("first token, 1 client, p50", times),
            figure("CPU of the host", cpus),
        ]);
    }
    Ok(figures)
}

/// Of the second server to the first, round by round.
fn ratios(values: &Values) -> Vec<f64> {
    let [(_, without), (_, with)] = values.as_slice() else {
        return Vec::new();
    };
    let pairs = with.iter().zip(without);
    pairs.map(|(with, without)| with / without).collect()
}

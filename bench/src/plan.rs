//! How long, how often, how many: the full benchmark and the smoke run.

use std::time::Duration;

/// The size of a run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Rounds of each figure; in each, every contestant has its turn.
    pub rounds: usize,
    /// How long one contestant is under load in one round.
    pub window: Duration,
    /// Turns before the first round, not counted.
    pub warm_up: usize,
    /// Streams open at once for the figure of memory.
    pub streams: usize,
    /// How long the model takes for each of them.
    pub stream_length: Duration,
    /// How often that is done.
    pub stream_rounds: usize,
    /// Messages already in the conversation.
    pub growth: &'static [usize],
    /// Processes started for the start-up time.
    pub starts: usize,
    /// Whether the component is also compiled from scratch, to be timed.
    pub cold_start: bool,
    /// Turns whose statements are counted.
    pub statement_turns: usize,
    /// The micro-benchmarks without instruction counts.
    pub quick_micro: bool,
}

impl Plan {
    /// About eight minutes.
    pub fn full() -> Self {
        Self {
            rounds: 5,
            window: Duration::from_millis(1_500),
            warm_up: 20,
            streams: 1_000,
            stream_length: Duration::from_secs(5),
            stream_rounds: 1,
            growth: &[10, 1_000, 10_000],
            starts: 5,
            cold_start: true,
            statement_turns: 50,
            quick_micro: false,
        }
    }

    /// Less than a minute.
    pub fn quick() -> Self {
        Self {
            rounds: 1,
            window: Duration::from_millis(250),
            warm_up: 3,
            streams: 60,
            stream_length: Duration::from_millis(500),
            stream_rounds: 1,
            growth: &[10, 200],
            starts: 1,
            cold_start: false,
            statement_turns: 5,
            quick_micro: true,
        }
    }
}

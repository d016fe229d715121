//! The pure path alone, which runs once a token: splitter, parser, transcoder, framing.
//!
//! Three measures. Times vary with the machine; instructions, which callgrind counts, repeat from
//! run to run; allocations are counted by this program's own allocator. All of them are of native
//! code: the component's is compiled from the same source for wasm.

pub mod allocations;
mod callgrind;
mod cases;

use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::cli::MicroOptions;
use crate::report::{align, number};
use crate::stats::percentile;
use cases::{Case, Input, Tokens};

/// Tokens of the reply that is run through, again and again.
const REPLY: usize = 2_000;

/// What one case takes.
#[derive(Debug, Serialize)]
pub struct Micro {
    /// The case.
    pub case: &'static str,
    /// What its tokens are like.
    pub tokens: &'static str,
    /// Nanoseconds a token: the median of the repetitions.
    pub nanoseconds: f64,
    /// Bytes of Ollama's a second.
    pub bytes_per_second: f64,
    /// Instructions a token, where valgrind is installed.
    pub instructions: Option<f64>,
    /// Calls of the allocator per 1,000 tokens, in a reply's later half.
    pub allocations_per_1000: f64,
    /// Whether nothing but the growing reply is allocated; no goal for tokens with escapes.
    pub allocation_goal_met: Option<bool>,
}

/// Runs the micro-benchmarks and prints them.
pub fn run(options: &MicroOptions) -> Result<()> {
    let mut page = String::new();
    table(&measure(options.quick)?, &mut page)?;
    println!("{page}");
    Ok(())
}

/// One case, `passes` times: for callgrind.
pub fn run_case(name: &str, passes: usize) -> Result<()> {
    let (case, tokens) = cases::by_name(name).with_context(|| format!("no case {name}"))?;
    let input = Input::of(tokens, REPLY);
    for _ in 0..passes {
        case.run(&input);
    }
    Ok(())
}

/// All cases.
pub fn measure(quick: bool) -> Result<Vec<Micro>> {
    let count_instructions = !quick && callgrind::is_installed();
    let mut measured = Vec::new();
    for tokens in Tokens::ALL {
        let (input, longer) = (Input::of(tokens, REPLY), Input::of(tokens, 2 * REPLY));
        for case in Case::ALL {
            let nanoseconds = time(case, &input, quick) / REPLY as f64;
            case.run(&longer);
            let allocations = allocations::count(|| case.run(&longer))
                .saturating_sub(allocations::count(|| case.run(&input)));
            let instructions = match count_instructions {
                true => Some(callgrind::instructions_a_pass(case, tokens)? / REPLY as f64),
                false => None,
            };
            let bytes_a_token = input.bytes() as f64 / REPLY as f64;
            let allocations_per_1000 = allocations as f64 * 1e3 / REPLY as f64;
            measured.push(Micro {
                case: case.title(),
                tokens: tokens.title(),
                nanoseconds,
                bytes_per_second: bytes_a_token / nanoseconds * 1e9,
                instructions,
                allocations_per_1000,
                // A buffer that doubles is allocated once in a thousand tokens, and ever more rarely.
                allocation_goal_met: (tokens == Tokens::Plain)
                    .then_some(allocations_per_1000 <= 1.0),
            });
        }
    }
    Ok(measured)
}

/// Nanoseconds of a pass.
fn time(case: Case, input: &Input, quick: bool) -> f64 {
    let (repetitions, length) = match quick {
        true => (3, Duration::from_millis(5)),
        false => (9, Duration::from_millis(60)),
    };
    let mut times = Vec::new();
    for _ in 0..repetitions {
        let (begun, mut passes) = (Instant::now(), 0.0);
        while begun.elapsed() < length {
            case.run(input);
            passes += 1.0;
        }
        times.push(begun.elapsed().as_nanos() as f64 / passes);
    }
    percentile(&mut times, 0.5).unwrap_or(f64::NAN)
}

/// The cases as lines of the page.
pub fn table(measured: &[Micro], page: &mut String) -> std::fmt::Result {
    writeln!(
        page,
        "The pure path alone (native), a token of a reply of {REPLY}"
    )?;
    let head = [
        "",
        "tokens",
        "ns",
        "MB/s",
        "instructions",
        "allocations/1,000",
        "goal",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for micro in measured {
        let goal = match micro.allocation_goal_met {
            Some(true) => "0 allocations, but for the growing reply: met",
            Some(false) => "0 allocations, but for the growing reply: NOT MET",
            None => "",
        };
        rows.push(vec![
            format!("  {}", micro.case),
            micro.tokens.to_owned(),
            number(micro.nanoseconds),
            number(micro.bytes_per_second / 1e6),
            micro.instructions.map_or_else(|| "–".to_owned(), number),
            number(micro.allocations_per_1000),
            goal.to_owned(),
        ]);
    }
    align(&rows, page)
}

//! Percentiles of samples, and the median and spread of rounds.

use serde::Serialize;

/// The nearest-rank percentile; `NaN` if there are no samples.
pub fn percentile(samples: &mut [f64], share: f64) -> f64 {
    samples.sort_unstable_by(f64::total_cmp);
    let rank = (share * samples.len() as f64).ceil() as usize;
    let sample = samples.get(rank.saturating_sub(1));
    sample.copied().unwrap_or(f64::NAN)
}

/// The mean of all but this share of the smallest, and as much of the largest.
pub fn trimmed_mean(samples: &mut [f64], share: f64) -> f64 {
    samples.sort_unstable_by(f64::total_cmp);
    let cut = (share * samples.len() as f64) as usize;
    let kept = samples.get(cut..samples.len() - cut).unwrap_or_default();
    kept.iter().sum::<f64>() / kept.len() as f64
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    pub median: f64,
    /// Half the distance between the extremes.
    pub spread: f64,
}

impl Summary {
    /// Of the rounds that have a value, if any has.
    pub fn of(rounds: &[f64]) -> Option<Self> {
        let mut sorted: Vec<_> = rounds.iter().copied().filter(|x| x.is_finite()).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let upper = sorted.get(sorted.len() / 2)?;
        let lower = sorted.get((sorted.len() - 1) / 2)?;
        Some(Self {
            median: (lower + upper) / 2.0,
            spread: (sorted.last()? - sorted.first()?) / 2.0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let mut samples: Vec<_> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&mut samples, 0.5), 50.0);
        assert_eq!(percentile(&mut samples, 0.99), 99.0);
        assert_eq!(percentile(&mut [7.0], 0.99), 7.0);
        assert!(percentile(&mut [], 0.5).is_nan());
    }

    #[test]
    fn what_is_far_off_is_not_in_a_trimmed_mean() {
        assert_eq!(trimmed_mean(&mut [900.0, 2.0, 4.0, 3.0, 0.0], 0.2), 3.0);
        assert!(trimmed_mean(&mut [], 0.1).is_nan());
    }

    #[test]
    fn rounds_have_a_median_and_a_spread() {
        let summary = Summary::of(&[3.0, 1.0, 2.0, f64::NAN]).expect("rounds");
        assert_eq!((summary.median, summary.spread), (2.0, 1.0));
        assert_eq!(Summary::of(&[1.0, 2.0]).map(|s| s.median), Some(1.5));
        assert_eq!(Summary::of(&[]), None);
    }
}

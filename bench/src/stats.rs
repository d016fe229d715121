//! Percentiles of samples, and the median and spread of rounds.

use serde::Serialize;

/// The value below which `share` of the samples lie (nearest rank); none of no samples.
pub fn percentile(samples: &mut [f64], share: f64) -> Option<f64> {
    samples.sort_unstable_by(f64::total_cmp);
    let rank = (share * samples.len() as f64).ceil() as usize;
    samples.get(rank.saturating_sub(1)).copied()
}

/// The rounds of one figure in three numbers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The median of the rounds.
    pub median: f64,
    /// The least of them.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Summary {
    /// Of any rounds at all.
    pub fn of(rounds: &[f64]) -> Option<Self> {
        let mut sorted: Vec<_> = rounds.iter().copied().filter(|x| x.is_finite()).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let upper = *sorted.get(middle)?;
        let median = if sorted.len() % 2 == 1 {
            upper
        } else {
            (upper + *sorted.get(middle.checked_sub(1)?)?) / 2.0
        };
        Some(Self {
            median,
            min: *sorted.first()?,
            max: *sorted.last()?,
        })
    }

    /// Half the distance between the extremes.
    pub fn spread(&self) -> f64 {
        (self.max - self.min) / 2.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let mut samples: Vec<_> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&mut samples, 0.5), Some(50.0));
        assert_eq!(percentile(&mut samples, 0.99), Some(99.0));
        assert_eq!(percentile(&mut [7.0], 0.99), Some(7.0));
        assert_eq!(percentile(&mut [], 0.5), None);
    }

    #[test]
    fn rounds_have_a_median_and_a_spread() {
        let summary = Summary::of(&[3.0, 1.0, 2.0, f64::NAN]).expect("rounds");
        assert_eq!((summary.median, summary.spread()), (2.0, 1.0));
        assert_eq!(Summary::of(&[1.0, 2.0]).map(|s| s.median), Some(1.5));
        assert_eq!(Summary::of(&[]), None);
    }
}

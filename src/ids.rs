//! Ids of turns and their rows: UUIDs v7 (RFC 9562), which are appended to an index.

use std::time::{SystemTime, UNIX_EPOCH};

use uuid::{Builder, Uuid};

use crate::spin::wasip3::random::random::get_random_u64;

/// The ids of one turn and its rows. Time and randomness are read once, then counted up (the RFC's
/// "monotonic random"), since reading them is two host calls.
#[derive(Debug)]
pub(crate) struct Ids {
    /// Milliseconds since the Unix epoch.
    time: u64,
    next: u64,
}

impl Ids {
    /// Ids of the present moment.
    pub(crate) fn draw() -> Self {
        let time = SystemTime::now().duration_since(UNIX_EPOCH);
        let time = u64::try_from(time.unwrap_or_default().as_millis()).unwrap_or_default();
        Self::new(time, get_random_u64())
    }

    pub(crate) fn new(time: u64, random: u64) -> Self {
        Self { time, next: random }
    }

    /// A random number.
    pub(crate) fn random() -> u128 {
        u128::from(get_random_u64()) << 64 | u128::from(get_random_u64())
    }

    /// The next id.
    pub(crate) fn take(&mut self) -> Uuid {
        let [a, b, c, d, e, f, g, h] = self.next.to_be_bytes();
        self.next = self.next.wrapping_add(1);
        // The UUID's variant overwrites two bits of `a`, which are kept before it.
        let bytes = [0, a >> 6, a, b, c, d, e, f, g, h];
        Builder::from_unix_timestamp_millis(self.time, &bytes).into_uuid()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::{Variant, Version};

    use super::*;

    const TIME_BITS: u64 = 48;

    proptest! {
        #[test]
        fn ids_are_of_version_7_and_of_their_time(time in 0..1_u64 << TIME_BITS, random: u64) {
            let id = Ids::new(time, random).take();
            prop_assert_eq!(id.get_version(), Some(Version::SortRand));
            prop_assert_eq!(id.get_variant(), Variant::RFC4122);
            let (seconds, nanoseconds) = id.get_timestamp().unwrap().to_unix();
            prop_assert_eq!(seconds * 1000 + u64::from(nanoseconds) / 1_000_000, time);
        }

        #[test]
        fn no_bit_of_the_random_number_is_lost(time: u32, random: u64, other: u64) {
            let id = |random| Ids::new(time.into(), random).take();
            prop_assert_eq!(id(random) == id(other), random == other);
            for bit in 0..u64::BITS {
                prop_assert_ne!(id(random), id(random ^ 1 << bit));
            }
        }

        #[test]
        fn the_ids_of_a_turn_ascend(random in 0..u64::MAX - 3) {
            let mut ids = Ids::new(1_795_000_000_000, random);
            let ids = [ids.take(), ids.take(), ids.take()];
            prop_assert!(ids.is_sorted());
            prop_assert_ne!(ids[0], ids[1]);
            prop_assert_ne!(ids[1], ids[2]);
        }
    }
}

//! The ids of events: how much of an attempt a client has. They come back in `Last-Event-ID`, from where a
//! stream goes on.
//!
//! `<attempt>.<content>.<thinking>.<calls>` after a token, `<attempt>.end` with the stored outcome. Clients take
//! them as they are, so what is read is either just what was written or unreadable. Knows no headers, and not
//! what was stored.

use uuid::{Builder, Uuid, Variant, Version};

/// One run of the model for a turn: a UUID v4. One of version 7 begins with the time, so that the short forms of two
/// attempts of one minute would be alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt(Uuid);

impl Attempt {
    /// The attempt of a random number, of which 122 bits count.
    pub fn new(random: u128) -> Self {
        let id = Builder::from_u128(random)
            .with_variant(Variant::RFC4122)
            .with_version(Version::Random);
        Self(id.into_uuid())
    }

    /// As it is stored.
    pub fn id(self) -> Uuid {
        self.0
    }

    /// Its short form.
    pub fn short(self) -> Short {
        let mut digits = [0; SHORT];
        let mut all = [0; 32];
        self.0.simple().encode_lower(&mut all);
        for (digit, from) in digits.iter_mut().zip(all) {
            *digit = from;
        }
        Short(digits)
    }
}

/// The attempt as it was stored.
impl From<Uuid> for Attempt {
    fn from(id: Uuid) -> Self {
        Self(id)
    }
}

/// Digits in the short form of an attempt.
const SHORT: usize = 8;

/// The short form of an attempt: its first hexadecimal digits, in lower case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Short([u8; SHORT]);

impl Short {
    /// The digits.
    pub fn as_str(&self) -> &str {
        // They are ASCII.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// How much of a reply there is, as it was generated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Position {
    /// Bytes of the content.
    pub content: usize,
    /// Bytes of the thinking.
    pub thinking: usize,
    /// The number of tool calls.
    pub calls: usize,
}

impl Position {
    /// Whether it counts more of anything than there is at `end`.
    pub(super) fn is_beyond(self, end: Self) -> bool {
        self.content > end.content || self.thinking > end.thinking || self.calls > end.calls
    }

    /// How much more this is than an earlier position of the same reply.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            content: self.content.saturating_sub(earlier.content),
            thinking: self.thinking.saturating_sub(earlier.thinking),
            calls: self.calls.saturating_sub(earlier.calls),
        }
    }
}

/// The id of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventId {
    /// Of a token: how much of the attempt the client has with it.
    Token(Short, Position),
    /// Of the outcome of the attempt, which was stored before.
    End(Short),
}

const END: &str = "end";

impl EventId {
    /// Appends the line of the id to an event.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"id: ");
        match self {
            Self::Token(attempt, position) => {
                out.extend_from_slice(&attempt.0);
                // Once a token: 13 ns, by `write!` 59 (measured).
                let mut buffer = itoa::Buffer::new();
                for count in [position.content, position.thinking, position.calls] {
                    out.push(b'.');
                    out.extend_from_slice(buffer.format(count).as_bytes());
                }
            }
            Self::End(attempt) => {
                out.extend_from_slice(&attempt.0);
                out.push(b'.');
                out.extend_from_slice(END.as_bytes());
            }
        }
        out.push(b'\n');
    }

    /// The attempt.
    pub fn attempt(&self) -> Short {
        match self {
            Self::Token(attempt, _) | Self::End(attempt) => *attempt,
        }
    }

    /// The id that was written so.
    fn parse(id: &[u8]) -> Option<Self> {
        let (attempt, rest) = id.split_first_chunk::<SHORT>()?;
        let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let attempt = attempt.iter().all(is_digit).then_some(Short(*attempt))?;
        let rest = rest.strip_prefix(b".")?;
        if rest == END.as_bytes() {
            return Some(Self::End(attempt));
        }
        let mut counts = rest.split(|byte| *byte == b'.').map(count);
        let position = Position {
            content: counts.next()??,
            thinking: counts.next()??,
            calls: counts.next()??,
        };
        let is_all = counts.next().is_none();
        is_all.then_some(Self::Token(attempt, position))
    }
}

fn count(digits: &[u8]) -> Option<usize> {
    if matches!(digits, [] | [b'0', _, ..]) {
        return None;
    }
    digits.iter().try_fold(0_usize, |count, byte| {
        let digit = byte.is_ascii_digit().then(|| byte - b'0')?;
        count.checked_mul(10)?.checked_add(digit.into())
    })
}

/// What a client says of the last event that it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastEventId {
    /// Nothing: it has no event.
    Absent,
    /// Its id.
    Id(EventId),
    /// What is no id of ours.
    Unreadable,
}

impl LastEventId {
    /// Reads every value of the header; an empty one is none.
    pub fn read(values: &[impl AsRef<[u8]>]) -> Self {
        match values {
            [] => Self::Absent,
            [value] => match value.as_ref().trim_ascii() {
                [] => Self::Absent,
                value => EventId::parse(value).map_or(Self::Unreadable, Self::Id),
            },
            _ => Self::Unreadable,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ATTEMPT: Attempt = Attempt(Uuid::from_u128(0x0b5e_1f0a_1111_4222_8333_4444_5555_6666));

    fn position(content: usize, thinking: usize, calls: usize) -> Position {
        Position {
            content,
            thinking,
            calls,
        }
    }

    fn line(id: EventId) -> String {
        let mut out = Vec::new();
        id.write_to(&mut out);
        String::from_utf8(out).unwrap()
    }

    fn read(value: &str) -> LastEventId {
        LastEventId::read(&[value])
    }

    #[test]
    fn an_id_names_the_attempt_and_counts_what_there_is_of_it() {
        let short = ATTEMPT.short();
        assert_eq!(short.as_str(), "0b5e1f0a");
        assert_eq!(
            line(EventId::Token(short, position(1204, 0, 1))),
            "id: 0b5e1f0a.1204.0.1\n"
        );
        assert_eq!(line(EventId::End(short)), "id: 0b5e1f0a.end\n");
    }

    #[test]
    fn an_attempt_is_a_random_uuid() {
        let id = Attempt::new(u128::MAX).id();
        assert_eq!(id.get_version(), Some(Version::Random));
        assert_eq!(id.get_variant(), Variant::RFC4122);
        assert_eq!(Attempt::new(u128::MAX).short().as_str(), "ffffffff");
        assert_eq!(Attempt::from(id).id(), id);
    }

    #[test]
    fn no_value_or_an_empty_one_is_no_id() {
        assert_eq!(LastEventId::read(&[] as &[&str]), LastEventId::Absent);
        assert_eq!(read(""), LastEventId::Absent);
        assert_eq!(read(" \t"), LastEventId::Absent);
    }

    #[test]
    fn white_space_around_an_id_is_the_headers() {
        let end = EventId::End(ATTEMPT.short());
        assert_eq!(read(" 0b5e1f0a.end\t"), LastEventId::Id(end));
    }

    #[test]
    fn what_was_never_written_is_unreadable() {
        let beyond = format!("0b5e1f0a.{}0.0.0", usize::MAX);
        for value in [
            "0",
            "end",
            ".end",
            "0b5e1f0a",
            "0b5e1f0a.",
            "0b5e1f0a.end.",
            "0b5e1f0a.end.0",
            "0b5e1f0a.END",
            "0b5e1f0a.ends",
            "0b5e1f0a. end",
            "0b5e1f0.end",
            "0b5e1f0a1.end",
            "0B5E1F0A.end",
            "0b5e1f0g.end",
            "0b5e1f\u{e9}.end",
            "0b5e1f0a.1",
            "0b5e1f0a.1.2",
            "0b5e1f0a.1.2.",
            "0b5e1f0a.1.2.3.",
            "0b5e1f0a.1.2.3.4",
            "0b5e1f0a.1..3",
            "0b5e1f0a.01.0.0",
            "0b5e1f0a.0.00.0",
            "0b5e1f0a.+1.0.0",
            "0b5e1f0a.-1.0.0",
            "0b5e1f0a.1.0.0x1",
            "0b5e1f0a.1.0.\u{0661}",
            "0b5e1f0a.1.0.1, 0b5e1f0a.1.0.1",
            &beyond,
        ] {
            assert_eq!(read(value), LastEventId::Unreadable, "{value}");
        }
        assert_eq!(
            LastEventId::read(&[b"0b5e1f0\xff.end"]),
            LastEventId::Unreadable
        );
    }

    #[test]
    fn two_values_are_unreadable_even_if_they_are_alike() {
        let value = "0b5e1f0a.end";
        assert_eq!(LastEventId::read(&[value, value]), LastEventId::Unreadable);
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_and_nothing_else(random: u128, content: usize, thinking: usize, calls: usize) {
            let short = Attempt::new(random).short();
            for id in [EventId::Token(short, position(content, thinking, calls)), EventId::End(short)] {
                let line = line(id);
                let value = line.strip_prefix("id: ").and_then(|it| it.strip_suffix('\n')).unwrap();
                prop_assert_eq!(read(value), LastEventId::Id(id));
                prop_assert_eq!(id.attempt(), short);
            }
        }

        #[test]
        fn whatever_is_read_would_be_written_so(value in "[0-9a-f.]{0,4}[0-9a-f]{4,8}\\.(end|[0-9.+]{0,8})") {
            if let LastEventId::Id(id) = read(&value) {
                prop_assert_eq!(line(id), format!("id: {value}\n"));
            }
        }
    }
}

//! What is to happen, drawn from the seed: what clients and Ollama do, and what fails when.
//!
//! A turn's decisions depend on the seed and the turn's name alone, not on what the machine did
//! before, so that they are reproducible. Every prompt and every token names its turn.

use std::fmt;
use std::time::Duration;

use ollama_stand_in::{Script, wire};

/// A turn's name: `c12-t3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct TurnId {
    pub(crate) conversation: usize,
    pub(crate) turn: usize,
}

impl fmt::Display for TurnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{}-t{}", self.conversation, self.turn)
    }
}

impl TurnId {
    /// Reads `c12-t3`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (conversation, turn) = text.strip_prefix('c')?.split_once("-t")?;
        Some(Self {
            conversation: conversation.parse().ok()?,
            turn: turn.parse().ok()?,
        })
    }

    /// The prompt; its white space must survive.
    pub(crate) fn prompt(self) -> String {
        format!("prompt {self}:\n\twhat  comes next? ")
    }

    /// Token number `n` of the reply.
    pub(crate) fn token(self, n: usize) -> String {
        format!("{self}-{n} ")
    }

    /// The first `count` tokens, as they are stored.
    pub(crate) fn reply(self, count: usize) -> String {
        (0..count).map(|n| self.token(n)).collect()
    }
}

/// What Ollama does, where it matters with the number of tokens before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Upstream {
    Reply,
    /// A status and a message instead of a stream.
    Refuse(u16),
    /// A FIN in mid-stream.
    BreakOff(usize),
    /// An RST in mid-stream.
    Reset(usize),
    /// A clean end without `done`.
    EndEarly(usize),
    /// A line that is no JSON; then the reply goes on.
    Garbage(usize),
    /// `{"error": …}`, and the end.
    ErrorLine(usize),
    /// Nothing more, until the client gives up.
    Hang(usize),
}

impl Upstream {
    /// Its name as a fault, if it is one.
    pub(crate) fn fault(self) -> Option<&'static str> {
        Some(match self {
            Self::Reply => return None,
            Self::Refuse(_) => "Ollama refuses",
            Self::BreakOff(_) => "Ollama breaks off",
            Self::Reset(_) => "Ollama resets the connection",
            Self::EndEarly(_) => "Ollama ends without done",
            Self::Garbage(_) => "Ollama sends garbage",
            Self::ErrorLine(_) => "Ollama sends an error line",
            Self::Hang(_) => "Ollama hangs",
        })
    }
}

/// What the client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Behaviour {
    Read,
    /// Waits before it reads each event.
    Slow(Duration),
    /// Leaves this long after the request was sent, whether or not the head has come.
    LeaveEarly(Duration),
    /// Leaves after this many events.
    LeaveAfter(usize),
}

/// What befalls hosts, database and network while a turn runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    DatabaseRestart,
    DatabaseCrash,
    DatabaseCut,
    DatabaseRefuse,
    DatabaseDelay,
    DatabaseHold,
    DatabaseSwallow,
    OllamaCut,
    OllamaDown,
    HostKill,
    HostStop,
}

impl Fault {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::DatabaseRestart => "PostgreSQL restarted",
            Self::DatabaseCrash => "PostgreSQL crashed",
            Self::DatabaseCut => "wire to PostgreSQL cut",
            Self::DatabaseRefuse => "PostgreSQL unreachable",
            Self::DatabaseDelay => "wire to PostgreSQL slow",
            Self::DatabaseHold => "wire to PostgreSQL silent",
            Self::DatabaseSwallow => "PostgreSQL's answers lost",
            Self::OllamaCut => "wire to Ollama cut",
            Self::OllamaDown => "Ollama down",
            Self::HostKill => "host killed (SIGKILL)",
            Self::HostStop => "host stopped (SIGTERM)",
        }
    }

    pub(crate) fn needs_postgres(self) -> bool {
        !matches!(
            self,
            Self::OllamaCut | Self::OllamaDown | Self::HostKill | Self::HostStop
        )
    }
}

/// A fault: of which host, when and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PlannedFault {
    pub(crate) fault: Fault,
    pub(crate) host: usize,
    /// After the turn's request.
    pub(crate) after: Duration,
    pub(crate) lasts: Duration,
}

/// One turn's decisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) id: TurnId,
    pub(crate) host: usize,
    pub(crate) tokens: usize,
    /// Between two tokens.
    pub(crate) pace: Duration,
    /// Lines come in two pieces.
    pub(crate) in_pieces: bool,
    pub(crate) upstream: Upstream,
    pub(crate) behaviour: Behaviour,
    pub(crate) fault: Option<PlannedFault>,
}

impl Turn {
    /// What Ollama sends.
    pub(crate) fn script(&self) -> Script {
        let (count, script) = match self.upstream {
            Upstream::Refuse(status) => return Script::refuse(status, "as planned"),
            Upstream::Reply => (self.tokens, Script::new().done()),
            Upstream::BreakOff(count) => (count, Script::new().break_off()),
            Upstream::Reset(count) => (count, Script::new().reset()),
            Upstream::EndEarly(count) => (count, Script::new()),
            Upstream::ErrorLine(count) => (count, Script::new().line(wire::error("as planned"))),
            Upstream::Hang(count) => (count, Script::new().hang()),
            Upstream::Garbage(count) => {
                let rest = self.lines(Script::new().line("<garbage>"), count..self.tokens);
                (count, rest.done())
            }
        };
        self.lines(Script::new(), 0..count).then(script)
    }

    fn lines(&self, script: Script, tokens: std::ops::Range<usize>) -> Script {
        tokens.fold(script, |script, n| {
            let line = wire::token(&self.id.token(n)) + "\n";
            let script = script.delay(self.pace);
            match line.split_at_checked(line.len() / 2) {
                Some((start, end)) if self.in_pieces => {
                    script.bytes(start.to_owned()).bytes(end.to_owned())
                }
                _ => script.bytes(line),
            }
        })
    }

    /// Whether Ollama says `done`.
    pub(crate) fn completes(&self) -> bool {
        matches!(self.upstream, Upstream::Reply | Upstream::Garbage(_))
    }

    /// Tokens that certainly arrive if Ollama is called and nothing else fails.
    pub(crate) fn tokens_for_certain(&self) -> usize {
        match self.upstream {
            Upstream::Reply | Upstream::Garbage(_) => self.tokens,
            Upstream::BreakOff(count)
            | Upstream::EndEarly(count)
            | Upstream::ErrorLine(count)
            | Upstream::Hang(count) => count,
            // An RST overtakes what was sent before it.
            Upstream::Refuse(_) | Upstream::Reset(_) => 0,
        }
    }

    /// What the client does, as a fault, if it is one.
    pub(crate) fn client_fault(&self) -> Option<&'static str> {
        Some(match self.behaviour {
            Behaviour::Read => return None,
            Behaviour::Slow(_) => "client reads slowly",
            Behaviour::LeaveEarly(_) => "client leaves around the head",
            Behaviour::LeaveAfter(events) if events >= self.tokens => "client leaves before done",
            Behaviour::LeaveAfter(_) => "client leaves in mid-stream",
        })
    }
}

/// Makes all decisions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) turns: usize,
    pub(crate) conversations: usize,
    pub(crate) hosts: usize,
    pub(crate) has_postgres: bool,
}

impl Plan {
    /// A conversation's prompts, in rounds of one prompt or two concurrent ones.
    pub(crate) fn rounds(&self, conversation: usize) -> Vec<Vec<Turn>> {
        let share = self.turns / self.conversations.max(1);
        let count = share + usize::from(conversation < self.turns % self.conversations.max(1));
        let mut random = Random::new(self.seed, &[conversation as u64, u64::MAX]);
        let mut rounds = Vec::new();
        let mut turn = 0;
        while turn < count {
            let together = if random.one_in(7) { 2 } else { 1 };
            let until = count.min(turn + together);
            let ids = (turn..until).map(|turn| TurnId { conversation, turn });
            rounds.push(ids.map(|id| self.turn(id)).collect());
            turn = until;
        }
        rounds
    }

    /// A turn in which nothing fails: the last of each conversation, after the faults.
    pub(crate) fn closing(&self, conversation: usize) -> Turn {
        let id = TurnId {
            conversation,
            turn: self.turns,
        };
        Turn {
            upstream: Upstream::Reply,
            behaviour: Behaviour::Read,
            fault: None,
            ..self.turn(id)
        }
    }

    /// The turn of this name.
    pub(crate) fn turn(&self, id: TurnId) -> Turn {
        let mut random = Random::new(self.seed, &[id.conversation as u64, id.turn as u64]);
        let host = random.below(self.hosts);
        let tokens = match random.below(40) {
            0 => 200,
            _ => 1 + random.below(12),
        };
        let pace = match tokens {
            200 => Duration::ZERO,
            _ => Duration::from_millis(random.below(25) as u64),
        };
        let in_pieces = random.one_in(4);
        let some = random.below(tokens + 1);
        let upstream = match random.below(100) {
            0..64 => Upstream::Reply,
            64..68 => Upstream::Refuse(404),
            68..70 => Upstream::Refuse(503),
            70..75 => Upstream::BreakOff(some),
            75..80 => Upstream::Reset(some),
            80..85 => Upstream::EndEarly(some),
            85..90 => Upstream::Garbage(some),
            90..95 => Upstream::ErrorLine(some),
            _ => Upstream::Hang(some),
        };
        let behaviour = match random.below(100) {
            0..70 => Behaviour::Read,
            70..78 => Behaviour::Slow(Duration::from_millis(1 + random.below(40) as u64)),
            78..86 => Behaviour::LeaveEarly(Duration::from_micros(random.below(60_000) as u64)),
            86..94 => Behaviour::LeaveAfter(random.below(tokens)),
            _ => Behaviour::LeaveAfter(tokens),
        };
        let fault = random.one_in(30).then(|| PlannedFault {
            fault: random.fault(),
            host: random.below(self.hosts),
            after: Duration::from_millis(random.below(200) as u64),
            lasts: Duration::from_millis(50 + random.below(1_500) as u64),
        });
        Turn {
            id,
            host,
            tokens,
            pace,
            in_pieces,
            upstream,
            behaviour,
            fault: fault.filter(|planned| self.has_postgres || !planned.fault.needs_postgres()),
        }
    }
}

/// SplitMix64: small, and the same on every machine.
struct Random(u64);

impl Random {
    fn new(seed: u64, names: &[u64]) -> Self {
        let mut random = Self(seed);
        for name in names {
            random.0 = random.next() ^ name;
        }
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 to `end` - 1.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn fault(&mut self) -> Fault {
        match self.below(16) {
            0 => Fault::DatabaseRestart,
            1 => Fault::DatabaseCrash,
            2 | 3 => Fault::DatabaseCut,
            4 => Fault::DatabaseRefuse,
            5 | 6 => Fault::DatabaseDelay,
            7 => Fault::DatabaseHold,
            8 | 9 => Fault::DatabaseSwallow,
            10 => Fault::OllamaCut,
            11 => Fault::OllamaDown,
            12..14 => Fault::HostKill,
            _ => Fault::HostStop,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Plan = Plan {
        seed: 7,
        turns: 1_000,
        conversations: 30,
        hosts: 2,
        has_postgres: true,
    };

    #[test]
    fn the_same_seed_gives_the_same_plan_and_another_gives_another() {
        assert_eq!(PLAN.rounds(3), PLAN.rounds(3));
        let other = Plan { seed: 8, ..PLAN };
        assert_ne!(PLAN.rounds(3), other.rounds(3));
    }

    #[test]
    fn all_turns_are_planned_and_each_once() {
        let all = (0..PLAN.conversations).flat_map(|c| PLAN.rounds(c));
        let mut ids: Vec<_> = all.flatten().map(|turn| turn.id).collect();
        assert_eq!(ids.len(), PLAN.turns);
        ids.dedup();
        assert_eq!(ids.len(), PLAN.turns);
    }

    #[test]
    fn every_kind_of_fault_is_drawn() {
        let plan = Plan {
            turns: 20_000,
            ..PLAN
        };
        let mut kinds = std::collections::BTreeSet::new();
        for turn in (0..plan.conversations)
            .flat_map(|c| plan.rounds(c))
            .flatten()
        {
            kinds.extend(turn.upstream.fault());
            kinds.extend(turn.client_fault());
            kinds.extend(turn.fault.map(|planned| planned.fault.name()));
        }
        assert_eq!(kinds.len(), 7 + 4 + 11, "{kinds:?}");
    }

    #[test]
    fn a_name_is_read_back() {
        let id = TurnId {
            conversation: 12,
            turn: 3,
        };
        assert_eq!(TurnId::parse(&id.to_string()), Some(id));
        assert_eq!(TurnId::parse("c12"), None);
    }
}

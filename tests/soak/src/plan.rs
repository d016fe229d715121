//! What is to happen, drawn from the seed: what clients and Ollama do, and what fails when.
//!
//! A turn's decisions depend on the seed and the turn's name alone, not on what the machine did
//! before, so that they are reproducible. Every prompt and every token names its turn.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use fastrand::Rng;
use ollama_stand_in::{Script, wire};
use strum::IntoStaticStr;

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

/// What Ollama does. All but [`Upstream::Reply`] are faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(prefix = "ollama-", serialize_all = "kebab-case")]
pub(crate) enum Upstream {
    Reply,
    /// A status and a message instead of a stream.
    Refuse(u16),
    /// A FIN in mid-stream.
    BreakOff,
    /// An RST in mid-stream.
    Reset,
    /// A clean end without `done`.
    EndEarly,
    /// A line that is no JSON; then the reply goes on.
    Garbage,
    /// `{"error": …}`, and the end.
    ErrorLine,
    /// Nothing more, until the client gives up.
    Hang,
}

/// What the client does. All but [`Behaviour::Read`] are faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(prefix = "client-", serialize_all = "kebab-case")]
pub(crate) enum Behaviour {
    Read,
    /// Waits before it reads each event.
    ReadSlowly(Duration),
    /// Leaves this long after the request was sent, whether or not the head has come.
    LeaveEarly(Duration),
    /// Leaves after this many events.
    LeaveMidStream(usize),
    /// Leaves after all events but `done`, of which there are this many.
    LeaveBeforeDone(usize),
}

/// What befalls hosts, database and network while a turn runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub(crate) enum Fault {
    DatabaseRestart,
    DatabaseCrash,
    DatabaseCut,
    DatabaseRefuse,
    DatabaseDelay,
    DatabaseHold,
    DatabaseSwallow,
    DatabaseSilence,
    DatabaseReadOnly,
    DiskFull,
    OllamaCut,
    OllamaDown,
    HostKill,
    HostStop,
}

impl Fault {
    fn draw(random: &mut Rng) -> Self {
        match random.usize(0..21) {
            0 => Self::DatabaseRestart,
            1 => Self::DatabaseCrash,
            2 | 3 => Self::DatabaseCut,
            4 => Self::DatabaseRefuse,
            5 | 6 => Self::DatabaseDelay,
            7 => Self::DatabaseHold,
            8 | 9 => Self::DatabaseSwallow,
            10 => Self::OllamaCut,
            11 => Self::OllamaDown,
            12 | 13 => Self::HostKill,
            14 | 15 => Self::DatabaseSilence,
            16 | 17 => Self::DatabaseReadOnly,
            18 => Self::DiskFull,
            _ => Self::HostStop,
        }
    }

    fn needs_postgres(self) -> bool {
        !matches!(
            self,
            Self::DiskFull | Self::OllamaCut | Self::OllamaDown | Self::HostKill | Self::HostStop
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
    /// Tokens before Ollama fails, where it does.
    pub(crate) before_failure: usize,
    pub(crate) behaviour: Behaviour,
    pub(crate) fault: Option<PlannedFault>,
}

impl Turn {
    /// What Ollama sends.
    pub(crate) fn script(&self) -> Script {
        let begun = self.lines(Script::new(), 0..self.before_failure);
        match self.upstream {
            Upstream::Reply => self.lines(Script::new(), 0..self.tokens).done(),
            Upstream::Refuse(status) => Script::refuse(status, "as planned"),
            Upstream::BreakOff => begun.break_off(),
            Upstream::Reset => begun.reset(),
            Upstream::EndEarly => begun,
            Upstream::Garbage => {
                let rest = self.before_failure..self.tokens;
                self.lines(begun.line("<garbage>"), rest).done()
            }
            Upstream::ErrorLine => begun.line(wire::error("as planned")),
            Upstream::Hang => begun.hang(),
        }
    }

    fn lines(&self, script: Script, tokens: Range<usize>) -> Script {
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

    /// Whether Ollama sends `done`.
    pub(crate) fn completes(&self) -> bool {
        matches!(self.upstream, Upstream::Reply | Upstream::Garbage)
    }

    /// Tokens that certainly arrive if Ollama is called and nothing else fails.
    pub(crate) fn tokens_for_certain(&self) -> usize {
        match self.upstream {
            Upstream::Reply | Upstream::Garbage => self.tokens,
            // An RST overtakes what was sent before it.
            Upstream::Refuse(_) | Upstream::Reset => 0,
            _ => self.before_failure,
        }
    }

    /// What Ollama and the client do, if it is a fault.
    pub(crate) fn faults(&self) -> impl Iterator<Item = &'static str> {
        let upstream = (self.upstream != Upstream::Reply).then(|| self.upstream.into());
        let client = (self.behaviour != Behaviour::Read).then(|| self.behaviour.into());
        upstream.into_iter().chain(client)
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
        let share = self.turns / self.conversations;
        let count = share + usize::from(conversation < self.turns % self.conversations);
        let mut random = self.random(conversation, usize::MAX);
        let mut turns = (0..count).map(|turn| self.turn(TurnId { conversation, turn }));
        let mut rounds = Vec::new();
        while let Some(turn) = turns.next() {
            let is_pair = random.usize(0..7) == 0;
            let second = is_pair.then(|| turns.next()).flatten();
            rounds.push([turn].into_iter().chain(second).collect());
        }
        rounds
    }

    /// A turn in which nothing fails: the last of each conversation, after the faults.
    pub(crate) fn closing(&self, conversation: usize) -> Turn {
        let turn = self.turns;
        Turn {
            upstream: Upstream::Reply,
            behaviour: Behaviour::Read,
            fault: None,
            ..self.turn(TurnId { conversation, turn })
        }
    }

    /// The turn of this name.
    pub(crate) fn turn(&self, id: TurnId) -> Turn {
        let mut random = self.random(id.conversation, id.turn);
        let host = random.usize(0..self.hosts);
        let tokens = match random.usize(0..40) {
            0 => 200,
            _ => random.usize(1..13),
        };
        let pace = match tokens {
            200 => Duration::ZERO,
            _ => Duration::from_millis(random.u64(0..25)),
        };
        let in_pieces = random.usize(0..4) == 0;
        let before_failure = random.usize(0..=tokens);
        let upstream = match random.usize(0..100) {
            0..64 => Upstream::Reply,
            64..68 => Upstream::Refuse(404),
            68..70 => Upstream::Refuse(503),
            70..75 => Upstream::BreakOff,
            75..80 => Upstream::Reset,
            80..85 => Upstream::EndEarly,
            85..90 => Upstream::Garbage,
            90..95 => Upstream::ErrorLine,
            _ => Upstream::Hang,
        };
        let behaviour = match random.usize(0..100) {
            0..70 => Behaviour::Read,
            70..78 => Behaviour::ReadSlowly(Duration::from_millis(random.u64(1..41))),
            78..86 => Behaviour::LeaveEarly(Duration::from_micros(random.u64(0..60_000))),
            86..94 => Behaviour::LeaveMidStream(random.usize(0..tokens)),
            _ => Behaviour::LeaveBeforeDone(tokens),
        };
        let fault = (random.usize(0..30) == 0).then(|| PlannedFault {
            fault: Fault::draw(&mut random),
            host: random.usize(0..self.hosts),
            after: Duration::from_millis(random.u64(0..200)),
            lasts: Duration::from_millis(random.u64(50..1_550)),
        });
        Turn {
            id,
            host,
            tokens,
            pace,
            in_pieces,
            upstream,
            before_failure,
            behaviour,
            fault: fault.filter(|planned| self.has_postgres || !planned.fault.needs_postgres()),
        }
    }

    /// Random numbers that depend on the seed and the turn alone.
    fn random(&self, conversation: usize, turn: usize) -> Rng {
        let mut conversation = Rng::with_seed(self.seed ^ conversation as u64);
        Rng::with_seed(conversation.u64(..) ^ turn as u64)
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
        let all = (0..plan.conversations).flat_map(|c| plan.rounds(c));
        let mut kinds = std::collections::BTreeSet::<&str>::new();
        for turn in all.flatten() {
            kinds.extend(turn.faults());
            kinds.extend(turn.fault.map(|planned| <&str>::from(planned.fault)));
        }
        assert_eq!(kinds.len(), 7 + 4 + 14, "{kinds:?}");
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

//! What is to happen, drawn from the seed: what clients and Ollama do, and what fails when.
//!
//! A turn's decisions depend on the seed and the turn's name alone, not on what the machine did
//! before, so that they are reproducible.

use std::ops::Range;
use std::time::Duration;

use fastrand::Rng;
use ollama_stand_in::{Script, wire};
use strum::IntoStaticStr;

use crate::text::{ConversationId, TurnId};

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

impl Upstream {
    fn draw(random: &mut Rng) -> Self {
        match random.usize(0..100) {
            0..64 => Self::Reply,
            64..68 => Self::Refuse(404),
            68..70 => Self::Refuse(503),
            70..75 => Self::BreakOff,
            75..80 => Self::Reset,
            80..85 => Self::EndEarly,
            85..90 => Self::Garbage,
            90..95 => Self::ErrorLine,
            _ => Self::Hang,
        }
    }
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
    /// It does nothing for longer than its leases last, and then goes on.
    HostFreeze,
}

impl Fault {
    /// One that can befall what there is.
    fn draw(random: &mut Rng, has_postgres: bool) -> Self {
        loop {
            let fault = Self::any(random);
            if has_postgres || !fault.needs_postgres() {
                return fault;
            }
        }
    }

    fn any(random: &mut Rng) -> Self {
        match random.usize(0..23) {
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
            19 | 20 => Self::HostFreeze,
            _ => Self::HostStop,
        }
    }

    fn needs_postgres(self) -> bool {
        !matches!(
            self,
            Self::DiskFull
                | Self::OllamaCut
                | Self::OllamaDown
                | Self::HostKill
                | Self::HostStop
                | Self::HostFreeze
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

/// Where a client goes on from when it asks again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    Latest,
    /// As if the events after this one (modulo their number) had not come.
    Earlier(usize),
    /// It has lost all.
    Nothing,
    /// It sends what is no id.
    Nonsense,
}

/// One connection of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Visit {
    pub(crate) host: usize,
    /// It watches (`GET`) and does not post.
    pub(crate) watches: bool,
    pub(crate) from: From,
    pub(crate) behaviour: Behaviour,
}

/// What a client has deleted of its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(prefix = "delete-", serialize_all = "kebab-case")]
pub(crate) enum Deletion {
    Turn,
    Reply,
}

/// What is asked of a turn while it runs, or has just ended, from another connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Demand {
    Stop,
    Delete(Deletion),
}

/// One turn's decisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) id: TurnId,
    seed: u64,
    hosts: usize,
    pub(crate) host: usize,
    /// Pieces of the reply.
    pub(crate) tokens: usize,
    /// Between two tokens.
    pub(crate) pace: Duration,
    /// Lines come in two pieces.
    pub(crate) in_pieces: bool,
    /// The last line brings the last piece.
    pub(crate) ends_with_text: bool,
    pub(crate) upstream: Upstream,
    /// Tokens before Ollama fails, where it does.
    pub(crate) before_failure: usize,
    pub(crate) behaviour: Behaviour,
    pub(crate) fault: Option<PlannedFault>,
    /// The prompt has a key.
    pub(crate) has_key: bool,
    /// The client asks until it is told the outcome.
    pub(crate) persists: bool,
    /// So long after the first head.
    pub(crate) demand: Option<(Demand, Duration)>,
    /// How often the model is asked again.
    pub(crate) agains: usize,
    /// What is deleted in the end.
    pub(crate) deletion: Option<Deletion>,
    /// So long after the first head another device comes, and watches or posts as well.
    pub(crate) second: Option<Duration>,
    /// In the end the client asks once more: with the last id, or without one.
    pub(crate) asks_after: Option<bool>,
    /// So long after the first head this owner tries to reach the turn.
    pub(crate) intruder: Option<(usize, Duration)>,
}

impl Turn {
    /// What Ollama sends in its call of this number for the turn.
    pub(crate) fn script(&self, call: usize) -> Script {
        let (upstream, before_failure) = self.call(call);
        let begun = self.lines(call, Script::new(), 0..before_failure);
        let rest = |script, from| {
            let script = self.lines(
                call,
                script,
                from..self.tokens - usize::from(self.ends_with_text),
            );
            match self.ends_with_text {
                true => script.line(self.id.call(call).line(self.tokens - 1, true)),
                false => script.done(),
            }
        };
        match upstream {
            Upstream::Reply => rest(Script::new(), 0),
            Upstream::Refuse(status) => Script::refuse(status, "as planned"),
            Upstream::BreakOff => begun.break_off(),
            Upstream::Reset => begun.reset(),
            Upstream::EndEarly => begun,
            Upstream::Garbage => rest(begun.line("<garbage>"), before_failure),
            Upstream::ErrorLine => begun.line(wire::error("as planned")),
            Upstream::Hang => begun.hang(),
        }
    }

    /// What Ollama does in its call of this number, and how many tokens come before it fails. It does
    /// not fail for ever.
    fn call(&self, call: usize) -> (Upstream, usize) {
        let mut random = self.random(call);
        match call {
            0 => (self.upstream, self.before_failure),
            1..=3 if self.upstream != Upstream::Reply => {
                (Upstream::draw(&mut random), random.usize(0..self.tokens))
            }
            _ => (Upstream::Reply, 0),
        }
    }

    /// Whether a line of this call of Ollama is left out.
    pub(crate) fn is_garbled(&self, call: usize) -> bool {
        self.call(call).0 == Upstream::Garbage
    }

    fn lines(&self, call: usize, script: Script, tokens: Range<usize>) -> Script {
        let generation = self.id.call(call);
        tokens.fold(script, |script, n| {
            let line = generation.line(n, false) + "\n";
            let script = script.delay(self.pace);
            match line.split_at_checked(line.len() / 2) {
                Some((start, end)) if self.in_pieces => {
                    script.bytes(start.to_owned()).bytes(end.to_owned())
                }
                _ => script.bytes(line),
            }
        })
    }

    /// The client's connection of this number. In the end it reads all.
    pub(crate) fn visit(&self, number: usize) -> Visit {
        let mut random = self.random(1_000 + number);
        let is_first = number == 0;
        let has_patience = number > 5;
        let behaviour = match random.usize(0..10) {
            _ if is_first => self.behaviour,
            _ if has_patience => Behaviour::Read,
            0..3 => Behaviour::LeaveMidStream(random.usize(0..self.tokens)),
            3 => Behaviour::LeaveEarly(Duration::from_micros(random.u64(0..60_000))),
            4 => Behaviour::LeaveBeforeDone(self.tokens - usize::from(self.ends_with_text)),
            _ => Behaviour::Read,
        };
        Visit {
            host: match is_first {
                true => self.host,
                false => random.usize(0..self.hosts),
            },
            watches: !is_first && random.usize(0..3) == 0,
            from: match random.usize(0..12) {
                0..3 => From::Earlier(random.usize(..)),
                3 => From::Nothing,
                4 if !has_patience => From::Nonsense,
                _ => From::Latest,
            },
            behaviour,
        }
    }

    /// Random numbers that depend on the turn, and what they are for.
    fn random(&self, purpose: usize) -> Rng {
        let mut turn = random(self.seed, self.id.conversation, self.id.turn);
        Rng::with_seed(turn.u64(..) ^ purpose as u64)
    }

    /// Whether Ollama sends `done` in its first call.
    pub(crate) fn completes(&self) -> bool {
        matches!(self.upstream, Upstream::Reply | Upstream::Garbage)
    }

    /// Tokens that certainly arrive if Ollama is called once and nothing else fails.
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

/// What is deleted of a conversation between two rounds, or while the next one runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PlannedSweep {
    /// From the turn that came so many turns before on; `None`: all.
    pub(crate) back: Option<usize>,
    /// The next round begins meanwhile.
    pub(crate) beside: bool,
}

/// Makes all decisions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) turns: usize,
    /// Who have keys; 0: there are no keys, and one owner without a name.
    pub(crate) owners: usize,
    /// Of each owner, with the same `appID`s.
    pub(crate) conversations: usize,
    pub(crate) hosts: usize,
    pub(crate) has_postgres: bool,
    /// Turns for each fault of a host, the database or the network.
    pub(crate) turns_a_fault: usize,
}

impl Plan {
    /// All conversations; one after the other of an `appID`.
    pub(crate) fn all(self) -> impl Iterator<Item = ConversationId> {
        let apps = 0..self.conversations;
        apps.flat_map(move |app| {
            (0..self.owners.max(1)).map(move |owner| ConversationId { owner, app })
        })
    }

    /// A conversation's prompts, in rounds of one prompt or two concurrent ones.
    pub(crate) fn rounds(&self, conversation: ConversationId) -> Vec<Vec<Turn>> {
        let owners = self.owners.max(1);
        let all = owners * self.conversations;
        let place = conversation.app * owners + conversation.owner;
        let count = self.turns / all + usize::from(place < self.turns % all);
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

    /// What is deleted after a round.
    pub(crate) fn sweep(&self, conversation: ConversationId, round: usize) -> Option<PlannedSweep> {
        let mut random = random(self.seed, conversation, usize::MAX - 1 - round);
        (random.usize(0..16) == 0).then(|| PlannedSweep {
            back: (random.usize(0..4) > 0).then(|| random.usize(0..5)),
            beside: random.bool(),
        })
    }

    /// A turn in which only the client's connections fail: the last of each conversation, after the faults.
    pub(crate) fn closing(&self, conversation: ConversationId) -> Turn {
        let turn = self.turns;
        Turn {
            upstream: Upstream::Reply,
            fault: None,
            has_key: true,
            persists: true,
            demand: None,
            agains: 0,
            deletion: None,
            tokens: 1 + conversation.app % 12,
            before_failure: 0,
            asks_after: Some(conversation.app.is_multiple_of(2)),
            ..self.turn(TurnId { conversation, turn })
        }
    }

    /// The turn of this name.
    pub(crate) fn turn(&self, id: TurnId) -> Turn {
        let mut random = self.random(id.conversation, id.turn);
        let host = random.usize(0..self.hosts);
        let persists = random.usize(0..5) > 0;
        let demand = (persists && random.usize(0..8) == 0).then(|| {
            let demand = match random.usize(0..6) {
                0 => Demand::Delete(Deletion::Turn),
                1 => Demand::Delete(Deletion::Reply),
                _ => Demand::Stop,
            };
            (demand, Duration::from_millis(random.u64(0..600)))
        });
        let is_stopped = demand.is_some_and(|(demand, _)| demand == Demand::Stop);
        let (tokens, pace) = match random.usize(0..40) {
            // It ends in time only where it is stopped.
            _ if is_stopped && random.bool() => (400, Duration::from_millis(50)),
            0 => (200, Duration::ZERO),
            1 => (random.usize(20..50), Duration::from_millis(50)),
            _ => {
                let pace = Duration::from_millis(random.u64(0..25));
                (random.usize(1..13), pace)
            }
        };
        let in_pieces = random.usize(0..4) == 0;
        let before_failure = random.usize(0..=tokens.min(12));
        let upstream = match tokens {
            400 => Upstream::Reply,
            _ => Upstream::draw(&mut random),
        };
        let ends_with_text = random.usize(0..4) == 0;
        let behaviour = match random.usize(0..100) {
            0..40 => Behaviour::Read,
            40..48 => Behaviour::ReadSlowly(Duration::from_millis(random.u64(1..41))),
            48..60 => Behaviour::LeaveEarly(Duration::from_micros(random.u64(0..60_000))),
            60..88 => Behaviour::LeaveMidStream(random.usize(0..tokens)),
            _ => Behaviour::LeaveBeforeDone(tokens - usize::from(ends_with_text)),
        };
        let fault = (random.usize(0..self.turns_a_fault) == 0).then(|| PlannedFault {
            fault: Fault::draw(&mut random, self.has_postgres),
            host: random.usize(0..self.hosts),
            after: Duration::from_millis(random.u64(0..200)),
            lasts: Duration::from_millis(random.u64(50..1_550)),
        });
        let deletion = match random.usize(0..32) {
            0 => Some(Deletion::Turn),
            1 => Some(Deletion::Reply),
            _ => None,
        };
        Turn {
            id,
            seed: self.seed,
            hosts: self.hosts,
            host,
            tokens,
            pace,
            in_pieces,
            ends_with_text,
            upstream,
            before_failure: before_failure.min(tokens - usize::from(ends_with_text)),
            behaviour,
            fault,
            has_key: persists || random.bool(),
            persists,
            demand,
            agains: match random.usize(0..12) {
                _ if tokens == 400 => 0,
                0 => 1,
                1 => 2,
                _ => 0,
            },
            deletion,
            second: (random.usize(0..6) == 0).then(|| Duration::from_millis(random.u64(0..300))),
            asks_after: (random.usize(0..4) == 0).then(|| random.bool()),
            intruder: (self.owners > 0 && random.usize(0..4) == 0).then(|| {
                let after = Duration::from_millis(random.u64(0..300));
                let other = 1 + random.usize(0..self.owners);
                ((id.conversation.owner + other) % (self.owners + 1), after)
            }),
        }
    }

    /// An owner who has a key, and no conversations.
    pub(crate) fn stranger(&self) -> usize {
        self.owners
    }

    fn random(&self, conversation: ConversationId, turn: usize) -> Rng {
        random(self.seed, conversation, turn)
    }
}

/// Random numbers that depend on the seed and the turn alone.
fn random(seed: u64, conversation: ConversationId, turn: usize) -> Rng {
    let ConversationId { owner, app } = conversation;
    let mut conversation = Rng::with_seed(seed ^ (owner as u64) << 32 ^ app as u64);
    Rng::with_seed(conversation.u64(..) ^ turn as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Plan = Plan {
        seed: 7,
        turns: 1_000,
        owners: 3,
        conversations: 10,
        hosts: 2,
        has_postgres: true,
        turns_a_fault: 30,
    };

    const CONVERSATION: ConversationId = ConversationId { owner: 2, app: 3 };

    #[test]
    fn the_same_seed_gives_the_same_plan_and_another_gives_another() {
        assert_eq!(PLAN.rounds(CONVERSATION), PLAN.rounds(CONVERSATION));
        let other = Plan { seed: 8, ..PLAN };
        assert_ne!(PLAN.rounds(CONVERSATION), other.rounds(CONVERSATION));
    }

    #[test]
    fn all_turns_are_planned_and_each_once() {
        let all = PLAN.all().flat_map(|c| PLAN.rounds(c));
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
        let all = plan.all().flat_map(|c| plan.rounds(c));
        let mut kinds = std::collections::BTreeSet::<&str>::new();
        for turn in all.flatten() {
            kinds.extend(turn.faults());
            kinds.extend(turn.fault.map(|planned| <&str>::from(planned.fault)));
        }
        assert_eq!(kinds.len(), 7 + 4 + 15, "{kinds:?}");
    }

    #[test]
    fn everybody_else_is_an_intruder() {
        let all = PLAN.all().flat_map(|c| PLAN.rounds(c)).flatten();
        let pairs = all.filter_map(|turn| Some((turn.id.conversation.owner, turn.intruder?.0)));
        let pairs: std::collections::BTreeSet<_> = pairs.collect();
        assert_eq!(pairs.len(), PLAN.owners * PLAN.owners, "{pairs:?}");
        assert!(pairs.iter().all(|(owner, intruder)| owner != intruder));
        let alone = Plan { owners: 0, ..PLAN };
        let all = alone.all().flat_map(|c| alone.rounds(c)).flatten();
        assert_eq!(all.filter(|turn| turn.intruder.is_some()).count(), 0);
    }
}

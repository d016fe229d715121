//! A device that comes and goes: asks for the turn's events, reads as far as it is planned, and comes back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use llmchat_testkit::{Answer, Event, prompt};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::{PATIENCE, PAUSE, path};
use crate::device::Device;
use crate::evidence::Kind::{Doubled, Foreign, Mixed, Untrue};
use crate::evidence::{Connection, End, Outcome, Seen, Violation};
use crate::plan::{Behaviour, From, Turn, Visit};
use crate::text::of_another;
use crate::world::{World, app_id};

/// Where the visits of a client that looks once more begin in the plan.
const ONCE_MORE: usize = 200;

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    Post,
    Watch,
    Again,
}

/// A device that comes and goes.
pub(super) struct Caller<'a> {
    pub(super) world: &'a Arc<World>,
    pub(super) turn: Turn,
    /// The id of the turn, once one of its devices knows it.
    pub(super) known: &'a watch::Sender<Option<String>>,
    pub(super) visits: usize,
    pub(super) device: Device,
    pub(super) connections: Vec<Connection>,
    pub(super) wrong: Vec<Violation>,
}

impl<'a> Caller<'a> {
    pub(super) fn new(
        world: &'a Arc<World>,
        turn: Turn,
        known: &'a watch::Sender<Option<String>>,
        visits: usize,
    ) -> Self {
        Self {
            world,
            turn,
            known,
            visits,
            device: Device::default(),
            connections: Vec::new(),
            wrong: Vec::new(),
        }
    }

    /// Comes again and again.
    pub(super) async fn until_told(&mut self) -> Result<Outcome> {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            let visit = self.turn.visit(self.visits);
            let is_known = self.known.borrow().is_some();
            let ask = match visit.watches && is_known {
                true => Ask::Watch,
                false => Ask::Post,
            };
            if let Some(outcome) = self.visit(visit, ask).await? {
                return Ok(outcome);
            }
            sleep(PAUSE).await;
        }
        Ok(Outcome::Unanswered)
    }

    /// Has the model asked again.
    pub(super) async fn again(&mut self, seen: &mut Seen) -> Result<Outcome> {
        let mut visit = self.turn.visit(self.visits);
        // What nobody waits for may begin at any time.
        if matches!(visit.behaviour, Behaviour::LeaveEarly(_)) {
            visit.behaviour = Behaviour::LeaveMidStream(0);
        }
        let outcome = self.visit(visit, Ask::Again).await?;
        seen.is_uncertain |= self.connection()?.head.is_none();
        match outcome {
            Some(outcome) => Ok(outcome),
            None => self.until_told().await,
        }
    }

    /// Asks once more for a turn whose outcome it was told: it has all, or gets the same again.
    pub(super) async fn ask_after(&mut self, has_id: bool) -> Result<Outcome> {
        let device = self.device.clone();
        self.visits = ONCE_MORE;
        let plain = Visit {
            host: self.turn.host,
            watches: false,
            from: From::Latest,
            behaviour: Behaviour::Read,
        };
        let outcome = if has_id {
            self.world.count("post-again-with-the-last-id");
            self.visit(plain, Ask::Post).await?
        } else {
            self.world.count("post-again-from-nothing");
            let nothing = Visit {
                from: From::Nothing,
                ..plain
            };
            match self.visit(nothing, Ask::Post).await? {
                None => Some(self.until_told().await?),
                outcome => outcome,
            }
        };
        if matches!(outcome, Some(Outcome::Told)) && self.device.text != device.text {
            let what = format!("told {device:?}, and later {:?}", self.device);
            self.wrong.push((Mixed, what));
        }
        if outcome.is_none() {
            self.device = device;
        }
        Ok(outcome.unwrap_or(Outcome::Told))
    }

    /// Reads the turn's JSON, which says what the device was told; no answer says nothing.
    pub(super) async fn look(&self) -> Result<Option<Violation>> {
        let known = self.known.borrow().clone();
        let path = path(self.turn, &known.unwrap_or_default());
        let (host, owner) = (self.turn.host, self.owner());
        let request = ("GET", path.as_str());
        let sent = self.world.ask(host, owner, request, &[], String::new());
        let Ok(answer) = sent.await else {
            return Ok(None);
        };
        let status = answer.status().as_u16();
        let (200, Ok(text)) = (status, answer.text().await) else {
            return Ok(None);
        };
        if let Some(foreign) = foreign(&text, owner) {
            return Ok(Some(foreign));
        }
        let body: Value = serde_json::from_str(&text)?;
        let field = |name| body.get(name).and_then(Value::as_str);
        let attempt = field("attempt").and_then(|attempt| attempt.get(..8));
        let is_right = field("state") == Some(self.device.state())
            && attempt == self.device.attempt.as_deref();
        let what = || format!("told {:?}, and a look says {text}", self.device);
        Ok((!is_right).then(|| (Untrue, what())))
    }

    /// Connects once. Returns how it ends, if it does.
    pub(super) async fn visit(&mut self, visit: Visit, ask: Ask) -> Result<Option<Outcome>> {
        self.visits += 1;
        match visit.from {
            _ if ask == Ask::Again => {}
            From::Earlier(event) if self.device.marks() > 0 => {
                self.device.rewind(event % self.device.marks());
            }
            From::Nothing => self.device.forget(),
            From::Earlier(_) | From::Latest | From::Nonsense => {}
        }
        // What has no id it cannot go on from.
        if self.device.last_id.is_empty() {
            self.device.forget();
        }
        self.connections.push(Connection {
            host: visit.host,
            sent: Duration::ZERO,
            head: None,
            ended: Duration::ZERO,
            end: End::NoAnswer,
            is_done: false,
            codes: Vec::new(),
            error: None,
        });
        let reading = self.read(visit, ask);
        let outcome = match visit.behaviour {
            Behaviour::LeaveEarly(after) => match timeout(after, reading).await {
                Ok(outcome) => outcome?,
                Err(_) => None,
            },
            _ => reading.await?,
        };
        let now = self.world.now();
        let connection = self.connection()?;
        connection.ended = now;
        if matches!(visit.behaviour, Behaviour::LeaveEarly(_))
            && connection.head.is_some()
            && connection.end == End::Broken
            && outcome.is_none()
        {
            connection.end = End::Left;
        }
        // It left after the receipt.
        Ok(outcome.or(connection.is_done.then_some(Outcome::Told)))
    }

    async fn read(&mut self, visit: Visit, ask: Ask) -> Result<Option<Outcome>> {
        let last_id = match (visit.from, ask) {
            (_, Ask::Again) => String::new(),
            (From::Nonsense, _) => "nonsense".to_owned(),
            _ => self.device.last_id.clone(),
        };
        let Some(answer) = self.send(&last_id, ask).await? else {
            return Ok(None);
        };
        let status = answer.status().as_u16();
        if status != 200 {
            return self.refused(status, &last_id, answer).await;
        }
        self.learn(&answer)?;
        let now = self.world.now();
        let connection = self.connection()?;
        connection.head = Some(now);
        connection.end = End::Broken;
        let mut events = answer.events().await?;
        let mut read = 0;
        loop {
            match visit.behaviour {
                Behaviour::LeaveMidStream(count) | Behaviour::LeaveBeforeDone(count)
                    if read == count && !self.connection()?.is_done =>
                {
                    self.connection()?.end = End::Left;
                    return Ok(None);
                }
                Behaviour::ReadSlowly(pause) => sleep(pause).await,
                _ => {}
            }
            let event = match events.next().await {
                Ok(Some(event)) => event,
                Ok(None) => break,
                // The auditor decides whether the host had a reason to break off.
                Err(error) => {
                    self.connection()?.error = Some(format!("{error:#}"));
                    return Ok(None);
                }
            };
            match &event {
                Event::Error { code, .. } => self.connection()?.codes.push(code.clone()),
                Event::Restart { turn, .. } if self.known.borrow().as_ref() != Some(turn) => {
                    self.wrong
                        .push((Mixed, format!("{event:?} of another turn")));
                }
                Event::Restart { .. } | Event::Data(_) => {}
            }
            self.wrong
                .extend(foreign(&format!("{event:?}"), self.owner()));
            if let Err((kind, what)) = self.device.take(&event, events.last_id()) {
                let details = format!(
                    "{what}: {event:?}, asked with {last_id:?}, {:?}",
                    self.device
                );
                self.wrong.push((kind, details));
                self.device.forget();
                self.connection()?.end = End::Left;
                return Ok(None);
            }
            read += 1;
            if std::mem::take(&mut self.device.is_kept) {
                self.connection()?.codes.push("(kept)".to_owned());
            }
            let is_done = self.device.is_done;
            self.connection()?.is_done = is_done;
        }
        self.connection()?.end = End::Clean;
        let error = self.device.error.as_deref();
        let is_final = matches!(error, Some("completion_too_long" | "turn_timeout"));
        Ok((self.device.is_done || is_final).then_some(Outcome::Told))
    }

    /// An answer without a stream.
    async fn refused(
        &mut self,
        status: u16,
        last_id: &str,
        answer: Answer,
    ) -> Result<Option<Outcome>> {
        let Ok(text) = answer.text().await else {
            return Ok(None);
        };
        self.wrong.extend(foreign(&text, self.owner()));
        let body: Value = serde_json::from_str(&text).unwrap_or_default();
        let code = body.get("code").and_then(Value::as_str).unwrap_or_default();
        let connection = self.connection()?;
        connection.end = End::Refused(status);
        connection.codes.push(code.to_owned());
        match status {
            204 if last_id.ends_with(".end") => {
                let error = self.device.error.as_deref();
                let is_final = matches!(error, Some("completion_too_long" | "turn_timeout"));
                return Ok((self.device.is_done || is_final).then_some(Outcome::Told));
            }
            410 if code == "turn_deleted" => return Ok(Some(Outcome::Deleted)),
            404 | 409 | 429 | 500 | 503 => {}
            _ => {
                let what = format!("{status} {text:?} to a client with the id {last_id:?}");
                self.wrong.push((Untrue, what));
            }
        }
        Ok(None)
    }

    /// The id of the turn stays.
    fn learn(&mut self, answer: &Answer) -> Result<()> {
        let id = answer
            .header("x-turn-id")
            .context("no x-turn-id")?
            .to_owned();
        if answer.header("location") != Some(path(self.turn, &id).as_str()) {
            let what = format!("location: {:?}", answer.header("location"));
            self.wrong.push((Untrue, what));
        }
        let known = self.known.borrow().clone();
        match known {
            None => {
                self.known.send_replace(Some(id));
            }
            Some(known) if known != id && self.turn.has_key => {
                self.wrong
                    .push((Doubled, format!("the turns {known} and {id}")));
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// Sends the request to the planned host, or to the next that accepts the connection. `None` if no
    /// head came.
    async fn send(&mut self, last_id: &str, ask: Ask) -> Result<Option<Answer>> {
        let id = self.turn.id;
        // The same for the turn of this number of each owner.
        let key = format!("{}-t{}", app_id(id.conversation), id.turn);
        let mut headers = Vec::new();
        if ask == Ask::Post && self.turn.has_key {
            headers.push(("idempotency-key", key.as_str()));
        }
        if !last_id.is_empty() {
            headers.push(("last-event-id", last_id));
        }
        let mut body = prompt(&app_id(id.conversation), &id.prompt());
        let fields = body.as_object_mut().context("not an object")?;
        fields.insert("options".to_owned(), json!({"turn": id.to_string()}));
        let turn_id = self.known.borrow().clone().unwrap_or_default();
        let (method, target, body) = match ask {
            Ask::Post => ("POST", "/llmchat/".to_owned(), body.to_string()),
            Ask::Again => ("POST", path(self.turn, &turn_id) + "/again", String::new()),
            Ask::Watch => {
                headers.push(("accept", "text/event-stream"));
                ("GET", path(self.turn, &turn_id), String::new())
            }
        };
        loop {
            let (now, world) = (self.world.now(), self.world);
            let connection = self.connection()?;
            connection.sent = now;
            let (host, owner) = (connection.host, id.conversation.owner);
            let sent = world.ask(host, owner, (method, &target), &headers, body.clone());
            let error = match sent.await {
                Ok(answer) => return Ok(Some(answer)),
                Err(error) => error,
            };
            // Connecting fails with an I/O error, everything after it with one of HTTP.
            if error.downcast_ref::<std::io::Error>().is_none() {
                return Ok(None);
            }
            let connection = self.connection()?;
            connection.host = (connection.host + 1) % world.nodes.len();
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn owner(&self) -> usize {
        self.turn.id.conversation.owner
    }

    fn connection(&mut self) -> Result<&mut Connection> {
        self.connections.last_mut().context("no connection")
    }
}

/// What names another owner in an answer to this one.
pub(super) fn foreign(text: &str, owner: usize) -> Option<Violation> {
    let other = of_another(text, owner)?;
    Some((
        Foreign,
        format!("owner {owner} was sent of {other}: {text}"),
    ))
}

//! The relay of one reply: Ollama's chunks go through the [`Pipeline`](reply::Pipeline) and leave as events, all that one
//! chunk completes in one write. A comment line is sent at once, and now and then in silence, which is also
//! how a client that has left is noticed.
//!
//! Decides what ends the waiting; what the bytes mean is [`crate::reply`]'s.

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use uuid::Uuid;

use super::runs::Run;
use crate::clock::{Clock, Deadline, Monotonic, Ticker};
use crate::config::{Config, OnDisconnect};
use crate::error::{Code, RelayError};
use crate::http::{BodyWriter, EventStream, Sink};
use crate::ollama::call::{self, Answer, Piece};
use crate::ollama::refusal;
use crate::reply::position::{Attempt, Short};
use crate::reply::sse::COMMENT;
use crate::reply::{self, End, Last};

/// Bytes read from Ollama at once: many lines while it is fast, one while it is not.
const CHUNK: usize = 16 * 1024;
/// Bytes read of the body of a refusal.
const REFUSAL_MAX: usize = 64 * 1024;
/// How long the body of a refusal is read.
const REFUSAL_TIME: Duration = Duration::from_secs(5);

/// The way from Ollama to the client.
pub(super) struct Relay<S = BodyWriter, C = Monotonic> {
    client: EventStream<S>,
    pub(super) ticker: Ticker<C>,
    config: Rc<Config>,
    /// When the turn must have ended.
    turn_deadline: Deadline,
    /// When the client is given up, however fast it takes what it is sent.
    send_deadline: Deadline,
    /// When the client is sent a comment, unless an event is sent before.
    comment_due: Deadline,
    /// Framed events to be sent; the buffer is reused.
    events: Vec<u8>,
}

impl<S: Sink, C: Clock> Relay<S, C> {
    pub(super) fn new(client: EventStream<S>, ticker: Ticker<C>, config: Rc<Config>) -> Self {
        Self {
            client,
            turn_deadline: ticker.deadline_from_start(config.timeouts.turn),
            // What is on its way when the turn's time is over gets a moment more: its end must be told after it.
            send_deadline: ticker.deadline_from_start(
                config
                    .timeouts
                    .turn
                    .saturating_add(config.timeouts.client_stall),
            ),
            comment_due: ticker.about(config.timeouts.comment_interval),
            ticker,
            config,
            events: Vec::new(),
        }
    }

    /// The client is to drop what it has of the turn, of which this is another attempt.
    pub(super) fn restart(&mut self, turn: Uuid, attempt: Attempt) {
        reply::catch_up::write_restart(turn, attempt, &mut self.events);
    }

    /// Relays the answer to the request that `sending` sends, until it ends or fails.
    pub(super) async fn run(
        &mut self,
        run: &Run,
        sending: impl Future<Output = Result<impl Answer, RelayError>>,
    ) -> End {
        match self.relay(run, sending).await {
            Ok(()) => End::Closed,
            Err(end) => end,
        }
    }

    async fn relay(
        &mut self,
        run: &Run,
        sending: impl Future<Output = Result<impl Answer, RelayError>>,
    ) -> Result<(), End> {
        let timeouts = self.config.timeouts;
        // Some clients give up after seconds of silence, and a model may have to be loaded first.
        self.events.extend_from_slice(COMMENT);
        self.send().await?;
        let mut answer = self
            .wait(
                run,
                sending,
                timeouts.ollama_first_byte,
                call::no_first_byte,
            )
            .await?
            .map_err(End::Failed)?;
        if answer.head().is_refusal() {
            return Err(self.refused(run, answer, Vec::new()).await?);
        }

        let mut chunk = Vec::with_capacity(CHUNK);
        let mut has_begun = false;
        loop {
            let reading = answer.read(chunk);
            let (bytes, is_last) = match self
                .wait(run, reading, timeouts.ollama_idle, call::idle)
                .await?
            {
                Piece::Bytes(bytes) => (bytes, false),
                Piece::Last(bytes) => (bytes, true),
            };
            if !has_begun {
                match answer.head().is_no_reply(&bytes) {
                    Some(true) => return Err(self.refused(run, answer, bytes).await?),
                    Some(false) => has_begun = true,
                    None => {}
                }
            }
            let flow = run.feed(&bytes, &mut self.events);
            self.send().await?;
            if flow.is_break() {
                return Ok(());
            }
            if is_last {
                break;
            }
            chunk = bytes;
            chunk.clear();
        }

        self.wait(run, answer.end(), timeouts.ollama_idle, call::idle)
            .await?
            .map_err(End::Failed)?;
        // Only after a clean end is the rest a line; otherwise it is a fragment of one.
        run.finish(&mut self.events);
        self.send().await
    }

    /// Reads the body of an answer that is no reply, as far as it comes soon, after the `body` so far.
    async fn refused(
        &mut self,
        run: &Run,
        mut answer: impl Answer,
        mut body: Vec<u8>,
    ) -> Result<End, End> {
        let limit = self.config.timeouts.ollama_idle.min(REFUSAL_TIME);
        let head = answer.head().clone();
        let reading = async {
            while body.len() < REFUSAL_MAX {
                match answer.read(Vec::with_capacity(1024)).await {
                    Piece::Bytes(bytes) => body.extend_from_slice(&bytes),
                    Piece::Last(bytes) => {
                        body.extend_from_slice(&bytes);
                        break;
                    }
                }
            }
        };
        match self.wait(run, reading, limit, call::idle).await {
            // What has come is told.
            Err(End::Failed(error)) if error.code == Code::OllamaTimeout => {}
            other => other?,
        }
        let secret = self.config.ollama_api_key.as_ref();
        Ok(End::Failed(refusal::refused(&head, &body, secret)))
    }

    /// Waits for Ollama, for `limit` at most, and sends comments meanwhile.
    async fn wait<T>(
        &mut self,
        run: &Run,
        work: impl Future<Output = T>,
        limit: Duration,
        too_long: fn() -> RelayError,
    ) -> Result<T, End> {
        let mut work = pin!(run.unless_told(work));
        let deadline = self.ticker.deadline(limit);
        loop {
            let output = self.ticker.or_tick(work.as_mut()).await;
            if self.ticker.is_past(self.turn_deadline) {
                return Err(End::Failed(RelayError::new(
                    Code::TurnTimeout,
                    "the turn took longer than the operator allows (turn_timeout); what came of the reply is kept",
                )));
            }
            match output {
                // What it comes to is the verdict's then.
                Some(Err(_)) => return Err(End::ClientLeft),
                Some(Ok(output)) => return Ok(output),
                None => run.is_long.set(true),
            }
            if self.ticker.is_past(deadline) {
                return Err(End::Failed(too_long()));
            }
            if self.ticker.is_past(self.comment_due) {
                self.events.extend_from_slice(COMMENT);
                self.send().await?;
            }
        }
    }

    /// Sends the pending events. Fails only where a client that has left ends the turn.
    async fn send(&mut self) -> Result<(), End> {
        let timeouts = &self.config.timeouts;
        if !self.events.is_empty() {
            let stall = timeouts.client_stall;
            self.client
                .send(
                    &mut self.events,
                    &mut self.ticker,
                    stall,
                    self.send_deadline,
                )
                .await;
            self.comment_due = self.ticker.about(timeouts.comment_interval);
        }
        if !self.client.is_open() && self.config.on_disconnect == OnDisconnect::Cancel {
            return Err(End::ClientLeft);
        }
        Ok(())
    }

    /// Sends the last events and ends the client's stream.
    pub(super) async fn finish(
        mut self,
        last: &Last,
        not_stored: Option<&RelayError>,
        attempt: Option<Short>,
    ) {
        reply::write_last(last, not_stored, attempt, &mut self.events);
        let last_send = self.ticker.deadline(self.config.timeouts.client_stall);
        self.send_deadline = self.send_deadline.max(last_send);
        if self.send().await.is_ok() {
            self.client.close().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::VecDeque;
    use std::future::pending;

    use http::StatusCode;

    use super::*;
    use crate::clock::nanoseconds;
    use crate::clock::tests::Manual;
    use crate::config::tests::config;
    use crate::conversation::{AppId, ConversationName, Owner};
    use crate::http::tests::{Recording, Seen};
    use crate::ollama::refusal::Head;
    use crate::reply::{Caps, Outcome, Pipeline, Whitespace};
    use crate::store::TurnName;

    const STEP: Duration = Duration::from_millis(100);
    const TOKEN: &str = "{\"message\":{\"content\":\"hi\"},\"done\":false}\n";
    const DONE: &str = "{\"done\":true}\n";
    const CAPS: Caps = Caps {
        line: 1000,
        completion: 1000,
        stream: 1000,
    };

    /// What Ollama does next.
    enum Step {
        Bytes(&'static str),
        Silence(Duration),
        Hang,
        /// The body ends, but not the answer.
        HangAtEnd,
        BreakOff,
    }

    struct Scripted {
        clock: Manual,
        head: Head,
        steps: VecDeque<Step>,
    }

    impl Answer for Scripted {
        fn head(&self) -> &Head {
            &self.head
        }

        async fn read(&mut self, mut buffer: Vec<u8>) -> Piece {
            loop {
                match self.steps.pop_front() {
                    Some(Step::Bytes(bytes)) => {
                        buffer.extend_from_slice(bytes.as_bytes());
                        return Piece::Bytes(buffer);
                    }
                    Some(Step::Silence(duration)) => {
                        let end = self.clock.elapsed() + duration;
                        self.clock.wait_until(nanoseconds(end)).await;
                    }
                    Some(Step::Hang) => pending().await,
                    Some(end @ (Step::BreakOff | Step::HangAtEnd)) => {
                        self.steps.push_front(end);
                        return Piece::Last(buffer);
                    }
                    None => return Piece::Last(buffer),
                }
            }
        }

        async fn end(self) -> Result<(), RelayError> {
            match self.steps.front() {
                None => Ok(()),
                Some(Step::HangAtEnd) => pending().await,
                Some(_) => Err(RelayError::new(Code::OllamaBrokeOff, "broken")),
            }
        }
    }

    /// One relay, to a client that takes everything unless it has left.
    struct Scene {
        clock: Manual,
        changes: Vec<(&'static str, &'static str)>,
        client_left: bool,
        seen: Rc<RefCell<Seen>>,
    }

    impl Scene {
        fn with(changes: &[(&'static str, &'static str)]) -> Self {
            Self {
                clock: Manual::default(),
                changes: changes.to_vec(),
                client_left: false,
                seen: Rc::default(),
            }
        }

        fn answer(&self, status: u16, steps: impl IntoIterator<Item = Step>) -> Scripted {
            Scripted {
                clock: self.clock.clone(),
                head: Head {
                    status: StatusCode::from_u16(status).unwrap(),
                    content_type: Some("application/x-ndjson".into()),
                    content_encoding: None,
                },
                steps: steps.into_iter().collect(),
            }
        }

        fn relay(
            &self,
            sending: impl Future<Output = Result<Scripted, RelayError>>,
        ) -> (Outcome, String) {
            let client = EventStream::new(Recording {
                clock: self.clock.clone(),
                at_once: usize::MAX,
                reader_gone: self.client_left,
                seen: self.seen.clone(),
                ..Recording::default()
            });
            let mut relay = Relay::new(client, self.clock.ticker(), config(&self.changes));
            let pipeline = Pipeline::new(CAPS, Whitespace::Preserve, None);
            let name = TurnName {
                conversation: ConversationName {
                    owner: Owner::default(),
                    app_id: AppId::try_from("app".to_owned()).unwrap(),
                },
                turn: Uuid::nil(),
            };
            let run = Run::new(name, Attempt::new(0), pipeline);
            let end = self.clock.run(STEP, relay.run(&run, sending));
            let events = String::from_utf8(self.seen.borrow().bytes.clone()).unwrap();
            (run.end(end).unwrap(), events)
        }

        fn run(&self, steps: impl IntoIterator<Item = Step>) -> (Outcome, String) {
            let answer = self.answer(200, steps);
            self.relay(async { Ok(answer) })
        }
    }

    fn code(outcome: &Outcome) -> Code {
        match &outcome.last {
            Last::Error(error) => error.code,
            other => panic!("no error: {other:?}"),
        }
    }

    #[test]
    fn all_events_of_one_read_are_one_write_and_the_last_is_held_back() {
        let scene = Scene::with(&[]);
        let both = "{\"done\":false}\n{\"done\":false}\n{\"do";
        let (outcome, events) = scene.run([Step::Bytes(both), Step::Bytes("ne\":true}\n")]);
        let data = "data: {\"done\":false}\n\n".repeat(2);
        assert_eq!(events, format!(": waiting\n{data}"));
        assert_eq!(scene.seen.borrow().writes, 2);
        assert_eq!(
            outcome.last,
            Last::Done {
                line: "{\"done\":true}".into(),
                after_error: false
            }
        );
    }

    #[test]
    fn a_byte_order_mark_that_comes_alone_does_not_make_a_reply_a_refusal() {
        let scene = Scene::with(&[]);
        let steps = ["\u{feff}", TOKEN, DONE].map(Step::Bytes);
        let mut answer = scene.answer(200, steps);
        answer.head.content_type = Some("text/plain".into());
        let (outcome, events) = scene.relay(async { Ok(answer) });
        assert_eq!(events, format!(": waiting\ndata: {TOKEN}\n"));
        assert!(matches!(outcome.last, Last::Done { .. }));
    }

    #[test]
    fn nothing_is_waited_for_after_done() {
        let scene = Scene::with(&[]);
        let (outcome, _) = scene.run([Step::Bytes(DONE), Step::Hang]);
        assert!(matches!(outcome.last, Last::Done { .. }));
        assert_eq!(scene.clock.elapsed(), Duration::ZERO);
    }

    #[test]
    fn a_last_line_without_its_newline_counts_only_after_a_clean_end() {
        let line = DONE.trim_end();
        let (outcome, _) = Scene::with(&[]).run([Step::Bytes(line)]);
        assert!(matches!(outcome.last, Last::Done { .. }));
        let (outcome, _) = Scene::with(&[]).run([Step::Bytes(line), Step::BreakOff]);
        assert_eq!(code(&outcome), Code::OllamaBrokeOff);
    }

    #[test]
    fn a_comment_is_sent_before_ollama_is_waited_for() {
        let scene = Scene::with(&[("ollama_first_byte_timeout", "2s")]);
        let (_, events) = scene.relay(pending());
        assert_eq!(events, ": waiting\n");
    }

    #[test]
    fn silence_is_broken_by_comments() {
        let scene = Scene::with(&[("comment_interval", "5s")]);
        let silence = Step::Silence(Duration::from_secs(18));
        let (_, events) = scene.run([silence, Step::Bytes(TOKEN), Step::Bytes(DONE)]);
        assert_eq!(events.matches(": waiting\n").count(), 4, "{events}");
        assert!(events.ends_with("\n\n") && events.contains("data: "));
    }

    #[test]
    fn each_wait_for_ollama_has_its_bound() {
        for (variable, steps, expected) in [
            (
                "ollama_idle_timeout",
                vec![Step::Bytes(TOKEN), Step::Hang],
                Code::OllamaTimeout,
            ),
            (
                "turn_timeout",
                vec![Step::Bytes(TOKEN), Step::Hang],
                Code::TurnTimeout,
            ),
        ] {
            let scene = Scene::with(&[(variable, "7s")]);
            let (outcome, _) = scene.run(steps);
            assert_eq!(code(&outcome), expected);
            assert!(outcome.reply.is_some_and(|reply| reply.message == "hi"));
            let took = scene.clock.elapsed();
            assert!((7..8).contains(&took.as_secs()), "{took:?}");
        }
        for (status, step, expected, seconds) in [
            (200, Step::HangAtEnd, Code::OllamaTimeout, 7),
            (404, Step::Hang, Code::OllamaRefused, 5),
        ] {
            let scene = Scene::with(&[("ollama_idle_timeout", "7s")]);
            let answer = scene.answer(status, [step]);
            let (outcome, _) = scene.relay(async { Ok(answer) });
            assert_eq!(code(&outcome), expected, "{status}");
            assert_eq!(scene.clock.elapsed().as_secs(), seconds);
        }
        let scene = Scene::with(&[("ollama_first_byte_timeout", "7s")]);
        let (outcome, _) = scene.relay(pending());
        assert_eq!(code(&outcome), Code::OllamaTimeout);
        assert_eq!(scene.clock.elapsed().as_secs(), 7);
    }

    #[test]
    fn a_turn_is_bounded_however_slowly_ollama_sends() {
        let scene = Scene::with(&[("turn_timeout", "30s")]);
        let slow = || [Step::Silence(Duration::from_secs(4)), Step::Bytes(TOKEN)];
        let (outcome, _) = scene.run((0..100).flat_map(|_| slow()));
        assert_eq!(code(&outcome), Code::TurnTimeout);
        assert!(scene.clock.elapsed() < Duration::from_secs(31));
    }

    #[test]
    fn a_refusal_is_read_whole_and_reported() {
        let scene = Scene::with(&[]);
        let body = [
            Step::Bytes("{\"error\":\"no "),
            Step::Bytes("such model\"}"),
        ];
        let answer = scene.answer(404, body);
        let (outcome, events) = scene.relay(async { Ok(answer) });
        assert_eq!(code(&outcome), Code::OllamaRefused);
        assert!(
            matches!(outcome.last, Last::Error(error) if error.text.ends_with("404: no such model"))
        );
        assert_eq!(events, ": waiting\n");
    }

    #[test]
    fn a_page_instead_of_a_reply_is_one_error() {
        let scene = Scene::with(&[]);
        let page = [
            Step::Bytes("\n <html>\n"),
            Step::Bytes("<h1>Sign in</h1>\n</html>\n"),
        ];
        let mut answer = scene.answer(200, page);
        answer.head.content_type = Some("text/html".into());
        let (outcome, events) = scene.relay(async { Ok(answer) });
        assert_eq!(code(&outcome), Code::OllamaRefused);
        assert!(matches!(outcome.last, Last::Error(error) if error.text.contains("200: Sign in")));
        assert_eq!(events, ": waiting\n");
    }

    #[test]
    fn a_refusal_without_an_end_is_read_only_so_far() {
        let scene = Scene::with(&[]);
        let kib: &'static str = "x".repeat(1024).leak();
        let answer = scene.answer(500, (0..1000).map(|_| Step::Bytes(kib)).chain([Step::Hang]));
        let (outcome, _) = scene.relay(async { Ok(answer) });
        assert_eq!(code(&outcome), Code::OllamaRefused);
        assert_eq!(scene.clock.elapsed(), Duration::ZERO);
    }

    #[test]
    fn a_client_that_has_left_ends_the_turn_only_if_the_operator_says_so() {
        for (on_disconnect, text) in [("finish", Some("hihi")), ("cancel", None)] {
            let mut scene = Scene::with(&[("on_disconnect", on_disconnect)]);
            scene.client_left = true;
            let steps = [Step::Bytes(TOKEN), Step::Bytes(TOKEN), Step::Bytes(DONE)];
            let (outcome, _) = scene.run(steps);
            let reply = outcome.reply.map(|reply| reply.message);
            assert_eq!(reply.as_deref(), text, "{on_disconnect}");
            assert_eq!(scene.seen.borrow().writes, 1);
        }
    }
}

//! `Last-Event-ID`: what cannot be gone on from.

use super::*;

const KEY: &str = "idempotency-key";
const LAST: &str = "last-event-id";
const STREAM: (&str, &str) = ("accept", "text/event-stream");

/// A turn of the conversation `app`, with the key `3f8a`.
struct Known {
    path: String,
    turn: String,
    attempt: String,
}

impl Known {
    async fn of(app: &TestApp, turn: &str) -> Result<Self> {
        let path = format!("/llmchat/app/turns/{turn}");
        let json = app.client.get(&path, &[]).await?.json(200).await?;
        let attempt = json["attempt"].as_str().context("no attempt")?;
        Ok(Self {
            path,
            turn: turn.to_owned(),
            attempt: attempt.to_owned(),
        })
    }

    /// The id of a token.
    fn id(&self, counts: &str) -> String {
        format!("{}.{counts}", &self.attempt[..8])
    }

    fn restart(&self) -> Event {
        Event::Restart {
            turn: self.turn.clone(),
            attempt: self.attempt.clone(),
        }
    }
}

async fn post(app: &TestApp, headers: &[(&str, &str)]) -> Result<Answer> {
    let headers = [&[(KEY, "3f8a")], headers].concat();
    app.client.prompt_with(&headers, &prompt("app", "Hi")).await
}

/// A whole turn with the reply `Hé you!`, whose last character is the final line's.
async fn turn(app: &TestApp) -> Result<Known> {
    let line = wire::done().replace(r#""content":"""#, r#""content":"!""#);
    app.ollama
        .push(Script::new().tokens(["Hé", " you"]).line(line));
    let answer = post(app, &[]).await?;
    let turn = answer
        .header("x-turn-id")
        .context("no x-turn-id")?
        .to_owned();
    answer.read().await?;
    Known::of(app, &turn).await
}

/// The content of an event of data.
fn content(event: &Event) -> Result<String> {
    let Event::Data(line) = event else {
        bail!("{event:?}");
    };
    let line: Value = serde_json::from_str(line)?;
    let content = line.pointer("/message/content").and_then(Value::as_str);
    Ok(content.context("no content")?.to_owned())
}

on_both_stores! {
    async fn what_is_no_position_in_a_turn_that_ended_is_told_to_start_anew(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        let known = turn(&app).await?;
        app.ollama.push(Script::reply(["another turn"]));
        let mut events = app.stream("app", "And?").await?;
        while events.next().await? != Some(Event::Data(wire::token("another turn"))) {}
        let of_another_turn = events.last_id().to_owned();
        events.rest().await?;
        let of_this = [
            "", "3", "3.0", "3.0.0.0", "03.0.0", "-3.0.0", "+3.0.0", "3.0.x", "3,0,0", "END", "end.0",
            // Inside of `é`, beyond the end, of thinking and calls that are not there.
            "2.0.0", "9.0.0", "3.1.0", "3.0.1", "4294967299.0.0", "99999999999999999999999.0.0",
        ];
        let of_nothing = ["garbage", ".", ".end", "0", "ffffffff.3.0.0", "ffffffff.end", &known.turn, &known.attempt, &known.attempt[..8]];
        let mut ids: Vec<_> = of_this.map(|counts| known.id(counts)).to_vec();
        ids.extend(of_nothing.map(str::to_owned));
        ids.push(of_another_turn);
        let mut lasts: Vec<_> = ids.iter().map(|id| vec![(LAST, &**id)]).collect();
        let good = known.id("3.0.0");
        lasts.push(vec![(LAST, &*good), (LAST, &*good)]);
        for last in lasts {
            let to_get = [&[STREAM], &*last].concat();
            for answer in [app.client.get(&known.path, &to_get).await?, post(&app, &last).await?] {
                let events = answer.read().await.with_context(|| format!("{last:?}"))?;
                ensure!(events.len() == 3 && events[0] == known.restart(), "{last:?}: {events:?}");
                assert_eq!((content(&events[1])?, content(&events[2])?), ("Hé you".into(), "!".into()), "{last:?}");
            }
        }
        assert_eq!((app.ollama.chats(), app.row_count().await?), (2, 4));
        Ok(())
    }

    async fn an_empty_position_is_none(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        let known = turn(&app).await?;
        for last in [&[][..], &[(LAST, "")], &[(LAST, "  ")]] {
            let to_get = [&[STREAM], last].concat();
            for answer in [app.client.get(&known.path, &to_get).await?, post(&app, last).await?] {
                let events = answer.read().await?;
                let contents = events.iter().map(content).collect::<Result<Vec<_>>>()?;
                assert_eq!(contents, ["Hé you", "!"], "{last:?}");
            }
        }
        Ok(())
    }

    async fn without_a_key_a_prompt_has_no_position(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        let known = turn(&app).await?;
        for last in ["garbage", &known.id("3.0.0"), &known.id("end")] {
            app.ollama.push(Script::reply(["ok"]));
            let answer = app.client.prompt_with(&[(LAST, last)], &prompt("app", "Hi")).await?;
            assert_eq!(answer.read().await?, [wire::token("ok"), wire::done()].map(Event::Data), "{last}");
        }
        assert_eq!(app.row_count().await?, 8);
        Ok(())
    }

    async fn a_position_that_a_running_turn_never_reaches_is_waited_for_until_it_ends(backend: Backend) -> Result<()> {
        let app = TestApp::with(backend, "checkpoint_interval", "50ms").await?;
        let (start, gate) = (Gate::new(), Gate::new());
        app.ollama.push(Script::new().gate(&start).token("Hé").gate(&gate).token(" you").done());
        let first = post(&app, &[]).await?;
        let turn = first.header("x-turn-id").context("no x-turn-id")?.to_owned();
        let known = Known::of(&app, &turn).await?;
        let ahead = known.id("1000.0.0");
        let followed = app.client.get(&known.path, &[STREAM, (LAST, &ahead)]).await?;
        let repeated = post(&app, &[(LAST, &ahead)]).await?;
        let mut watching = app.client.get(&known.path, &[STREAM]).await?.events().await?;
        start.open();
        // One statement reads for all who watch: the others have seen what this one is sent.
        let event = watching.next().await?.context("no event")?;
        assert_eq!(content(&event)?, "Hé");
        gate.open();
        first.read().await?;
        for answer in [followed, repeated] {
            let events = answer.read().await?;
            ensure!(events.len() == 3 && events[0] == known.restart(), "{events:?}");
            assert_eq!((content(&events[1])?, &events[2]), ("Hé you".into(), &Event::Data(wire::done())));
        }
        Ok(())
    }
}

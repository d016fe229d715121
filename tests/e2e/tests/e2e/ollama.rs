//! Ollama fails: what the client receives, and what is stored.

use std::time::Duration;

use anyhow::{Result, bail};
use llmchat_testkit::{Backend, Event, TestApp, at_limit, messages, on_both_stores};
use ollama_stand_in::{Ending, Gate, Refused, Script, Unresponsive, wire};

/// What a test sets as the limit of one wait.
const LIMIT: Duration = Duration::from_millis(500);

/// The code and the message of an error that is the only event.
fn only_error(events: &[Event]) -> Result<(&str, &str)> {
    match events {
        [Event::Error { code, error, .. }] => Ok((code, error)),
        _ => bail!("not a single error: {events:?}"),
    }
}

/// Ollama sends `par`, `tial` and fails: that much is stored, and the conversation goes on with it.
async fn keeps_what_was_shown(backend: Backend, script: Script, code: &str) -> Result<()> {
    let app = TestApp::with(backend, "ollama_idle_timeout", "500ms").await?;
    app.ollama.push(script);
    let events = app.ask("app", "Hi").await?;
    assert_eq!(
        events[..2],
        [wire::token("par"), wire::token("tial")].map(Event::Data)
    );
    assert_eq!(events.len(), 3, "{events:?}");
    assert_eq!(events[2].code(), Some(code));
    assert_eq!(
        app.rows("app").await?[1].parts(),
        ("assistant", "partial", "partial")
    );

    app.turn("app", "Go on", "ok").await?;
    let sent = app.sent_to_ollama(2).await?;
    assert_eq!(
        sent,
        messages(&[("user", "Hi"), ("assistant", "partial"), ("user", "Go on")])
    );
    Ok(())
}

on_both_stores! {
    async fn a_refusal_is_told_in_ollamas_own_words(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        for (status, message) in [
            (400, "\"nomic\" does not support chat"),
            (404, "model 'x' not found"),
            (500, "{\"code\":1}\n\ndata: x"),
            (503, "server busy, please try again.  maximum pending requests exceeded"),
        ] {
            app.ollama.push(Script::refuse(status, message));
            let events = app.ask("app", "Hi").await?;
            let (code, error) = only_error(&events)?;
            assert_eq!(code, "ollama_refused");
            assert!(error.contains(message) && error.contains(&status.to_string()), "{error}");
        }
        let rows = app.conversation("app").await?;
        assert_eq!(rows, messages(&[("user", "Hi"); 4]));
        Ok(())
    }

    async fn a_refusal_without_words_is_told_by_its_status(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        for (status, body) in [(403, ""), (404, "404 page not found"), (502, "<html>Bad Gateway</html>"), (500, "{\"error\":")] {
            app.ollama.push(Script::body(status, "text/plain", body));
            let events = app.ask("app", "Hi").await?;
            let (code, error) = only_error(&events)?;
            assert_eq!(code, "ollama_refused");
            assert!(error.contains(&status.to_string()), "{error}");
        }
        Ok(())
    }

    async fn a_page_instead_of_a_reply_is_one_error_with_its_words(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        let page = "<html>\n<head><style>p {}</style></head>\n<h1>Please sign in</h1>\n</html>\n";
        app.ollama.push(Script::body(200, "text/html", page));
        let events = app.ask("app", "Hi").await?;
        let (code, error) = only_error(&events)?;
        assert_eq!(code, "ollama_refused");
        assert!(error.contains("200: Please sign in (text/html)"), "{error}");
        assert_eq!(app.conversation("app").await?, messages(&[("user", "Hi")]));
        Ok(())
    }

    async fn nobody_at_ollamas_address_is_told_and_the_prompt_is_kept(backend: Backend) -> Result<()> {
        let refused = Refused::new()?;
        let app = TestApp::with(backend, "ollama_url", refused.url()).await?;
        let events = app.ask("app", "Hi").await?;
        assert_eq!(only_error(&events)?.0, "ollama_unreachable");
        assert_eq!(app.conversation("app").await?, messages(&[("user", "Hi")]));
        Ok(())
    }

    async fn a_connection_that_does_not_come_about_is_given_up_in_time(backend: Backend) -> Result<()> {
        let nobody = Unresponsive::new().await?;
        let app = TestApp::on(backend)
            .variable("ollama_url", nobody.url())
            .variable("ollama_connect_timeout", "500ms")
            .start()
            .await?;
        let events = at_limit(LIMIT, app.ask("app", "Hi")).await??;
        assert_eq!(only_error(&events)?.0, "ollama_unreachable");
        Ok(())
    }

    async fn a_host_that_nobody_knows_is_told(backend: Backend) -> Result<()> {
        let nowhere = "http://ollama.invalid:11434";
        let app = TestApp::on(backend)
            .variable("ollama_url", nowhere)
            .variable("ollama_host", nowhere)
            .start()
            .await?;
        assert_eq!(only_error(&app.ask("app", "Hi").await?)?.0, "ollama_unreachable");
        Ok(())
    }

    async fn no_answer_is_given_up_in_time(backend: Backend) -> Result<()> {
        let app = TestApp::with(backend, "ollama_first_byte_timeout", "500ms").await?;
        app.ollama.push(Script::silence());
        let events = at_limit(LIMIT, app.ask("app", "Hi")).await??;
        assert_eq!(only_error(&events)?.0, "ollama_timeout");
        assert_eq!(app.ollama_ended(1).await?, Ending::ClientLeft);
        assert_eq!(app.conversation("app").await?, messages(&[("user", "Hi")]));
        Ok(())
    }

    async fn silence_in_mid_reply_is_given_up_in_time(backend: Backend) -> Result<()> {
        let app = TestApp::with(backend, "ollama_idle_timeout", "500ms").await?;
        app.ollama.push(Script::new().tokens(["par", "tial"]).hang());
        let events = at_limit(LIMIT, app.ask("app", "Hi")).await??;
        assert_eq!(events.len(), 3, "{events:?}");
        assert_eq!(events[2].code(), Some("ollama_timeout"));
        assert_eq!(app.rows("app").await?[1].parts(), ("assistant", "partial", "partial"));
        Ok(())
    }

    async fn a_network_that_falls_silent_is_given_up_in_time(backend: Backend) -> Result<()> {
        let app = TestApp::on(backend).variable("ollama_idle_timeout", "500ms").ollama_wire().start().await?;
        let gate = Gate::new();
        let script = Script::new().token("shown").gate(&gate).token(" lost").done();
        let falls_silent = async {
            let events = app.begin("app", "Hi", script).await?;
            app.ollama_wire()?.silence();
            gate.open();
            events.rest().await
        };
        let events = at_limit(LIMIT, falls_silent).await??;
        assert_eq!(only_error(&events)?.0, "ollama_timeout");
        assert_eq!(app.rows("app").await?[1].parts(), ("assistant", "shown", "partial"));
        // A connection that is new works.
        app.turn("app", "Again", "ok").await.map(drop)
    }

    async fn a_reply_that_breaks_off_is_told_and_kept(backend: Backend) -> Result<()> {
        keeps_what_was_shown(backend, Script::new().tokens(["par", "tial"]).break_off(), "ollama_broke_off").await
    }

    async fn a_connection_that_is_cut_is_told_and_the_reply_kept(backend: Backend) -> Result<()> {
        // The delay lets the tokens be read: a reset discards what is in transit.
        let script = Script::new().tokens(["par", "tial"]).delay(Duration::from_millis(200)).reset();
        keeps_what_was_shown(backend, script, "ollama_broke_off").await
    }

    async fn an_end_without_done_is_told_and_the_reply_kept(backend: Backend) -> Result<()> {
        keeps_what_was_shown(backend, Script::new().tokens(["par", "tial"]), "ollama_ended_early").await
    }

    async fn an_error_line_is_told_in_its_words_and_the_reply_kept(backend: Backend) -> Result<()> {
        let script = Script::new().tokens(["par", "tial"]).line(wire::error("runner died"));
        keeps_what_was_shown(backend, script, "ollama_error").await
    }

    async fn the_relay_goes_on_after_an_error_line(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        let script = Script::new().token("a").line(wire::error("hiccup")).line(wire::error("again"));
        app.ollama.push(script.token("b").done());
        let events = app.ask("app", "Hi").await?;
        let error = Some("ollama_error");
        assert_eq!(events.iter().map(Event::code).collect::<Vec<_>>(), [None, error, error, None, None]);
        assert!(matches!(&events[1], Event::Error { error, .. } if error.contains("hiccup")));
        assert_eq!(app.rows("app").await?[1].message, "ab");
        let log = app.log()?;
        assert!(log.contains(": 2 × ollama_error: hiccup\n") && !log.contains("again"), "{log}");
        Ok(())
    }

    async fn an_empty_stream_is_told_and_no_reply_stored(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        app.ollama.push(Script::new());
        assert_eq!(only_error(&app.ask("app", "Hi").await?)?.0, "ollama_ended_early");
        assert_eq!(app.conversation("app").await?, messages(&[("user", "Hi")]));
        Ok(())
    }

    async fn a_connection_that_closes_without_an_answer_is_told(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        for script in [Script::new().break_off(), Script::new().reset(), Script::new().raw("SSH-2.0-OpenSSH_9.2\r\n").break_off()] {
            app.ollama.push(script);
            let events = app.ask("app", "Hi").await?;
            let code = only_error(&events)?.0;
            assert!(["ollama_broke_off", "ollama_unreachable"].contains(&code), "{code}");
        }
        Ok(())
    }

    async fn a_turn_has_an_end_however_much_ollama_says(backend: Backend) -> Result<()> {
        let app = TestApp::with(backend, "turn_timeout", "1s").await?;
        // Lines that add nothing to the reply: nothing else bounds them.
        let nothing = r#"{"message":{"content":""},"done":false}"#;
        app.ollama.push(Script::new().token("a").endless(nothing));
        // Not parsed: that would be slower than Ollama here.
        let answer = async { app.prompt("app", "Hi").await?.text().await };
        let body = at_limit(Duration::from_secs(1), answer).await??;
        let last = body.rsplit("\n\n").nth(1).unwrap_or_default();
        assert!(last.starts_with("id: ") && last.contains(".end\nevent: error\n"), "{last}");
        assert!(last.contains("turn_timeout"), "{last}");
        assert_eq!(app.ollama_ended(1).await?, Ending::ClientLeft);
        assert_eq!(app.rows("app").await?[1].parts(), ("assistant", "a", "partial"));
        Ok(())
    }

    async fn a_turn_has_an_end_however_slowly_ollama_speaks(backend: Backend) -> Result<()> {
        let app = TestApp::with(backend, "turn_timeout", "1s").await?;
        let slowly = (0..100).fold(Script::new(), |script, _| {
            script.token("a").delay(Duration::from_millis(100))
        });
        app.ollama.push(slowly);
        let events = at_limit(Duration::from_secs(1), app.ask("app", "Hi")).await??;
        assert_eq!(events.last().and_then(Event::code), Some("turn_timeout"));
        assert_eq!(app.rows("app").await?[1].message, "a".repeat(events.len() - 1));
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ollama_comes_back_and_the_conversation_goes_on() -> Result<()> {
    let app = TestApp::on(Backend::Sqlite).ollama_wire().start().await?;
    app.ollama.always(Script::reply(["ok"]));
    app.ask("app", "one").await?;
    app.ollama_wire()?.take_down();
    let events = app.ask("app", "two").await?;
    assert!(matches!(events[..], [Event::Error { .. }]), "{events:?}");
    app.ollama_wire()?.restore();
    app.ask("app", "three").await?;
    let expected = messages(&[
        ("user", "one"),
        ("assistant", "ok"),
        ("user", "two"),
        ("user", "three"),
        ("assistant", "ok"),
    ]);
    assert_eq!(app.conversation("app").await?, expected);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_is_cut_in_mid_reply_is_told() -> Result<()> {
    let app = TestApp::on(Backend::Sqlite).ollama_wire().start().await?;
    let script = Script::new().token("partial").hang();
    let events = app.begin("app", "Hi", script).await?;
    app.ollama_wire()?.cut();
    assert_eq!(only_error(&events.rest().await?)?.0, "ollama_broke_off");
    assert_eq!(app.rows("app").await?[1].status, "partial");
    Ok(())
}

//! Paths: names of conversations in them, ids of turns, parameters, methods.

use super::*;

const NIL: &str = "00000000-0000-0000-0000-000000000000";
const UNKNOWN: &str = "0199f3a1-5c00-7000-8000-000000000001";

/// What is no id of a turn, encoded.
const NO_IDS: [&str; 9] = [
    "x",
    "7",
    "0199f3a15c0070008000000000000001",
    "%7B0199f3a1-5c00-7000-8000-000000000001%7D",
    "urn:uuid:0199f3a1-5c00-7000-8000-000000000001",
    "0199f3a1-5c00-7000-8000-00000000000",
    "0199f3a1-5c00-7000-8000-00000000000g",
    "0199f3a1-5c00-7000-8000-000000000001%20",
    "%F0%9F%98%80",
];

/// The methods, and what follows the id in the path, of a turn's routes.
const OF_A_TURN: [(&str, &str); 5] = [
    ("GET", ""),
    ("DELETE", ""),
    ("DELETE", "/reply"),
    ("POST", "/stop"),
    ("POST", "/again"),
];

/// A conversation of one turn; the path of that.
async fn turn(app: &TestApp, app_id: &str) -> Result<String> {
    app.ollama.push(Script::reply(["ok"]));
    let answer = app.prompt(app_id, "Hi").await?;
    let location = answer.header("location").context("no location")?.to_owned();
    answer.read().await?;
    Ok(location)
}

/// A page of a conversation's messages.
async fn page(app: &TestApp, path: &str) -> Result<Value> {
    app.client.get(path, &[]).await?.json(200).await
}

on_both_stores! {
    async fn a_conversation_of_any_name_has_a_path(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        let (long, wide) = ("x".repeat(155), "😀".repeat(155));
        let wide_path = "%F0%9F%98%80".repeat(155);
        for (name, encoded) in [
            ("a/b", "a%2Fb"),
            ("/", "%2F"),
            ("%", "%25"),
            ("%2F", "%252F"),
            ("100%", "100%25"),
            ("a+b c", "a%2Bb%20c"),
            ("...", "..."),
            ("a?b=c#d&e", "a%3Fb%3Dc%23d%26e"),
            ("\"\\<>\r\n\t", "%22%5C%3C%3E%0D%0A%09"),
            ("azAZ09-._~", "azAZ09-._~"),
            ("turns", "turns"),
            ("é😀", "%C3%A9%F0%9F%98%80"),
            (&long, &long),
            (&wide, &wide_path),
        ] {
            let location = turn(&app, name).await.with_context(|| name.to_owned())?;
            let path = format!("/llmchat/{encoded}");
            let id = location.strip_prefix(&format!("{path}/turns/")).with_context(|| location.clone())?;
            ensure!(id.len() == 36 && !id.contains('/'), "{location}");
            let conversation = page(&app, &path).await.with_context(|| path.clone())?;
            assert_eq!((&conversation["appID"], &conversation["messages"][0]["turn"]), (&json!(name), &json!(id)));
            for (path, slash) in [(&path, "/"), (&location, ""), (&location, "/")] {
                app.client.get(&format!("{path}{slash}"), &[]).await?.json(200).await.with_context(|| path.clone())?;
            }
            let deleted = app.client.request("DELETE", &path, "").await?;
            assert_eq!(deleted.status(), 204, "{path}");
            assert_eq!(page(&app, &path).await?["messages"], json!([]), "{path}");
        }
        assert_eq!(app.row_count().await?, 0);
        Ok(())
    }

    async fn a_plus_is_itself_and_an_escape_is_read_once(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        for name in ["a+b", "a b", "%2B", "é"] {
            turn(&app, name).await?;
        }
        for (path, name) in [
            ("/llmchat/a+b", "a+b"),
            ("/llmchat/a%2bb", "a+b"),
            ("/llmchat/a%20b", "a b"),
            ("/llmchat/%252B", "%2B"),
            ("/llmchat/%c3%a9", "é"),
        ] {
            let conversation = page(&app, path).await?;
            assert_eq!(conversation["appID"], name, "{path}");
            assert_eq!(conversation["messages"].as_array().map(Vec::len), Some(2), "{path}");
        }
        Ok(())
    }

    async fn what_names_no_conversation_is_a_422(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        let kept = turn(&app, "app").await?;
        let (long, wide) = ("x".repeat(156), "%F0%9F%98%80".repeat(156));
        for name in ["%", "%2", "%zz", "%%20", "a%", "%ff", "%C0%80", "%ed%a0%80", "%00", "a%00b", ".", "..", "%2e", "%2E%2e", "/", &long, &wide] {
            let turn = format!("/llmchat/{name}/turns/{UNKNOWN}");
            for (method, path) in [
                ("GET", format!("/llmchat/{name}")),
                ("DELETE", format!("/llmchat/{name}")),
                ("DELETE", format!("/llmchat/{name}/turns?from={UNKNOWN}")),
                ("GET", turn.clone()),
                ("DELETE", turn.clone()),
                ("DELETE", format!("{turn}/reply")),
                ("POST", format!("{turn}/stop")),
                ("POST", format!("{turn}/again")),
            ] {
                let answer = app.client.request(method, &path, "").await?;
                refused(answer, 422, "invalid_request").await.with_context(|| format!("{method} {path}"))?;
            }
        }
        for name in [".", ".."] {
            let answer = app.prompt(name, "Hi").await?;
            let error = refused(answer, 422, "invalid_request").await?;
            ensure!(error.contains("appID"), "{error}");
        }
        app.client.get(&kept, &[]).await?.json(200).await?;
        assert_eq!((app.ollama.chats(), app.row_count().await?), (1, 2));
        Ok(())
    }

    async fn what_is_no_id_of_a_turn_is_a_422(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        let kept = turn(&app, "app").await?;
        for id in NO_IDS {
            let of_a_turn = OF_A_TURN.map(|(method, rest)| (method, format!("/llmchat/app/turns/{id}{rest}")));
            let from = ("DELETE", format!("/llmchat/app/turns?from={id}"));
            for (method, path) in of_a_turn.into_iter().chain([from]) {
                let answer = app.client.request(method, &path, "").await?;
                let error = refused(answer, 422, "invalid_request").await.with_context(|| format!("{method} {path}"))?;
                ensure!(error.contains("UUID"), "{path}: {error}");
            }
        }
        app.client.get(&kept, &[]).await?.json(200).await?;
        assert_eq!((app.ollama.chats(), app.row_count().await?), (1, 2));
        Ok(())
    }

    async fn an_unknown_turn_is_a_404_and_nothing_is_deleted_of_others(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        let kept = turn(&app, "app").await?;
        let of_another = turn(&app, "another").await?;
        let of_another = of_another.rsplit('/').next().unwrap_or_default();
        // A row of an older server has no turn.
        app.execute("INSERT INTO chatts (name, message, id, time, appid) VALUES
            ('user', 'Old', '00000000-0000-0000-0000-000000000001', '2024-05-01 12:00:00', 'app')").await?;
        for id in [UNKNOWN, NIL, of_another] {
            for (method, rest) in OF_A_TURN {
                let path = format!("/llmchat/app/turns/{id}{rest}");
                let answer = app.client.request(method, &path, "").await?;
                match method {
                    "DELETE" => assert_eq!(answer.status(), 204, "{path}"),
                    _ => drop(refused(answer, 404, "not_found").await.with_context(|| path)?),
                }
            }
            let path = format!("/llmchat/app/turns/{id}");
            let stream = app.client.get(&path, &[("accept", "text/event-stream")]).await?;
            refused(stream, 404, "not_found").await.context(path)?;
            let path = format!("/llmchat/app/turns?from={id}");
            assert_eq!(app.client.request("DELETE", &path, "").await?.status(), 204, "{path}");
        }
        app.client.get(&kept, &[]).await?.json(200).await?;
        assert_eq!((app.ollama.chats(), app.row_count().await?), (2, 5));
        Ok(())
    }

    async fn turns_are_deleted_from_one_on_and_never_without_it(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        let kept = turn(&app, "app").await?;
        let id = kept.rsplit('/').next().context("no id")?;
        for query in [
            String::new(),
            "?".into(),
            "?from".into(),
            "?from=".into(),
            "?FROM=x".into(),
            format!("?until={id}"),
            format!("?from={id}&from={id}"),
            "?from=%".into(),
            "?from=%00".into(),
            "?from=all".into(),
            "?from=*".into(),
        ] {
            for slash in ["", "/"] {
                let path = format!("/llmchat/app/turns{slash}{query}");
                let answer = app.client.request("DELETE", &path, "").await?;
                let error = refused(answer, 422, "invalid_request").await.with_context(|| path.clone())?;
                ensure!(error.contains("from") || error.contains("UUID") || error.contains('%'), "{path}: {error}");
            }
        }
        app.client.get(&kept, &[]).await?.json(200).await?;
        assert_eq!(app.row_count().await?, 2);
        let path = format!("/llmchat/app/turns?from={id}");
        assert_eq!(app.client.request("DELETE", &path, "").await?.status(), 204);
        assert_eq!(app.row_count().await?, 0);
        Ok(())
    }

    async fn a_page_has_a_size_and_a_message_that_it_ends_before(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        turn(&app, "app").await?;
        turn(&app, "another").await?;
        for limit in ["0", "00", "-1", "%2B1", "x", "", "1.5", "1e3", "0x10", "%201", "%D9%A1", "99999999999999999999x"] {
            let answer = app.client.get(&format!("/llmchat/app?limit={limit}"), &[]).await?;
            let error = refused(answer, 422, "invalid_request").await.with_context(|| limit.to_owned())?;
            ensure!(error.contains("limit"), "{limit}: {error}");
        }
        for (limit, count) in [("1", 1), ("01", 1), ("2", 2), ("1000", 2), ("1001", 2), ("4294967296", 2), ("99999999999999999999999", 2)] {
            let page = page(&app, &format!("/llmchat/app?limit={limit}")).await.with_context(|| limit.to_owned())?;
            assert_eq!(page["messages"].as_array().map(Vec::len), Some(count), "{limit}");
            assert_eq!(page["more"], json!(count == 1), "{limit}");
        }
        for before in ["x", "", "%00", UNKNOWN.strip_suffix('1').unwrap_or_default()] {
            let answer = app.client.get(&format!("/llmchat/app?before={before}"), &[]).await?;
            refused(answer, 422, "invalid_request").await.with_context(|| before.to_owned())?;
        }
        let id = |page: &Value| Some(page["messages"][0]["id"].as_str()?.to_owned());
        let first = id(&page(&app, "/llmchat/app").await?).context("no id")?;
        let of_another = id(&page(&app, "/llmchat/another").await?).context("no id")?;
        for before in [UNKNOWN, NIL, &of_another] {
            let answer = app.client.get(&format!("/llmchat/app?before={before}"), &[]).await?;
            refused(answer, 422, "cursor_gone").await.with_context(|| before.to_owned())?;
        }
        let twice = app.client.get(&format!("/llmchat/app?before={first}&before={first}"), &[]).await?;
        refused(twice, 422, "invalid_request").await?;
        let before_the_first = page(&app, &format!("/llmchat/app?before={first}")).await?;
        assert_eq!((&before_the_first["messages"], &before_the_first["more"]), (&json!([]), &json!(false)));
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_method_is_a_405_that_names_those_that_are_allowed() -> Result<()> {
    let app = TestApp::start(Backend::Sqlite).await?;
    let turn = turn(&app, "app").await?;
    for (path, allowed) in [
        ("/llmchat/app", "GET, HEAD, DELETE"),
        ("/llmchat/app/turns", "DELETE"),
        (&turn, "GET, HEAD, DELETE"),
        (&format!("{turn}/reply"), "DELETE"),
        (&format!("{turn}/stop"), "POST"),
        (&format!("{turn}/again"), "POST"),
    ] {
        for method in [
            "GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW",
        ] {
            if allowed.split(", ").any(|it| it == method) {
                continue;
            }
            let answer = app.client.request(method, path, "").await?;
            assert_eq!(answer.header("allow"), Some(allowed), "{method} {path}");
            match method {
                "HEAD" => assert_eq!(answer.status(), 405, "{path}"),
                _ => drop(refused(answer, 405, "method_not_allowed").await?),
            }
        }
    }
    app.client.get(&turn, &[]).await?.json(200).await?;
    assert_eq!((app.ollama.chats(), app.row_count().await?), (1, 2));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_get_is_head_is_its_head() -> Result<()> {
    let app = TestApp::start(Backend::Sqlite).await?;
    let turn = turn(&app, "app").await?;
    let unknown = format!("/llmchat/app/turns/{UNKNOWN}");
    let stream = [("accept", "text/event-stream")];
    for (path, headers, status) in [
        ("/llmchat/app", &[][..], 200),
        ("/llmchat/nobody", &[], 200),
        (&turn, &[], 200),
        (&turn, &stream, 200),
        (&unknown, &[], 404),
        (&unknown, &stream, 404),
        ("/llmchat/app?limit=0", &[], 422),
    ] {
        let get = app.client.get(path, headers).await?;
        let head = app.client.request_with("HEAD", path, headers, "").await?;
        for answer in [&get, &head] {
            assert_eq!(answer.status(), status, "{path}");
        }
        for name in [
            "content-type",
            "content-length",
            "cache-control",
            "vary",
            "x-turn-id",
            "location",
        ] {
            assert_eq!(head.header(name), get.header(name), "{path}: {name}");
        }
        assert_eq!(head.bytes().await?, "", "{path}");
    }
    Ok(())
}

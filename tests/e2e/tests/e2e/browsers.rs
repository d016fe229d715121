//! What a browser may do, header by header: pages of other origins, and those whose origins are allowed. Beside
//! `origins`, this is what no browser at hand sends.

use anyhow::{Result, ensure};
use llmchat_testkit::{Answer, Backend, TestApp, on_both_stores, prompt};
use ollama_stand_in::Script;

const APP: &str = "https://app.example";

/// The answer to a prompt in `text/plain`, which a page may send without asking, with these headers.
async fn posted(app: &TestApp, headers: &[(&str, &str)]) -> Result<Answer> {
    app.client.prompt_with(headers, &prompt("app", "Hi")).await
}

/// The answer to a browser that asks whether a page may send a request.
async fn asked(app: &TestApp, path: &str, origin: &str, method: &str) -> Result<Answer> {
    let headers = [
        ("origin", origin),
        ("access-control-request-method", method),
    ];
    app.client.request_with("OPTIONS", path, &headers, "").await
}

async fn nothing_came_of_it(app: &TestApp) -> Result<()> {
    assert_eq!((app.ollama.chats(), app.row_count().await?), (0, 0));
    Ok(())
}

on_both_stores! {
    async fn a_page_of_another_origin_is_refused_before_anything_is_stored(backend: Backend) -> Result<()> {
        let app = TestApp::start(backend).await?;
        for headers in [
            &[("origin", "https://evil.example")][..],
            &[("origin", "null")],
            &[("origin", "http://localhost")],
            &[("sec-fetch-site", "cross-site")],
            &[("sec-fetch-site", "same-site"), ("origin", "http://evil.example")],
        ] {
            let answer = posted(&app, headers).await?;
            assert_eq!(answer.header("vary"), None, "{headers:?}");
            assert_eq!(answer.refusal(403).await?, "origin_refused", "{headers:?}");
        }
        nothing_came_of_it(&app).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_servers_own_pages_and_apps_are_answered() -> Result<()> {
    let app = TestApp::start(Backend::Sqlite).await?;
    app.ollama.always(Script::reply(["ok"]));
    let own = format!("http://{}", app.address());
    for headers in [
        &[][..],
        &[("origin", own.as_str())],
        &[("origin", &own), ("sec-fetch-site", "same-origin")],
        &[("sec-fetch-site", "none")],
    ] {
        assert_eq!(posted(&app, headers).await?.status(), 200, "{headers:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_that_is_allowed_may_be_written_in_many_ways() -> Result<()> {
    let app = TestApp::with(
        Backend::Sqlite,
        "allowed_origins",
        "HTTPS://App.Example:443/, http://app.example:80\n http://[::1]:8080\tcapacitor://localhost,,",
    )
    .await?;
    for origin in [
        APP,
        "http://app.example",
        "http://[::1]:8080",
        "capacitor://localhost",
    ] {
        let answer = app
            .client
            .get("/llmchat/app", &[("origin", origin)])
            .await?;
        assert_eq!(answer.header("access-control-allow-origin"), Some(origin));
        assert_eq!(
            answer.header("access-control-allow-credentials"),
            Some("true")
        );
        assert_eq!(answer.header("vary"), Some("origin"));
        answer.json(200).await?;
    }
    for origin in [
        "https://app.example:8443",
        "http://app.example:443",
        "https://app.example.evil.example",
        "https://evil-app.example",
        "https://app.example/",
        "https://app.example https://app.example",
        "app.example",
        "capacitor://localhost:80",
        "null",
        "*",
    ] {
        let answer = posted(&app, &[("origin", origin)]).await?;
        assert_eq!(
            answer.header("access-control-allow-origin"),
            None,
            "{origin}"
        );
        // A cache must not show it to the page that may.
        assert_eq!(answer.header("vary"), Some("origin"), "{origin}");
        assert_eq!(answer.refusal(403).await?, "origin_refused", "{origin}");
    }
    let twice = posted(&app, &[("origin", APP), ("origin", APP)]).await?;
    assert_eq!(twice.refusal(403).await?, "origin_refused");
    // Who is no page is answered as before.
    let answer = app.client.get("/llmchat/app", &[]).await?;
    assert_eq!(answer.header("access-control-allow-origin"), None);
    assert_eq!(answer.header("vary"), Some("origin"));
    answer.json(200).await?;
    nothing_came_of_it(&app).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_that_asks_is_answered_before_anything_else() -> Result<()> {
    let app = TestApp::on(Backend::Sqlite)
        .variable("allowed_origins", APP)
        .variable("api_keys", "ann:s3cret")
        .variable("owner_header", "x-user")
        // Nothing listens there.
        .variable("database_url", "postgres://127.0.0.1:1/none")
        .start()
        .await?;
    for (path, method) in [
        ("/llmchat/", "POST"),
        ("/llmchat/app", "DELETE"),
        // The answer says what may be sent anywhere; the browser compares.
        ("/llmchat/app", "PATCH"),
        ("/nowhere", "GET"),
        ("/llmchat/%zz", "GET"),
    ] {
        let answer = asked(&app, path, APP, method).await?;
        let header = |name| answer.header(name).unwrap_or_default();
        assert_eq!(answer.status(), 204, "{path}");
        assert_eq!(header("access-control-allow-origin"), APP);
        assert_eq!(header("access-control-allow-credentials"), "true");
        assert_eq!(
            header("access-control-allow-methods"),
            "GET, HEAD, POST, DELETE"
        );
        assert_eq!(
            header("access-control-allow-headers"),
            "authorization, content-type, idempotency-key, last-event-id"
        );
        assert_eq!(header("access-control-max-age"), "7200");
        assert_eq!(header("vary"), "origin");
        ensure!(answer.bytes().await?.is_empty(), "a body");
    }
    let refused = asked(&app, "/llmchat/", "https://evil.example", "POST").await?;
    assert_eq!(refused.header("access-control-allow-methods"), None);
    assert_eq!(refused.refusal(403).await?, "origin_refused");
    // This does not ask for a page: it needs a key, as any request does.
    let headers = [("origin", APP)];
    let answer = app
        .client
        .request_with("OPTIONS", "/llmchat/", &headers, "")
        .await?;
    assert_eq!(answer.header("access-control-allow-origin"), Some(APP));
    assert_eq!(answer.refusal(401).await?, "unauthorized");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_method_that_is_not_there_is_a_405_for_a_page_too() -> Result<()> {
    let app = TestApp::with(Backend::Sqlite, "allowed_origins", APP).await?;
    for method in ["OPTIONS", "PATCH", "PUT"] {
        let headers = [("origin", APP)];
        let answer = app
            .client
            .request_with(method, "/llmchat/", &headers, "")
            .await?;
        assert_eq!(
            answer.header("access-control-allow-origin"),
            Some(APP),
            "{method}"
        );
        assert_eq!(answer.refusal(405).await?, "method_not_allowed", "{method}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_origins_may_send_what_has_no_cookies() -> Result<()> {
    let app = TestApp::with(Backend::Sqlite, "allowed_origins", "*").await?;
    for origin in [APP, "null", "file://", "http://localhost:3000"] {
        for answer in [
            asked(&app, "/llmchat/", origin, "POST").await?,
            app.client
                .get("/llmchat/app", &[("origin", origin)])
                .await?,
        ] {
            assert!(answer.status().is_success(), "{origin}");
            assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
            assert_eq!(answer.header("access-control-allow-credentials"), None);
            assert_eq!(answer.header("vary"), Some("origin"));
        }
        // What a browser adds by itself; a key is the page's own.
        for credential in [
            ("cookie", "session=mine"),
            ("authorization", "Basic YW5uOm1pbmU="),
            ("authorization", "Negotiate YW5u"),
        ] {
            let answer = posted(&app, &[("origin", origin), credential]).await?;
            let (code, error) = answer.refused(403).await?;
            assert_eq!(code, "origin_refused", "{origin}");
            assert!(
                error.contains("credentials") && error.contains("allowed_origins"),
                "{error}"
            );
        }
        let key = [("origin", origin), ("authorization", "bearer mine")];
        let page = app.client.get("/llmchat/app", &key).await?;
        assert_eq!(page.status(), 200, "{origin}");
    }
    // Without an origin it is not known whose page it is.
    let answer = posted(&app, &[("sec-fetch-site", "cross-site")]).await?;
    assert_eq!(answer.refusal(403).await?, "origin_refused");
    nothing_came_of_it(&app).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_setting_that_names_no_origins_is_told_by_the_entrys_number() -> Result<()> {
    for (setting, entry) in [
        ("null", 1),
        ("https://app.example/chat", 1),
        ("https://app.example, https://b.example/?x", 2),
        ("https://user@app.example", 1),
        ("https://app.example *", 2),
        ("https://*.app.example", 1),
        ("app.example", 1),
        ("https://", 1),
        ("https://app.example:99999", 1),
        ("https://app.example:", 1),
        ("https://b.example https://bücher.example", 2),
    ] {
        let app = TestApp::with(Backend::Sqlite, "allowed_origins", setting).await?;
        let answer = posted(&app, &[("origin", APP)]).await?;
        assert_eq!(answer.header("access-control-allow-origin"), None);
        let (code, error) = answer.refused(500).await?;
        assert_eq!(code, "misconfigured", "{setting}");
        assert!(error.contains("`allowed_origins`"), "{setting}: {error}");
        assert!(
            error.contains(&format!("entry {entry} ")),
            "{setting}: {error}"
        );
        nothing_came_of_it(&app).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_link_to_the_start_may_come_from_anywhere() -> Result<()> {
    let app = TestApp::start(Backend::Sqlite).await?;
    for (method, path, mode, dest, status) in [
        ("GET", "/", "navigate", "document", 404),
        ("GET", "/?from=mail", "navigate", "document", 404),
        ("GET", "/", "navigate", "iframe", 403),
        ("GET", "/", "no-cors", "image", 403),
        ("GET", "/?x", "cors", "empty", 403),
        ("POST", "/", "navigate", "document", 403),
        ("GET", "/llmchat/app", "navigate", "document", 403),
        ("GET", "/llmchat/", "navigate", "document", 403),
        ("GET", "//", "navigate", "document", 403),
        ("POST", "/llmchat/", "navigate", "document", 403),
    ] {
        for site in ["cross-site", "same-site"] {
            let headers = [
                ("sec-fetch-site", site),
                ("sec-fetch-mode", mode),
                ("sec-fetch-dest", dest),
            ];
            let answer = app.client.request_with(method, path, &headers, "").await?;
            assert_eq!(answer.status(), status, "{method} {path} {mode} {dest}");
        }
    }
    Ok(())
}

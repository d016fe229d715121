//! Which route a request takes: its method and path.

use http::Method;
use uuid::Uuid;

use crate::conversation::{AppId, ConversationName, Owner};
use crate::error::{RefusalCode, Rejection};
use crate::http::path::{InvalidPath, Path};
use crate::request::InvalidRequest;
use crate::store::TurnName;

/// What can be requested.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    /// `POST /llmchat/`: a prompt, answered by an event stream.
    Prompt,
    /// `GET /llmchat/{appID}`: a page of the conversation.
    Conversation(ConversationName),
    /// `DELETE /llmchat/{appID}`.
    DeleteConversation(ConversationName),
    /// `DELETE /llmchat/{appID}/turns?from={turn}`: it and all later ones.
    DeleteFrom(TurnName),
    /// `GET …/turns/{turn}`: as a stream, or as it stands.
    Turn(TurnName),
    /// `DELETE …/turns/{turn}`.
    DeleteTurn(TurnName),
    /// `DELETE …/turns/{turn}/reply`.
    DeleteReply(TurnName),
    /// `POST …/turns/{turn}/stop`.
    Stop(TurnName),
    /// `POST …/turns/{turn}/again`.
    Again(TurnName),
    /// `GET /models`.
    Models,
    /// `GET /healthz`.
    Alive,
    /// `GET /readyz`.
    Ready,
}

/// Whether a request for this path is answered whoever sends it.
pub(crate) fn needs_no_key(path: &Path) -> bool {
    matches!(path.segments()[..], ["healthz" | "readyz"])
}

/// A place that requests can go to, whatever their method.
enum Place {
    Prompts,
    Conversation(ConversationName),
    Turns(ConversationName),
    Turn(TurnName),
    Reply(TurnName),
    Stop(TurnName),
    Again(TurnName),
    Models,
    Alive,
    Ready,
}

impl Route {
    /// The route of a request of `owner`.
    pub(crate) fn of(
        method: Option<&Method>,
        path: &Path,
        owner: &Owner,
    ) -> Result<Self, Rejection> {
        let place = Place::of(path, owner)?;
        let get = [&Method::GET, &Method::HEAD];
        let is = |wanted: &[&Method]| method.is_some_and(|method| wanted.contains(&method));
        Ok(match place {
            Place::Models if is(&get) => Self::Models,
            Place::Alive if is(&get) => Self::Alive,
            Place::Ready if is(&get) => Self::Ready,
            Place::Models | Place::Alive | Place::Ready => return Err(not_allowed("GET, HEAD")),
            Place::Prompts if is(&[&Method::POST]) => Self::Prompt,
            Place::Stop(name) if is(&[&Method::POST]) => Self::Stop(name),
            Place::Again(name) if is(&[&Method::POST]) => Self::Again(name),
            Place::Prompts | Place::Stop(_) | Place::Again(_) => return Err(not_allowed("POST")),
            Place::Conversation(name) if is(&get) => Self::Conversation(name),
            Place::Conversation(name) if is(&[&Method::DELETE]) => Self::DeleteConversation(name),
            Place::Turn(name) if is(&get) => Self::Turn(name),
            Place::Turn(name) if is(&[&Method::DELETE]) => Self::DeleteTurn(name),
            Place::Conversation(_) | Place::Turn(_) => {
                return Err(not_allowed("GET, HEAD, DELETE"));
            }
            Place::Turns(conversation) if is(&[&Method::DELETE]) => {
                let from = path.parameter("from").map_err(InvalidRequest::from)?;
                let Some(from) = from else {
                    let why = "must name the turn from which on all are to be deleted";
                    return Err(InvalidRequest::of_head("from", why).into());
                };
                let turn = turn_id(&from)?;
                Self::DeleteFrom(TurnName { conversation, turn })
            }
            Place::Reply(name) if is(&[&Method::DELETE]) => Self::DeleteReply(name),
            Place::Turns(_) | Place::Reply(_) => return Err(not_allowed("DELETE")),
        })
    }
}

impl Place {
    fn of(path: &Path, owner: &Owner) -> Result<Self, Rejection> {
        let segments = path.segments();
        match segments[..] {
            ["models"] => return Ok(Self::Models),
            ["healthz"] => return Ok(Self::Alive),
            ["readyz"] => return Ok(Self::Ready),
            _ => {}
        }
        let Some((&"llmchat", rest)) = segments.split_first() else {
            return Err(not_found());
        };
        let Some((app_id, rest)) = rest.split_first() else {
            return Ok(Self::Prompts);
        };
        let app_id = AppId::try_from((*app_id).to_owned())
            .map_err(|why| InvalidRequest::of_head("appID in the path", why))?;
        let owner = owner.clone();
        let conversation = ConversationName { owner, app_id };
        let name = |turn: &str| {
            let turn = turn_id(turn)?;
            Ok::<_, Rejection>(TurnName {
                conversation: conversation.clone(),
                turn,
            })
        };
        Ok(match rest {
            [] => Self::Conversation(conversation),
            ["turns"] => Self::Turns(conversation),
            ["turns", turn] => Self::Turn(name(turn)?),
            ["turns", turn, "reply"] => Self::Reply(name(turn)?),
            ["turns", turn, "stop"] => Self::Stop(name(turn)?),
            ["turns", turn, "again"] => Self::Again(name(turn)?),
            _ => return Err(not_found()),
        })
    }
}

/// The id of a turn, or of a message, in the one form in which it is written.
pub(crate) fn id(field: &str, text: &str) -> Result<Uuid, InvalidRequest> {
    // Of all forms that the crate reads, the hyphenated one alone.
    let id = (text.len() == 36).then(|| text.parse().ok()).flatten();
    id.ok_or_else(|| {
        let why = "must be a UUID like 0199f3a1-5c00-7000-8000-000000000001";
        InvalidRequest::of_head(field, why)
    })
}

fn turn_id(text: &str) -> Result<Uuid, Rejection> {
    id("the turn in the path", text).map_err(Into::into)
}

fn not_found() -> Rejection {
    let error = "Nothing is here: POST to /llmchat/, or see docs/api.md for the other paths.";
    Rejection::new(RefusalCode::NotFound, error)
}

fn not_allowed(allowed: &'static str) -> Rejection {
    let error = format!("This path answers to {allowed} alone.");
    Rejection::new(RefusalCode::MethodNotAllowed, error).with_header("allow", allowed)
}

impl From<InvalidPath> for InvalidRequest {
    fn from(invalid: InvalidPath) -> Self {
        Self::of_head("the path", invalid)
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;

    const TURN: &str = "0199f3a1-5c00-7000-8000-000000000001";

    fn route(method: Method, path: &str) -> Result<Route, (RefusalCode, Vec<Cow<'static, str>>)> {
        let path = Path::parse(path).unwrap();
        Route::of(Some(&method), &path, &Owner::default()).map_err(|rejection| {
            let allowed = rejection.headers.into_iter().map(|(_, allowed)| allowed);
            (rejection.code, allowed.collect())
        })
    }

    #[test]
    fn a_prompt_is_posted_to_one_path_with_or_without_its_slash() {
        for path in ["/llmchat", "/llmchat/"] {
            assert_eq!(route(Method::POST, path), Ok(Route::Prompt));
        }
        for path in [
            "",
            "/",
            "/LLMCHAT/",
            "/llmchats",
            "/llmchat/a/b",
            "/llmchat/a/turns/x/y/z",
        ] {
            let refused = route(Method::POST, path).unwrap_err();
            assert!(
                matches!(
                    refused.0,
                    RefusalCode::NotFound | RefusalCode::InvalidRequest
                ),
                "{path}"
            );
        }
    }

    #[test]
    fn each_place_names_the_methods_that_it_answers() {
        let turn = format!("/llmchat/a/turns/{TURN}");
        for (path, allowed) in [
            ("/llmchat/".to_owned(), "POST"),
            ("/llmchat/a".to_owned(), "GET, HEAD, DELETE"),
            ("/llmchat/a/turns".to_owned(), "DELETE"),
            (turn.clone(), "GET, HEAD, DELETE"),
            (format!("{turn}/reply"), "DELETE"),
            (format!("{turn}/stop"), "POST"),
            (format!("{turn}/again"), "POST"),
            ("/models".to_owned(), "GET, HEAD"),
            ("/healthz/".to_owned(), "GET, HEAD"),
            ("/readyz?verbose".to_owned(), "GET, HEAD"),
        ] {
            for method in [
                Method::GET,
                Method::HEAD,
                Method::POST,
                Method::DELETE,
                Method::PUT,
            ] {
                let is_allowed = allowed.split(", ").any(|it| it == method.as_str());
                match route(method.clone(), &path) {
                    Ok(_) => assert!(is_allowed, "{method} {path}"),
                    // Without `from`.
                    Err((RefusalCode::InvalidRequest, _)) => assert!(path.ends_with("/turns")),
                    Err((code, headers)) => {
                        assert_eq!(code, RefusalCode::MethodNotAllowed, "{method} {path}");
                        assert_eq!(headers, [allowed]);
                        assert!(!is_allowed, "{method} {path}");
                    }
                }
            }
        }
    }

    #[test]
    fn of_all_paths_two_need_no_key() {
        let needs_no_key = |path| super::needs_no_key(&Path::parse(path).unwrap());
        for path in ["/healthz", "/readyz/", "/readyz?a=b", "/%72eadyz"] {
            assert!(needs_no_key(path), "{path}");
        }
        for path in [
            "/",
            "/models",
            "/llmchat/healthz",
            "/readyz/x",
            "//readyz",
            "/READYZ",
            "/healthz%2F",
        ] {
            assert!(!needs_no_key(path), "{path}");
        }
    }

    #[test]
    fn names_are_decoded_once_and_turns_are_uuids() {
        let conversation = |name: &str| {
            Route::Conversation(ConversationName {
                owner: Owner::default(),
                app_id: AppId::try_from(name.to_owned()).unwrap(),
            })
        };
        assert_eq!(
            route(Method::GET, "/llmchat/a%2Fb%252F+"),
            Ok(conversation("a/b%2F+"))
        );
        assert_eq!(route(Method::GET, "/llmchat/a/"), Ok(conversation("a")));
        for wrong in ["x", "0199f3a15c0070008000000000000001", ""] {
            let refused = route(Method::DELETE, &format!("/llmchat/a/turns?from={wrong}"));
            assert_eq!(
                refused.unwrap_err().0,
                RefusalCode::InvalidRequest,
                "{wrong}"
            );
        }
        assert!(matches!(
            route(Method::DELETE, &format!("/llmchat/a/turns?from={TURN}")),
            Ok(Route::DeleteFrom(_))
        ));
    }
}

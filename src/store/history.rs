//! The conversation as it comes from the database when a turn begins: whole, as the JSON that the
//! database makes of it, or row by row.

use super::{Kind, NewTurn, StoreError, TurnStart};
use crate::conversation::Messages;

/// Appends a conversation that came whole: `past` is the JSON of the earlier messages, and the prompt, new
/// in the database, comes last.
pub(super) fn whole(messages: &mut Messages, past: &str, turn: &NewTurn) {
    messages.push_json(past);
    for (_, message) in &turn.prompt {
        messages.push(message.role.as_str(), message.content.as_str());
    }
}

/// A conversation that is read row by row.
pub(super) struct History<'a> {
    messages: &'a mut Messages,
    /// Messages of the turn's own prompt, all of which must come.
    prompt: usize,
    /// Those that have come.
    own: usize,
    start: Option<TurnStart>,
}

impl<'a> History<'a> {
    /// For a turn whose prompt has `prompt` messages.
    pub(super) fn new(messages: &'a mut Messages, prompt: usize) -> Self {
        Self {
            messages,
            prompt,
            own: 0,
            start: None,
        }
    }

    /// Takes the next row. The turn's own rows carry its `start`; a row without a message carries only
    /// that, or belongs to an older server and is left out.
    pub(super) fn row(&mut self, start: Option<i64>, message: Option<(&str, &str)>) {
        if self.own > 0 && start.is_none() {
            // A turn that began after this one, between two tries or two statements.
            return;
        }
        if let Some(at) = start {
            self.start = Some(TurnStart(at));
        }
        if let Some((role, content)) = message {
            self.messages.push(role, content);
            self.own += usize::from(start.is_some());
        }
    }

    /// All rows were read: when the turn began, if any row says so.
    pub(super) fn end(self) -> Result<Option<TurnStart>, StoreError> {
        if self.own < self.prompt {
            // An earlier try of this turn was committed while this one ran.
            return Err(StoreError::new(
                Kind::Unavailable,
                "the conversation came back without its new prompt",
            ));
        }
        Ok(self.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conversation::{AppId, Message};
    use crate::ids::Ids;

    type Row = (Option<i64>, Option<(&'static str, &'static str)>);

    /// The start and the messages of a turn with a prompt of `prompt` messages, from these rows.
    fn read(prompt: usize, rows: &[Row]) -> Result<(Option<i64>, String), StoreError> {
        let mut messages = Messages::append_to(Vec::new());
        let mut history = History::new(&mut messages, prompt);
        for (start, message) in rows {
            history.row(*start, *message);
        }
        let start = history.end()?.map(|start| start.0);
        let json = serde_json::from_slice::<Vec<serde_json::Value>>(&messages.finish()).unwrap();
        let contents = json
            .iter()
            .map(|message| message["content"].as_str().unwrap());
        Ok((start, contents.collect::<Vec<_>>().join(" ")))
    }

    #[test]
    fn the_turns_own_rows_carry_its_start_and_come_last() {
        let rows: [Row; 5] = [
            (Some(7), None),
            (None, Some(("user", "a"))),
            (None, Some(("assistant", "b"))),
            (Some(5), Some(("system", "c"))),
            (Some(5), Some(("user", "d"))),
        ];
        assert_eq!(read(2, &rows), Ok((Some(5), "a b c d".into())));
    }

    #[test]
    fn a_turn_that_began_later_is_not_in_the_context() {
        let rows: [Row; 3] = [
            (None, Some(("user", "a"))),
            (Some(5), Some(("user", "own"))),
            (None, Some(("user", "later"))),
        ];
        assert_eq!(read(1, &rows), Ok((Some(5), "a own".into())));
    }

    #[test]
    fn a_turn_without_a_prompt_has_the_start_of_the_row_without_a_message() {
        let rows: [Row; 2] = [(Some(9), None), (None, Some(("user", "a")))];
        assert_eq!(read(0, &rows), Ok((Some(9), "a".into())));
        assert_eq!(read(0, &[]), Ok((None, String::new())));
    }

    #[test]
    fn an_older_servers_row_without_a_message_is_left_out() {
        let rows: [Row; 3] = [
            (None, None),
            (None, Some(("user", "a"))),
            (Some(5), Some(("user", "b"))),
        ];
        assert_eq!(read(1, &rows), Ok((Some(5), "a b".into())));
    }

    #[test]
    fn a_conversation_without_its_whole_prompt_is_read_again() {
        let rows: [Row; 2] = [(None, Some(("user", "a"))), (Some(5), Some(("user", "b")))];
        assert_eq!(read(2, &rows).unwrap_err().kind, Kind::Unavailable);
    }

    #[test]
    fn a_whole_conversation_is_its_past_and_the_prompt() {
        let message = Message {
            role: "user".to_owned().try_into().unwrap(),
            content: "\"new\"".to_owned().try_into().unwrap(),
        };
        let app_id = AppId::try_from("a".to_owned()).unwrap();
        let turn = NewTurn::new(&mut Ids::new(0, 0), app_id, vec![message], None);
        for (past, json) in [
            ("", r#"[{"role":"user","content":"\"new\""}]"#),
            ("{}", r#"[{},{"role":"user","content":"\"new\""}]"#),
        ] {
            let mut messages = Messages::append_to(Vec::new());
            whole(&mut messages, past, &turn);
            assert_eq!(String::from_utf8(messages.finish()).unwrap(), json);
        }
    }
}

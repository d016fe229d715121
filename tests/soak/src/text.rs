//! The texts of a run. Each prompt, token, thought and tool call names its owner and its turn, and what is generated
//! names the call of Ollama that it came from, so that text can be attributed wherever it turns up.

use std::cmp::Ordering;
use std::fmt;

use ollama_stand_in::wire;
use serde_json::json;

use crate::evidence::Kind::{Doubled, Lost, Mixed};
use crate::evidence::Violation;

/// A conversation's name: `o4-c12`. Other owners have one with the same `appID`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ConversationId {
    pub(crate) owner: usize,
    pub(crate) app: usize,
}

impl fmt::Display for ConversationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "o{}-c{}", self.owner, self.app)
    }
}

impl ConversationId {
    /// Reads the name with which a text begins, and returns the rest.
    fn parse(text: &str) -> Option<(Self, &str)> {
        let number = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
        let text = text.strip_prefix('o')?;
        let (owner, text) = text.split_at_checked(number(text))?;
        let text = text.strip_prefix("-c")?;
        let (app, text) = text.split_at_checked(number(text))?;
        let (owner, app) = (owner.parse().ok()?, app.parse().ok()?);
        Some((Self { owner, app }, text))
    }
}

/// The conversation of another owner that a text names, whatever else it is.
pub(crate) fn of_another(text: &str, owner: usize) -> Option<ConversationId> {
    let mut names = text.match_indices('o').filter_map(|(at, _)| {
        let (name, _) = ConversationId::parse(text.get(at..)?)?;
        Some(name)
    });
    names.find(|name| name.owner != owner)
}

/// A turn's name: `o4-c12-t3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct TurnId {
    pub(crate) conversation: ConversationId,
    pub(crate) turn: usize,
}

impl fmt::Display for TurnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-t{}", self.conversation, self.turn)
    }
}

impl TurnId {
    /// Reads `o4-c12-t3`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (conversation, turn) = ConversationId::parse(text)?;
        let turn = turn.strip_prefix("-t")?.parse().ok()?;
        Some(Self { conversation, turn })
    }

    /// The prompt; its white space must survive.
    pub(crate) fn prompt(self) -> String {
        format!("prompt {self}:\n\twhat  comes next? ")
    }

    /// What Ollama generates in its call of this number for the turn.
    pub(crate) fn call(self, call: usize) -> Generation {
        Generation { of: self, call }
    }
}

/// What one call of Ollama generates, piece by piece: `o4-c12-t3.0-7` is the piece 7 of the first call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Generation {
    pub(crate) of: TurnId,
    pub(crate) call: usize,
}

/// What a line of Ollama's brings.
enum Piece {
    Content(String),
    Thinking(String),
    /// The name of the function.
    Call(String),
}

/// The text of some pieces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Text {
    pub(crate) content: String,
    pub(crate) thinking: String,
    /// The names of the functions that are called.
    pub(crate) calls: Vec<String>,
}

impl Text {
    pub(crate) fn is_empty(&self) -> bool {
        self.content.is_empty() && self.thinking.is_empty() && self.calls.is_empty()
    }
}

impl Generation {
    /// Begins with content, since a reply without any is no message for a model.
    fn piece(self, n: usize) -> Piece {
        let name = format!("{}.{}-{n}", self.of, self.call);
        match n % 11 {
            4 => Piece::Thinking(format!("{name}~ ")),
            // What is stored for the model has one space for each run of white space.
            6 => Piece::Content(format!("{name}é \n")),
            8 => Piece::Call(name),
            _ => Piece::Content(format!("{name} ")),
        }
    }

    /// The line of Ollama's that brings a piece, without its newline.
    pub(crate) fn line(self, n: usize, done: bool) -> String {
        let message = match self.piece(n) {
            Piece::Content(text) => json!({"role": "assistant", "content": text}),
            Piece::Thinking(text) => json!({"role": "assistant", "content": "", "thinking": text}),
            Piece::Call(name) => {
                let call = json!({"function": {"name": name, "arguments": {}}});
                json!({"role": "assistant", "content": "", "tool_calls": [call]})
            }
        };
        let mut line = json!({
            "model": wire::MODEL, "created_at": wire::CREATED_AT, "message": message, "done": done,
        });
        if let (true, Some(fields)) = (done, line.as_object_mut()) {
            fields.insert("done_reason".to_owned(), "stop".into());
        }
        line.to_string()
    }

    /// The first `count` pieces.
    pub(crate) fn text(self, count: usize) -> Text {
        let mut text = Text::default();
        for n in 0..count {
            match self.piece(n) {
                Piece::Content(piece) => text.content += &piece,
                Piece::Thinking(piece) => text.thinking += &piece,
                Piece::Call(name) => text.calls.push(name),
            }
        }
        text
    }
}

/// A text as the model is shown it again.
pub(crate) fn collapsed(text: &str) -> String {
    let mut collapsed = String::with_capacity(text.len());
    for character in text.chars() {
        match character.is_whitespace() {
            true if collapsed.ends_with(' ') => {}
            true => collapsed.push(' '),
            false => collapsed.push(character),
        }
    }
    collapsed
}

/// The turn of a prompt.
pub(crate) fn of_prompt(text: &str) -> Result<TurnId, Violation> {
    let foreign = || (Mixed, "not of this run".to_owned());
    let named = text.strip_prefix("prompt ").ok_or_else(foreign)?;
    let name = named.split_once(':').ok_or_else(foreign)?.0;
    let id = TurnId::parse(name).ok_or_else(foreign)?;
    match text == id.prompt() {
        true => Ok(id),
        false => Err((Lost, format!("{id}: the prompt's text has changed"))),
    }
}

/// What generated a content, as it was or collapsed: its pieces from the first on, without a gap.
pub(crate) fn of_content(text: &str) -> Result<Generation, Violation> {
    let foreign = || (Mixed, "not of this run".to_owned());
    let mut of = None;
    let mut expected = 0;
    for token in text.split_whitespace() {
        let (name, number) = token.rsplit_once('-').ok_or_else(foreign)?;
        let (id, call) = name.split_once('.').ok_or_else(foreign)?;
        let generation = Generation {
            of: TurnId::parse(id).ok_or_else(foreign)?,
            call: call.parse().map_err(|_| foreign())?,
        };
        let number = number.trim_end_matches('é');
        let number: usize = number.parse().map_err(|_| foreign())?;
        if let Some(other) = of.replace(generation).filter(|other| *other != generation) {
            let what = format!("{other:?} and {generation:?} are in one reply");
            return Err((Mixed, what));
        }
        while !matches!(generation.piece(expected), Piece::Content(_)) {
            expected += 1;
        }
        match number.cmp(&expected) {
            Ordering::Equal => expected += 1,
            Ordering::Greater => return Err((Lost, format!("{id}: no piece {expected}"))),
            Ordering::Less => return Err((Doubled, format!("{id}: the piece {number} twice"))),
        }
    }
    let of = of.ok_or_else(foreign)?;
    let whole = of.text(expected).content;
    match text == whole || text == collapsed(&whole) {
        true => Ok(of),
        false => Err((Lost, format!("{}: the reply's text has changed", of.of))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: TurnId = TurnId {
        conversation: ConversationId { owner: 4, app: 12 },
        turn: 3,
    };

    #[test]
    fn a_name_is_read_back() {
        assert_eq!(TurnId::parse(&ID.to_string()), Some(ID));
        assert_eq!(ID.to_string(), "o4-c12-t3");
        for wrong in ["o4-c12", "c12-t3", "o-c12-t3", "o4-c-t3", "o4-c12-t"] {
            assert_eq!(TurnId::parse(wrong), None, "{wrong}");
        }
        assert_eq!(of_prompt(&ID.prompt()), Ok(ID));
        let generation = ID.call(2);
        for count in [1, 7, 30] {
            let content = generation.text(count).content;
            assert_eq!(of_content(&content), Ok(generation));
            assert_eq!(of_content(&collapsed(&content)), Ok(generation));
        }
    }

    #[test]
    fn what_names_another_owner_is_found_in_any_text() {
        let own = ID.prompt() + &ID.call(0).text(20).content;
        assert_eq!(of_another(&own, 4), None);
        let other = TurnId {
            conversation: ConversationId { owner: 14, app: 12 },
            turn: 3,
        };
        let text = other.call(0).text(20);
        for text in [
            other.prompt(),
            text.content,
            text.thinking,
            text.calls.concat(),
        ] {
            let json = json!({"who": [own, text]}).to_string();
            assert_eq!(of_another(&json, 4), Some(other.conversation));
        }
        assert_eq!(of_another("go-c1 o4-c1 o14 o14- 0o14c1", 4), None);
    }

    #[test]
    fn what_is_not_as_it_was_generated_is_found() {
        let kind = |text: String| of_content(&text).map_err(|(kind, _)| kind);
        let content = ID.call(0).text(20).content;
        assert_eq!(kind(content.replace("o4-c12-t3.0-9 ", "")), Err(Lost));
        assert_eq!(kind(content.replace("é", "")), Err(Lost));
        assert_eq!(kind(content.trim_end().to_owned()), Err(Lost));
        assert_eq!(kind(content.clone() + "o4-c12-t3.0-19 "), Err(Doubled));
        assert_eq!(kind(ID.call(1).text(1).content + &content), Err(Mixed));
        assert_eq!(kind("hello".to_owned()), Err(Mixed));
    }
}

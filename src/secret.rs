//! A credential: sent to one server, and told to nobody else.

use std::fmt;
use std::sync::Arc;

/// The most characters of one: most servers refuse headers of more.
const MAX: usize = 8192;
/// The fewest characters of one that is looked for in texts.
const HIDDEN_MIN: usize = 8;
/// A part of a credential at which a text was cut off is left out from so many characters on.
const PART_MIN: usize = 4;

/// A secret variable's value. Has neither `Display` nor a `Debug` that shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    name: &'static str,
    value: Arc<str>,
}

impl Secret {
    /// The value of the variable `name`; an error says what it must be, and does not repeat it.
    pub fn new(name: &'static str, value: &str) -> Result<Self, String> {
        // What JSON escapes would be written in more than one way.
        let is_sendable = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\');
        if value.is_empty() || value.len() > MAX || !value.bytes().all(is_sendable) {
            return Err(format!(
                "must be the key alone (`Bearer` is added): visible ASCII characters but `\"` and `\\`, {MAX} at most, without white space inside"
            ));
        }
        let value = value.into();
        Ok(Self { name, value })
    }

    /// The value, for whom it is meant.
    pub fn reveal(&self) -> &str {
        &self.value
    }

    /// Puts the variable's name wherever somebody else's words have its value. One that is as short as a word is none that
    /// anybody would have to guess, and is left.
    pub fn hide(&self, text: &mut String) {
        if self.value.len() < HIDDEN_MIN {
            return;
        }
        if text.contains(&*self.value) {
            *text = text.replace(&*self.value, &format!("[{}]", self.name));
        }
        // What is passed on is cut (`…`), perhaps in the midst of it.
        for (at, _) in text.clone().rmatch_indices('…') {
            let before = text.get(..at).unwrap_or_default();
            let part = (PART_MIN..self.value.len())
                .rev()
                .find(|length| before.ends_with(self.value.get(..*length).unwrap_or("…")));
            if let Some(length) = part {
                text.replace_range(at - length..at, "");
            }
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(value: &str) -> Result<Secret, String> {
        Secret::new("the_key", value)
    }

    #[test]
    fn a_secret_is_visible_ascii_and_a_wrong_one_is_not_repeated() {
        let longest = "x".repeat(MAX);
        for good in ["k", "sk-A.b_c~d+e/f=", "a:b,c;d'e", &longest] {
            assert_eq!(secret(good).unwrap().reveal(), good);
        }
        let too_long = "x".repeat(MAX + 1);
        for wrong in [
            "",
            "s3 cret",
            "s3\ncret",
            "s3\tcret",
            "s3cr\u{e9}t",
            "s3\"cret",
            "s3\\cret",
            "s3\u{7f}cret",
            "s3\0cret",
            "Bearer s3cret",
            &too_long,
        ] {
            let error = secret(wrong).unwrap_err();
            assert!(!error.contains("s3") && error.len() < 200, "{error}");
        }
    }

    #[test]
    fn a_secret_is_not_shown() {
        assert_eq!(format!("{:?}", secret("s3cret").unwrap()), "the_key");
    }

    #[test]
    fn a_text_has_the_name_instead_of_the_value() {
        for (text, hidden) in [
            ("nothing here", "nothing here"),
            ("bad key s3cr3t-k!", "bad key [the_key]!"),
            ("s3cr3t-ks3cr3t-k", "[the_key][the_key]"),
            // Where a text was cut.
            ("bad key s3cr3t…", "bad key …"),
            ("s3cr… (s3cr3t…)", "… (…)"),
            ("s3c…", "s3c…"),
            ("wait… s3cr3t-k…", "wait… [the_key]…"),
        ] {
            let mut text = text.to_owned();
            secret("s3cr3t-k").unwrap().hide(&mut text);
            assert_eq!(text, hidden);
        }
    }
}

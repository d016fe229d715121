//! Who a request is from: the owner of the conversations that it can reach.
//!
//! Two settings tell. `api_keys` are the keys of clients, each with its owner's name. `owner_header` is a header that a
//! gateway sets. With both, a key proves that the request comes by way of the gateway, and the header tells whose
//! it is; with neither, all conversations are those of one owner without a name. Takes header values, and knows
//! neither routes nor WASI.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use thiserror::Error;

use crate::conversation::Owner;
use crate::http::bearer;

/// The settings that tell who a request is from. Has no `Debug`: what it is made from is secret.
#[derive(Default)]
pub(crate) struct Access {
    pub(crate) keys: Vec<Key>,
    /// The name of the gateway's header.
    pub(crate) owner_header: Option<String>,
}

/// A key, of which only the hash is kept.
pub(crate) struct Key {
    owner: Owner,
    token: [u8; 32],
}

/// Why a request is refused. Of keys it tells nothing, so that there is nothing to guess by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum Unauthorized {
    /// No key, a wrong one, or several.
    #[error(
        "This server answers those who have a key: send it in one header, `authorization: Bearer <key>`."
    )]
    Key,
    /// The gateway's header is missing, there twice, or no name.
    #[error(
        "The gateway in front of this server must tell whose request it is: in the header that `owner_header` names, once, a name of 1 to 155 characters."
    )]
    Header,
}

impl Access {
    /// The owner of a request with these values of `authorization` and of the gateway's header.
    pub(crate) fn owner(
        &self,
        authorization: &[Vec<u8>],
        header: &[Vec<u8>],
    ) -> Result<Owner, Unauthorized> {
        let of_key = match self.keys.as_slice() {
            [] => Owner::default(),
            keys => of_key(keys, authorization).ok_or(Unauthorized::Key)?,
        };
        match &self.owner_header {
            Some(_) => of_header(header).ok_or(Unauthorized::Header),
            None => Ok(of_key),
        }
    }
}

/// The owner whose key it is. Compares with every key, and with each in constant time, and does so whatever was sent, so
/// that the time that it takes tells nothing of the keys.
fn of_key(keys: &[Key], authorization: &[Vec<u8>]) -> Option<Owner> {
    let token = match authorization {
        [authorization] => bearer(authorization),
        _ => None,
    };
    let hash = hash(token.unwrap_or_default());
    let mut owner = None;
    for key in keys {
        if bool::from(key.token.ct_eq(&hash)) {
            owner = Some(key.owner.clone());
        }
    }
    owner.filter(|_| token.is_some())
}

fn of_header(values: &[Vec<u8>]) -> Option<Owner> {
    let [value] = values else {
        return None;
    };
    // Not what Unicode takes for white space: to the gateway that is another name.
    let name = std::str::from_utf8(value.trim_ascii()).ok()?;
    let is_plain = !name.contains(char::is_control);
    is_plain.then(|| Owner::try_from(name).ok()).flatten()
}

fn hash(token: &[u8]) -> [u8; 32] {
    Sha256::digest(token).into()
}

/// Reads `api_keys`: `name:token`, separated by white space. An owner may have several. What is wrong is told by the
/// number of the entry, never by its text.
pub(crate) fn keys(setting: &str) -> Result<Vec<Key>, String> {
    let (mut keys, mut numbers) = (Vec::new(), BTreeMap::new());
    for (entry, number) in setting.split_whitespace().zip(1..) {
        let must_be = |why: &str| {
            format!(
                "must hold `name:token` entries with white space in between; entry {number} {why}"
            )
        };
        let (name, token) = entry
            .split_once(':')
            .ok_or_else(|| must_be("has no colon"))?;
        let owner =
            Owner::try_from(name).map_err(|why| must_be(&format!("has a name that {why}")))?;
        if token.is_empty() {
            return Err(must_be("has no token"));
        }
        let token = hash(token.as_bytes());
        if let Some(other) = numbers.insert(token, number) {
            return Err(must_be(&format!("has the token of entry {other}")));
        }
        keys.push(Key { owner, token });
    }
    Ok(keys)
}

/// Reads `owner_header`.
pub(crate) fn owner_header(setting: &str) -> Result<Option<String>, String> {
    let name = setting.to_ascii_lowercase();
    // RFC 9110 (5.6.2).
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if !name.bytes().all(is_token) {
        return Err("must be the name of a header, like x-user".into());
    }
    // What it holds is stored as a name.
    if ["authorization", "cookie", "proxy-authorization"].contains(&name.as_str()) {
        return Err("must be a header with a name in it, and not with a secret".into());
    }
    Ok((!name.is_empty()).then_some(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(api_keys: &str, header: &str) -> Access {
        Access {
            keys: keys(api_keys).unwrap(),
            owner_header: owner_header(header).unwrap(),
        }
    }

    fn values(values: &[&str]) -> Vec<Vec<u8>> {
        values.iter().map(|it| it.as_bytes().to_vec()).collect()
    }

    #[test]
    fn without_settings_everybody_is_the_owner_without_a_name() {
        let open = access("", "");
        for authorization in [&[][..], &["Bearer x"], &["Basic x", "Basic y"]] {
            let owner = open.owner(&values(authorization), &values(&["eve"]));
            assert_eq!(owner, Ok(Owner::default()));
        }
    }

    #[test]
    fn a_key_is_its_owners_and_an_owner_can_have_several() {
        let access = access("ann:one\n bob:two:three \t ann:four", "");
        for (authorization, owner) in [
            ("Bearer one", "ann"),
            ("bearer one", "ann"),
            ("BEARER   four", "ann"),
            ("Bearer two:three", "bob"),
        ] {
            let found = access.owner(&values(&[authorization]), &[]).unwrap();
            assert_eq!(found.as_str(), owner, "{authorization}");
        }
        let long = format!("Bearer {}", "x".repeat(10_000));
        for wrong in [
            &[][..],
            &[""],
            &["one"],
            &["Bearer"],
            &["Bearer "],
            &["Bearer on"],
            &["Bearer onee"],
            &["Bearer ONE"],
            &["Bearer one two"],
            &["Bearer one,"],
            &["Bearer öne"],
            &["Bearer ann:one"],
            &["Basic one"],
            &["Basic YW5uOm9uZQ=="],
            &["Bearer one", "Bearer one"],
            &["Bearer one", ""],
            &[&long],
        ] {
            let refused = access.owner(&values(wrong), &values(&["ann"]));
            assert_eq!(refused, Err(Unauthorized::Key), "{wrong:?}");
        }
    }

    #[test]
    fn the_gateways_header_names_the_owner() {
        let access = access("", "X-User");
        assert_eq!(access.owner_header.as_deref(), Some("x-user"));
        let longest = "ö".repeat(155);
        for name in [
            "ann",
            "Ann",
            "ann\u{a0}",
            "\u{3000}ann",
            "cn=a, dc=b",
            "ann@example.org",
            &longest,
        ] {
            let owner = access.owner(&values(&["Bearer x"]), &values(&[name]));
            assert_eq!(owner.unwrap().as_str(), name);
        }
        let too_long = "ö".repeat(156);
        for wrong in [
            &[][..],
            &[""],
            &[" \t"],
            &["a", "a"],
            &["a\u{7}b"],
            &[&too_long],
        ] {
            let refused = access.owner(&[], &values(wrong));
            assert_eq!(refused, Err(Unauthorized::Header), "{wrong:?}");
        }
        assert_eq!(
            access.owner(&[], &[b"\xff".to_vec()]),
            Err(Unauthorized::Header)
        );
    }

    #[test]
    fn with_both_settings_both_are_needed() {
        let access = access("gateway:one", "x-user");
        let owner = |authorization: &[&str], header: &[&str]| {
            access.owner(&values(authorization), &values(header))
        };
        assert_eq!(owner(&["Bearer one"], &["ann"]).unwrap().as_str(), "ann");
        assert_eq!(owner(&[], &["ann"]), Err(Unauthorized::Key));
        assert_eq!(owner(&["Bearer one"], &[]), Err(Unauthorized::Header));
    }

    #[test]
    fn a_wrong_entry_is_told_by_its_number() {
        for (setting, why) in [
            ("s3cret", "entry 1 has no colon"),
            ("a:1 s3cret", "entry 2 has no colon"),
            ("a:1 :s3cret", "entry 2 has a name that must not be empty"),
            ("a:1 b:", "entry 2 has no token"),
            ("a:s3cret b:2 c:s3cret", "entry 3 has the token of entry 1"),
            ("a:s3cret a:s3cret", "entry 2 has the token of entry 1"),
        ] {
            let error = keys(setting).err().unwrap();
            assert!(error.contains(why) && !error.contains("s3cret"), "{error}");
        }
        let long = format!("{}:s3cret", "x".repeat(156));
        let error = keys(&long).err().unwrap();
        assert!(
            error.contains("155") && !error.contains("s3cret"),
            "{error}"
        );
    }

    #[test]
    fn a_header_of_secrets_names_no_owner() {
        for wrong in ["authorization", "Cookie", "x user", "x-user:", "ü"] {
            assert!(owner_header(wrong).is_err(), "{wrong}");
        }
    }
}

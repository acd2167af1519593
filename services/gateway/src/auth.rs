//! Who calls, and what they may do.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use http::HeaderMap;
use mesh::config::ConfigError;
use mesh::{ENGINE_HEADER, Fault};
use rollout::Engine;
use sha2::{Digest, Sha256};
use tonic::Code;

use crate::Config;
use crate::method::Access;

/// Largest key file read.
const MAX_KEYS_FILE_BYTES: u64 = 1024 * 1024;
const ANONYMOUS: &str = "anonymous";
/// Header for clients that cannot set `authorization`.
pub(crate) const API_KEY_HEADER: &str = "x-api-key";

type KeyHash = [u8; 32];

/// A request that may not pass.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("an API key is needed: send 'authorization: Bearer KEY' or '{API_KEY_HEADER}: KEY'")]
    NoKey,
    #[error("the API key is not known here")]
    UnknownKey,
    #[error("{what} needs the role {needed}; '{caller}' is {held}")]
    Forbidden { what: String, needed: &'static str, held: &'static str, caller: String },
    #[error("{ENGINE_HEADER}: '{0}' is no engine; accepted: v1, v2")]
    Engine(String),
}

impl Fault for Refusal {
    fn code(&self) -> Code {
        match self {
            Refusal::NoKey | Refusal::UnknownKey => Code::Unauthenticated,
            Refusal::Forbidden { .. } => Code::PermissionDenied,
            Refusal::Engine(_) => Code::InvalidArgument,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Refusal::NoKey => "API_KEY_REQUIRED",
            Refusal::UnknownKey => "API_KEY_UNKNOWN",
            Refusal::Forbidden { .. } => "ROLE_REQUIRED",
            Refusal::Engine(_) => "INVALID_FIELD",
        }
    }

    fn field(&self) -> Option<String> {
        matches!(self, Refusal::Engine(_)).then(|| ENGINE_HEADER.to_owned())
    }
}

/// Somebody known well enough.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) name: Arc<str>,
    access: Access,
}

impl Caller {
    pub(crate) fn require(&self, needed: Access, what: &str) -> Result<(), Refusal> {
        if self.access >= needed {
            return Ok(());
        }
        Err(Refusal::Forbidden {
            what: what.to_owned(),
            needed: needed.as_str(),
            held: self.access.as_str(),
            caller: self.name.to_string(),
        })
    }

    /// The engine the caller forces, if it does. Only admins may.
    pub(crate) fn forced(&self, headers: &HeaderMap) -> Result<Option<Engine>, Refusal> {
        let Some(value) = headers.get(ENGINE_HEADER) else { return Ok(None) };
        self.require(Access::Admin, "forcing an engine")?;
        let text = value.to_str().unwrap_or_default();
        text.parse().map(Some).map_err(|_| Refusal::Engine(text.chars().take(32).collect()))
    }
}

/// The callers there are.
#[derive(Debug)]
pub(crate) struct Auth {
    keys: HashMap<KeyHash, Caller>,
    /// What a caller without a key is; `None` refuses it.
    anonymous: Option<Caller>,
}

impl Auth {
    /// Errors: an address others can reach, with neither keys nor permission to do without; a key file that is unreadable.
    pub(crate) fn open(config: &Config, listen: SocketAddr) -> Result<Auth, ConfigError> {
        let anonymous = |access| Some(Caller { name: Arc::from(ANONYMOUS), access });
        let Some(path) = &config.api_keys_file else {
            if !listen.ip().is_loopback() && !config.allow_anonymous {
                return Err(ConfigError::new(format!(
                    "listening on {listen} would let everybody on the network in as admin: set api_keys_file, listen on \
                     127.0.0.1, or set allow_anonymous if something else keeps strangers out"
                )));
            }
            return Ok(Auth { keys: HashMap::new(), anonymous: anonymous(Access::Admin) });
        };
        let keys = read_keys(path)?;
        Ok(Auth { keys, anonymous: if config.allow_anonymous { anonymous(Access::Reader) } else { None } })
    }

    /// Who sends these headers. A key that is not known is refused even where none is needed: it is a mistake.
    pub(crate) fn caller(&self, headers: &HeaderMap) -> Result<Caller, Refusal> {
        if self.keys.is_empty() {
            return self.anonymous.clone().ok_or(Refusal::NoKey);
        }
        let Some(key) = api_key(headers) else { return self.anonymous.clone().ok_or(Refusal::NoKey) };
        // A lookup by hash tells nothing about keys by the time it takes.
        let hash = KeyHash::from(Sha256::digest(key));
        self.keys.get(&hash).cloned().ok_or(Refusal::UnknownKey)
    }
}

fn api_key(headers: &HeaderMap) -> Option<&[u8]> {
    if let Some(key) = headers.get(API_KEY_HEADER) {
        return Some(key.as_bytes());
    }
    let (scheme, key) = headers.get(http::header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim().as_bytes())
}

fn read_keys(path: &Path) -> Result<HashMap<KeyHash, Caller>, ConfigError> {
    let refuse = |reason: String| ConfigError::new(format!("api_keys_file {}: {reason}", path.display()));
    let size = std::fs::metadata(path).map_err(|error| refuse(error.to_string()))?.len();
    if size > MAX_KEYS_FILE_BYTES {
        return Err(refuse(format!("{size} bytes are above {MAX_KEYS_FILE_BYTES}")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| refuse(error.to_string()))?;
    let mut keys = HashMap::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (hash, caller) = parse_line(line).map_err(|reason| refuse(format!("line {}: {reason}", index + 1)))?;
        if keys.insert(hash, caller).is_some() {
            return Err(refuse(format!("line {}: the key is listed twice", index + 1)));
        }
    }
    if keys.is_empty() {
        return Err(refuse("holds no key".to_owned()));
    }
    Ok(keys)
}

/// The text never shows up in the error: it may be a key written down by mistake.
fn parse_line(line: &str) -> Result<(KeyHash, Caller), &'static str> {
    let mut words = line.split_whitespace();
    let access = match words.next() {
        Some("reader") => Access::Reader,
        Some("writer") => Access::Writer,
        Some("admin") => Access::Admin,
        _ => return Err("starts with no role; accepted: reader, writer, admin"),
    };
    let hash = words.next().and_then(parse_hash).ok_or("the second word is not a SHA-256 in 64 hexadecimal digits")?;
    match (words.next(), words.next()) {
        (Some(name), None) => Ok((hash, Caller { name: Arc::from(name), access })),
        _ => Err("exactly one word, the name, must follow the hash"),
    }
}

fn parse_hash(text: &str) -> Option<KeyHash> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, index) in hash.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&text[index..index + 2], 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_are_kept_out_unless_someone_says_otherwise() {
        let open = |listen: &str, allow_anonymous| {
            let config = Config { allow_anonymous, ..Config::default() };
            Auth::open(&config, listen.parse().unwrap())
        };
        assert!(open("127.0.0.1:1", false).is_ok());
        assert!(open("[::1]:1", false).is_ok());
        assert!(open("0.0.0.0:1", true).is_ok());
        let text = open("0.0.0.0:1", false).unwrap_err().to_string();
        assert!(text.contains("api_keys_file") && text.contains("0.0.0.0:1"), "{text}");
    }

    #[test]
    fn lines_name_what_is_wrong_without_repeating_it() {
        // SHA-256 of "abc", FIPS 180-2 appendix B.1.
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let (hash, caller) = parse_line(&format!("writer {abc} loader")).unwrap();
        assert_eq!(hash, KeyHash::from(Sha256::digest(b"abc")));
        assert_eq!((&*caller.name, caller.access), ("loader", Access::Writer));
        for bad in ["root x y", "reader secret name", &format!("reader {abc}"), &format!("reader {abc} two words")] {
            let reason = parse_line(bad).unwrap_err();
            assert!(!reason.contains("secret"));
        }
    }
}

//! Bad input: one line that says where and what.

use std::path::Path;

/// Something that an operator gave is wrong; nothing has been started. The display is one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{origin}: {detail}")]
pub struct BadInput {
    /// The file, option or address that is wrong.
    pub origin: String,
    /// What is wrong with it, the key first where there is one.
    pub detail: String,
}

impl BadInput {
    /// Both parts are cut to one line, as they may quote the input.
    pub fn new(origin: impl Into<String>, detail: impl Into<String>) -> BadInput {
        BadInput { origin: one_line(&origin.into()), detail: one_line(&detail.into()) }
    }

    /// The same for a file.
    pub fn file(path: &Path, detail: impl Into<String>) -> BadInput {
        BadInput::new(path.display().to_string(), detail)
    }

    /// What TOML's parser said of `text`, with the line and the key at which it stopped.
    pub fn toml(origin: &str, text: &str, error: &toml::de::Error) -> BadInput {
        let place = error.span().map(|span| place_in(text, span.start));
        match place {
            Some((line, Some(key))) => {
                BadInput::new(format!("{origin}:{line}"), format!("{key}: {}", error.message()))
            }
            Some((line, None)) => BadInput::new(format!("{origin}:{line}"), error.message()),
            None => BadInput::new(origin, error.message()),
        }
    }
}

/// The line (from 1) of a byte offset, and the key on it with its table's name in front.
fn place_in(text: &str, offset: usize) -> (usize, Option<String>) {
    let line = text.bytes().take(offset).filter(|&b| b == b'\n').count() + 1;
    let mut key = None;
    let mut table = None;
    for (number, content) in text.lines().enumerate().take(line) {
        let content = content.trim();
        if let Some(name) = content.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            table = Some(name.trim_matches(['[', ']']).to_owned());
        } else if number + 1 == line {
            key = content.split_once('=').map(|(key, _)| key.trim().to_owned());
        }
    }
    let key = match (table, key) {
        (Some(table), Some(key)) => Some(format!("{table}.{key}")),
        (None, key) => key,
        (Some(table), None) => Some(format!("[{table}]")),
    };
    (line, key)
}

/// `text` as one printable line of at most 400 characters, for messages that quote a peer or a file.
pub fn one_line(text: &str) -> String {
    const CHARS_MAX: usize = 400;
    let mut line = String::new();
    for (count, c) in text.trim().chars().enumerate() {
        if count == CHARS_MAX {
            line.push('…');
            break;
        }
        match c {
            '\n' | '\r' | '\t' => line.push(' '),
            c if c.is_control() => line.extend(c.escape_default()),
            c => line.push(c),
        }
    }
    line
}

/// Whether `name` may name a guest: `[A-Za-z0-9._-]{1,64}`, and neither `.` nor `..`, as it becomes part of paths.
pub fn is_guest_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// Whether `name` may name a host: lower-case letters, digits, `-` and `.` as in DNS, up to 64 bytes, no address.
pub fn is_host_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        })
        && name.parse::<std::net::IpAddr>().is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_text_stays_one_line() {
        assert_eq!(one_line("a\nb\u{1b}[31m"), "a b\\u{1b}[31m");
        assert_eq!(one_line(&"x".repeat(1000)).chars().count(), 401);
    }

    #[test]
    fn names() {
        for good in ["a", "node-1", "vm.7", "a_b"] {
            assert!(is_guest_name(good), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "ä", &"x".repeat(65)] {
            assert!(!is_guest_name(bad), "{bad}");
        }
        for good in ["a", "node-1.example"] {
            assert!(is_host_name(good), "{good}");
        }
        for bad in ["", "A", "a..b", "-a", "10.0.0.1", "a_b", "::1"] {
            assert!(!is_host_name(bad), "{bad}");
        }
    }

    #[test]
    fn toml_errors_name_line_and_key() {
        let text = "name = 'a'\n[tls]\nca = 3\n";
        #[derive(Debug, serde::Deserialize)]
        #[allow(dead_code)]
        struct Tls {
            ca: String,
        }
        #[derive(Debug, serde::Deserialize)]
        #[allow(dead_code)]
        struct File {
            name: String,
            tls: Tls,
        }
        let error = toml::from_str::<File>(text).unwrap_err();
        let line = BadInput::toml("x.toml", text, &error).to_string();
        assert!(line.starts_with("x.toml:3: tls.ca: "), "{line}");
    }
}

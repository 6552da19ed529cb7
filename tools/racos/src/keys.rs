//! Keys as people write and read them.
//!
//! A key is any bytes. In text, a printable character stands for itself, `\xNN` for a byte and `\\`
//! for a backslash.
//!
//! Invariant: [`parse`] undoes [`show`] for every key, and what [`show`] gives never contains a
//! control character, so that a key cannot change a terminal or break a line.

use std::fmt::Write;

/// The key that a text stands for.
pub fn parse(text: &str) -> Result<Vec<u8>, String> {
    let mut key = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        key.extend_from_slice(&rest.as_bytes()[..at]);
        let escape = &rest[at + 1..];
        rest = if let Some(after) = escape.strip_prefix('\\') {
            key.push(b'\\');
            after
        } else if let Some(digits) = escape.strip_prefix('x').and_then(|hex| hex.get(..2)) {
            key.push(parse_byte(digits).ok_or_else(|| bad_escape(digits))?);
            &escape[3..]
        } else {
            return Err(bad_escape(escape));
        };
    }
    key.extend_from_slice(rest.as_bytes());
    Ok(key)
}

fn bad_escape(after: &str) -> String {
    let shown: String = after.chars().take(4).collect();
    format!(
        "the key has a backslash before `{shown}`: write \\\\ for a backslash, or \\x and two \
         hexadecimal digits for a byte"
    )
}

fn parse_byte(digits: &str) -> Option<u8> {
    let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    u8::from_str_radix(digits, 16).ok().filter(|_| is_hex)
}

/// The key that pairs of hexadecimal digits stand for.
pub fn parse_hex(text: &str) -> Result<Vec<u8>, String> {
    let pairs = text.as_bytes().chunks(2);
    let bytes = pairs.map(|pair| {
        std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2).and_then(parse_byte)
    });
    let key: Option<Vec<u8>> = bytes.collect();
    key.ok_or_else(|| format!("the key `{text}` is not pairs of hexadecimal digits"))
}

/// A key as text.
pub fn show(key: &[u8]) -> String {
    let mut text = String::with_capacity(key.len());
    for chunk in key.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\\' => text.push_str("\\\\"),
                // Also marks that turn the direction of text, and other invisible ones.
                _ if character.is_control() || is_invisible(character) => {
                    let mut bytes = [0; 4];
                    character.encode_utf8(&mut bytes).bytes().for_each(|b| escape(&mut text, b));
                }
                _ => text.push(character),
            }
        }
        chunk.invalid().iter().for_each(|byte| escape(&mut text, *byte));
    }
    text
}

fn is_invisible(character: char) -> bool {
    const RANGES: [(char, char); 4] = [
        ('\u{200b}', '\u{200f}'),
        ('\u{2028}', '\u{202e}'),
        ('\u{2060}', '\u{206f}'),
        ('\u{feff}', '\u{feff}'),
    ];
    RANGES.iter().any(|(first, last)| (*first..=*last).contains(&character))
}

fn escape(text: &mut String, byte: u8) {
    write!(text, "\\x{byte:02x}").expect("writing to a string");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn plain_text_stands_for_itself_and_the_rest_is_escaped() {
        for (key, text) in [
            (&b"plain/key"[..], "plain/key"),
            ("Füße".as_bytes(), "Füße"),
            (b"tab\there", "tab\\x09here"),
            (b"a\\b", "a\\\\b"),
            (b"\x00\xff", "\\x00\\xff"),
            ("\u{202e}x".as_bytes(), "\\xe2\\x80\\xaex"),
        ] {
            assert_eq!(show(key), text);
            assert_eq!(parse(text).unwrap(), key);
        }
    }

    #[test]
    fn broken_escapes_are_refused_with_the_way_to_write_them() {
        for text in ["\\", "a\\n", "\\x", "\\x1", "\\xg0", "\\x+1", "\\xé"] {
            assert!(parse(text).unwrap_err().contains("two hexadecimal digits"), "{text}");
        }
        assert_eq!(parse_hex("00fF").unwrap(), [0, 255]);
        assert!(parse_hex("0").is_err() && parse_hex("0g").is_err() && parse_hex("é").is_err());
    }

    proptest! {
        #[test]
        fn every_key_survives_being_shown(key in proptest::collection::vec(any::<u8>(), 0..60)) {
            let text = show(&key);
            prop_assert!(!text.chars().any(char::is_control));
            prop_assert_eq!(parse(&text).unwrap(), key);
        }

        #[test]
        fn every_text_survives_being_shown(key in ".{0,40}") {
            prop_assert_eq!(parse(&show(key.as_bytes())).unwrap(), key.as_bytes());
        }
    }
}

//! Keys and values as text: the encodings of `--encoding`, and the escapes that tsv shares.

use std::borrow::Cow;
use std::fmt;

use clap::ValueEnum;
use data_encoding::{BASE64, HEXLOWER, HEXLOWER_PERMISSIVE};

/// How bytes are written as text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Encoding {
    /// The bytes themselves
    #[default]
    Raw,
    /// Two hexadecimal digits a byte
    Hex,
    /// Base64 with padding
    Base64,
    /// UTF-8 with \t \n \r \\ and \xHH for everything else
    Escaped,
}

/// Text that an encoding does not know.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed {
    encoding: &'static str,
    at: usize,
    why: String,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Malformed { encoding, at, why } = self;
        write!(f, "is not {encoding}: {why} at byte {at}")
    }
}

impl Encoding {
    pub fn encode(self, bytes: &[u8]) -> Cow<'_, [u8]> {
        match self {
            Encoding::Raw => Cow::Borrowed(bytes),
            Encoding::Hex => Cow::Owned(HEXLOWER.encode(bytes).into_bytes()),
            Encoding::Base64 => Cow::Owned(BASE64.encode(bytes).into_bytes()),
            Encoding::Escaped => {
                let mut text = Vec::with_capacity(bytes.len());
                escape(bytes, Controls::Escape, &mut text);
                Cow::Owned(text)
            }
        }
    }

    pub fn decode(self, text: &[u8]) -> Result<Vec<u8>, Malformed> {
        match self {
            Encoding::Raw => Ok(text.to_vec()),
            Encoding::Hex => HEXLOWER_PERMISSIVE.decode(text).map_err(|e| malformed("hex", &e)),
            Encoding::Base64 => BASE64.decode(text).map_err(|e| malformed("base64", &e)),
            Encoding::Escaped => unescape(text),
        }
    }
}

fn malformed(encoding: &'static str, error: &data_encoding::DecodeError) -> Malformed {
    Malformed { encoding, at: error.position, why: error.kind.to_string() }
}

/// Whether control characters without a short escape stand for themselves. They do in tsv, whose
/// escapes are pinned; text for people shows them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Controls {
    Keep,
    Escape,
}

/// Appends `bytes` as UTF-8 without tabs, newlines and carriage returns.
pub fn escape(bytes: &[u8], controls: Controls, text: &mut Vec<u8>) {
    for chunk in bytes.utf8_chunks() {
        for &byte in chunk.valid().as_bytes() {
            match byte {
                b'\t' => text.extend_from_slice(b"\\t"),
                b'\n' => text.extend_from_slice(b"\\n"),
                b'\r' => text.extend_from_slice(b"\\r"),
                b'\\' => text.extend_from_slice(b"\\\\"),
                _ if controls == Controls::Escape && byte.is_ascii_control() => {
                    escape_byte(byte, text);
                }
                _ => text.push(byte),
            }
        }
        for &byte in chunk.invalid() {
            escape_byte(byte, text);
        }
    }
}

fn escape_byte(byte: u8, text: &mut Vec<u8>) {
    text.extend_from_slice(b"\\x");
    text.extend_from_slice(HEXLOWER.encode(&[byte]).as_bytes());
}

/// The bytes that escaped text stands for. Bytes that need no escape stand for themselves, so
/// text that other programs wrote can be read too.
pub fn unescape(text: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        if byte != b'\\' {
            bytes.push(byte);
            at += 1;
            continue;
        }
        let (meant, length) = match text.get(at + 1..) {
            Some([b't', ..]) => (b'\t', 2),
            Some([b'n', ..]) => (b'\n', 2),
            Some([b'r', ..]) => (b'\r', 2),
            Some([b'\\', ..]) => (b'\\', 2),
            Some([b'x', high, low, ..]) => match HEXLOWER_PERMISSIVE.decode(&[*high, *low]) {
                Ok(byte) => (byte[0], 4),
                Err(_) => return Err(no_escape(at)),
            },
            _ => return Err(no_escape(at)),
        };
        bytes.push(meant);
        at += length;
    }
    Ok(bytes)
}

fn no_escape(at: usize) -> Malformed {
    let why = r"a backslash without t, n, r, \ or xHH".into();
    Malformed { encoding: "escaped", at, why }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Encoding; 4] = [Encoding::Raw, Encoding::Hex, Encoding::Base64, Encoding::Escaped];

    #[test]
    fn every_encoding_gives_back_every_byte() {
        let every: Vec<u8> = (0..=255).collect();
        let samples: [&[u8]; 6] = [b"", b"plain", &every, "h\u{e4}\u{1f600}".as_bytes(), b"\\x41", b"\xc3"];
        for encoding in ALL {
            for bytes in samples {
                let text = encoding.encode(bytes);
                assert_eq!(encoding.decode(&text).as_deref(), Ok(bytes), "{encoding:?}");
            }
        }
    }

    #[test]
    fn escaped_text() {
        let written = Encoding::Escaped.encode(b"a\t\n\r\\\0\x7f\xff\xc3\xa4");
        assert_eq!(&written[..], b"a\\t\\n\\r\\\\\\x00\\x7f\\xff\xc3\xa4");
        let mut kept = Vec::new();
        escape(b"\0\t\xff", Controls::Keep, &mut kept);
        assert_eq!(kept, b"\0\\t\\xff");
        for bad in ["\\", "\\q", "ab\\x4", "\\xg0", "\\x"] {
            assert!(unescape(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn malformed_text_says_where() {
        let error = Encoding::Hex.decode(b"00zz").map_err(|e| e.to_string());
        assert_eq!(error, Err("is not hex: invalid symbol at byte 2".into()));
        let error = unescape(b"ab\\q").map_err(|e| e.to_string());
        let expected = r"is not escaped: a backslash without t, n, r, \ or xHH at byte 2";
        assert_eq!(error, Err(expected.into()));
    }
}

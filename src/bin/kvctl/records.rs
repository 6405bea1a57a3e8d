//! The formats of `dump` and `load`: one record a line, any bytes in keys and values.

use std::io::{self, Write};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::bytes::{Controls, escape, unescape};
use crate::json::{JsonBuf, JsonBytes};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// {"key": K, "value": V} a line; {"base64": "..."} for what is not UTF-8
    #[default]
    Jsonl,
    /// Key, tab, value a line; \t \n \r \\ and \xHH for what is not UTF-8
    Tsv,
}

/// A key and its value.
pub type Record = (Vec<u8>, Vec<u8>);

#[derive(Serialize)]
struct RecordOut<'a> {
    key: JsonBytes<'a>,
    value: JsonBytes<'a>,
}

/// Unknown fields are refused: they may ask for something that would be lost in silence.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordIn {
    key: JsonBuf,
    value: JsonBuf,
}

impl Format {
    pub fn write(self, out: &mut impl Write, key: &[u8], value: &[u8]) -> io::Result<()> {
        match self {
            Format::Jsonl => {
                let record = RecordOut { key: JsonBytes(key), value: JsonBytes(value) };
                serde_json::to_writer(&mut *out, &record)?;
                out.write_all(b"\n")
            }
            Format::Tsv => {
                let mut line = Vec::with_capacity(key.len() + value.len() + 2);
                escape(key, Controls::Keep, &mut line);
                line.push(b'\t');
                escape(value, Controls::Keep, &mut line);
                line.push(b'\n');
                out.write_all(&line)
            }
        }
    }

    /// The record of a line without its newline; `None` for an empty line.
    pub fn read(self, line: &[u8]) -> Result<Option<Record>, String> {
        match self {
            _ if line.is_empty() => Ok(None),
            Format::Jsonl => serde_json::from_slice(line)
                .map(|RecordIn { key, value }| Some((key.0, value.0)))
                .map_err(|error| without_line_number(&error)),
            Format::Tsv => {
                let mut fields = line.split(|&byte| byte == b'\t');
                let (Some(key), Some(value), None) = (fields.next(), fields.next(), fields.next()) else {
                    return Err("a record is a key, one tab and a value".into());
                };
                let field = |name, text| unescape(text).map_err(|why| format!("the {name} {why}"));
                Ok(Some((field("key", key)?, field("value", value)?)))
            }
        }
    }
}

/// Each line is a document of its own, whose "line 1" would only confuse.
fn without_line_number(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.rsplit_once(" at line ").map_or(&*text, |(what, _)| what);
    format!("{what} at column {}", error.column())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_comes_back() {
        let every: Vec<u8> = (0..=255).collect();
        let samples: [&[u8]; 6] = [b"", b"a", b"\t\n\r\\", &every, "\u{1f600}".as_bytes(), b"\\x41"];
        for format in [Format::Jsonl, Format::Tsv] {
            for key in samples {
                for value in samples {
                    let mut line = Vec::new();
                    format.write(&mut line, key, value).expect("a vector takes all");
                    assert_eq!(line.pop(), Some(b'\n'));
                    assert!(!line.contains(&b'\n') && !line.contains(&b'\r'));
                    assert_eq!(format.read(&line), Ok(Some((key.to_vec(), value.to_vec()))));
                }
            }
        }
    }

    #[test]
    fn bad_lines_are_refused() {
        let jsonl = [
            "x",
            "{}",
            r#"{"key":"a"}"#,
            r#"{"key":"a","value":"b","ttl":1}"#,
            r#"{"key":"a","key":"a","value":"b"}"#,
            r#"{"key":"a","value":7}"#,
            r#"{"key":"a","value":"b"} x"#,
        ];
        for line in jsonl {
            assert!(Format::Jsonl.read(line.as_bytes()).is_err(), "{line}");
        }
        for line in ["a", "a\tb\tc", "a\\q\tb", "a\t\\x4"] {
            assert!(Format::Tsv.read(line.as_bytes()).is_err(), "{line}");
        }
        assert_eq!(Format::Tsv.read(b"\t"), Ok(Some((vec![], vec![]))));
        assert_eq!(Format::Tsv.read(b""), Ok(None));
    }
}

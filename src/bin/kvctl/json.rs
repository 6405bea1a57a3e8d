//! Bytes in JSON: a string where they are UTF-8, else `{"base64": "..."}`.

use std::fmt;
use std::str;

use data_encoding::BASE64;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};

const BASE64_FIELD: &str = "base64";

/// Borrowed bytes on their way out.
pub struct JsonBytes<'a>(pub &'a [u8]);

impl Serialize for JsonBytes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let Ok(text) = str::from_utf8(self.0) {
            return serializer.serialize_str(text);
        }
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry(BASE64_FIELD, &BASE64.encode(self.0))?;
        map.end()
    }
}

/// Owned bytes that were read.
#[derive(Debug, PartialEq, Eq)]
pub struct JsonBuf(pub Vec<u8>);

impl<'de> Deserialize<'de> for JsonBuf {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<JsonBuf, D::Error> {
        deserializer.deserialize_any(BytesVisitor)
    }
}

struct BytesVisitor;

impl<'de> Visitor<'de> for BytesVisitor {
    type Value = JsonBuf;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(r#"a string or {"base64": "..."}"#)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<JsonBuf, E> {
        Ok(JsonBuf(text.into()))
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<JsonBuf, E> {
        Ok(JsonBuf(text.into_bytes()))
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<JsonBuf, M::Error> {
        let Some((field, text)) = map.next_entry::<String, String>()? else {
            return Err(de::Error::missing_field(BASE64_FIELD));
        };
        if field != BASE64_FIELD {
            return Err(de::Error::unknown_field(&field, &[BASE64_FIELD]));
        }
        if map.next_key::<de::IgnoredAny>()?.is_some() {
            return Err(de::Error::custom("more than the field `base64`"));
        }
        let decoded = BASE64.decode(text.as_bytes());
        decoded.map(JsonBuf).map_err(|error| de::Error::custom(format!("bad base64: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back() {
        let every: Vec<u8> = (0..=255).collect();
        for bytes in [&b""[..], b"text \"quoted\"\0\n", "\u{1f600}".as_bytes(), &every, b"\xff"] {
            let text = serde_json::to_string(&JsonBytes(bytes)).expect("bytes are JSON");
            let read: JsonBuf = serde_json::from_str(&text).expect("what was written is read");
            assert_eq!(read.0, bytes, "{text}");
        }
        let written = serde_json::to_string(&JsonBytes(b"\xff\x00")).expect("bytes are JSON");
        assert_eq!(written, r#"{"base64":"/wA="}"#);
    }

    #[test]
    fn anything_else_is_refused() {
        for bad in [
            "7",
            "null",
            "[]",
            "{}",
            r#"{"base64":7}"#,
            r#"{"base64":"/wA"}"#,
            r#"{"base32":"AA"}"#,
            r#"{"base64":"","more":1}"#,
        ] {
            assert!(serde_json::from_str::<JsonBuf>(bad).is_err(), "{bad}");
        }
    }
}

//! Bodies in and out.
//!
//! Invariants: no more than the limit of a request is held, nor of all requests together, and no longer than the timeout
//! is waited for one; an answer is handed over as fast as its client takes it, and what belongs to it is let go when it ends.

use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Request, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::error::ApiError;

/// Bytes of bodies that are held at once, or as much as one body may have.
const MOST_BYTES: usize = 512 << 20;
/// What they are counted in.
const UNIT: usize = 1 << 10;

/// Reads bodies, as many at once as there is memory for; others wait for their turn.
#[derive(Debug)]
pub(crate) struct Reader {
    limit: usize,
    timeout: Duration,
    room: Arc<Semaphore>,
}

/// A body, counted until it is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

impl Deref for Held {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Reader {
    /// For bodies of up to `limit` bytes, each of which arrives within `timeout`.
    pub(crate) fn new(limit: usize, timeout: Duration) -> Reader {
        Reader::with_room(limit, timeout, MOST_BYTES)
    }

    fn with_room(limit: usize, timeout: Duration, most: usize) -> Reader {
        let room = Arc::new(Semaphore::new(units(most.max(limit)) as usize));
        Reader { limit, timeout, room }
    }

    /// Reads a request's body whole.
    pub(crate) async fn read(&self, request: Request<Body>) -> Result<Held, ApiError> {
        let limit = self.limit;
        let too_large = || {
            let message = format!("the body is larger than {limit} bytes; --max-body would allow more");
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
        };
        let declared = request.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        if declared.is_some_and(|n| n > limit as u64) {
            return Err(too_large());
        }
        // A body that does not say how long it is may be as long as any.
        let most = declared.and_then(|n| usize::try_from(n).ok()).unwrap_or(limit);
        let mut room = self.room(most).await?;
        let whole = tokio::time::timeout(self.timeout, Limited::new(request.into_body(), limit).collect());
        let bytes = match whole.await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(e)) if e.is::<LengthLimitError>() => return Err(too_large()),
            Ok(Err(e)) => return Err(ApiError::bad(format!("the body cannot be read: {e}"))),
            Err(_) => {
                let message = format!("the body did not arrive within {} s", self.timeout.as_secs());
                return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, message));
            }
        };
        let spare = room.num_permits().saturating_sub(units(bytes.len()) as usize);
        drop(room.split(spare));
        Ok(Held { bytes, _room: room })
    }

    async fn room(&self, bytes: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        let room = self.room.clone().acquire_many_owned(units(bytes));
        match tokio::time::timeout(self.timeout, room).await {
            Ok(Ok(room)) => Ok(room),
            _ => Err(ApiError::unavailable("other requests' bodies take all the memory there is for them; try again")),
        }
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes / UNIT + 1).unwrap_or(u32::MAX)
}

/// Reads JSON; the message of an error names the field.
pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    if body.is_empty() {
        return Err(ApiError::bad("the body is empty; expected a JSON object"));
    }
    if let Err(e) = std::str::from_utf8(body) {
        let at = e.valid_up_to();
        return Err(ApiError::bad(format!("the body is not UTF-8: byte {at} is invalid")));
    }
    let refused = match typed(body) {
        Ok(parsed) => return Ok(parsed),
        Err(refused) => refused,
    };
    // To JSON, 5.0 is as whole a number as 5.
    let Ok(mut value) = serde_json::from_slice::<Value>(body) else { return Err(refused) };
    make_whole(&mut value);
    serde_json::from_value(value).map_err(|_| refused)
}

fn typed<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let parsed = serde_path_to_error::deserialize(&mut json).map_err(|e| {
        let path = e.path().to_string();
        let inner = e.into_inner();
        let said = in_words(&inner.to_string());
        match path.as_str() {
            "." | "?" => ApiError::bad(format!("the body is not as expected: {said}")),
            _ if inner.is_syntax() || inner.is_eof() => ApiError::bad(format!("the body is not JSON: {said}")),
            _ => ApiError::field(path, said),
        }
    })?;
    json.end().map_err(|e| ApiError::bad(format!("the body is not JSON: {e}")))?;
    Ok(parsed)
}

/// A parser's message, without the names that only this program knows.
fn in_words(message: &str) -> String {
    const WORDS: [(&str, &str); 5] = [
        ("f", "a number"),
        ("i", "a whole number"),
        ("u", "a whole number of at least 0"),
        ("struct ", "an object"),
        ("internally tagged enum ", "an object"),
    ];
    let Some((before, expected)) = message.split_once("expected ") else { return message.to_string() };
    let words = WORDS.iter().find_map(|(begins, words)| {
        let rest = expected.strip_prefix(begins)?;
        let end = rest.find([' ', ',']).unwrap_or(rest.len());
        let is_type = begins.len() > 1 || rest[..end].parse::<u8>().is_ok() || &rest[..end] == "size";
        is_type.then(|| format!("{words}{}", &rest[end..]))
    });
    match words {
        Some(words) => format!("{before}expected {words}"),
        None => message.to_string(),
    }
}

/// Writes whole numbers without a point.
fn make_whole(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(make_whole),
        Value::Object(fields) => fields.values_mut().for_each(make_whole),
        Value::Number(n) if n.is_f64() => {
            // Up to 2^53, where floats stop telling whole numbers apart.
            if let Some(v) = n.as_f64().filter(|v| v.fract() == 0.0 && v.abs() < 9_007_199_254_740_992.0) {
                *value = Value::from(v as i64);
            }
        }
        _ => {}
    }
}

/// A JSON answer.
pub(crate) fn json(value: &Value) -> Response {
    text(StatusCode::OK, "application/json", value.to_string())
}

/// Any answer that is there as a whole.
pub(crate) fn text(status: StatusCode, kind: &'static str, content: impl Into<Body>) -> Response {
    let mut response = Response::new(content.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// An answer that arrives in pieces.
pub(crate) fn stream(kind: &'static str, pieces: mpsc::Receiver<Bytes>) -> Response {
    let mut response = text(StatusCode::OK, kind, Body::new(Pieces(pieces)));
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// A body whose pieces another task makes. Dropped when the client goes away: then the channel closes.
struct Pieces(mpsc::Receiver<Bytes>);

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::convert::Infallible>>> {
        self.0.poll_recv(cx).map(|piece| piece.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// A body that keeps something alive until it has been sent or dropped.
pub(crate) struct Kept<G> {
    pub(crate) inner: Body,
    pub(crate) _guard: G,
}

impl<G: Unpin> HttpBody for Kept<G> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Sample {
        list: Vec<u8>,
    }

    #[tokio::test]
    async fn bodies_wait_where_others_take_all_the_room() {
        let reader = Reader::with_room(100_000, Duration::from_millis(20), 150_000);
        let request = |len: usize| {
            let request = Request::builder().header(header::CONTENT_LENGTH, len);
            request.body(Body::from(vec![b'x'; len])).unwrap()
        };
        let first = reader.read(request(90_000)).await.unwrap();
        assert_eq!(first.len(), 90_000);
        let refused = reader.read(request(80_000)).await.unwrap_err();
        assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
        // Small ones still fit; one without a length counts as the largest, until it is known.
        let small = reader.read(request(1000)).await.unwrap();
        let unknown = || Request::new(Body::from(vec![b'x'; 10]));
        assert!(reader.read(unknown()).await.is_err());
        drop((first, small));
        let many: Vec<Held> = [reader.read(unknown()).await.unwrap(), reader.read(unknown()).await.unwrap()].into();
        assert_eq!(reader.room.available_permits(), 147 - many.len());
        assert_eq!(reader.read(request(100_001)).await.unwrap_err().status, StatusCode::PAYLOAD_TOO_LARGE);
    }

    #[test]
    fn messages_name_the_field() {
        let message = |body: &[u8]| parse::<Sample>(body).unwrap_err();
        assert_eq!(parse::<Sample>(br#"{"list": [1]}"#).unwrap().list, [1]);
        assert_eq!(message(br#"{"list": [1, "x"]}"#).param.unwrap(), "list[1]");
        assert_eq!(parse::<Sample>(br#"{"list": [1.0]}"#).unwrap().list, [1]);
        assert!(parse::<Sample>(br#"{"list": [1.5]}"#).is_err() && parse::<Sample>(br#"{"list": [-1.0]}"#).is_err());
        let wrong = message(br#"{"list": "x"}"#).message;
        assert!(wrong.contains("expected a sequence"), "{wrong}");
        let wrong = message(br#"{"list": ["x"]}"#).message;
        assert!(wrong.contains("expected a whole number of at least 0 at line 1"), "{wrong}");
        let wrong = message(b"5").message;
        assert!(wrong.contains("expected an object at line 1") && !wrong.contains("Sample"), "{wrong}");
        assert!(message(br#"{"list": [1"#).message.contains("not JSON"));
        assert!(message(b"{\"list\": \"\xff\"}").message.contains("byte 10"));
        assert!(message(b"[]").message.contains("not as expected"));
        assert!(message(br#"{"list": []} x"#).message.contains("trailing"));
        assert!(message(b"").message.contains("empty"));
        let deep = vec![b'['; 100_000];
        assert!(parse::<Value>(&deep).is_err());
    }
}

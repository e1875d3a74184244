//! Bodies in and out.
//!
//! Invariants: no more than the limit of a request is held, and no longer than the timeout is waited for it; an
//! answer is handed over as fast as its client takes it, and what belongs to it is let go when it ends.

use std::pin::Pin;
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
use tokio::sync::mpsc;

use crate::error::ApiError;

/// Reads a request's body whole.
pub(crate) async fn read(request: Request<Body>, limit: usize, timeout: Duration) -> Result<Bytes, ApiError> {
    let too_large = || {
        let message = format!("the body is larger than {limit} bytes; --max-body would allow more");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    };
    let declared = request.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|n| n > limit as u64) {
        return Err(too_large());
    }
    let whole = tokio::time::timeout(timeout, Limited::new(request.into_body(), limit).collect());
    match whole.await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(e)) if e.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(e)) => Err(ApiError::bad(format!("the body cannot be read: {e}"))),
        Err(_) => {
            let message = format!("the body did not arrive within {} s", timeout.as_secs());
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, message))
        }
    }
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
        match path.as_str() {
            "." | "?" => ApiError::bad(format!("the body is not as expected: {inner}")),
            _ if inner.is_syntax() || inner.is_eof() => ApiError::bad(format!("the body is not JSON: {inner}")),
            _ => ApiError::field(path, inner),
        }
    })?;
    json.end().map_err(|e| ApiError::bad(format!("the body is not JSON: {e}")))?;
    Ok(parsed)
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

    #[test]
    fn messages_name_the_field() {
        let message = |body: &[u8]| parse::<Sample>(body).unwrap_err();
        assert_eq!(parse::<Sample>(br#"{"list": [1]}"#).unwrap().list, [1]);
        assert_eq!(message(br#"{"list": [1, "x"]}"#).param.unwrap(), "list[1]");
        assert_eq!(parse::<Sample>(br#"{"list": [1.0]}"#).unwrap().list, [1]);
        assert!(parse::<Sample>(br#"{"list": [1.5]}"#).is_err() && parse::<Sample>(br#"{"list": [-1.0]}"#).is_err());
        assert!(message(br#"{"list": [1"#).message.contains("not JSON"));
        assert!(message(b"{\"list\": \"\xff\"}").message.contains("byte 10"));
        assert!(message(b"[]").message.contains("not as expected"));
        assert!(message(br#"{"list": []} x"#).message.contains("trailing"));
        assert!(message(b"").message.contains("empty"));
        let deep = vec![b'['; 100_000];
        assert!(parse::<Value>(&deep).is_err());
    }
}

//! What goes wrong, in the shape that each dialect expects.
//!
//! Invariant: every answer that is no success has its dialect's error object, whoever refused: the router, a parser,
//! the engine.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// Whose clients are asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    OpenAi,
    Anthropic,
    Ollama,
}

impl Dialect {
    /// Each dialect has paths of its own.
    pub(crate) fn of_path(path: &str) -> Dialect {
        match path {
            p if p.starts_with("/api/") => Dialect::Ollama,
            p if p == "/v1/messages" || p.starts_with("/v1/messages/") => Dialect::Anthropic,
            _ => Dialect::OpenAi,
        }
    }
}

/// A refusal or a failure.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    /// The field that is wrong.
    pub(crate) param: Option<String>,
    /// OpenAI's word for it.
    pub(crate) code: Option<&'static str>,
    /// Seconds until another try makes sense.
    pub(crate) retry_after: Option<u64>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> ApiError {
        ApiError { status, message: message.into(), param: None, code: None, retry_after: None }
    }

    /// The request cannot succeed as it is.
    pub(crate) fn bad(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, message)
    }

    /// The same, and this field is why.
    pub(crate) fn field(param: impl Into<String>, message: impl std::fmt::Display) -> ApiError {
        let param = param.into();
        ApiError { param: Some(param.clone()), ..ApiError::bad(format!("{param}: {message}")) }
    }

    pub(crate) fn unauthorized(message: &str) -> ApiError {
        ApiError { code: Some("invalid_api_key"), ..ApiError::new(StatusCode::UNAUTHORIZED, message) }
    }

    pub(crate) fn forbidden(message: &str) -> ApiError {
        ApiError::new(StatusCode::FORBIDDEN, message)
    }

    pub(crate) fn no_model(name: &str, known: &[String]) -> ApiError {
        let message = format!("there is no model `{name}` here; there is {}", known.join(", "));
        let param = Some("model".to_string());
        ApiError { param, code: Some("model_not_found"), ..ApiError::new(StatusCode::NOT_FOUND, message) }
    }

    pub(crate) fn too_many(message: impl Into<String>, retry_after: u64) -> ApiError {
        let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, message);
        ApiError { code: Some("rate_limit_exceeded"), retry_after: Some(retry_after), ..error }
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> ApiError {
        ApiError { retry_after: Some(1), ..ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message) }
    }

    pub(crate) fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// The error object of a dialect.
    pub(crate) fn body(&self, dialect: Dialect) -> Value {
        match dialect {
            Dialect::OpenAi => json!({ "error": {
                "message": self.message,
                "type": self.openai_type(),
                "param": self.param,
                "code": self.code,
            } }),
            Dialect::Anthropic => {
                json!({ "type": "error", "error": { "type": self.anthropic_type(), "message": self.message } })
            }
            Dialect::Ollama => json!({ "error": self.message }),
        }
    }

    fn openai_type(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            503 => "overloaded_error",
            400..500 => "invalid_request_error",
            _ => "server_error",
        }
    }

    fn anthropic_type(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            503 => "overloaded_error",
            400..500 => "invalid_request_error",
            _ => "api_error",
        }
    }

    /// The whole response.
    pub(crate) fn response(&self, dialect: Dialect) -> Response {
        let mut response = Response::new(Body::from(self.body(dialect).to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl IntoResponse for ApiError {
    /// Carries the error to the gate, which knows the dialect.
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = self.status;
        response.extensions_mut().insert(self);
        response
    }
}

impl From<pelton::Error> for ApiError {
    fn from(error: pelton::Error) -> ApiError {
        match error {
            pelton::Error::Submit(refused) => refused.into(),
            pelton::Error::Text { source, .. } => ApiError::field("messages", source),
            other if other.kind() == pelton::ErrorKind::Usage => ApiError::bad(other.to_string()),
            other => ApiError::internal(other.to_string()),
        }
    }
}

impl From<pelton::SubmitError> for ApiError {
    fn from(refused: pelton::SubmitError) -> ApiError {
        use pelton::SubmitError as Refused;
        let message = refused.to_string();
        match refused {
            Refused::Stopped | Refused::Failed(_) => ApiError::unavailable(message),
            Refused::QueueFull { .. } => ApiError::too_many(message, 2),
            Refused::PromptTooLong { .. } => {
                let code = Some("context_length_exceeded");
                ApiError { param: Some("messages".into()), code, ..ApiError::bad(message) }
            }
            _ => ApiError::bad(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_dialect_has_its_shape() {
        let error = ApiError::field("top_p", "expected a number");
        assert_eq!(
            error.body(Dialect::OpenAi),
            json!({ "error": { "message": "top_p: expected a number", "type": "invalid_request_error", "param": "top_p", "code": null } })
        );
        assert_eq!(error.body(Dialect::Anthropic)["error"]["type"], "invalid_request_error");
        assert_eq!(error.body(Dialect::Ollama), json!({ "error": "top_p: expected a number" }));
        let busy = ApiError::too_many("busy", 7).response(Dialect::OpenAi);
        assert_eq!((busy.status().as_u16(), busy.headers()["retry-after"].to_str().unwrap()), (429, "7"));
    }

    #[test]
    fn paths_tell_dialects() {
        assert_eq!(Dialect::of_path("/api/chat"), Dialect::Ollama);
        assert_eq!(Dialect::of_path("/v1/messages/count_tokens"), Dialect::Anthropic);
        assert_eq!(Dialect::of_path("/v1/messagesx"), Dialect::OpenAi);
        assert_eq!(Dialect::of_path("/nowhere"), Dialect::OpenAi);
    }
}

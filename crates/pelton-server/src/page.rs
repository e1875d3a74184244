//! The web page: three files in the binary.
//!
//! Invariant: the page loads nothing from elsewhere and runs no script but its own; the browser is told to see to it.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;

use crate::body;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

fn file(kind: &'static str, content: &'static str) -> Response {
    let mut response = body::text(StatusCode::OK, kind, content);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// `GET /`
pub(crate) async fn index() -> Response {
    file("text/html; charset=utf-8", include_str!("../web/index.html"))
}

/// `GET /app.js`
pub(crate) async fn script() -> Response {
    file("text/javascript; charset=utf-8", include_str!("../web/app.js"))
}

/// `GET /style.css`
pub(crate) async fn style() -> Response {
    file("text/css; charset=utf-8", include_str!("../web/style.css"))
}

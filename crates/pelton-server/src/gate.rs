//! What every request passes on its way in, and every answer on its way out.
//!
//! Invariants: nothing is read before the key was checked; every error leaves in its dialect's shape; each request has
//! one line in the log, without a word of its prompt.

use std::sync::{Arc, PoisonError};
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::access::{Turn, allowed_origin, check_origin, identify};
use crate::body::Kept;
use crate::error::{ApiError, Dialect};
use crate::{App, Visit};

/// Paths that everybody may see: they tell nothing and compute nothing.
const PUBLIC: [&str; 5] = ["/", "/app.js", "/style.css", "/health", "/ready"];

/// Kept until an answer has been sent: a place among the key's requests, and the line of the log.
struct Farewell {
    _turn: Option<Turn>,
    app: Arc<App>,
    visit: Visit,
    line: String,
    begun: Instant,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        let note = self.visit.note.lock().unwrap_or_else(PoisonError::into_inner);
        let key = match self.visit.caller.tenant {
            0 => String::new(),
            n => format!(" key {n}"),
        };
        let ms = self.begun.elapsed().as_secs_f64() * 1e3;
        (self.app.options.log)(format!("{}{key} {ms:.1} ms {note}", self.line).trim_end());
    }
}

/// The outermost layer.
pub(crate) async fn gate(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let (method, path) = (request.method().clone(), request.uri().path().to_string());
    let dialect = Dialect::of_path(&path);
    let origin = request.headers().get(header::ORIGIN).cloned();
    let mut visit = Visit::default();
    let mut turn = None;
    let mut response = match admit(&app, &method, &path, request.headers()) {
        Err(error) => error.into_response(),
        Ok(Entry::Preflight) => preflight(),
        Ok(Entry::Visitor(caller)) => {
            visit.caller = caller;
            let counted = method == Method::POST;
            let entered =
                if counted { app.stile.enter(caller, app.options.key_concurrency).map(Some) } else { Ok(None) };
            match entered {
                Err(error) => error.into_response(),
                Ok(entered) => {
                    turn = entered;
                    request.extensions_mut().insert(visit.clone());
                    next.run(request).await
                }
            }
        }
    };
    if response.status().is_client_error() || response.status().is_server_error() {
        response = shaped(response, dialect, &method, &path);
    }
    dress(&app, response.headers_mut(), origin.as_ref());
    let route = visit.route.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(route) = route.and_then(|r| HeaderValue::try_from(r).ok()) {
        response.headers_mut().insert("x-pelton-route", route);
    }
    app.metrics.count_response(response.status().as_u16());
    // A path may hold anything; the line is for people.
    let shown: String = path.chars().filter(|c| !c.is_control()).take(200).collect();
    let line = format!("{method} {shown} {}", response.status().as_u16());
    let farewell = Farewell { _turn: turn, app, visit, line, begun };
    response.map(|inner| Body::new(Kept { inner, _guard: farewell }))
}

enum Entry {
    /// A browser asks whether it may ask.
    Preflight,
    Visitor(crate::access::Caller),
}

fn admit(app: &App, method: &Method, path: &str, headers: &HeaderMap) -> Result<Entry, ApiError> {
    check_origin(&app.options, headers)?;
    let asks = headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD) && headers.contains_key(header::ORIGIN);
    if method == Method::OPTIONS && asks {
        return Ok(Entry::Preflight);
    }
    if app.is_draining() && method == Method::POST {
        return Err(ApiError::unavailable("the server is stopping"));
    }
    if PUBLIC.contains(&path) && (method == Method::GET || method == Method::HEAD) {
        return Ok(Entry::Visitor(Default::default()));
    }
    Ok(Entry::Visitor(identify(&app.options, headers)?))
}

fn preflight() -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
    let allowed = "authorization, content-type, x-api-key, anthropic-version, anthropic-beta, \
                   anthropic-dangerous-direct-browser-access, x-stainless-arch, x-stainless-lang, x-stainless-os, \
                   x-stainless-package-version, x-stainless-retry-count, x-stainless-runtime, \
                   x-stainless-runtime-version, x-stainless-timeout, x-stainless-helper-method";
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(allowed));
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    response
}

/// An error in its dialect's words, whoever made it.
fn shaped(mut response: Response, dialect: Dialect, method: &Method, path: &str) -> Response {
    let allow = response.headers().get(header::ALLOW).cloned();
    let error = match response.extensions_mut().remove::<ApiError>() {
        Some(error) => error,
        None if response.headers().get(header::CONTENT_TYPE).is_some_and(|t| t == "application/json") => {
            return response;
        }
        None => {
            let path: String = path.chars().take(200).collect();
            let message = match response.status() {
                StatusCode::METHOD_NOT_ALLOWED => format!("{path} does not take {method}"),
                StatusCode::BAD_REQUEST => format!("{path} is no path that can be read"),
                _ => format!("there is nothing at {path}"),
            };
            ApiError::new(response.status(), message)
        }
    };
    let mut shaped = error.response(dialect);
    if let Some(allow) = allow {
        shaped.headers_mut().insert(header::ALLOW, allow);
    }
    shaped
}

/// Headers that all answers have.
fn dress(app: &App, headers: &mut HeaderMap, origin: Option<&HeaderValue>) {
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    let Some(origin) = origin else { return };
    if origin.to_str().is_ok_and(|o| allowed_origin(&app.options, o)) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        headers.insert(header::VARY, HeaderValue::from_static("origin"));
    }
}

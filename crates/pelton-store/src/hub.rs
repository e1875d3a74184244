//! The hub over HTTP: the listing of a repository, and the bytes of a file from an offset.
//!
//! Redirects are followed here, one by one, because the hub sends large files to other hosts with signed addresses.
//! Requests are those of the hub's public API: `GET /api/models/REPO/revision/REV?blobs=true` and
//! `GET /REPO/resolve/COMMIT/FILE`.
//!
//! Invariants: the token goes to the endpoint's origin only; a redirect never leads from https to http; every answer
//! is read up to a bound.

use std::io::Read;
use std::time::Duration;

use ureq::http::{HeaderMap, Response};
use ureq::{Agent, Body, Proxy};

use crate::address::{join, origin_of, percent_encode, without_query};
use crate::digest::ContentHash;
use crate::error::clip;
use crate::listing::Listing;
use crate::{ModelSpec, StoreError, StoreOptions};

/// Larger listings are refused; the largest on the public hub stay well below.
const MAX_LISTING_BYTES: u64 = 32 << 20;
const MAX_REDIRECTS: usize = 8;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// A server may ask for a pause, but not for one that looks like a hang.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// Why a request brought nothing.
#[derive(Debug)]
pub(crate) enum Fault {
    /// It may work the next time.
    Retry {
        /// What happened.
        reason: String,
        /// How long the server asked to wait.
        wait: Option<Duration>,
        /// Whether no connection came about at all.
        unreachable: bool,
    },
    /// It will not.
    Stop(StoreError),
}

impl Fault {
    /// A passing failure of a connection that was up.
    pub(crate) fn retry(reason: impl Into<String>) -> Self {
        Self::Retry { reason: reason.into(), wait: None, unreachable: false }
    }
}

/// An answer whose body has not been read.
pub(crate) struct Reply {
    /// The status of the last hop.
    pub(crate) status: u16,
    /// The address of the last hop, without its query.
    pub(crate) url: String,
    response: Response<Body>,
    from_hub: bool,
}

impl Reply {
    /// A header of the last hop, when it is text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        header(self.response.headers(), name)
    }

    /// The length that the last hop announced for this body.
    pub(crate) fn content_length(&self) -> Option<u64> {
        self.header("content-length")?.trim().parse().ok()
    }

    /// The body.
    pub(crate) fn into_reader(self) -> impl Read {
        self.response.into_body().into_reader()
    }
}

/// A client of one hub.
#[derive(Debug)]
pub(crate) struct Hub {
    agent: Agent,
    /// Without a slash at the end.
    endpoint: String,
    origin: String,
    token: Option<Token>,
    patience: Patience,
}

/// A token that does not print.
struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(hidden)")
    }
}

impl Hub {
    /// Checks the options that concern the network; makes no connection.
    pub(crate) fn new(options: &StoreOptions) -> Result<Self, StoreError> {
        let bad = |option, reason: &str| StoreError::BadOption { option, reason: reason.to_owned() };
        let endpoint = options.endpoint.trim_end_matches('/').to_owned();
        let usable = !endpoint.contains(['?', '#', '@']) && !endpoint.chars().any(|c| c.is_control() || c == ' ');
        let origin = origin_of(&endpoint).filter(|_| usable).ok_or_else(|| {
            bad("HF_ENDPOINT", "it must look like https://host or http://host:port/path, without user or query")
        })?;
        let token = options.token.clone().map(Token);
        if token.as_ref().is_some_and(|token| token.0.is_empty() || !token.0.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(bad("HF_TOKEN", "it is empty or holds a character that no token has"));
        }
        let config = Agent::config_builder()
            .proxy(proxy(options)?)
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("pelton/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(CONNECT_TIMEOUT))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(options.timeout))
            .timeout_per_read(Some(options.timeout))
            .timeout_per_write(Some(options.timeout))
            .build();
        let patience = Patience { max_attempts: options.max_attempts.max(1), backoff: options.backoff, n_failed: 0 };
        Ok(Self { agent: config.new_agent(), endpoint, origin, token, patience })
    }

    /// A fresh count of failures.
    pub(crate) fn patience(&self) -> Patience {
        self.patience.clone()
    }

    /// The hub's address, as the user gave it.
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Where a file's bytes are.
    pub(crate) fn file_url(&self, repo: &str, commit: &str, file: &str) -> String {
        let path: Vec<String> = file.split('/').map(percent_encode).collect();
        format!("{}/{repo}/resolve/{commit}/{}", self.endpoint, path.join("/"))
    }

    /// The files of a repository at the revision of `spec`.
    pub(crate) fn listing(&self, spec: &ModelSpec) -> Result<Listing, StoreError> {
        let revision = percent_encode(spec.revision_or_main());
        let url = format!("{}/api/models/{}/revision/{revision}?blobs=true", self.endpoint, spec.repo());
        let body = self.patiently(|| {
            let reply = self.get(&url, None)?;
            self.check_status(&reply, spec, &spec.to_string())?;
            let mut body = Vec::new();
            let mut reader = reply.into_reader().take(MAX_LISTING_BYTES + 1);
            reader.read_to_end(&mut body).map_err(|error| Fault::retry(error.to_string()))?;
            Ok(body)
        })?;
        let bad = |reason: String| StoreError::BadResponse { url: without_query(&url), reason };
        if body.len() as u64 > MAX_LISTING_BYTES {
            return Err(bad(format!("the listing is larger than {MAX_LISTING_BYTES} bytes")));
        }
        Listing::parse(&body).map_err(bad)
    }

    /// Hash and size of a file that the listing left without, from the headers of its address.
    pub(crate) fn headers_of(&self, spec: &ModelSpec, url: &str, file: &str) -> Result<(ContentHash, u64), StoreError> {
        let (hash, size) = self.patiently(|| {
            let mut url = url.to_owned();
            for _ in 0..MAX_REDIRECTS {
                let reply = self.send(self.agent.head(&url), &url)?;
                let target = redirect_target(&reply, &url)?;
                // Where the hub hands over to another host, the hub's own headers describe the file.
                match target.filter(|target| self.is_hub(target)) {
                    Some(target) => url = target,
                    None => {
                        if !(300..400).contains(&reply.status) {
                            self.check_status(&reply, spec, &format!("{file} of {spec}"))?;
                        }
                        let hash = reply.header("x-linked-etag").or_else(|| reply.header("etag"));
                        let linked = reply.header("x-linked-size").and_then(|size| size.trim().parse().ok());
                        return Ok((hash.and_then(ContentHash::parse), linked.or_else(|| reply.content_length())));
                    }
                }
            }
            Err(too_many_redirects(&url))
        })?;
        hash.zip(size).ok_or_else(|| StoreError::BadResponse {
            url: without_query(url),
            reason: format!("neither the listing nor the headers give the size and the hash of {file}"),
        })
    }

    /// Asks for a file, from `offset` on where one is given, and follows redirects.
    pub(crate) fn get(&self, url: &str, offset: Option<u64>) -> Result<Reply, Fault> {
        let mut url = url.to_owned();
        for _ in 0..MAX_REDIRECTS {
            let mut request = self.agent.get(&url).header("accept-encoding", "identity");
            if let Some(offset) = offset {
                request = request.header("range", format!("bytes={offset}-"));
            }
            let reply = self.send(request, &url)?;
            match redirect_target(&reply, &url)? {
                Some(target) => url = target,
                None => return Ok(reply),
            }
        }
        Err(too_many_redirects(&url))
    }

    /// Sends one request, with the token if it goes to the hub itself.
    fn send(&self, mut request: ureq::RequestBuilder<ureq::typestate::WithoutBody>, url: &str) -> Result<Reply, Fault> {
        let from_hub = self.is_hub(url);
        if let Some(Token(token)) = self.token.as_ref().filter(|_| from_hub) {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let response = request.call().map_err(|error| self.fault(error, url))?;
        Ok(Reply { status: response.status().as_u16(), url: without_query(url), response, from_hub })
    }

    fn is_hub(&self, url: &str) -> bool {
        origin_of(url).is_some_and(|origin| origin == self.origin)
    }

    /// Turns a status that is not success into a fault; `what` names what was asked for.
    pub(crate) fn check_status(&self, reply: &Reply, spec: &ModelSpec, what: &str) -> Result<(), Fault> {
        let said = reply.header("x-error-message").map(|text| clip(text, 300));
        let detail = said.map(|text| format!(", \"{text}\"")).unwrap_or_default();
        let (status, url, endpoint, repo) = (reply.status, reply.url.clone(), self.endpoint.clone(), spec.repo());
        match status {
            200..=299 => Ok(()),
            401 | 403 if reply.from_hub => {
                let advice = if self.token.is_some() {
                    format!(
                        "the token that is set has no access; ask for it at {endpoint}/{repo} with the same account"
                    )
                } else {
                    format!("it is private, gated or not there; accept its terms at {endpoint}/{repo} and set HF_TOKEN")
                };
                Err(Fault::Stop(StoreError::Denied { endpoint, repo, status, detail, advice }))
            }
            404 | 410 if reply.from_hub => {
                Err(Fault::Stop(StoreError::NotFound { what: what.to_owned(), endpoint, detail }))
            }
            // A signed address that ran out answers 401 to 404 too; the next attempt asks the hub for a new one.
            401..=404 | 408 | 410 | 425 | 429 | 500..=599 => {
                let wait = reply.header("retry-after").and_then(|seconds| seconds.trim().parse().ok());
                let wait = wait.map(|seconds| Duration::from_secs(seconds).min(MAX_RETRY_AFTER));
                Err(Fault::Retry { reason: format!("{url} answered HTTP {status}{detail}"), wait, unreachable: false })
            }
            _ => Err(Fault::Stop(StoreError::Status { url, status, detail })),
        }
    }

    /// Runs a small request until it works, stops, or patience ends.
    fn patiently<T>(&self, mut request: impl FnMut() -> Result<T, Fault>) -> Result<T, StoreError> {
        let mut patience = self.patience();
        // Nobody watches a bar yet: give up sooner than in the middle of a download.
        patience.max_attempts = patience.max_attempts.min(3);
        loop {
            match request() {
                Ok(value) => return Ok(value),
                Err(Fault::Stop(error)) => return Err(error),
                Err(Fault::Retry { reason, wait, .. }) => match patience.next_wait(wait) {
                    Some(wait) => std::thread::sleep(wait),
                    None => return Err(StoreError::Unreachable { endpoint: self.endpoint.clone(), reason }),
                },
            }
        }
    }

    /// Sorts the client's errors into those that may pass and those that will not.
    fn fault(&self, error: ureq::Error, url: &str) -> Fault {
        let host = origin_of(url).filter(|origin| *origin != self.origin);
        let reason = host.map_or_else(|| error.to_string(), |host| format!("{host}: {error}"));
        match error {
            ureq::Error::Protocol(_) => Fault::retry(reason),
            ureq::Error::Io(_)
            | ureq::Error::Timeout(_)
            | ureq::Error::HostNotFound
            | ureq::Error::ConnectionFailed => Fault::Retry { reason, wait: None, unreachable: true },
            _ => Fault::Stop(StoreError::Unreachable { endpoint: self.endpoint.clone(), reason }),
        }
    }
}

/// Counts failures in a row and says how long to wait after each.
#[derive(Debug, Clone)]
pub(crate) struct Patience {
    max_attempts: u32,
    backoff: Duration,
    n_failed: u32,
}

impl Patience {
    /// How many attempts in a row have failed.
    pub(crate) fn n_failed(&self) -> u32 {
        self.n_failed
    }

    /// Counts a failure; `None` when it was one too many.
    pub(crate) fn next_wait(&mut self, asked: Option<Duration>) -> Option<Duration> {
        self.n_failed += 1;
        let doubled = self.backoff.saturating_mul(1 << (self.n_failed - 1).min(4));
        (self.n_failed < self.max_attempts).then(|| doubled.max(asked.unwrap_or_default()))
    }

    /// Forgets failures, after real progress.
    pub(crate) fn reset(&mut self) {
        self.n_failed = 0;
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The proxy of the options; the client's own look at the environment stays unused.
fn proxy(options: &StoreOptions) -> Result<Option<Proxy>, StoreError> {
    let Some(address) = &options.proxy else { return Ok(None) };
    // The address may hold a password, so the message does not repeat it.
    let bad =
        |error: ureq::Error| StoreError::BadOption { option: "the proxy (HTTPS_PROXY)", reason: error.to_string() };
    let proxy = Proxy::new(address).map_err(bad)?;
    let Some(exceptions) = &options.no_proxy else { return Ok(Some(proxy)) };
    let mut builder = Proxy::builder(proxy.protocol()).host(proxy.host()).port(proxy.port());
    if let Some(user) = proxy.username() {
        builder = builder.username(user);
    }
    if let Some(password) = proxy.password() {
        builder = builder.password(password);
    }
    for exception in exceptions.split(',').map(str::trim).filter(|exception| !exception.is_empty()) {
        builder = builder.no_proxy(exception);
    }
    builder.build().map(Some).map_err(bad)
}

fn too_many_redirects(url: &str) -> Fault {
    let reason = format!("more than {MAX_REDIRECTS} redirects");
    Fault::Stop(StoreError::BadResponse { url: without_query(url), reason })
}

/// Where a reply sends us, if it does.
fn redirect_target(reply: &Reply, url: &str) -> Result<Option<String>, Fault> {
    if !matches!(reply.status, 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let bad =
        |reason: &str| Fault::Stop(StoreError::BadResponse { url: without_query(url), reason: reason.to_owned() });
    let location = reply.header("location").ok_or_else(|| bad("it redirects without saying where to"))?;
    let target = join(url, location).ok_or_else(|| bad("it redirects to something that is no web address"))?;
    if url.starts_with("https://") && !target.starts_with("https://") {
        return Err(bad("it redirects from https to an unencrypted address"));
    }
    Ok(Some(target))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound() {
        let mut patience = Patience { max_attempts: 8, backoff: Duration::from_secs(1), n_failed: 0 };
        let waits: Vec<u64> = std::iter::from_fn(|| patience.next_wait(None)).map(|wait| wait.as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 16, 16]);
    }

    #[test]
    fn unusable_endpoints_tokens_and_proxies_are_refused_without_showing_secrets() {
        let options = |change: fn(&mut StoreOptions)| {
            let mut options = StoreOptions::new("/nowhere");
            change(&mut options);
            Hub::new(&options).unwrap_err().to_string()
        };
        assert!(options(|o| o.endpoint = "huggingface.co".into()).contains("HF_ENDPOINT"));
        assert!(options(|o| o.endpoint = "https://u:secret@h".into()).contains("without user"));
        let message = options(|o| o.token = Some("hf_secret\nx".into()));
        assert!(message.contains("HF_TOKEN") && !message.contains("hf_secret"), "{message}");
        let message = options(|o| o.proxy = Some("http://u:secret@".into()));
        assert!(message.contains("HTTPS_PROXY") && !message.contains("secret"), "{message}");
        let mut good = StoreOptions::new("/nowhere");
        good.proxy = Some("http://user:pass@proxy:3128".into());
        good.no_proxy = Some("localhost, .internal,".into());
        good.token = Some("hf_secret".into());
        assert!(!format!("{:?}", crate::Store::new(good).unwrap()).contains("hf_secret"));
    }
}

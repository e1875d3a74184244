//! What a server is told at its start.
//!
//! Invariant: a server that others can reach has keys, or somebody said in so many words that it needs none.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::access::Keys;

/// Receives one line of the log at a time.
pub type LogSink = Arc<dyn Fn(&str) + Send + Sync>;

/// How a server listens, whom it lets in, and how much it bears.
#[derive(Clone)]
pub struct ServerOptions {
    /// Where to listen; port 0 is any free one.
    pub address: SocketAddr,
    /// Keys of which every request must carry one; none lets everybody in.
    pub keys: Keys,
    /// Listen beyond this machine without a key.
    pub insecure_no_auth: bool,
    /// Origins of web pages (`https://example.org`) that may use the server; `*` is all.
    pub cors_origins: Vec<String>,
    /// Let the requests of different keys share computed prefixes: the time that an answer takes, and its count of
    /// cached tokens, then tell one key what others have asked.
    pub share_prefixes: bool,
    /// What the machine could do at best, for the share of it in `/metrics`.
    pub ceilings: Option<pelton::Ceilings>,
    /// Requests of one key at once.
    pub key_concurrency: Option<usize>,
    /// Connections at once.
    pub max_connections: usize,
    /// Bytes of a request's body.
    pub max_body: usize,
    /// How long the headers of a request, and then its body, may take to arrive.
    pub read_timeout: Duration,
    /// How long a client may take none of its answer before it is given up.
    pub write_timeout: Duration,
    /// How long a request may take where it does not say so itself.
    pub deadline: Option<Duration>,
    /// How long running requests may go on once the server is told to stop.
    pub drain: Duration,
    /// Serve the web page.
    pub page: bool,
    /// Put prompts and answers into the log.
    pub log_prompts: bool,
    /// Say in the log why a prompt's beginning was computed again. Lines quote the prompt.
    pub log_cache: bool,
    /// The log.
    pub log: LogSink,
}

impl Default for ServerOptions {
    /// This machine only, port 8080, no keys, no log.
    fn default() -> ServerOptions {
        ServerOptions {
            address: (Ipv4Addr::LOCALHOST, 8080).into(),
            keys: Keys::default(),
            insecure_no_auth: false,
            cors_origins: Vec::new(),
            share_prefixes: false,
            ceilings: None,
            key_concurrency: None,
            max_connections: 4096,
            max_body: 8 << 20,
            read_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            deadline: None,
            drain: Duration::from_secs(30),
            page: true,
            log_prompts: false,
            log_cache: false,
            log: Arc::new(|_| ()),
        }
    }
}

impl ServerOptions {
    /// Refuses what would let strangers in.
    ///
    /// # Errors
    /// A sentence that says what to do.
    pub fn check(&self) -> Result<(), String> {
        let open = self.keys.is_empty() && !self.insecure_no_auth;
        if open && !is_loopback(self.address.ip()) {
            return Err(format!(
                "{} can be reached from other machines and there is no key: give --api-key or --api-key-file, \
                 or --insecure-no-auth to let everybody in",
                self.address.ip()
            ));
        }
        for origin in &self.cors_origins {
            let named = origin.split_once("://").is_some_and(|(scheme, rest)| !scheme.is_empty() && !rest.is_empty());
            if origin != "*" && (!named || origin.ends_with('/')) {
                return Err(format!("`{origin}` is no origin; expected SCHEME://HOST[:PORT] or *"));
            }
        }
        Ok(())
    }

    /// Whether only this machine reaches the server and nobody has to show a key: then a web page that a browser on
    /// this machine shows must not reach it by a name of its own.
    pub(crate) fn guards_host(&self) -> bool {
        self.keys.is_empty() && !self.insecure_no_auth
    }
}

fn is_loopback(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.to_ipv4_mapped().is_some_and(|ip| ip.is_loopback()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_machines_need_a_key() {
        let open = ServerOptions { address: ([0, 0, 0, 0], 8080).into(), ..ServerOptions::default() };
        assert!(open.check().unwrap_err().contains("--insecure-no-auth"));
        assert_eq!(ServerOptions { insecure_no_auth: true, ..open.clone() }.check(), Ok(()));
        let keys = Keys::new(["a-long-enough-key".to_string()]).unwrap();
        assert_eq!(ServerOptions { keys, ..open }.check(), Ok(()));
        for local in ["127.0.0.1:0", "127.8.8.8:1", "[::1]:80", "[::ffff:127.0.0.1]:80"] {
            let options = ServerOptions { address: local.parse().unwrap(), ..ServerOptions::default() };
            assert_eq!(options.check(), Ok(()), "{local}");
        }
    }

    #[test]
    fn origins_are_origins() {
        let with = |origin: &str| {
            let cors_origins = vec![origin.to_string()];
            ServerOptions { cors_origins, ..ServerOptions::default() }.check().is_ok()
        };
        assert!(with("*") && with("https://example.org") && with("http://localhost:3000"));
        assert!(!with("example.org") && !with("https://example.org/") && !with(""));
    }
}

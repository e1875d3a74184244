//! Web addresses: their origin, what a redirect makes of them, escaping.
//!
//! Invariant: two addresses have one origin only if scheme, host and port agree; an address that names a user has none.

use crate::error::clip;

/// `location` as seen from `url` (RFC 3986, section 5, without dot segments).
pub(crate) fn join(url: &str, location: &str) -> Option<String> {
    let location = location.split('#').next()?;
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?']).next()?;
    let joined = if location.contains("://") && origin_of(location).is_some() {
        location.to_owned()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.is_empty() || location.split('/').next()?.contains(':') {
        return None;
    } else {
        let path = rest.split('?').next()?;
        let folder = path.rsplit_once('/').map_or(path, |(folder, _)| folder);
        format!("{scheme}://{folder}/{location}")
    };
    origin_of(&joined).map(|_| joined)
}

/// Scheme, host and port, lower case, with the scheme's own port left out; `None` unless http or https with a host.
pub(crate) fn origin_of(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let scheme = scheme.to_ascii_lowercase();
    let own_port = match scheme.as_str() {
        "https" => ":443",
        "http" => ":80",
        _ => return None,
    };
    let authority = rest.split(['/', '?', '#', '\\']).next()?.to_ascii_lowercase();
    if authority.is_empty() || authority.starts_with(':') || authority.contains('@') {
        return None;
    }
    Some(format!("{scheme}://{}", authority.strip_suffix(own_port).unwrap_or(&authority)))
}

/// What of an address may stand in a message: redirects carry their signature in the query.
pub(crate) fn without_query(url: &str) -> String {
    clip(url.split(['?', '#']).next().unwrap_or_default(), 300)
}

/// Escapes all but RFC 3986's unreserved characters.
pub(crate) fn percent_encode(part: &str) -> String {
    let escape = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    part.bytes().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_tell_hosts_ports_and_schemes_apart() {
        assert_eq!(origin_of("HTTPS://Hub.Co:443/a?b").as_deref(), Some("https://hub.co"));
        assert_eq!(origin_of("http://h:8080").as_deref(), Some("http://h:8080"));
        assert_ne!(origin_of("http://h"), origin_of("https://h"));
        assert_ne!(origin_of("https://hub.co.evil"), origin_of("https://hub.co"));
        for url in ["ftp://h", "https://", "https://:80", "h", "https://hub.co@evil", "file:///etc/passwd"] {
            assert_eq!(origin_of(url), None, "{url}");
        }
    }

    #[test]
    fn redirects_are_resolved() {
        let url = "https://h/a/b?x=1";
        assert_eq!(join(url, "https://c/d?y=%2F").as_deref(), Some("https://c/d?y=%2F"));
        assert_eq!(join(url, "/d?next=http://e").as_deref(), Some("https://h/d?next=http://e"));
        assert_eq!(join(url, "//c/d").as_deref(), Some("https://c/d"));
        assert_eq!(join(url, "d").as_deref(), Some("https://h/a/d"));
        for location in ["", "javascript:alert(1)", "file:///etc/passwd", "ftp://h/x"] {
            assert_eq!(join(url, location), None, "{location}");
        }
    }

    #[test]
    fn names_are_escaped() {
        assert_eq!(percent_encode("refs/pr/1"), "refs%2Fpr%2F1");
        assert_eq!(percent_encode("ü (1)#?%.gguf"), "%C3%BC%20%281%29%23%3F%25.gguf");
    }
}

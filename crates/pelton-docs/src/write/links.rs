//! Relative links between pages and sources.
//!
//! Invariant: a link holds only characters that Markdown and URLs leave alone.

use std::path::{Component, Path};

/// The way from the folder `from` to `to`, both absolute, as a link.
pub(super) fn relative_link(from: &Path, to: &Path) -> String {
    let parts = |path: &Path| -> Vec<String> {
        let normal = |part: Component<'_>| match part {
            Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
            _ => None,
        };
        path.components().filter_map(normal).collect()
    };
    let (from, to) = (parts(from), parts(to));
    let n_common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let ups = std::iter::repeat_n("..".to_owned(), from.len() - n_common);
    let downs = to[n_common..].iter().map(|part| encode(part));
    ups.chain(downs).collect::<Vec<_>>().join("/")
}

/// A path of `/`-joined parts as a link.
pub(super) fn encode(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'.' | b'_' | b'~' => out.push(byte as char),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_climb_and_descend() {
        let link = |from: &str, to: &str| relative_link(Path::new(from), Path::new(to));
        assert_eq!(link("/a/out/src", "/a/src/lib.rs"), "../../src/lib.rs");
        assert_eq!(link("/a", "/a/my file (1).py"), "my%20file%20%281%29.py");
        assert_eq!(link("/x/y", "/z"), "../../z");
    }
}

//! Reads one call, `{"name": …, "arguments": …}`, a character at a time.
//!
//! Invariant: the arguments are handed out as they were written, as soon as the name is known; nothing is handed out
//! before it is certain that this is a call.

/// What a character led to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Scan {
    /// More is needed.
    More,
    /// That was the call's last character.
    Done,
    /// This is not a call.
    Broken,
}

/// What the scanner found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Name(String),
    Arguments(String),
}

/// A value, followed to its end.
#[derive(Clone, Debug, Default)]
pub(crate) struct ValueScanner {
    depth: usize,
    in_string: bool,
    escaped: bool,
    begun: bool,
    scalar: bool,
}

/// Where a character lies in a value.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Within {
    /// Inside, or its last character with `true`.
    Value(bool),
    /// Behind it: a number or a word ends at what follows it.
    Behind,
    /// No value begins like this.
    Invalid,
}

impl ValueScanner {
    pub(crate) fn push(&mut self, c: char) -> Within {
        if self.in_string {
            match c {
                _ if self.escaped => self.escaped = false,
                '\\' => self.escaped = true,
                '"' => {
                    self.in_string = false;
                    return Within::Value(self.depth == 0);
                }
                _ => {}
            }
            return Within::Value(false);
        }
        if self.scalar {
            return match c {
                ',' | '}' | ']' => Within::Behind,
                c if c.is_whitespace() => Within::Behind,
                _ => Within::Value(false),
            };
        }
        match c {
            '"' => self.in_string = true,
            '{' | '[' => self.depth += 1,
            '}' | ']' if self.depth == 0 => return Within::Invalid,
            '}' | ']' => {
                self.depth -= 1;
                return Within::Value(self.depth == 0);
            }
            _ if self.depth > 0 => {}
            c if c.is_ascii_alphanumeric() || c == '-' => self.scalar = true,
            _ => return Within::Invalid,
        }
        self.begun = true;
        Within::Value(false)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Open,
    Key,
    Colon,
    Value,
    Comma,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Name,
    Arguments,
    Other,
}

/// The scanner of one call.
#[derive(Debug)]
pub(crate) struct CallScanner {
    at: At,
    role: Role,
    value: ValueScanner,
    /// The key or the value being read, where it is needed whole.
    text: String,
    name: Option<String>,
    /// Arguments that came before the name.
    early: String,
    has_arguments: bool,
    /// The arguments are a JSON text within a string.
    quoted: bool,
}

/// Keys of a call's object in the notations that are known.
const KEYS: [&str; 6] = ["name", "arguments", "parameters", "type", "id", "function"];

impl CallScanner {
    pub(crate) fn new() -> CallScanner {
        CallScanner {
            at: At::Open,
            role: Role::Other,
            value: ValueScanner::default(),
            text: String::new(),
            name: None,
            early: String::new(),
            has_arguments: false,
            quoted: false,
        }
    }

    /// Whether something was handed out already.
    pub(crate) fn is_certain(&self) -> bool {
        self.name.is_some() && self.has_arguments
    }

    /// The name, once it is complete.
    pub(crate) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    pub(crate) fn push(&mut self, c: char, found: &mut Vec<Found>) -> Scan {
        match self.at {
            At::Open if c == '{' => self.at = At::Key,
            At::Open if c.is_whitespace() => {}
            At::Open => return Scan::Broken,
            At::Key => return self.key(c, found),
            At::Colon if c == ':' => {
                self.at = At::Value;
                self.value = ValueScanner::default();
            }
            At::Colon | At::Comma if c.is_whitespace() => {}
            At::Comma if c == ',' => self.at = At::Key,
            At::Comma if c == '}' => return self.end(found),
            At::Colon | At::Comma => return Scan::Broken,
            At::Value => return self.value(c, found),
        }
        Scan::More
    }

    fn key(&mut self, c: char, found: &mut Vec<Found>) -> Scan {
        if self.text.is_empty() {
            return match c {
                '"' => {
                    self.text.push(c);
                    self.value = ValueScanner::default();
                    self.value.push(c);
                    Scan::More
                }
                '}' => self.end(found),
                c if c.is_whitespace() => Scan::More,
                _ => Scan::Broken,
            };
        }
        self.text.push(c);
        if self.text.len() > 64 {
            return Scan::Broken;
        }
        if self.value.push(c) == Within::Value(true) {
            let text = std::mem::take(&mut self.text);
            let Ok(key) = serde_json::from_str::<String>(&text) else { return Scan::Broken };
            if !KEYS.contains(&key.as_str()) {
                return Scan::Broken;
            }
            self.role = match key.as_str() {
                "name" => Role::Name,
                "arguments" | "parameters" => Role::Arguments,
                _ => Role::Other,
            };
            self.at = At::Colon;
        }
        Scan::More
    }

    fn value(&mut self, c: char, found: &mut Vec<Found>) -> Scan {
        if !self.value.begun && c.is_whitespace() {
            return Scan::More;
        }
        let begins = !self.value.begun;
        let within = self.value.push(c);
        match within {
            Within::Invalid => return Scan::Broken,
            Within::Value(_) => self.take(c, begins, found),
            Within::Behind => {}
        }
        if within == Within::Value(false) {
            return Scan::More;
        }
        if !self.value_ended(found) {
            return Scan::Broken;
        }
        self.at = At::Comma;
        match within {
            Within::Behind => self.push(c, found),
            _ => Scan::More,
        }
    }

    /// One character of a value.
    fn take(&mut self, c: char, begins: bool, found: &mut Vec<Found>) {
        if self.role == Role::Arguments && begins {
            self.quoted = c == '"';
        }
        match self.role {
            Role::Name => self.text.push(c),
            Role::Arguments if self.quoted => self.text.push(c),
            Role::Arguments => self.arguments(c.encode_utf8(&mut [0; 4]), found),
            Role::Other => {}
        }
    }

    fn value_ended(&mut self, found: &mut Vec<Found>) -> bool {
        let text = std::mem::take(&mut self.text);
        match self.role {
            Role::Name => {
                let Ok(name) = serde_json::from_str::<String>(&text) else { return false };
                if self.name.is_some() || name.is_empty() {
                    return false;
                }
                self.name = Some(name.clone());
                if self.has_arguments {
                    found.push(Found::Name(name));
                    found.push(Found::Arguments(std::mem::take(&mut self.early)));
                }
            }
            Role::Arguments if self.quoted => {
                let Ok(inner) = serde_json::from_str::<String>(&text) else { return false };
                self.arguments(&inner, found);
            }
            Role::Arguments | Role::Other => {}
        }
        true
    }

    fn arguments(&mut self, text: &str, found: &mut Vec<Found>) {
        let Some(name) = &self.name else {
            self.has_arguments = true;
            self.early.push_str(text);
            return;
        };
        if !self.has_arguments {
            found.push(Found::Name(name.clone()));
            self.has_arguments = true;
        }
        match found.last_mut() {
            Some(Found::Arguments(last)) => last.push_str(text),
            _ => found.push(Found::Arguments(text.to_string())),
        }
    }

    fn end(&mut self, found: &mut Vec<Found>) -> Scan {
        let Some(name) = &self.name else { return Scan::Broken };
        if !self.has_arguments {
            found.push(Found::Name(name.clone()));
            found.push(Found::Arguments("{}".to_string()));
            self.has_arguments = true;
        }
        Scan::Done
    }
}

//! Changes to a template's source before it is compiled, where the engine differs from Jinja in Python.
//! Invariant: lines keep their numbers, and text outside of tags and expressions keeps its bytes.
//!
//! ```text
//! {% generation %} … {% endgeneration %}   a plain scope: the mark is for training
//! x[a:b:c]                                 x._slice(a,b,c): Python's rules for all steps
//! x.items()                                x._py_items(): the method, whatever keys x has
//! {% for x in items if … %}                over _iterate((items)): None is an error
//! ```

mod lexer;

use std::borrow::Cow;

use lexer::{Kind, Token};

/// What a renamed method's name begins with.
pub(super) const METHOD_PREFIX: &str = "_py_";
const MAPPING_METHODS: [&str; 5] = ["get", "items", "keys", "values", "copy"];

/// The source that the engine compiles.
pub(super) fn adapt(source: &str) -> String {
    let mut out = String::with_capacity(source.len() + source.len() / 8);
    let mut rest = source;
    while let Some(start) = rest.find('{') {
        let (text, from) = rest.split_at(start);
        out.push_str(text);
        rest = match from.as_bytes().get(1) {
            Some(b'#') => copy_through(from, "#}", &mut out),
            Some(b'%') => adapt_tag(from, "%}", &mut out),
            Some(b'{') => adapt_tag(from, "}}", &mut out),
            _ => {
                out.push('{');
                &from[1..]
            }
        };
    }
    out.push_str(rest);
    out
}

/// Copies up to and including `end`, or all; gives what follows.
fn copy_through<'s>(from: &'s str, end: &str, out: &mut String) -> &'s str {
    let len = from[2..].find(end).map_or(from.len(), |at| at + 2 + end.len());
    out.push_str(&from[..len]);
    &from[len..]
}

/// Adapts one tag or expression at the start of `from`; gives what follows.
fn adapt_tag<'s>(from: &'s str, end: &str, out: &mut String) -> &'s str {
    let Some((mut tokens, len)) = lexer::tokens(&from[2..], end) else {
        // It never ends, which the engine will say.
        out.push_str(from);
        return "";
    };
    let rest = &from[2 + len + end.len()..];
    let words = lexer::significant(&tokens);
    let first = words.iter().find(|&&index| tokens[index].kind == Kind::Name);
    let tag = match first {
        Some(&index) if end == "%}" => tokens[index].text.clone(),
        _ => Cow::Borrowed(""),
    };
    adapt_slices(&mut tokens);
    adapt_methods(&mut tokens, &words);
    match (tag.as_ref(), first) {
        ("generation", Some(&name)) => tokens[name].text = "with".into(),
        ("endgeneration", Some(&name)) => tokens[name].text = "endwith".into(),
        ("for", _) => adapt_for(&mut tokens, &words),
        _ => {}
    }
    out.push_str(&from[..2]);
    out.extend(tokens.iter().map(|token| token.text.as_ref()));
    out.push_str(end);
    if tag == "raw" { copy_raw(rest, out) } else { rest }
}

/// Copies text up to the tag `endraw`, which the caller then sees.
fn copy_raw<'s>(from: &'s str, out: &mut String) -> &'s str {
    let mut at = 0;
    while let Some(found) = from[at..].find("{%") {
        let tag = at + found;
        let word = from[tag + 2..].trim_start_matches(['-', '+']).trim_start();
        if word.starts_with("endraw") {
            out.push_str(&from[..tag]);
            return &from[tag..];
        }
        at = tag + 2;
    }
    out.push_str(from);
    ""
}

/// Makes `value[start:stop:step]` the call of a method.
fn adapt_slices(tokens: &mut [Token<'_>]) {
    struct Bracket {
        open: usize,
        subscript: bool,
        colons: Vec<usize>,
    }
    let mut brackets: Vec<Bracket> = Vec::new();
    let mut before: Option<usize> = None;
    for index in 0..tokens.len() {
        match tokens[index].text.as_ref() {
            "[" | "(" | "{" => brackets.push(Bracket {
                open: index,
                subscript: tokens[index].text == "[" && before.is_some_and(|at| tokens[at].ends_value()),
                colons: Vec::new(),
            }),
            ":" => {
                if let Some(bracket) = brackets.last_mut() {
                    bracket.colons.push(index);
                }
            }
            "]" | ")" | "}" => {
                if let Some(bracket) = brackets.pop()
                    && bracket.subscript
                    && !bracket.colons.is_empty()
                {
                    make_call(tokens, bracket.open, &bracket.colons, index);
                }
            }
            _ => {}
        }
        if tokens[index].kind != Kind::Space {
            before = Some(index);
        }
    }
}

fn make_call(tokens: &mut [Token<'_>], open: usize, colons: &[usize], close: usize) {
    let starts = std::iter::once(open).chain(colons.iter().copied());
    let ends = colons.iter().copied().chain(std::iter::once(close));
    let parts: Vec<(usize, usize)> = starts.zip(ends).collect();
    for (start, end) in parts {
        let within = &tokens[start + 1..end];
        let empty = within.iter().all(|token| token.kind == Kind::Space);
        let separator = if start == open { "._slice(" } else { "," };
        let value = if empty { "none" } else { "" };
        tokens[start].text = format!("{separator}{value}").into();
    }
    tokens[close].text = ")".into();
}

/// In Python a mapping's method wins over a key of the same name, in the engine the key.
fn adapt_methods(tokens: &mut [Token<'_>], words: &[usize]) {
    for call in words.windows(3) {
        let [dot, name, open] = [0, 1, 2].map(|at| tokens[call[at]].text.as_ref());
        if dot == "." && open == "(" && MAPPING_METHODS.contains(&name) {
            tokens[call[1]].text = format!("{METHOD_PREFIX}{name}").into();
        }
    }
}

/// Wraps what a `for` tag iterates over.
fn adapt_for(tokens: &mut [Token<'_>], words: &[usize]) {
    let mut depth = 0usize;
    let (mut from, mut to) = (None, None);
    for &index in words {
        match tokens[index].text.as_ref() {
            "[" | "(" | "{" => depth += 1,
            "]" | ")" | "}" => depth = depth.saturating_sub(1),
            text if text.starts_with("._slice(") => depth += 1,
            "in" if depth == 0 && from.is_none() => from = Some(index),
            "if" | "recursive" if depth == 0 && from.is_some() && to.is_none() => to = Some(index),
            _ => {}
        }
    }
    let Some(from) = from else { return };
    let last = words.iter().rev().find(|&&index| match to {
        Some(to) => index < to,
        None => true,
    });
    if let Some(&last) = last.filter(|&&last| last > from) {
        tokens[from].text = format!("{} _iterate((", tokens[from].text).into();
        tokens[last].text = format!("{}))", tokens[last].text).into();
    }
}

#[cfg(test)]
mod tests {
    use super::adapt;

    #[track_caller]
    fn check(source: &str, adapted: &str) {
        assert_eq!(adapt(source), adapted);
    }

    #[test]
    fn generation_becomes_a_scope() {
        check(
            "a{%- generation %}b{% endgeneration -%}c{% if generation %}",
            "a{%- with %}b{% endwith -%}c{% if generation %}",
        );
    }

    #[test]
    fn slices_become_calls() {
        check("{{ m[1:] }}", "{{ m._slice(1,none) }}");
        check("{{ m['a'][::-1].b }}", "{{ m['a']._slice(none,none,-1).b }}");
        check("{{ f(x)[y[0]:z[:2]|length] }}", "{{ f(x)._slice(y[0],z._slice(none,2)|length) }}");
        check("{{ 'a:b'[:1] ~ m['c:d'] }}", "{{ 'a:b'._slice(none,1) ~ m['c:d'] }}");
        check("{{ {'a': [1]} }} [1:2] {", "{{ {'a': [1]} }} [1:2] {");
        check("{% if x in [1] %}", "{% if x in [1] %}");
    }

    #[test]
    fn loops_check_what_they_iterate_over() {
        check("{%- for a, b in m.items() -%}", "{%- for a, b in _iterate(( m._py_items())) -%}");
        check("{% for x in m[1:] if x in y %}", "{% for x in _iterate(( m._slice(1,none))) if x in y %}");
        check("{% for x in [1, 2] recursive %}", "{% for x in _iterate(( [1, 2])) recursive %}");
        check("{% if a in b %}{% for %}", "{% if a in b %}{% for %}");
    }

    #[test]
    fn methods_of_mappings_are_renamed_where_called() {
        check("{{ a.b.get ('x').items }}", "{{ a.b._py_get ('x').items }}");
        check("{{ items(x) }}{{ x['items']() }}", "{{ items(x) }}{{ x['items']() }}");
    }

    #[test]
    fn other_text_stays() {
        for source in [
            "{# x[1:] {% for #}",
            "{% raw %}{{ x[1:] }}{% for a in b %}{%- endraw %}",
            "{{ \"}}'\\\" %}\" }}",
            "{% unfinished",
            "{{ 'unfinished }}",
            "}} %} { {",
        ] {
            check(source, source);
        }
    }
}

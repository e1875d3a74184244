//! What discovery finds, and what it leaves out.

use pelton_docs::{Item, ItemKind, Language, Scan, SkipReason};

use crate::support::{folder, outline, project, put};

fn scan(name: &str) -> Scan {
    Scan::of(&project(name)).expect("the fixture scans")
}

fn item<'a>(scan: &'a Scan, name: &str) -> &'a Item {
    scan.items().find(|item| item.qualified_name == name).unwrap_or_else(|| panic!("no {name} in\n{}", outline(scan)))
}

#[test]
fn every_language_gives_its_items() {
    for (name, expected) in OUTLINES {
        let scan = scan(name);
        assert_eq!(outline(&scan), expected.trim_start(), "{name}");
    }
    let languages: Vec<Language> = OUTLINES.iter().map(|(name, _)| scan(name).files[0].language).collect();
    assert_eq!(languages, Language::ALL);
}

#[test]
fn the_model_sees_dedented_code_without_the_comment() {
    let rust = scan("rust");
    let euros =
        "#[must_use]\n// kept small on purpose\n#[inline]\npub const fn euros(self) -> u64 {\n    self.0 / 100\n}";
    assert_eq!(item(&rust, "till::Cents::euros").code, euros);
    assert_eq!(item(&rust, "till::Cents").code, "#[derive(Clone, Copy)]\npub struct Cents(pub u64);");
    let python = scan("python");
    let add = &item(&python, "shop.cart.Cart.add").code;
    assert!(
        add.starts_with("async def add(\n    self,\n    name: str,") && add.contains("\n    def check(value):"),
        "{add}"
    );
    let cart = &item(&python, "shop.cart.Cart").code;
    assert!(cart.starts_with("class Cart:\n    limit = 10\n\n    def __init__"), "{cart}");
    assert_eq!(item(&python, "shop.cart.conditional").code.lines().nth(2), Some("not indented"));
    let cpp = scan("cpp");
    assert_eq!(item(&cpp, "shop::core::Cart::size").code, "int size() const noexcept { return n_; }");
}

#[test]
fn signatures_end_before_the_body() {
    for (project, name, signature) in [
        (
            "rust",
            "till::receipt::print",
            "pub(crate) async fn print<'a, T>(lines: &'a [Line], out: T) -> usize\nwhere\n    T: Fn(&str)",
        ),
        ("rust", "till::Cents", "pub struct Cents(pub u64)"),
        ("rust", "till::Payment", "pub enum Payment"),
        ("python", "shop.cart.Cart.add", "async def add(\n    self,\n    name: str,\n    price: int = 0,\n) -> None"),
        ("python", "shop.cart.CartError", "class CartError(Exception)"),
        ("javascript", "double", "export const double = (x)"),
        ("javascript", "Cart", "export default class Cart extends Base"),
        ("typescript", "Cart.add", "public add(line: T): void"),
        ("typescript", "Lines", "export type Lines = Line[]"),
        ("go", "cart.Cart.Total", "func (c *Cart) Total() (sum Cents)"),
        ("go", "cart.Payer", "Payer interface"),
        ("java", "com.example.Cart.Payer.pay", "void pay(int amount)"),
        ("c", "cart_name", "static const char *\ncart_name(const struct cart *cart, int (*f)(int))"),
        ("cpp", "shop::core::Cart::Cart", "explicit Cart(int n) :"),
        ("cpp", "shop::core::Cart::total", "template <typename T>\nint shop::core::Cart<T>::total(int n) const"),
    ] {
        let found = item(&scan(project), name).signature.clone();
        assert_eq!(found.trim_end_matches(" :"), signature.trim_end_matches(" :"), "{project} {name}");
    }
}

#[test]
fn a_long_type_shows_no_method_bodies() {
    let fields: String = (0..70).map(|n| format!("    field_{n} = {n}\n")).collect();
    let python = format!("class Long:\n    \"\"\"Doc.\"\"\"\n\n{fields}\n    def f(self):\n        return secret\n");
    let java: String = (0..70).map(|n| format!("  int field{n};\n")).collect();
    let java = format!("class Long {{\n{java}  int f() {{ return secret; }}\n  class In {{ int secret; }}\n}}\n");
    let dir = folder(&[("long.py", &python), ("Long.java", &java)]);
    let scan = Scan::of(dir.path()).expect("scans");
    let code = |language| {
        let found = scan.items().find(|item| item.language == language && item.name == "Long");
        found.expect("it is there").code.clone()
    };
    let (python, java) = (code(Language::Python), code(Language::Java));
    assert!(
        python.ends_with("    field_69 = 69\n\n    def f(self):\n        ...") && !python.contains("Doc."),
        "{python}"
    );
    assert!(java.ends_with("  int f() { … }\n  class In { … }\n}") && java.contains("field69"), "{java}");
}

#[test]
fn ignored_vendored_hidden_and_test_code_is_left_out_and_named() {
    let source = "fn f() {}\n";
    let dir = folder(&[
        (".gitignore", "/secret.rs\nlocal/\n"),
        (".ignore", "other.rs\n"),
        ("lib.rs", "#[cfg(test)]\nmod checks;\nmod kept;\nfn f() {}\n#[tokio::test]\nasync fn t() {}\n"),
        ("checks.rs", source),
        ("checks/inner.rs", source),
        ("kept.rs", "#[cfg(not(test))]\nfn g() {}\n#[cfg(all(test, unix))]\nfn h() {}\n"),
        ("secret.rs", source),
        ("other.rs", source),
        ("local/a.rs", source),
        (".hidden/a.rs", source),
        ("vendor/a.go", "package a\nfunc F() {}\n"),
        ("node_modules/x/a.js", "function f() {}"),
        ("target/a.rs", source),
        ("env/pyvenv.cfg", ""),
        ("tests/a.rs", source),
        ("pkg/a_test.go", "package a\nfunc F() {}\n"),
        ("pkg/test_a.py", "def f(): pass\n"),
        ("pkg/a.spec.ts", "function f() {}\n"),
        ("pkg/__tests__/a.js", "function f() {}\n"),
        ("src/test/java/A.java", "class A {}\n"),
        ("src/main/java/ATest.java", "class ATest {}\n"),
        ("src/main/java/A.java", "class A { @Test void t() {} }\n"),
        ("pkg/case.py", "import unittest\nclass Case(unittest.TestCase):\n    def check(self): pass\n"),
    ]);
    let scan = Scan::of(dir.path()).expect("scans");
    let names: Vec<&str> = scan.items().map(|item| item.qualified_name.as_str()).collect();
    assert_eq!(names, ["kept::g", "f", "A"], "{}", outline(&scan));
    let reason = |path: &str| scan.skips.iter().find(|skip| skip.path == path).map(|skip| skip.reason);
    for (path, expected) in [
        ("secret.rs", SkipReason::Ignored),
        ("other.rs", SkipReason::Ignored),
        ("local", SkipReason::Ignored),
        (".hidden", SkipReason::Hidden),
        ("vendor", SkipReason::Vendored),
        ("node_modules", SkipReason::Vendored),
        ("target", SkipReason::Vendored),
        ("env", SkipReason::Vendored),
        ("tests", SkipReason::Test),
        ("checks.rs", SkipReason::Test),
        ("checks/inner.rs", SkipReason::Test),
        ("pkg/a_test.go", SkipReason::Test),
        ("pkg/test_a.py", SkipReason::Test),
        ("pkg/a.spec.ts", SkipReason::Test),
        ("pkg/__tests__", SkipReason::Test),
        ("src/test", SkipReason::Test),
        ("src/main/java/ATest.java", SkipReason::Test),
        ("pkg/case.py", SkipReason::TestItem),
    ] {
        assert_eq!(reason(path), Some(expected), "{path}");
    }
}

#[test]
fn a_file_named_outright_is_read_whatever_its_name() {
    let dir = folder(&[("tests/test_a.py", "def test_f():\n    assert True\n")]);
    let scan = Scan::of(&dir.path().join("tests/test_a.py")).expect("scans");
    assert_eq!(outline(&scan), "1-2 function test_a.test_f\n");
    assert_eq!(scan.files[0].path, "test_a.py");
}

#[test]
fn headers_are_c_or_cpp_by_their_content() {
    let dir = folder(&[
        ("a.h", "struct a { int n; };\nint f(struct a *a);\n"),
        ("b.h", "class B {\n public:\n  int f() { return 1; }\n};\n"),
        ("c.h", "struct C { C(int n) : n(n) {} int n; };\ntypedef C D;\nvoid g(C& c);\n"),
    ]);
    let scan = Scan::of(dir.path()).expect("scans");
    let languages: Vec<Language> = scan.files.iter().map(|file| file.language).collect();
    assert_eq!(languages, [Language::C, Language::Cpp, Language::Cpp]);
    assert_eq!(item(&scan, "B::f").kind, ItemKind::Method);
}

#[test]
fn comments_that_are_no_documentation_are_not_taken_for_it() {
    let dir = folder(&[
        (
            "a.c",
            "/* Copyright 2020 */\nint f(void) { return 1; }\n\nint x; // trailing\nint g(void) { return 1; }\n\n// far\n\nint h(void) { return 1; }\n// ------\nint i(void) { return 1; }\n",
        ),
        ("a.js", "/** @fileoverview All. */\nfunction f() {}\n/* plain */\nfunction g() {}\n"),
        ("a.go", "// Package a.\n\npackage a\n\n//go:noinline\nfunc F() {}\n"),
        ("a.rs", "//! Inner.\n\n// plain\nfn f() {}\n//// four\nfn g() {}\n"),
        ("a.py", "# plain\ndef f():\n    f\"not {1}\"\n    return 1\n"),
    ]);
    put(dir.path(), "B.java", b"/* plain */\nclass B {}\n");
    let scan = Scan::of(dir.path()).expect("scans");
    assert_eq!(scan.items().count(), 11);
    let documented: Vec<&str> = scan.items().filter(|item| item.doc.is_some()).map(|item| item.name.as_str()).collect();
    assert!(documented.is_empty(), "{documented:?}");
}

const OUTLINES: [(&str, &str); 8] = [
    (
        "rust",
        "
8-9 struct till::Cents *
11-16 enum till::Payment
18-27 trait till::Priced
21-21 method till::Priced::price
24-26 method till::Priced::total *
30-35 method till::Cents::euros
39-41 method till::<Cents as fmt::Display>::fmt
45-45 type alias till::receipt::Line
47-59 function till::receipt::print
69-69 struct till::A
69-69 struct till::B
",
    ),
    (
        "python",
        "
6-40 class shop.cart.Cart *
15-17 method shop.cart.Cart.__init__
19-22 method shop.cart.Cart.total
24-25 method shop.cart.Cart.empty
27-37 method shop.cart.Cart.add
39-40 class shop.cart.Cart.Line
43-43 class shop.cart.CartError
50-51 function shop.cart.pay
55-59 function shop.cart.conditional
62-63 function shop.cart.escaped
",
    ),
    (
        "javascript",
        "
8-10 function add *
12-27 class Cart
13-16 constructor Cart.constructor
18-18 method Cart.of
20-22 method Cart.total
24-26 method Cart.onClick
29-29 function double
32-35 function load
37-39 method Cart.clear
42-44 method exports.pay
45-47 method exports.refund
",
    ),
    (
        "typescript",
        "
1-4 interface Line
6-6 type alias Lines
8-11 enum Kind
13-28 class Cart
17-17 constructor Cart.constructor
19-22 method Cart.add
25-27 method Cart.total *
30-32 class Shape
31-31 method Shape.area
35-37 function Util.twice
40-40 function ambient
42-44 function View
",
    ),
    (
        "go",
        "
7-10 struct cart.Cart *
13-15 struct cart.Line
18-20 interface cart.Payer *
23-23 type alias cart.Cents
25-27 function cart.New
30-34 method cart.Cart.Total
36-41 function cart.Map
43-43 method cart.Pair.Swap
",
    ),
    (
        "java",
        "
6-42 class com.example.Cart *
9-11 constructor com.example.Cart.Cart
13-16 method com.example.Cart.total
18-22 method com.example.Cart.of
24-31 enum com.example.Cart.Kind
28-30 method com.example.Cart.Kind.edible
33-35 interface com.example.Cart.Payer
34-34 method com.example.Cart.Payer.pay
37-41 record com.example.Cart.Line
38-40 constructor com.example.Cart.Line.Line
",
    ),
    (
        "c",
        "
6-10 function cart_name
14-16 function cart_add *
19-19 function wide
8-10 struct cart
12-14 struct line_t
16-16 type alias visit_fn
18-18 enum kind
21-21 function cart_add *
22-22 function cart_free
",
    ),
    (
        "cpp",
        "
6-27 class shop::core::Cart
10-10 constructor shop::core::Cart::Cart
11-11 method shop::core::Cart::~Cart
14-14 method shop::core::Cart::size *
16-19 method shop::core::Cart::each
21-21 method shop::core::Cart::pay
22-22 method shop::core::Cart::operator==
29-29 enum shop::core::Kind
31-31 type alias shop::core::Lines
33-35 struct shop::core::Point
37-37 function shop::core::twice
41-45 method shop::core::Cart::total
",
    ),
];

"""Encodes texts with Hugging Face tokenizers, for the tests.

    python make_tokenizer.py

Writes tokenizer_ids.json: for every text the ids with special tokens parsed and with special tokens
as text, from ../data/tokenizer.json; small_sentence.json: a small SentencePiece-style vocabulary made
here, with the ids of some texts by an independent, naive merge loop; and small_hf.json: that vocabulary
as tokenizer.json files of the kinds that Llama 2 and T5 have, with ids and decoded texts.
"""

import json
import pathlib

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

HERE = pathlib.Path(__file__).parent

TEXTS = [
    "", " ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", " \n ", "\t\n\t ", "a", "Z", "é", "漢", "🚀",
    "Hello world", " Hello world", "Hello  world ", "HELLO, World!", "don't I'll we've he's I'm you'd they're",
    "DON'T I'LL WE'VE", "3", "33", "333 4444 55555", "3.14159e-10", "٣٤٥ Ⅷ ½ ²",
    "fn main() {\n    println!(\"{}\", 1 + 2);\n}\n", "def f(x: int) -> str:\n\treturn f'{x!r}'\n",
    "for (let i = 0; i < n; ++i) { a[i] ??= b?.c; }", "SELECT * FROM t WHERE a='b' -- c",
    "https://example.org/path?q=1&r=%20#frag", "user@example.org", "snake_case camelCase SCREAMING_SNAKE kebab-case",
    "/** Doc comment. */", "/// Returns `None` if empty.", "# Title\n\n* item\n* item\n\n```rust\nx\n```\n",
    "Größe straße ÀÉÎÕÜ ñ ç ø å", "нещо на Български", "日本語のテキストと中文混排", "한국어 텍스트", "עברית ערבית العربية",
    "កាន់តែពិសេស", "ไทย भारत தமிழ்", "🚀 😶\u200d🌫️ 👩‍👩‍👧‍👦 🇨🇭", "e\u0301 a\u030a (decomposed)", "\u00a0\u2003\u3000 wide spaces",
    "zero\u200bwidth\ufeffbom", "\x00\x01\x7f\x85", "ﬁ ﬂ ㎏ ℵ 𝒳 𐐀", "a" * 70, " " * 40 + "x", "\n" * 12,
    "=" * 33 + "\n", "!?!?!?...,,,;;;:::", "((([[[{{{<<<>>>}}}]]])))", "<|im_start|>user\nHi<|im_end|>\n",
    "<|endoftext|>", "a<|im_end|>b <|im_start|> c", "<|im_end", "|im_end|>", "<|IM_END|>", "<|im_end|><|im_end|>",
]


def tokenizer_ids():
    tokenizer = Tokenizer.from_file(str(HERE.parent / "data" / "tokenizer.json"))
    cases = []
    for text in TEXTS:
        case = {"text": text}
        for name, as_text in (("parse", False), ("as_text", True)):
            tokenizer.encode_special_tokens = as_text
            case[name] = tokenizer.encode(text, add_special_tokens=False).ids
        case["decoded"] = tokenizer.decode(case["parse"], skip_special_tokens=False)
        case["decoded_without_special"] = tokenizer.decode(case["parse"], skip_special_tokens=True)
        cases.append(case)
    return cases


WORDS = "▁the ▁cat ▁ca ▁c at t h e ca ▁t ▁th he ▁ ▁▁ ▁▁▁▁ a c s at s, , . ▁. ▁a é ▁é xx xxx xxxx x ▁h ▁he ▁hello ll llo lo el ell o l H ▁H"
MARK = "▁"


def small_sentence():
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)] + ["<tool>"]
    types = [2, 3, 3] + [6] * 256 + [4]
    scores = [0.0] * len(tokens)
    words = list(dict.fromkeys(WORDS.split()))
    for rank, word in enumerate(words):
        tokens.append(word)
        types.append(1)
        # Some scores are equal, so that the leftmost pair must win.
        scores.append(-float(rank // 2))
    texts = ["", "the cat", " the cat", "  the  cats.", "hello", "xxxxxxx", "xx xxx", "é漢", "a\nb\t", "    ",
             "<s>the</s>", "the<tool>cat", "<tool>", "<tool> the", "<0x41>", "▁the", "Hello, cats.", "hell llo", "\x00"]
    cases = [{"text": text, "ids": naive(text, tokens, types, scores)} for text in texts]
    vocab = {"tokens": tokens, "scores": scores, "types": types}
    return {"vocab": vocab, "cases": cases}


def naive(text, tokens, types, scores):
    """User-defined tokens are cut out first; a space goes before the first word of each part."""
    ids = []
    parts = text.split("<tool>")
    for index, part in enumerate(parts):
        if index:
            ids.append(tokens.index("<tool>"))
        if part:
            ids += naive_part((" " + part).replace(" ", MARK), tokens, types, scores)
    return ids


def naive_part(text, tokens, types, scores):
    known = {token: index for index, token in enumerate(tokens) if types[index] in (1, 4)}
    symbols = list(text)
    while True:
        best = None
        for left in range(len(symbols) - 1):
            index = known.get(symbols[left] + symbols[left + 1])
            if index is not None and (best is None or scores[index] > scores[best[1]]):
                best = (left, index)
        if best is None:
            break
        left = best[0]
        symbols[left : left + 2] = [symbols[left] + symbols[left + 1]]
    ids = []
    for symbol in symbols:
        if symbol in known:
            ids.append(known[symbol])
        else:
            ids += [tokens.index(f"<0x{byte:02X}>") for byte in symbol.encode()]
    return ids


def small_hf():
    vocab = small_sentence()["vocab"]
    tokens, scores = vocab["tokens"], dict(zip(vocab["tokens"], vocab["scores"]))
    ids = {token: index for index, token in enumerate(tokens)}
    words = tokens[260:]
    pairs = [(w[:at], w[at:]) for w in words for at in range(1, len(w)) if w[:at] in words and w[at:] in words]
    merges = sorted(pairs, key=lambda pair: -scores["".join(pair)])
    llama = Tokenizer(models.BPE(vocab=ids, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    llama.normalizer = normalizers.Sequence([normalizers.Prepend(MARK), normalizers.Replace(" ", MARK)])
    llama.decoder = decoders.Sequence(
        [decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    pieces = [(token, scores[token] - 1.0) for token in tokens]
    t5 = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    t5.pre_tokenizer = pre_tokenizers.Metaspace(MARK, prepend_scheme="first", split=True)
    t5.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(MARK, prepend_scheme="first", split=True)])
    texts = ["", "the cat", " the cats", "hello, xx", "é漢 a", "a\nb", "<s>the</s>", "the</s> cat", "xx<tool>the"]
    out = {}
    for name, tokenizer in (("llama", llama), ("t5", t5)):
        tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")])
        tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
        cases = []
        for text in texts:
            tokenizer.encode_special_tokens = False
            parsed = tokenizer.encode(text, add_special_tokens=False).ids
            tokenizer.encode_special_tokens = True
            case = {"text": text, "parse": parsed, "as_text": tokenizer.encode(text, add_special_tokens=False).ids}
            case["decoded"] = tokenizer.decode(parsed, skip_special_tokens=True)
            cases.append(case)
        tokenizer.encode_special_tokens = False
        out[name] = {"tokenizer": json.loads(tokenizer.to_str()), "cases": cases}
    return out


def write(name, value):
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    (HERE / name).write_text(text.replace('{"text"', '\n{"text"') + "\n")


write("tokenizer_ids.json", tokenizer_ids())
write("small_sentence.json", small_sentence())
write("small_hf.json", small_hf())

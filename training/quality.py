#!/usr/bin/env python3
"""quality.py MODEL EVAL.jsonl [PELTON]: how well a model, as Pelton runs it, documents held-out functions.

MODEL is what `pelton -m` takes; EVAL holds one {"lang", "project", "path", "code", "doc"} a line. Prints the perplexity of
the reference documentation after the canonical request, and of the greedy answers: how many end by themselves, the mean
F1 of their words against the reference's (bags of lower-case words), and how many begin with the reference's first word.
Needs numpy and safetensors.
"""
import collections, json, math, re, subprocess, sys, tempfile
import numpy as np
from safetensors.numpy import load_file

MODEL, EVAL, PELTON = sys.argv[1], sys.argv[2], (sys.argv + ["pelton"])[3]
NAME = {"python": "Python", "rust": "Rust"}


def pelton(*args, text=None):
    return subprocess.run([PELTON, "-q", *args], input=text, capture_output=True, text=True, check=True).stdout


def tokenize(text):
    return json.loads(pelton("tokenize", MODEL, "--special", text=text))


words = lambda text: re.findall(r"[a-z0-9_]+", text.lower())
nll = tokens = ended = first = 0
f1 = []
with tempfile.TemporaryDirectory() as tmp:
    for line in open(EVAL):
        r = json.loads(line)
        ask = f"Document this {NAME[r['lang']]} function:\n```{r['lang']}\n{r['code']}\n```"
        prompt = (f"<|im_start|>system\nYou write documentation.<|im_end|>\n<|im_start|>user\n{ask}<|im_end|>\n"
                  "<|im_start|>assistant\n")
        p, d = tokenize(prompt), (tokenize(r["doc"]) + tokenize("<|im_end|>"))[:200]
        p = p[-800:]
        json.dump(p + d, open(f"{tmp}/ids.json", "w"))
        pelton("eval", "logits", MODEL, "--ids", f"{tmp}/ids.json", "--out", f"{tmp}/l.safetensors")
        x = load_file(f"{tmp}/l.safetensors")["logits"][len(p) - 1:-1].astype(np.float64)
        x -= x.max(axis=1, keepdims=True)
        nll += float((np.log(np.exp(x).sum(axis=1)) - x[np.arange(len(d)), d]).sum())
        tokens += len(d)
        answer = json.loads(pelton("run", "-m", MODEL, "-n", "120", "--json", "-", text=ask))
        ended += answer["finish_reason"] == "end_of_text"
        a, b = words(answer["text"]), words(r["doc"])
        common = sum((collections.Counter(a) & collections.Counter(b)).values())
        f1.append(2 * common / (len(a) + len(b)) if a and b else 0.0)
        first += bool(a and b and a[0] == b[0])
n = len(f1)
print(f"{MODEL}: {n} functions, documentation perplexity {math.exp(nll / tokens):.2f} over {tokens} tokens; greedy answers: "
      f"{ended} of {n} end by themselves, word F1 {sum(f1) / n:.3f}, first word right {first} of {n}")

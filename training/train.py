#!/usr/bin/env python3
"""Train pelton's small Qwen2-architecture models. One file; needs torch, numpy, safetensors, tokenizers.

  python train.py --config small --data data --out out/small --minutes 40
  python train.py --config draft --data data --out out/draft --minutes 10 --teacher out/base   # distilled

--data holds train*.bin (all are used), val.bin, tokenizer.json, tokenizer_config.json. A .bin is a stream of
uint16: bits 0-12 are the token, bit 15 says "this token is documentation" (loss weight --doc-weight).
The same command resumes from OUT/ckpt.pt; --minutes is the total over all resumes; the learning rate follows
elapsed time, so the run ends where the cosine ends. OUT gets log.csv, ckpt.pt and the HF folder's files
(config.json, generation_config.json, tokenizer*.json, model.safetensors in bf16).
"""
import argparse, csv, glob, json, math, os, shutil, sys, time
import numpy as np
import torch, torch.nn as nn, torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

CTX = 1024
#          hidden layers heads kv ffn
CONFIGS = {"nano":   (64, 2, 2, 1, 128),          # smoke tests
           "draft":  (128, 4, 4, 2, 384),         # 1.9M
           "tiny":   (256, 6, 4, 2, 768),         # 7M
           "small":  (384, 8, 6, 2, 1024),        # 15.7M
           "base":   (512, 12, 8, 2, 1536),       # 40M
           "base60": (640, 12, 10, 2, 1792)}      # 58M
LR = {"nano": 3e-3, "draft": 4e-3, "tiny": 2e-3, "small": 1.5e-3, "base": 1e-3, "base60": 8e-4}


class RMSNorm(nn.Module):
    def __init__(self, d, eps=1e-6):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(d)), eps

    def forward(self, x):
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * y.to(x.dtype)


def rope_tables(hd, n, theta, device):
    inv = 1.0 / theta ** (torch.arange(0, hd, 2, device=device, dtype=torch.float32) / hd)
    f = torch.outer(torch.arange(n, device=device, dtype=torch.float32), inv)
    f = torch.cat([f, f], -1)
    return f.cos(), f.sin()


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.h, self.kv, self.hd = c["num_attention_heads"], c["num_key_value_heads"], c["hidden_size"] // c["num_attention_heads"]
        d = c["hidden_size"]
        self.q_proj = nn.Linear(d, self.h * self.hd, bias=True)
        self.k_proj = nn.Linear(d, self.kv * self.hd, bias=True)
        self.v_proj = nn.Linear(d, self.kv * self.hd, bias=True)
        self.o_proj = nn.Linear(self.h * self.hd, d, bias=False)

    def forward(self, x, cos, sin, past=None):
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, self.h, self.hd).transpose(1, 2)
        k = self.k_proj(x).view(B, T, self.kv, self.hd).transpose(1, 2)
        v = self.v_proj(x).view(B, T, self.kv, self.hd).transpose(1, 2)
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        new = None
        if past is not None:
            if past[0] is not None:
                k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
            new = (k, v)
        r = self.h // self.kv
        if r > 1:
            k, v = k.repeat_interleave(r, 1), v.repeat_interleave(r, 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=T > 1)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1)), new


class MLP(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, f = c["hidden_size"], c["intermediate_size"]
        self.gate_proj, self.up_proj, self.down_proj = (nn.Linear(d, f, bias=False), nn.Linear(d, f, bias=False), nn.Linear(f, d, bias=False))

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(c["hidden_size"]), RMSNorm(c["hidden_size"])
        self.self_attn, self.mlp = Attention(c), MLP(c)

    def forward(self, x, cos, sin, past=None):
        a, new = self.self_attn(self.input_layernorm(x), cos, sin, past)
        x = x + a
        return x + self.mlp(self.post_attention_layernorm(x)), new


class Body(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Block(c) for _ in range(c["num_hidden_layers"]))
        self.norm = RMSNorm(c["hidden_size"])


class Qwen2(nn.Module):
    """Parameter names are HF Qwen2ForCausalLM's; lm_head is tied to embed_tokens."""

    def __init__(self, c):
        super().__init__()
        self.c, self.model = c, Body(c)
        for n, p in self.named_parameters():
            if p.dim() == 2:
                s = 0.02
                if n.endswith(("o_proj.weight", "down_proj.weight")):
                    s /= math.sqrt(2 * c["num_hidden_layers"])
                nn.init.normal_(p, std=s)
            elif n.endswith("bias"):
                nn.init.zeros_(p)
        cos, sin = rope_tables(c["hidden_size"] // c["num_attention_heads"], c["max_position_embeddings"], c["rope_theta"], "cpu")
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, ids, past=None, pos=0, head=True):
        x = self.model.embed_tokens(ids)
        cos, sin = self.cos[pos:pos + ids.shape[1]], self.sin[pos:pos + ids.shape[1]]
        for i, l in enumerate(self.model.layers):
            x, new = l(x, cos, sin, None if past is None else past[i])
            if past is not None:
                past[i] = new
        x = self.model.norm(x)
        return F.linear(x, self.model.embed_tokens.weight) if head else x

    @torch.no_grad()
    def generate(self, ids, n, stop=()):
        """greedy, one sequence"""
        past, out, pos = [(None, None)] * len(self.model.layers), [], 0
        x = torch.tensor([ids], device=self.cos.device)
        for _ in range(n):
            logits = self(x, past, pos)
            pos += x.shape[1]
            t = int(logits[0, -1].argmax())
            if t in stop or pos >= self.c["max_position_embeddings"]:
                break
            out.append(t)
            x = torch.tensor([[t]], device=self.cos.device)
        return out


def hf_config(name, vocab):
    d, L, h, kv, f = CONFIGS[name]
    return {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "attention_dropout": 0.0, "hidden_act": "silu",
            "hidden_size": d, "intermediate_size": f, "num_hidden_layers": L, "num_attention_heads": h, "num_key_value_heads": kv,
            "max_position_embeddings": CTX, "max_window_layers": L, "use_sliding_window": False, "sliding_window": None,
            "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "initializer_range": 0.02, "tie_word_embeddings": True, "use_cache": True,
            "vocab_size": vocab, "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0, "torch_dtype": "bfloat16"}


def load_hf(d, device="cpu", dtype=torch.float32):
    m = Qwen2(json.load(open(f"{d}/config.json")))
    w = {}
    for f in sorted(glob.glob(f"{d}/*.safetensors")):
        w.update(load_file(f))
    m.load_state_dict({k: v.float() for k, v in w.items() if k != "lm_head.weight"})
    return m.to(device, dtype)


def export_hf(model, data, out):
    os.makedirs(out, exist_ok=True)
    save_file({k: v.detach().to("cpu", torch.bfloat16).contiguous() for k, v in model.state_dict().items()},
              f"{out}/model.safetensors", metadata={"format": "pt"})
    json.dump(model.c, open(f"{out}/config.json", "w"), indent=2)
    json.dump({"bos_token_id": None, "eos_token_id": [2, 0], "pad_token_id": 0, "do_sample": False, "max_new_tokens": 200},
              open(f"{out}/generation_config.json", "w"), indent=2)
    for f in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(f"{data}/{f}", f"{out}/{f}")


class Data:
    """Rows of CTX+1 tokens, each starting at the first document start at or after a multiple of CTX."""

    def __init__(self, files, seed, CTX=CTX, eot=0):
        self.ctx = CTX
        self.t = np.concatenate([np.fromfile(f, dtype="<u2") for f in files])
        starts = np.concatenate([[0], np.flatnonzero((self.t & 0x1FFF) == eot) + 1])
        grid = np.arange(0, len(self.t) - 2 * CTX, CTX)
        s = starts[np.minimum(np.searchsorted(starts, grid), len(starts) - 1)]
        s = np.where(s - grid > CTX, grid, s)               # inside a long document: start mid-way
        self.s = np.unique(s[s + CTX + 1 <= len(self.t)])
        self.seed = seed

    def batch(self, i, n):
        """the i-th batch of n rows of an endless series of shuffled epochs"""
        rows = np.arange(i * n, (i + 1) * n)
        out = np.empty((n, self.ctx + 1), dtype=np.int64)
        for k, r in enumerate(rows):
            e, j = divmod(int(r), len(self.s))
            if getattr(self, "e", None) != e:
                self.e, self.perm = e, np.random.default_rng(self.seed + e).permutation(len(self.s))
            a = self.s[self.perm[j]]
            out[k] = self.t[a:a + self.ctx + 1]
        x = torch.from_numpy(out)
        return x & 0x1FFF, (x >> 15)[:, 1:]


def losses(logits, y):
    return F.cross_entropy(logits.float().view(-1, logits.shape[-1]), y.reshape(-1), reduction="none")


def ce_chunk(lg, y, w):
    """loss of each row, and d(sum of w * loss)/d(logits)"""
    l = lg.float()
    m = l.amax(1, keepdim=True)
    e = (l - m).exp()
    s = e.sum(1, keepdim=True)
    hot = torch.arange(l.shape[1], device=l.device)[None, :] == y[:, None]
    loss = (s.log() + m).squeeze(1) - torch.where(hot, l, 0.0).sum(1)
    return loss, ((e / s - hot.float()) * w[:, None]).to(lg.dtype)


class LinearCE(torch.autograd.Function):
    """Tied output layer and cross-entropy in cache-sized pieces, gradients made on the way (for the CPU)."""
    chunk, kernel = 512, staticmethod(ce_chunk)

    @staticmethod
    def forward(ctx, h, W, y, w):
        hb, Wb = h.to(torch.bfloat16), W.to(torch.bfloat16)
        dh, dW, out = torch.empty_like(hb), torch.zeros_like(W), []
        for i in range(0, h.shape[0], LinearCE.chunk):
            hc = hb[i:i + LinearCE.chunk]
            loss, g = LinearCE.kernel(hc @ Wb.T, y[i:i + LinearCE.chunk], w[i:i + LinearCE.chunk])
            dh[i:i + LinearCE.chunk] = g @ Wb
            dW += g.T @ hc
            out.append(loss)
        ctx.save_for_backward(dh, dW)
        ctx.hdtype = h.dtype
        return torch.cat(out)

    @staticmethod
    def backward(ctx, go):                      # go is w times a constant: the caller sums loss * w
        dh, dW = ctx.saved_tensors
        return dh.to(ctx.hdtype), dW, None, None


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--config", required=True, choices=CONFIGS)
    ap.add_argument("--data", default="data")
    ap.add_argument("--out", required=True)
    ap.add_argument("--minutes", type=float, required=True)
    ap.add_argument("--rows", type=int, default=0, help="rows of 1024 tokens per step (0: 64 on cuda, 8 on cpu)")
    ap.add_argument("--ctx", type=int, default=CTX, help="tokens in a training row (shorter rows are quicker on a CPU)")
    ap.add_argument("--opt", choices=["adamw", "muon"], default="muon", help="muon: torch.optim.Muon on the blocks' matrices, AdamW on the rest")
    ap.add_argument("--lr", type=float, default=0)
    ap.add_argument("--doc-weight", type=float, default=2.0)
    ap.add_argument("--init", help="HF folder whose weights a new run starts from")
    ap.add_argument("--teacher", help="HF folder of a trained model to distil from")
    ap.add_argument("--kd", type=float, default=0.7, help="share of the distillation loss")
    ap.add_argument("--eval-every", type=float, default=60, help="seconds")
    ap.add_argument("--compile", choices=["auto", "yes", "no"], default="auto")
    ap.add_argument("--threads", type=int, default=0)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--export-only", action="store_true")
    a = ap.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    dev = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(a.seed)
    torch.set_float32_matmul_precision("high")
    os.makedirs(a.out, exist_ok=True)
    vocab = Tokenizer.from_file(f"{a.data}/tokenizer.json").get_vocab_size()
    model = Qwen2(hf_config(a.config, vocab)).to(dev)
    if a.init:
        model.load_state_dict(load_hf(a.init).state_dict())
    rows = a.rows or (64 if dev == "cuda" else 8)
    lr0 = a.lr or LR[a.config]
    mats = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    rest = [p for p in model.parameters() if p.dim() != 2]
    emb = [model.model.embed_tokens.weight]
    adam = [{"params": emb, "weight_decay": 0.0 if a.opt == "muon" else 0.1}, {"params": rest, "weight_decay": 0.0}]
    kw = dict(lr=lr0, betas=(0.9, 0.95), eps=1e-8, fused=True)
    if a.opt == "muon":
        opts = [torch.optim.Muon(mats, lr=lr0, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"), torch.optim.AdamW(adam, **kw)]
    else:
        opts = [torch.optim.AdamW(adam + [{"params": mats, "weight_decay": 0.1}], **kw)]
    step, spent, ck = 0, 0.0, f"{a.out}/ckpt.pt"
    if os.path.exists(ck):
        s = torch.load(ck, map_location=dev, weights_only=True)
        model.load_state_dict(s["model"]); [o.load_state_dict(x) for o, x in zip(opts, s["opt"])]; step, spent = s["step"], s["spent"]
        print(f"resumed at step {step}, {spent / 60:.1f} min", flush=True)
    if a.export_only:
        export_hf(model, a.data, a.out)
        return
    teacher = None
    if a.teacher:
        teacher = load_hf(a.teacher, dev, torch.bfloat16 if dev == "cuda" else torch.float32).eval().requires_grad_(False)
    ctx = a.ctx
    train = Data(sorted(glob.glob(f"{a.data}/train*.bin")), a.seed, ctx)
    val = Data([f"{a.data}/val.bin"], 0, ctx)
    npar = sum(p.numel() for p in model.parameters())
    print(f"{a.config}: {npar / 1e6:.2f}M parameters, {len(train.t) / 1e6:.1f}M train tokens in {len(train.s)} rows, {len(val.s)} val rows, "
          f"{rows * ctx} tokens a step, lr {lr0}, {dev}", flush=True)

    use_compile = a.compile != "no"
    body = model

    def train_loss_cpu(ids, doc):
        with torch.autocast(dev, torch.bfloat16):
            h = body(ids[:, :-1], head=False)
        w = 1.0 + (a.doc_weight - 1.0) * doc.reshape(-1).float()
        w = w / w.sum()
        ce = LinearCE.apply(h.reshape(-1, h.shape[-1]), model.model.embed_tokens.weight, ids[:, 1:].reshape(-1), w)
        return (ce * w).sum(), ce.mean().detach()

    def train_loss(ids, doc):
        x, y = ids[:, :-1], ids[:, 1:]
        with torch.autocast(dev, torch.bfloat16):
            logits = model(x)
        ce = losses(logits, y)
        w = 1.0 + (a.doc_weight - 1.0) * doc.reshape(-1).float()
        loss = (ce * w).sum() / w.sum()
        if teacher is not None:
            with torch.no_grad(), torch.autocast(dev, torch.bfloat16):
                t = teacher(x)
            lp, tp = F.log_softmax(logits.float(), -1), F.softmax(t.float(), -1)
            kl = -(tp * lp).sum(-1).reshape(-1)
            loss = (1 - a.kd) * loss + a.kd * (kl * w).sum() / w.sum()
        return loss, ce.mean().detach()

    def eval_losses(ids):
        with torch.autocast(dev, torch.bfloat16):
            return losses(model(ids[:, :-1]), ids[:, 1:])

    if dev == "cpu" and teacher is None:
        train_loss = train_loss_cpu
        if use_compile:
            body, LinearCE.kernel = torch.compile(model), torch.compile(ce_chunk)
    elif use_compile:
        train_loss, eval_losses = torch.compile(train_loss), torch.compile(eval_losses)

    @torch.no_grad()
    def evaluate(n_rows):
        model.eval()
        tot = torch.zeros(4, dtype=torch.float64)
        b = min(rows, 16)
        for i in range(max(1, min(n_rows, len(val.s)) // b)):
            ids, doc = val.batch(i, b)
            l = eval_losses(ids.to(dev)).double().cpu()
            d = doc.reshape(-1).double()
            tot += torch.stack([l.sum(), torch.tensor(float(l.numel()), dtype=torch.float64), (l * d).sum(), d.sum()])
        model.train()
        return float(tot[0] / tot[1]), float(tot[2] / tot[3].clamp(min=1))

    def save():
        torch.save({"model": model.state_dict(), "opt": [o.state_dict() for o in opts], "step": step, "spent": spent}, ck + ".tmp")
        os.replace(ck + ".tmp", ck)

    fresh = not os.path.exists(f"{a.out}/log.csv") or step == 0
    log = open(f"{a.out}/log.csv", "w" if fresh else "a", newline="")
    wr = csv.writer(log)
    if fresh:
        wr.writerow(["step", "tokens", "seconds", "lr", "train_loss", "val_loss", "val_doc_loss", "tokens_per_s"])
    budget = a.minutes * 60
    warm = 100 if dev == "cpu" else 300
    t_last, t_eval, t_save, run, nrun = time.time(), time.time(), time.time(), 0.0, 0
    first = True
    n_eval = 64 if dev == "cpu" else 512
    while spent < budget:
        f = spent / budget
        lr = lr0 * min(1.0, (step + 1) / warm) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * f)))
        for o in opts:
            for g in o.param_groups:
                g["lr"] = lr
        ids, doc = train.batch(step, rows)
        ids, doc = ids.to(dev, non_blocking=True), doc.to(dev, non_blocking=True)
        loss, ce = train_loss(ids, doc)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in opts:
            o.step()
            o.zero_grad(set_to_none=True)
        run = run + ce
        nrun += 1
        step += 1
        if dev == "cpu" or step % 10 == 0 or first:
            float(ce)                                            # waits for the device
            now = time.time()
            if not (first and use_compile):                      # compile time is not training time
                spent += now - t_last
            else:
                print(f"first step {now - t_last:.1f} s (compile; not counted)", flush=True)
            t_last, first = now, False
            if now - t_eval > a.eval_every or spent >= budget:
                tps = nrun * rows * ctx / (now - t_eval)
                vl, vd = evaluate(len(val.s) if spent >= budget else n_eval)
                tl = float(run) / nrun
                wr.writerow([step, step * rows * ctx, round(spent, 1), f"{lr:.2e}", f"{tl:.4f}", f"{vl:.4f}", f"{vd:.4f}", int(tps)])
                log.flush()
                print(f"step {step} {step * rows * ctx / 1e6:.1f}M tok {spent / 60:.1f} min lr {lr:.2e} train {tl:.3f} val {vl:.3f} doc {vd:.3f} {tps:.0f} tok/s", flush=True)
                run, nrun = 0.0, 0
                if time.time() - t_save > 180:
                    save()
                    t_save = time.time()
                t_last = t_eval = time.time()                    # evaluation and saving are not counted
    save()
    export_hf(model, a.data, a.out)
    print("exported", a.out, flush=True)


if __name__ == "__main__":
    main()

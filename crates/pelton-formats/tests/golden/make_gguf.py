"""Writes python.gguf with the PyPI package gguf (0.19): one layer of the llama architecture.

Element (r, c) of every matrix is r + c / 64 before the rows of Q and K are interleaved as llama.cpp's converter
does it. Run: python3 make_gguf.py
"""

from pathlib import Path

import gguf
import numpy as np

HIDDEN, HEADS, KV_HEADS, HEAD, FFN, VOCAB = 32, 2, 1, 16, 64, 8


def matrix(rows: int, cols: int) -> np.ndarray:
    return (np.arange(rows)[:, None] + np.arange(cols)[None, :] / 64).astype(np.float32)


def interleave(w: np.ndarray, heads: int) -> np.ndarray:
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


w = gguf.GGUFWriter(Path(__file__).with_name("python.gguf"), "llama")
w.add_name("golden")
w.add_context_length(128)
w.add_embedding_length(HIDDEN)
w.add_block_count(1)
w.add_feed_forward_length(FFN)
w.add_head_count(HEADS)
w.add_head_count_kv(KV_HEADS)
w.add_layer_norm_rms_eps(1e-5)
w.add_rope_dimension_count(HEAD)
w.add_rope_freq_base(500000.0)
w.add_tokenizer_model("gpt2")
w.add_tokenizer_pre("qwen2")
w.add_token_list([f"t{i}" for i in range(VOCAB - 1)] + ["<|im_end|>"])
w.add_token_types([1] * (VOCAB - 1) + [3])
w.add_token_merges(["t 0", "t 1"])
w.add_bos_token_id(1)
w.add_eos_token_id(2)
w.add_add_bos_token(True)
w.add_chat_template([{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}])
w.add_uint8("test.u8", 250)
w.add_int8("test.i8", -5)
w.add_uint16("test.u16", 65535)
w.add_int16("test.i16", -32768)
w.add_uint64("test.u64", 2**63)
w.add_int64("test.i64", -(2**40))
w.add_float64("test.f64", 0.1)
w.add_bool("test.bool", False)
w.add_array("test.ints", [1, -2, 3])
w.add_array("test.floats", [0.5, -0.5])
w.add_array("test.nested", [[1, 2], [3]])

w.add_tensor("token_embd.weight", matrix(VOCAB, HIDDEN))
w.add_tensor("output.weight", matrix(VOCAB, HIDDEN).astype(np.float16))
w.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
w.add_tensor("rope_freqs.weight", np.linspace(1, 8, HEAD // 2, dtype=np.float32))
w.add_tensor("blk.0.attn_norm.weight", np.full(HIDDEN, 2, np.float32))
w.add_tensor("blk.0.ffn_norm.weight", np.full(HIDDEN, 3, np.float32))
w.add_tensor("blk.0.attn_q.weight", interleave(matrix(HEADS * HEAD, HIDDEN), HEADS))
w.add_tensor("blk.0.attn_q.bias", interleave(matrix(HEADS * HEAD, 1)[:, 0], HEADS))
q8 = gguf.quants.quantize(interleave(matrix(KV_HEADS * HEAD, HIDDEN), KV_HEADS), gguf.GGMLQuantizationType.Q8_0)
w.add_tensor("blk.0.attn_k.weight", q8, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
w.add_tensor("blk.0.attn_v.weight", matrix(KV_HEADS * HEAD, HIDDEN))
w.add_tensor("blk.0.attn_output.weight", matrix(HIDDEN, HEADS * HEAD))
for name, rows, cols in [("ffn_gate", FFN, HIDDEN), ("ffn_up", FFN, HIDDEN), ("ffn_down", HIDDEN, FFN)]:
    w.add_tensor(f"blk.0.{name}.weight", matrix(rows, cols))
w.write_header_to_file()
w.write_kv_data_to_file()
w.write_tensors_to_file()
w.close()

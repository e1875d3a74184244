"""Writes the golden files beside this script: the PyPI package `gguf` (0.19, with numpy 2) is the oracle.

    python make_golden.py

`<type>.decode` holds whole blocks and what `gguf.quants.dequantize` makes of them:
    u32 length in bytes of the blocks, the blocks, the elements as f32 (all little-endian).
`encode.input` holds f32 elements; `<type>.encode` the bytes that `gguf.quants.quantize` makes of them.
The generator is seeded, so that a second run changes nothing.
"""

import pathlib

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T, quants

HERE = pathlib.Path(__file__).resolve().parent
rng = np.random.default_rng(20261121)

# Where the f16 scales of a block lie; the rest of a block may be any bits.
F16_FIELDS = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
    T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
    T.IQ4_NL: [0], T.IQ4_XS: [0], T.MXFP4: [],
}
# Formats added later, with a generator of their own so that the files above stay as they are. IQ1_M keeps the nibbles
# of its f16 apart.
LATER_F16_FIELDS = {
    T.IQ2_XXS: [0], T.IQ2_XS: [0], T.IQ2_S: [0], T.IQ3_XXS: [0], T.IQ3_S: [0], T.IQ1_S: [0], T.IQ1_M: [],
    T.TQ1_0: [52], T.TQ2_0: [64],
}


def random_f16(n):
    """Any finite f16: sign, exponent (subnormal too) and mantissa at random."""
    bits = rng.integers(0, 0x7C00, n, dtype=np.uint16) | (rng.integers(0, 2, n, dtype=np.uint16) << 15)
    return bits.view(np.float16)


def blocks_with_scales(dtype, n, scales):
    blocks = rng.integers(0, 256, (n, GGML_QUANT_SIZES[dtype][1]), dtype=np.uint8)
    for at in F16_FIELDS[dtype]:
        blocks[:, at:at + 2] = scales(n).astype(np.float16).reshape(n, 1).view(np.uint8)
    return blocks


def decode_cases(dtype):
    block_len, _ = GGML_QUANT_SIZES[dtype]
    n = 16 if block_len == 32 else 3
    noise = blocks_with_scales(dtype, n, random_f16)
    if dtype == T.MXFP4:
        noise[:4, 0] = [0, 1, 2, 254]  # the subnormal scales and the largest
        real = quants.quantize(rng.normal(0, 0.02, (4, block_len)).astype(np.float32), dtype)
    elif dtype in (T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0):
        real = quants.quantize(rng.normal(0, 0.02, (8, block_len)).astype(np.float32), dtype)
    else:  # no Python encoder: scales of the size that weights of a trained model have
        real = blocks_with_scales(dtype, 1, lambda n: rng.uniform(5e-5, 5e-4, n))
    return np.concatenate([noise, real])


def encode_input():
    f = np.float32
    normal = rng.normal(0, 1, (6, 32))
    weights = rng.normal(0, 0.02, (4, 32))
    heavy = rng.standard_t(2, (6, 32))
    zeros = np.stack([np.zeros(32), -np.zeros(32)])
    mixed_zero = np.where(np.arange(32) % 3 == 0, -0.0, rng.normal(0, 1, 32))
    ties = np.stack([
        np.where(np.arange(32) % 2 == 0, 1.0, -1.0),          # the largest magnitude with both signs
        np.where(np.arange(32) % 2 == 0, -1.0, 1.0),
        np.arange(32) - 16.0,                                 # exact codes
        (np.arange(32) - 16.0) / 2,                           # halves between codes
        np.where(np.arange(32) == 7, 127.0, (np.arange(32) - 15.5)),  # halves for Q8_0
        np.full(32, 3.25),
        np.full(32, -3.25),
    ])
    tiny = np.stack([
        rng.normal(0, 1, 32) * 1e-6,    # scales become subnormal f16
        rng.normal(0, 1, 32) * 1e-9,    # scales vanish in f16
        rng.normal(0, 1, 32) * 1e-30,
        rng.normal(0, 1, 32) * 2e-39,   # subnormal f32: the inverse scale overflows
        rng.integers(-9, 10, 32) * 1.401298464324817e-45,
    ])
    large = rng.uniform(-6e4, 6e4, (2, 32))
    blocks = [normal, weights, heavy, zeros, mixed_zero[None], ties, tiny, large]
    return np.concatenate([b.astype(f) for b in blocks])


def main():
    with np.errstate(all="ignore"):
        for dtype in F16_FIELDS:
            blocks = decode_cases(dtype)
            values = quants.dequantize(blocks, dtype)
            assert values.dtype == np.float32 and not np.isnan(values).any(), dtype.name
            write_decode(dtype, blocks.tobytes(), values)
        halves = np.concatenate([random_f16(250), np.array([0, -0.0, np.inf, -np.inf, 65504, 6e-8], np.float16)])
        write_decode(T.F16, halves.tobytes(), quants.dequantize(halves.view(np.uint8), T.F16))
        brains = rng.integers(0, 0x7F80, 256, dtype=np.uint16) | (rng.integers(0, 2, 256, dtype=np.uint16) << 15)
        write_decode(T.BF16, brains.tobytes(), quants.dequantize(brains.view(np.uint8).reshape(1, -1), T.BF16))
        floats = rng.normal(0, 1, 64).astype(np.float32)
        write_decode(T.F32, floats.tobytes(), floats)

        x = encode_input()
        (HERE / "encode.input").write_bytes(x.tobytes())
        for dtype in (T.F16, T.BF16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.MXFP4):
            (HERE / f"{dtype.name.lower()}.encode").write_bytes(quants.quantize(x, dtype).tobytes())

        later()


def later():
    global rng
    rng = np.random.default_rng(20261122)
    for dtype, fields in LATER_F16_FIELDS.items():
        noise = rng.integers(0, 256, (6, GGML_QUANT_SIZES[dtype][1]), dtype=np.uint8)
        scales = np.concatenate([random_f16(5), rng.uniform(5e-5, 5e-4, 1).astype(np.float16)])
        for at in fields:
            noise[:, at:at + 2] = scales.reshape(6, 1).view(np.uint8)
        if dtype == T.IQ1_M:
            for j in range(4):
                nibble = (scales.view(np.uint16) >> 4 * j & 15).astype(np.uint8)
                noise[:, 49 + 2 * j] = noise[:, 49 + 2 * j] & 15 | nibble << 4
        values = quants.dequantize(noise, dtype)
        assert values.dtype == np.float32 and not np.isnan(values).any(), dtype.name
        write_decode(dtype, noise.tobytes(), values)
    # Blocks of 256, and the same numbers at other sizes: the ternary formats round on the largest magnitude.
    x = rng.normal(0, 1, (4, 256)) * np.array([[1.0], [0.02], [1e-9], [0.0]])
    x = np.concatenate([x, rng.standard_t(2, (2, 256)), rng.integers(-2, 3, (2, 256)) / 2]).astype(np.float32)
    (HERE / "ternary.input").write_bytes(x.tobytes())
    for dtype in (T.TQ1_0, T.TQ2_0):
        (HERE / f"{dtype.name.lower()}.encode").write_bytes(quants.quantize(x, dtype).tobytes())


def write_decode(dtype, raw, values):
    head = np.uint32(len(raw)).tobytes()
    body = np.ascontiguousarray(values, dtype=np.float32).tobytes()
    (HERE / f"{dtype.name.lower()}.decode").write_bytes(head + raw + body)


main()

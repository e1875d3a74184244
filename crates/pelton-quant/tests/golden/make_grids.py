"""Prints `src/grids.rs` below its head: the tables of the PyPI package `gguf` (0.19), packed.

    python make_grids.py

Element `i` of a point is in bits `2i` (IQ1, IQ2) or `3i` (IQ3) of a word, as its index among the format's magnitudes.
"""

from gguf import quants as Q

FORMATS = [
    (Q.IQ2_XXS, 2, "Points of [`crate::iq2_xxs`]: eight magnitudes, 2 bits each."),
    (Q.IQ2_XS, 2, "Points of [`crate::iq2_xs`]: eight magnitudes, 2 bits each."),
    (Q.IQ2_S, 2, "Points of [`crate::iq2_s`]: eight magnitudes, 2 bits each."),
    (Q.IQ3_XXS, 3, "Points of [`crate::iq3_xxs`]: four magnitudes, 3 bits each."),
    (Q.IQ3_S, 3, "Points of [`crate::iq3_s`]: four magnitudes, 3 bits each."),
    (Q.IQ1_S, 2, "Points of [`crate::iq1_s`] and [`crate::iq1_m`]: eight ternary digits, 2 bits each."),
]

for fmt, bits, doc in FORMATS:
    fmt.init_grid()
    index = {value: i for i, value in enumerate(fmt.grid_map)}
    points = fmt.grid.reshape(fmt.grid_shape)
    words = [sum(index[int(v)] << bits * i for i, v in enumerate(point)) for point in points]
    digits, per_line = (4, 14) if bits == 2 else (3, 16)
    print(f"/// {doc}\n#[rustfmt::skip]\npub(crate) static {fmt.__name__}: [u16; {len(words)}] = [")
    for at in range(0, len(words), per_line):
        print("    " + " ".join(f"0x{word:0{digits}x}," for word in words[at:at + per_line]))
    print("];\n")

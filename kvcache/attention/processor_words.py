"""The arguments of the processor kernel's jobs: what each word of a job means. Addresses, strides in bytes, counts.

Three words name a block of pages: its address, the bytes from page to page, the bytes from kv head to kv head. All jobs
of a layer have the same words up to STEP, except the four of what comes in and out; from there on each has its own,
which change from step to step.
"""

from __future__ import annotations

# What comes in and out: query and out for attention, key and value for writing, out alone for merging.
QUERY, QUERY_STRIDE, OUT, OUT_STRIDE = 1, 2, 3, 4
KEY, KEY_STRIDE, VALUE, VALUE_STRIDE = 1, 2, 3, 4

PAIRED = 0  # whether the model's type is bfloat16, of which a tile product takes pairs, and not float32
GROUP, KV_HEADS, KEY_SIZE, VALUE_SIZE, PAGE_TOKENS, KEY_KIND, VALUE_KIND = 5, 6, 7, 8, 9, 10, 11
KEYS, KEY_PAGE, KEY_HEAD = 12, 13, 14
VALUES, VALUE_PAGE, VALUE_HEAD = 15, 16, 17  # VALUES is 0 where keys are latents
KEY_SCALES, KEY_SCALE_PAGE, KEY_SCALE_HEAD = 18, 19, 20
VALUE_SCALES, VALUE_SCALE_PAGE, VALUE_SCALE_HEAD = 21, 22, 23
WINDOW, CHUNKED, SINKS, SCRATCH = 24, 25, 26, 27
PAGE_SHIFT, UNIT = 28, 29  # PAGE_TOKENS is 2 to the PAGE_SHIFT; UNIT is what of a span lies in one page
NUMBERS = 30  # two float32: scaling and softcap (0 for none)
STEP = 31

# Attention: work items, and what their members are (see `processor_work`).
WORK, MEMBERS, POSITIONS, TABLES, COLUMNS, PARTIALS = 31, 32, 33, 34, 35, 36
# Writing.
SLOTS, TOKENS, ITEMS = 31, 32, 33
# Merging; and PARTIALS.
MERGED, EDGES, PARTS = 31, 32, 33
WORDS = 37

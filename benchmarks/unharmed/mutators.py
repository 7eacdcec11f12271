"""Seeded damage to files: to any bytes, and to what is JSON, TOML, safetensors or a picture, by its own structure.

Knows the formats and nothing of what they hold. The same random numbers do the same damage.
"""

from __future__ import annotations

import copy
import json
import re
import struct
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

Mutate = Callable[[bytes, Random], bytes]

_DEEP = "@deep@"
_LONG = "@long@"
"""Stand for a list that is nested without end and for a number of very many digits, which `json.dumps` can't write."""

_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 7, 0.5, -0.25, 1e308, -1e308, 5e-324, 2**31, 2**63, 10**12, 10**400, _LONG),
    *(float("nan"), float("inf"), float("-inf"), "", "x", "0", "-1", "nan", "10%", "100000%", "a/b", "../../x", "/"),
    *("\x00", "line\nbreak", "\ud800", "\x1b[2J", "é" * 300, "y" * 5000, "step_00000100.safetensors", ".", "..", "*"),
    *([], [[]], [1], [None], ["x"], [0.5, 0.5, 0.5, 0.5], [None] * 4, {}, {"undefined": "gone"}, {"undefined": 5}),
    *({"x": 1}, {"": {"": {}}}, {"undefined": None, "x": []}, [{}] * 3, _DEEP, [_DEEP], {"x": _DEEP}),
)

_TOML_VALUES = (
    *("true", "-1", "0", "nan", "inf", "1e400", "9" * 400, '""', '"x"', '"10%"', '"drop"', '"*"', "[]", "[[1]]", "{}"),
    *("{a = 1}", "1979-05-27", "1979-05-27T07:32:00Z", "07:32:00", "'''x'''", '"\\u0000"', "[" * 900 + "]" * 900),
)
_TOML_KEYS = ("alpha", "min_pairs", "defaults", "kind", "figure", "margin", "limit", "severity", "name", "x y", "")


def of_bytes(data: bytes, random: Random) -> bytes:
    """A few bytes changed, cut off, put in, taken out, doubled, or everything gone."""
    if not data or random.random() < 0.02:
        return random.choice((b"", b"\x00", bytes(random.randrange(256) for _ in range(64))))
    at, length = random.randrange(len(data)), random.choice((1, 2, 4, 8, 64, 1024))
    noise = bytes(random.randrange(256) for _ in range(min(length, 64)))
    if (how := random.randrange(6)) == 0:
        out = bytearray(data)
        for _ in range(random.choice((1, 1, 2, 8))):
            out[random.randrange(len(out))] ^= 1 << random.randrange(8)
        return bytes(out)
    return (
        data[:at],
        data[:at] + noise + data[at:],
        data[:at] + data[at + length :],
        data[:at] + noise + data[at + len(noise) :],
        data[:at] + data[at : at + length] * 2 + data[at + length :],
    )[how - 1]


def of_json(data: bytes, random: Random) -> bytes:
    """One or more places of a value: dropped, renamed, of another kind, nested, swapped, emptied."""
    tree = json.loads(data)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        tree = _changed(tree, random)
    text = json.dumps(tree)
    depth = random.choice((20, 400, 3000, 100_000))
    text = text.replace(f'"{_LONG}"', "9" * 5000)
    return text.replace(f'"{_DEEP}"', "[" * depth + "]" * depth).encode()


def of_json_lines(data: bytes, random: Random) -> bytes:
    """One of the lines, or their order, or their number."""
    lines = data.splitlines()
    at = random.randrange(len(lines))
    if (how := random.randrange(8)) < 5:
        lines[at] = of_json(lines[at], random)
    elif how == 5:
        random.shuffle(lines)
    elif how == 6:
        lines.insert(
            at, random.choice((lines[at], b"[1]", b"{}", b'{"resumed_at": 0}', b'{"resumed_at": NaN}', b"null"))
        )
    else:
        lines[at] = of_bytes(lines[at], random)
    return b"\n".join(lines) + b"\n"


def of_toml(data: bytes, random: Random) -> bytes:
    """A value, a key or a line of a table."""
    lines = data.decode().splitlines()
    at = random.randrange(len(lines))
    value, key = random.choice(_TOML_VALUES), random.choice(_TOML_KEYS)
    lines[at] = random.choice(
        (
            re.sub(r"=.*", lambda _: f"= {value}", lines[at]),
            re.sub(r"^\w+", lambda _: key, lines[at]),
            re.sub(r"[\w-]+\]$", lambda _: f'"{key}"]', lines[at]),
            f"{key or 'enabled'} = {value}",
            "",
            lines[at] + "\n" + lines[random.randrange(len(lines))],
            "[" + lines[at],
        )
    )
    return "\n".join(lines).encode(errors="replace")


def of_safetensors(data: bytes, random: Random) -> bytes:
    """Its header, the texts in it, the length that it claims, or the arrays."""
    length = struct.unpack("<Q", data[:8])[0]
    header, arrays = json.loads(data[8 : 8 + length]), data[8 + length :]
    own = header.get("__metadata__", {})
    texts = [key for key, text in own.items() if text[:1] == "{"]
    how = random.randrange(10)
    if how < 6 and texts:
        key = random.choice(texts)
        own[key] = of_json(own[key].encode(), random).decode()
        return _as_safetensors(json.dumps(header).encode(), arrays)
    if how == 6:
        return _as_safetensors(of_json(json.dumps(header).encode(), random), arrays)
    if how == 7:
        claimed = random.choice((0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1, len(data)))
        return struct.pack("<Q", claimed) + data[8:]
    names = [key for key in header if key != "__metadata__"]
    if how == 8 and names:
        row = header[random.choice(names)]
        if random.random() < 0.5:
            row["dtype"] = random.choice(("F16", "BF16", "U16", "F32", "I32", "F64", "U8", "BOOL", "F8_E4M3", "x", ""))
        else:
            row["shape"] = random.choice(([], [0], [1], [2**40], [-1], [1] * 9, row["shape"][::-1], [16], [4, 2, 2]))
        return _as_safetensors(json.dumps(header).encode(), arrays)
    return data[: 8 + length] + of_bytes(arrays, random)


def of_picture(data: bytes, random: Random) -> bytes:
    """A PNG's size, depth or kind of colour, with a checksum that fits; of other formats, the first bytes."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and random.random() < 0.5:
        head = bytearray(data[16:29])
        if random.random() < 0.5:
            at = random.choice((0, 4))
            head[at : at + 4] = struct.pack(">I", random.choice((0, 1, 9, 10_000, 30_000, 2**31 - 1, 2**32 - 1)))
        else:
            head[random.choice((8, 9, 10, 11, 12))] = random.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
        return data[:16] + bytes(head) + struct.pack(">I", zlib.crc32(b"IHDR" + bytes(head))) + data[33:]
    if random.random() < 0.5:
        return of_bytes(data[:200], random) + data[200:]
    return of_bytes(data, random)


def either(*ways: Mutate) -> Mutate:
    """One of several, as the random numbers choose."""
    return lambda data, random: random.choice(ways)(data, random)


def _changed(tree: Any, random: Random) -> Any:
    places = list(_places(tree))
    if random.random() < 0.4:
        places = places and [place for place in places if place[0] is tree]
    if not places or random.random() < 0.02:
        return copy.deepcopy(random.choice(_VALUES))
    holder, key = random.choice(places)
    if (how := random.randrange(8)) < 4:
        holder[key] = copy.deepcopy(random.choice(_VALUES))
    elif how == 4:
        del holder[key]
    elif how == 5:
        holder[key] = random.choice(([holder[key]], {"x": holder[key]}, str(holder[key])[:100], [holder[key]] * 3))
    elif how == 6:
        other, theirs = random.choice(places)
        holder[key], other[theirs] = copy.deepcopy(other[theirs]), copy.deepcopy(holder[key])
    elif isinstance(holder, dict):
        holder[random.choice(("x", "", "undefined", "format", key + " "))] = holder.pop(key)
    else:
        holder.insert(key, copy.deepcopy(holder[key]))
    return tree


def _places(tree: Any) -> Any:
    """(what holds it, its key or number) of each value, a few hundred of a long list's."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, item in list(items)[:300]:
        yield tree, key
        yield from _places(item)


def _as_safetensors(header: bytes, arrays: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + arrays

"""Hostile names, files, links and requests, in a real TensorBoard and a real browser.

The tab must show planted markup as text, say in words what is wrong with a file, and go on showing the other runs. The pages
are opened without TensorBoard's Content-Security-Policy, so that planted code would run if the tab let it in.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from stored_runs import column, evaluation, healthy, maps, mark, pairs
from tab_page import Tab
from test_tab_backend import BROKEN_FILES, GRIDS, META, arrays, entry, make_run, own, safetensors

from benchmarks.browser import FLAGS, LONGEST_START, chromium_path, tensorboard
from i2am_debug.alerts.alert import Alert
from i2am_debug.alerts.finding import Finding
from i2am_debug.figures.record import FORMAT
from i2am_debug.figures.values import Undefined
from i2am_debug.store.run_store import RunStore

pytestmark = pytest.mark.browser

GOOD = "a good run"
PLANTED = "planted"
TIMEOUT = 15_000
ROUTE = "/data/plugin/i2am_debug/"
STEP = "step_00000008.safetensors"
MARKUP = '<img src=x onerror="window.hacked=1">'
LONG = "long " + "x" * 10_000
NAMES = [
    MARKUP,
    "<script>window.hacked=1</script>",
    '"><svg onload="window.hacked=1">',
    "javascript:window.hacked=1",
    "</style></title></option><iframe srcdoc='<script>parent.hacked=1</script>'>",
    "\u202egnp.exe\u202c \u2066left\u2069",
    "control \x01\x02\x08\x1b[31m\x7f\x85\u2028 end",
    "&lt;b&gt; &amp; %3Cimg%20src=x%3E %00 %ff ${window.hacked=1} {{1}}",
    "__proto__",
    "constructor",
    "toString",
    LONG,
]
LONE = "lone \ud800 surrogate"
RUN_NAMES = [name for name in NAMES if name != LONG] + ["/".join(["y" * 200] * 15)]
WORDS_OF_ROUTES = "static|runs|index|evaluation|map|rows|information|picture|regions"


# -- the runs --------------------------------------------------------------------------------------------------------


def planted(step: int) -> tuple[Any, dict[str, np.ndarray], dict[str, Any]]:
    """An evaluation each of whose names is hostile, and its arrays."""
    names = [*NAMES, LONE]
    count = len(names)
    figures: dict[str, Any] = dict(healthy(count))
    for at, name in enumerate(names):
        figures[name] = column(0.1 + 0.01 * at + 0.001 * step, count=count)
        figures[f"layer/{name}/imacs_r_hole"] = column(0.2 + 0.01 * at, count=count)
    figures["without a value"] = tuple(Undefined(name) for name in names)
    one = evaluation(
        step,
        pairs=tuple(names),
        figures=figures,
        layers=tuple(names),
        copying_layer=MARKUP,
        reference_lines={tag: {name: 0.05 * i for i, name in enumerate(names)} for tag in ("imacs_r", *names)},
        fingerprint={"pairs": names, MARKUP: {name: MARKUP for name in names}},
    )
    found = maps(count, peak=step % 16)
    for pair in range(count):
        found[f"{pair}/information"] = np.full((count, 2), 0.5, dtype=np.float32)
        for name in NAMES:
            found[f"{pair}/r2g/by_layer/{name}"] = found[f"{pair}/g2r/by_layer/{name}"] = np.eye(4, dtype=np.float16)
    return one, found, {}


def write_planted(folder: Path) -> None:
    store = RunStore(folder)
    for step in (0, 8):
        one, found, grids = planted(step)
        store.write(one, found, grids)
    store.write_pairs(one, pairs(str(i) for i in range(len(one.pairs))))
    finding = Finding(
        rule=MARKUP,
        kind="drop",
        severity="critical",
        figure=NAMES[1],
        fired=True,
        against=MARKUP,
        pairs=tuple(NAMES[:3]),
        words=f"fell {NAMES[2]} \x1b[31m \u202e",
    )
    alert = Alert(global_step=8, baseline_step=0, fine_at=0, findings=(finding,), panels={MARKUP: "javascript:x"})
    store.write_alert(alert)


def picture(width: int, height: int, *, real: bool = False) -> np.ndarray:
    """A PNG that claims a size; `real`: with all of its pixels, else with a few."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" * (1 + (width + 7) // 8)  # one bit a pixel
    pixels = zlib.compress(row * (height if real else 10), 9)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = (b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    return np.frombuffer(b"".join(parts), np.uint8)


def rewrite(run: Path, changed: dict[str, Any], *, dropped: str = "", grids: Any = GRIDS, **options: Any) -> None:
    """The newest evaluation with other arrays or other figures."""
    given = {**arrays(seed=8), **changed}
    kept = {name: array for name, array in given.items() if name != dropped}
    RunStore(run).write(evaluation(8, **{"count": 2, **options}), kept, grids)


def overwrite(content: bytes) -> Callable[[Path], None]:
    return lambda run: (own(run) / STEP).write_bytes(content) and None


def pictures(content: bytes | np.ndarray) -> Callable[[Path], None]:
    """All pictures of the newest evaluation, and of its pairs, are this."""
    array = np.frombuffer(content, np.uint8) if isinstance(content, bytes) else content

    def make(run: Path) -> None:
        rewrite(run, {f"{i}/generated": array for i in range(2)})
        path = next(own(run).glob("pairs_*"))
        names = ("reference", "target")
        save_file({f"{i}/{name}": array for i in range(2) for name in names}, path, metadata={"format": "1"})

    return make


def regions(stored: dict[str, Any]) -> Callable[[Path], None]:
    """The regions of the pairs are these."""

    def make(run: Path) -> None:
        path = next(own(run).glob("pairs_*"))
        kept = {name: array for name, array in load_file(path).items() if "mask" not in name}
        given = {name: np.frombuffer(bytes(content), np.uint8) for name, content in stored.items()}
        save_file({**kept, **given}, path, metadata={"format": "1"})

    return make


def line(**changed: Any) -> dict[str, Any]:
    means = {"imacs_g": [0.3, 0.2, 0.4, 2]}
    given = {"global_step": 8, "file": STEP, "copying_layer": "up", "comparable_id": "a", "means": means}
    return {"format": FORMAT, **given, **changed}


def indexed(*lines: dict[str, Any] | bytes) -> Callable[[Path], None]:
    """The index is these lines."""
    written = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in lines]
    return lambda run: (own(run) / "index.jsonl").write_bytes(b"".join(one + b"\n" for one in written)) and None


def linked_out(name: str) -> Callable[[Path], None]:
    """A file of the run, or its folder, or the run itself, is a link to somewhere else."""

    def make(run: Path) -> None:
        outside = run.parent.parent / "outside"
        inside = {"folder": own(run)}.get(name, own(run) / name)
        target = {"folder": own(outside)}.get(name, own(outside) / name)
        shutil.rmtree(inside) if inside.is_dir() else inside.unlink(missing_ok=True)
        inside.symlink_to(target)

    return make


def replaced(make_other: Callable[[Path], Any]) -> Callable[[Path], None]:
    def make(run: Path) -> None:
        (own(run) / STEP).unlink()
        make_other(own(run) / STEP)

    return make


def no_pictures(run: Path) -> None:
    linked_out(next(own(run).glob("pairs_*")).name)(run)


def wide_maps(shape: tuple[int, int]) -> Callable[[Path], None]:
    many = np.random.default_rng(0).random(shape, dtype=np.float32)
    return lambda run: rewrite(run, {f"{i}/{name}/unified": many for i in range(2) for name in ("r2g", "g2r")})


def claimed(name: str, shape: list[int], data: bytes = b"") -> Callable[[Path], None]:
    """The newest evaluation, with an array of this shape."""

    def make(run: Path) -> None:
        path = own(run) / STEP
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header, old = json.loads(content[8 : 8 + length]), content[8 + length :]
        header[name] = entry(shape, len(old), len(old) + len(data))
        path.write_bytes(safetensors(header, old + data))

    return make


def alerts_at(*steps: int) -> Callable[[Path], None]:
    finding = Finding(
        rule="a", kind="drop", severity="critical", figure="imacs_g", fired=True, pairs=("pair 0",), words="fell"
    )
    found = [Alert(global_step=step, baseline_step=0, fine_at=0, findings=(finding,)) for step in steps]
    return lambda run: [RunStore(run).write_alert(one) for one in found] and None


def lines_of_reference(count: int, value: Any) -> Callable[[Path], None]:
    lines = {f"line {i}": value for i in range(count)}

    def make(run: Path) -> None:
        rewrite(run, {}, reference_lines={tag: lines for tag in (*healthy(2), "imacs_r")})

    return make


def information(layers: int, heads: int) -> Callable[[Path], None]:
    bits = np.full((layers, heads), 0.5, np.float32)
    names = tuple(f"layer {i}" for i in range(layers))
    return lambda run: rewrite(run, {f"{i}/information": bits for i in range(2)}, layers=names, copying_layer=names[0])


_OF_BACKEND = (
    *(
        "empty",
        "header longer than the file",
        "header of 2^63 bytes",
        "header not JSON",
        "header nested deep",
        "header a list",
    ),
    *("metadata of numbers", "unknown dtype", "a dimension below 0", "a huge shape", "a huge shape and offsets"),
    *("a shape that wraps to 4 bytes", "offsets backwards", "offsets below 0", "overlap", "a gap", "data cut off"),
    *("more data than told of", "no metadata"),
)
BAD_HEADER = {f"file: {case}": (overwrite(BROKEN_FILES[case][0]), BROKEN_FILES[case][1]) for case in _OF_BACKEND}

HOLE = "layer/up/imacs_r_hole"

# Each: what is done to a good run, and words that the page must then show.
NOT_SHOWN: dict[str, tuple[Callable[[Path], Any], str]] = {
    **BAD_HEADER,
    "file: newer": (overwrite(BROKEN_FILES["newer"][0]), "pip install -U i2am-debug"),
    "file: only metadata": (overwrite(safetensors(META)), "holds an evaluation that can't be read"),
    "file: lines that are no numbers": (lines_of_reference(3, MARKUP), "holds an evaluation that can't be read"),
    "file: no pairs": (lambda run: rewrite(run, {}, pairs=(), figures={}), "has no pairs"),
    "file: a folder": (replaced(Path.mkdir), "not a plain file"),
    "file: gone": (replaced(lambda path: None), f"There is no {STEP}"),
    "file: a link out": (linked_out(STEP), "leads out of the logdir"),
    "file: a link to a password file": (
        replaced(lambda path: path.symlink_to("/etc/passwd")),
        "leads out of the logdir",
    ),
    "file: a loop of links": (replaced(lambda path: path.symlink_to(path)), f"{STEP} can"),
    "folder: a link out": (linked_out("folder"), "leads out of the logdir"),
    "index: a link out": (linked_out("index.jsonl"), "leads out of the logdir"),
    "alerts: a link out": (linked_out("alerts.jsonl"), "leads out of the logdir"),
    "index: binary": (indexed(os.urandom(5000), b"\xff\xfe\x00{", b"\0" * 100), "has no evaluations yet"),
    "index: nested deep": (indexed(b"[" * 100_000, b'{"a":' * 100_000), "has no evaluations yet"),
    "index: step 1e400": (indexed(json.dumps(line()).replace(": 8", ": 1e400", 1).encode()), "the step is inf"),
    "index: step NaN": (indexed(line(global_step=float("nan"))), "the step is nan"),
    "index: step text": (indexed(line(global_step=MARKUP)), "<img src=x onerror="),
    "index: step 8.5": (indexed(line(global_step=8.5)), "the step is 8.5"),
    "index: step below 0": (indexed(line(), line(global_step=-8)), "the step is -8"),
    "index: step 10^30": (indexed(line(), line(global_step=10**30)), "the step is 1000"),
    "index: step 10^400": (indexed(line(), line(global_step=10**400)), "the step is 1000"),
    "index: means text": (indexed(line(means={"imacs_g": MARKUP})), "has a line that can't be read"),
    "index: newer": (indexed(line(format=10**30)), "written by a newer i2am-debug"),
    "index: a resume to nowhere": (indexed(line(), {"resumed_at": MARKUP}), "has a line that can't be read"),
}
if hasattr(os, "mkfifo"):
    NOT_SHOWN["file: a pipe"] = (replaced(os.mkfifo), "not a plain file")
    NOT_SHOWN["index: a pipe"] = (
        lambda run: ((own(run) / "index.jsonl").unlink(), os.mkfifo(own(run) / "index.jsonl")),
        "not a plain file",
    )
if hasattr(os, "geteuid") and os.geteuid() != 0:  # root may read everything
    NOT_SHOWN["file: not readable"] = (lambda run: (own(run) / STEP).chmod(0), "may not read")

SHOWN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "map: F64": (lambda run: rewrite(run, {"0/r2g/unified": np.ones((4, 4))}), "This map was not recorded"),
    "map: a vector": (lambda run: rewrite(run, {"0/r2g/unified": np.ones(4, np.float32)}), "This map was not recorded"),
    "map: empty": (lambda run: rewrite(run, {"0/r2g/unified": np.ones((0, 4), np.float32)}), "is no map"),
    "map: NaN": (lambda run: rewrite(run, {"0/r2g/unified": np.full((4, 4), np.nan, np.float32)}), "has no values"),
    "map: huge numbers": (
        lambda run: rewrite(run, {"0/r2g/unified": np.full((4, 4), 3e38, np.float32)}),
        "R2G, where the reference goes",
    ),
    "map: below 0": (lambda run: rewrite(run, {"0/r2g/unified": -np.ones((4, 4), np.float32)}), "R2G, where the"),
    "map: too large": (lambda run: wide_maps((513, 512))(run), "more than the 1048576 that the tab reads"),
    "map: very wide": (wide_maps((1, 2**18)), "is no map: its shape is 1×262144"),
    "map: very high": (wide_maps((2**18, 1)), "is no map: its shape is 262144×1"),
    "map: a wide one": (wide_maps((1, 4096)), "R2G, where the reference goes"),
    "map: a high one": (wide_maps((4096, 1)), "R2G, where the reference goes"),
    "rows: I8": (lambda run: rewrite(run, {"0/rows/unified": np.ones((6, 4), np.int8)}), "is not kept for this pair"),
    "rows: no scale": (
        lambda run: rewrite(run, {}, dropped="0/rows/unified/scale"),
        f"{STEP} has no 0/rows/unified/scale.",
    ),
    "rows: too few": (
        lambda run: rewrite(run, {"0/rows/unified": np.ones((5, 4), np.uint8)}),
        "does not fit its grids",
    ),
    "rows: no grids": (lambda run: rewrite(run, {}, grids={}), "does not say on which grids"),
    "rows: grids of text": (
        lambda run: rewrite(run, {}, grids={"0": {"unified": MARKUP}}),
        "does not say on which grids",
    ),
    "heads: 2^40 claimed": (claimed("0/by_head", [2**40, 0]), "R2G, where the reference goes"),
    "times: 2^60 claimed": (claimed("9/x/by_time", [2**60, 0, 3]), "R2G, where the reference goes"),
    "information: many heads": (information(1, 2**18), "R2G, where the reference goes"),
    "information: many layers": (information(3000, 2), "R2G, where the reference goes"),
    "pictures: SVG": (pictures(b"<svg xmlns='http://www.w3.org/2000/svg' onload='hacked=1'/>"), "R2G, where the"),
    "pictures: HTML after a signature": (pictures(b"\x89PNG\r\n\x1a\n<script>hacked=1</script>"), "cannot be"),
    "pictures: JPEG cut off": (pictures(b"\xff\xd8\xff"), "cannot be"),
    "pictures: 50000 × 50000 claimed": (pictures(picture(50_000, 50_000)), "has more pixels a side than 1024"),
    "pictures: 16000 × 16000 claimed": (pictures(picture(16_000, 16_000)), "has more pixels a side than 1024"),
    "pictures: 12000 × 12000": (pictures(picture(12_000, 12_000, real=True)), "has more pixels a side than 1024"),
    "pictures: 0 × 0": (pictures(picture(0, 0)), "cannot be"),
    "pictures: 1 × 1000": (pictures(picture(1, 1000, real=True)), "R2G, where the reference goes"),
    "pictures: 1000 × 1": (pictures(picture(1000, 1, real=True)), "R2G, where the reference goes"),
    "regions: HTML": (regions({"0/mask": b"<script>hacked=1</script>"}), "No outlines: 0/mask in pairs_"),
    "regions: 50000 × 50000 claimed": (regions({"0/mask": picture(50_000, 50_000)}), "has more pixels a side than 512"),
    "regions: named in markup": (
        regions({"0/kept": picture(9, 9, real=True), "0/kept_origin": MARKUP.encode()}),
        f"the changed part on both ({MARKUP})",
    ),
    "pictures: a link out": (no_pictures, "leads out of the logdir"),
    "alerts: garbage": (
        lambda run: (own(run) / "alerts.jsonl").write_text('{"global_step": 8, "findings": 3}\n'),
        "alerts.jsonl has a line that can't be read",
    ),
    "alerts: far away": (alerts_at(10**9, 8), "critical: "),
    "index: a file elsewhere": (indexed(line(file="../../../../etc/passwd")), "imacs_g"),
    "index: figures of 2^53": (
        indexed(line(global_step=0, means={HOLE: [2**53 - 2] * 4}), line(means={HOLE: [2**53 - 1] * 4})),
        "9007199254740991",
    ),
    "index: figures of 1e308": (
        indexed(line(global_step=0, means={HOLE: [-1e308] * 4}), line(means={HOLE: [1e308] * 4})),
        "not a finite number",
    ),
    "index: figures of 1e299": (
        indexed(line(global_step=0, means={HOLE: [-9e299] * 4}), line(means={HOLE: [9e299] * 4})),
        "9e+299",
    ),
    "index: many figures": (
        indexed(line(means={f"figure {i}": [i, None, None, 1] for i in range(1000)})),
        "figure 999",
    ),
    "index: figures undefined": (indexed(line(means={HOLE: {"undefined": MARKUP}})), f"Undefined: {MARKUP}"),
    "lines: many": (lines_of_reference(100, 0.3), "line 99 0.300"),
    "lines: three in the middle": (lines_of_reference(3, 0.4), "line 2 0.400"),
}


@pytest.fixture(scope="module")
def logdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good run, and all the others beside it."""
    folder = tmp_path_factory.mktemp("hostile") / "runs"
    template = mark(make_run(folder.parent / "outside", 0, 8))
    shutil.copytree(template, folder / GOOD)
    write_planted(mark(folder / PLANTED))
    for name in RUN_NAMES:
        shutil.copytree(template, folder / name)
    os.rename(shutil.copytree(template, folder / "x"), os.fsencode(folder) + b"/no UTF-8 \xff")
    for name, (make, _) in (*NOT_SHOWN.items(), *SHOWN.items()):
        make(shutil.copytree(template, folder / name))
    return folder


@pytest.fixture(scope="module")
def address(logdir: Path) -> Iterator[str]:
    """A TensorBoard that has loaded all of them."""
    expected = 2 + len(RUN_NAMES) + 1 + len(NOT_SHOWN) + len(SHOWN)
    with tensorboard("--logdir", str(logdir)) as (started, _):
        deadline = time.monotonic() + LONGEST_START
        while len(known := json.load(urllib.request.urlopen(f"{started}{ROUTE}runs"))["runs"]) < expected:
            assert time.monotonic() < deadline, f"{len(known)} of {expected} runs"
            time.sleep(0.2)
        yield started


# -- the page --------------------------------------------------------------------------------------------------------

_STRANGE = """(routes) => {
  const known = new Set(('html head base link title body code h1 h2 h3 header main aside section div p span button select ' +
    'option label input output figure figcaption canvas ul li img table thead tbody tr td th svg line polyline polygon ' +
    'circle text details summary pre').split(' '));
  const found = [];
  for (const node of document.querySelectorAll('*')) {
    const isOwn = known.has(node.localName) || (node.localName === 'script' && node.parentNode === document.head);
    if (!isOwn) found.push(node.outerHTML.slice(0, 200));
    for (const {name, value} of node.attributes) {
      if (name.startsWith('on')) found.push(`${name}=${value}`);
      const leads = ['src', 'href', 'srcdoc', 'action'].includes(name) && node.localName !== 'base';
      if (leads && !new RegExp(routes).test(new URL(value, document.baseURI).href)) {
        found.push(`${node.localName} ${name}=${value}`);
      }
    }
  }
  if (window.hacked !== undefined) found.push(`hacked: ${window.hacked}`);
  return found;
}"""


class Watched(Tab):
    """The tab on a page that would run planted code, and all that happens there unseen."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        given = {"viewport": {"width": 1280, "height": 800}, "bypass_csp": True, **options}
        self.page, self.address = browser.new_page(**given), address
        self.errors: list[str] = []
        self.asked: list[str] = []
        self.page.set_default_timeout(TIMEOUT)
        self.page.on("pageerror", lambda error: self.errors.append(f"{error} {error.stack}"))
        self.page.on("crash", lambda _: self.errors.append("the page crashed"))
        self.page.on("console", self._heard)
        self.page.on("dialog", lambda dialog: (self.errors.append(f"a dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on("popup", lambda popup: self.errors.append(f"a window: {popup.url}"))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def _heard(self, message: Any) -> None:
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            self.errors.append(message.text)

    def open(self, **state: Any) -> Watched:
        """Opens the tab anew."""
        words = "&".join(f"p.i2am_debug.{key}={quote(str(value), safe='')}" for key, value in state.items())
        return self.open_hash(words)

    def open_hash(self, words: str) -> Watched:
        self.page.goto("about:blank")
        self.page.goto(f"{self.address}/data/plugin_entry.html?name=i2am_debug#{words}")
        return self

    def choose(self, run: str) -> None:
        self.page.locator(".top .run").select_option(value=run)

    def tells(self, selector: str, words: str) -> None:
        """Waits until these elements are seen to have these words among theirs."""
        wanted = """([at, words]) =>
          [...document.querySelectorAll(at)].some((node) => node.offsetParent && node.textContent.includes(words))"""
        self.page.wait_for_function(wanted, arg=[selector, words])

    def refuses(self, words: str) -> None:
        """Waits until it says so in place of the pictures."""
        self.tells(".trouble, .message", words)
        assert self.page.locator(".columns").is_hidden(), "no pictures of another run stand under this run's name"

    def shows(self, run: str, step: int = 8) -> None:
        """Waits until it shows the pictures of a run."""
        wanted = (
            "words => document.documentElement.dataset.ready === words && document.querySelector('.trouble').hidden"
        )
        self.page.wait_for_function(wanted, arg=f"{run} {step}")
        assert self.page.locator(".columns").is_visible()

    def reads(self, selector: str, words: str) -> None:
        """Waits until one of these elements has exactly these words."""
        wanted = "([at, words]) => [...document.querySelectorAll(at)].some((node) => node.textContent === words)"
        self.page.wait_for_function(wanted, arg=[selector, words])

    def texts(self, selector: str) -> list[str]:
        return self.page.locator(selector).evaluate_all("all => all.map((node) => node.textContent)")

    def hover(self) -> None:
        for side in ("generated", "reference"):
            self.canvas(side).hover()

    def is_unharmed(self) -> None:
        """Nothing planted became an element or ran, nothing was thrown, and only the tab's own routes were asked."""
        ours = rf"/data/plugin_entry\.html|{ROUTE}({WORDS_OF_ROUTES})([/?]|$)"
        own_routes = rf"^{re.escape(self.address)}({ours})|^blob:{re.escape(self.address)}/[0-9a-f-]+$"
        assert self.page.evaluate(_STRANGE, own_routes) == []
        assert [url for url in self.asked if not re.match(rf"{own_routes}|^about:blank", url)] == []
        assert self.errors == []
        self.asked.clear()


@contextmanager
def watched(browser: Any, address: str, **options: Any) -> Iterator[Watched]:
    tab = Watched(browser, address, **options)
    yield tab
    tab.is_unharmed()
    tab.page.close()


@pytest.fixture
def tab(browser: Any, address: str) -> Iterator[Watched]:
    with watched(browser, address) as opened:
        yield opened


@pytest.fixture(scope="module")
def _shared(browser: Any, address: str) -> Iterator[list[Any]]:
    """A page that one test after the other uses: the tab must go on working after each of them."""
    kept: list[Any] = [None, None]
    yield kept
    if kept[0]:
        kept[0].page.close()


@pytest.fixture
def shared(browser: Any, address: str, _shared: list[Any]) -> Iterator[Watched]:
    if _shared[0] is None:
        opened = Watched(browser, address).open(run=GOOD, compare="true")
        opened.shows(GOOD)
        _shared[:] = opened, opened.pixels("generated")
    tab, before = _shared
    try:
        yield tab
        tab.choose(GOOD)
        tab.shows(GOOD)
        tab.page.mouse.move(2, 2)
        assert tab.pixels("generated") == before, "the good run is shown as it was at first"
        tab.is_unharmed()
    except BaseException:
        _shared[:] = None, None  # the next test gets a new page
        raise


# -- names -----------------------------------------------------------------------------------------------------------


def test_planted_names_are_text_in_lists_charts_and_labels(tab: Watched) -> None:
    tab.open(run=PLANTED, sort="order")
    tab.shows(PLANTED)
    names = [*NAMES, LONE]
    wanted = tab.page.evaluate("names => names", names)  # as the browser has a lone surrogate
    assert set(RUN_NAMES) <= set(tab.texts(".top .run option"))
    assert tab.texts(".pair-name") == wanted
    assert set(wanted) <= set(tab.texts(".side-panel option")) and set(wanted) <= set(tab.texts(".small-name"))
    assert tab.page.title() == "I2AM"
    for number, name in enumerate(wanted):
        tab.page.locator(".pair").nth(number).click()
        label = f"Generated picture of {name}. Arrow keys move the patch, Enter pins it."
        stands_in = label.replace("Generated", "Target")
        tab.page.wait_for_function(
            "labels => labels.includes(document.querySelector('.views canvas').getAttribute('aria-label'))",
            arg=[label, stands_in],
        )
    tab.hover()
    tab.is_unharmed()


def test_planted_figures_alerts_and_lines_are_text_in_the_timeline(tab: Watched) -> None:
    tab.open(run=PLANTED)
    tab.shows(PLANTED)
    for at, name in enumerate([*NAMES, LONE]):
        tab.page.locator(".small").nth(tab.texts(".small-name").index(tab.page.evaluate("x => x", name))).click()
        tab.reads(".timeline .tag", tab.page.evaluate("x => x", name))
        assert any(words.startswith(f"{MARKUP[:13]}… ") for words in tab.texts(".line-name")), at
    tab.page.get_by_role("button", name="without a value").first.click()
    tab.page.wait_for_function("() => /^Undefined: /.test(document.querySelector('.plot .undefined').textContent)")
    assert "window.hacked" in tab.texts(".plot .undefined")[0]
    tab.page.locator(".by-layer summary").click()
    tab.page.wait_for_function(
        "tag => [...document.querySelectorAll('.by-layer .small')].some((chart) => chart.dataset.tag === tag)",
        arg=f"layer/{MARKUP}/imacs_r_hole",
    )
    tab.page.locator(".by-layer .small").first.click()
    mark = tab.page.locator(".mark")
    mark.hover()
    tab.page.locator(".bubble").wait_for(state="visible")
    mark.click()
    tab.shows(PLANTED)
    tab.page.wait_for_function("words => document.querySelector('.alert-text').innerText.includes(words)", arg=MARKUP)
    assert NAMES[1] in tab.page.locator(".alert-text").inner_text()
    blamed = tab.page.locator(".alert-buttons button", has_text="window.hacked")
    assert blamed.count() > 0
    blamed.first.click()
    tab.screenshot("hostile_names")


def test_planted_layers_are_text_in_the_matrix_and_at_every_level(tab: Watched) -> None:
    tab.open(run=PLANTED)
    tab.shows(PLANTED)
    for number, name in enumerate([*NAMES, LONE]):
        row = tab.page.locator(".matrix tbody tr").nth(number)
        row.locator("th button").click()
        words = tab.page.evaluate("x => x", name)
        tab.reads(".views .what", f"R2G, where the reference goes; {words}")
        row.locator("td button").first.click()
        tab.hover()
    for level in ("copying", "time", "layer", "head", "unified"):
        tab.page.get_by_label("Level", exact=True).select_option(level)
        tab.page.wait_for_function(
            "level => location.hash.includes(`level=${level}`) || level === 'unified'", arg=level
        )
        tab.shows(PLANTED)


def test_a_planted_view_can_be_compared_linked_and_saved(tab: Watched, browser: Any, address: str) -> None:
    tab.open(run=PLANTED, level="layer", layer=LONG, figure=MARKUP, overlay=json.dumps(RUN_NAMES), pair=0)
    tab.shows(PLANTED)
    tab.page.get_by_role("button", name="Compare").click()
    for name in RUN_NAMES[:3]:
        tab.page.locator(".compare").get_by_label("Run", exact=True).select_option(name)
        tab.page.wait_for_function(
            "name => document.querySelector('.compare .warning').textContent.startsWith(`Step 8 of ${name} has no pair `)",
            arg=name,
        )
    assert tab.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    with tab.page.expect_download() as download:
        tab.page.get_by_role("button", name="Save PNG").click()
    saved = download.value.suggested_filename
    assert re.fullmatch(r"[\w.-]+\.png", saved) and len(saved) <= 255, saved
    tab.page.locator(".pair", has_text="long xxx").click()
    tab.page.wait_for_function("document.querySelector('.views canvas').ariaLabel.includes('of long xxx')")
    with tab.page.expect_download() as download:
        tab.page.get_by_role("button", name="Save PNG").click()
    saved = download.value.suggested_filename
    assert re.fullmatch(r"[\w.-]+\.png", saved) and len(saved) <= 255, saved
    with watched(browser, address) as again:
        again.open_hash(tab.page.evaluate("location.hash.slice(1)"))
        again.shows(PLANTED)
        again.says(f"Step 8 of {RUN_NAMES[2]} has no pair ")
        again.reads(".timeline .tag", MARKUP)


@pytest.mark.parametrize("name", RUN_NAMES, ids=lambda name: ascii(name)[:30])
def test_a_run_may_have_any_name(shared: Watched, name: str) -> None:
    shared.choose(name)
    shared.shows(name)
    assert shared.texts(".compare h3")[0] == f"{name}, step 8"
    shared.is_unharmed()


def test_a_run_whose_name_is_no_text_cannot_be_shown(shared: Watched) -> None:
    name = next(one for one in shared.texts(".top .run option") if one.startswith("no UTF-8"))
    shared.choose(name.removesuffix(" (cannot be read)"))
    shared.refuses("This run's folder is gone")


# -- links -----------------------------------------------------------------------------------------------------------

_KEYS = (
    *(
        "run",
        "overlay",
        "step",
        "pair",
        "figure",
        "level",
        "time",
        "layer",
        "head",
        "direction",
        "r2g",
        "g2r",
        "colours",
    ),
    *("strength", "pins", "sort", "lines", "compare", "otherRun", "otherStep"),
)
GARBAGE = {
    "markup": MARKUP,
    "huge": "9" * 400,
    "fifteen digits": "9" * 15,
    "below 0": "-1",
    "NaN": "NaN",
    "__proto__": "__proto__",
    "object": '{"__proto__": {"run": 1}}',
    "list": json.dumps([MARKUP, "__proto__", 3, None, [[]]] * 50),
    "deep list": "[" * 5000 + "]" * 5000,
    "lone surrogate": "%ED%A0%80",
    "percent": "%",
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_a_link_with_garbage_opens_the_tab(tab: Watched, kind: str) -> None:
    value = GARBAGE[kind]
    value = value if value.startswith("%") else quote(value, safe="")
    begun = time.monotonic()
    tab.open_hash("&".join(f"p.i2am_debug.{key}={value}" for key in _KEYS))
    tab.page.wait_for_function("() => / 8$/.test(document.documentElement.dataset.ready)")
    assert time.monotonic() - begun < 10
    said = tab.page.locator(".trouble").inner_text() if tab.page.locator(".trouble").is_visible() else ""
    assert said == "" or said.startswith("There is no run ")
    # It still takes orders, and writes a proper link.
    tab.page.get_by_label("Level", exact=True).select_option("copying")
    tab.page.wait_for_function("() => location.hash.includes('level=copying')")


HASHES = {
    "pins outside": "p.i2am_debug.pins=generated:2x3:5,6,7-99999999999",
    "many pins": "p.i2am_debug.pins=reference:64x64:" + ",".join(["0-4095"] * 570),
    "pins of nothing": "p.i2am_debug.pins=generated:0x4:-,-,,,",
    "pins of another grid": "p.i2am_debug.pins=generated:1x4096:4095",
    "long pins": "p.i2am_debug.pins=generated:16x16:" + "1," * 50_000,
    "100 kB": "a=" + "x" * 100_000,
    "100 000 parts": "&" * 100_000,
    "a prototype": "p.i2am_debug.__proto__=1&p.i2am_debug.constructor=1&__proto__=1&p.i2am_debug.=",
    "no values": "%00&p.i2am_debug.otherRun=%00%0a&p.i2am_debug.run&p.i2am_debug.step&=&==&%%%&p.i2am_debug.pins=a=b=c",
    "a figure of the prototype": "p.i2am_debug.figure=toString&p.i2am_debug.overlay="
    + quote(json.dumps([GOOD, PLANTED])),
    "a layer of the prototype": "p.i2am_debug.figure=layer/__proto__&p.i2am_debug.level=layer&p.i2am_debug.layer=__proto__",
}


@pytest.mark.parametrize("kind", HASHES)
def test_a_hostile_link_opens_the_tab(tab: Watched, kind: str) -> None:
    begun = time.monotonic()
    tab.open_hash(f"{HASHES[kind]}&p.i2am_debug.compare=true")
    tab.page.wait_for_function("() => / 8$/.test(document.documentElement.dataset.ready)")
    tab.hover()
    tab.page.keyboard.press("Escape")
    assert time.monotonic() - begun < 10
    assert tab.page.locator(".trouble").is_hidden()


def test_a_figure_named_like_a_method_may_be_missing_in_another_run(tab: Watched) -> None:
    tab.open(run=PLANTED, overlay=json.dumps([GOOD]), figure="constructor")
    tab.shows(PLANTED)
    tab.reads(".timeline .tag", "constructor")


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", NOT_SHOWN)
def test_a_run_that_cannot_be_shown_says_why(shared: Watched, case: str) -> None:
    shared.choose(case)
    shared.refuses(NOT_SHOWN[case][1])


@pytest.mark.parametrize("case", SHOWN)
def test_what_can_be_shown_is_shown(shared: Watched, case: str) -> None:
    shared.choose(case)
    shared.shows(case)
    shared.tells(".columns", SHOWN[case][1])
    if case.startswith(("map", "rows", "pictures")):
        shared.hover()
    size = """() => {
      const page = document.documentElement;
      return [page.scrollWidth <= window.innerWidth, page.scrollHeight < 30_000];
    }"""
    assert shared.page.evaluate(size) == [True, True], "it is no wider than the window, and not endlessly high"


@pytest.mark.parametrize("case", ["file: a gap", "index: step below 0", "index: binary"])
def test_a_link_to_a_broken_run_leaves_the_choice_of_another(tab: Watched, case: str) -> None:
    tab.open(run=case)
    tab.refuses(NOT_SHOWN[case][1])
    tab.screenshot("hostile_" + re.sub(r"\W+", "_", case))
    tab.choose(GOOD)
    tab.shows(GOOD)


def test_a_broken_evaluation_leaves_the_choice_of_another_one(tab: Watched) -> None:
    tab.open(run="file: a gap")
    tab.refuses(NOT_SHOWN["file: a gap"][1])
    tab.page.get_by_role("button", name="Evaluation before").click()
    tab.shows("file: a gap", 0)
    tab.page.get_by_role("button", name="Next evaluation").click()
    tab.refuses(NOT_SHOWN["file: a gap"][1])


# -- requests --------------------------------------------------------------------------------------------------------

_ASK = """([url, options]) => fetch(url, options).then(
  async (answer) => [answer.status, Object.fromEntries(answer.headers), (await answer.text()).slice(0, 300)],
  (error) => [0, {}, String(error)])"""
ROUTES = {
    "runs": {},
    "index": {},
    "evaluation": {"step": 8},
    "map": {"step": 8, "pair": 0, "name": "r2g/unified"},
    "rows": {"step": 8, "pair": 0, "name": "unified"},
    "information": {"step": 8},
    "picture": {"step": 8, "pair": 0, "which": "target"},
    "regions": {"step": 8, "pair": 0},
    "static/index.js": {},
}
TYPES = {
    "map": "application/octet-stream",
    "rows": "application/octet-stream",
    "picture": "image/png",
    "static/index.js": "text/javascript; charset=utf-8",
}


def url_of(route: str, **query: Any) -> str:
    given = {} if route in ("runs", "static/index.js") else {"run": GOOD, **ROUTES.get(route, {}), **query}
    return f"{ROUTE}{route}" + "?" * bool(given) + "&".join(f"{k}={quote(str(v), safe='')}" for k, v in given.items())


@pytest.fixture(scope="module")
def fetch(browser: Any, address: str) -> Iterator[Callable[..., tuple[int, dict[str, str], str]]]:
    """What the browser's own fetch gets, asked by a page of the same TensorBoard."""
    page = browser.new_page(bypass_csp=True)
    page.goto(f"{address}{ROUTE}static/style.css")
    yield lambda url, **options: tuple(page.evaluate(_ASK, [url, options]))
    page.close()


@pytest.mark.parametrize("route", ROUTES)
def test_answers_are_of_one_type_and_never_run(fetch: Any, route: str) -> None:
    status, headers, _ = fetch(url_of(route))
    assert status == 200 and headers["content-type"] == TYPES.get(route, "application/json")
    assert headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in headers["content-security-policy"]
    assert "default-src 'none'" in headers["content-security-policy"]
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        status, headers, words = fetch(url_of(route), method=method)
        assert (status, headers["allow"]) == (405, "GET") and words.startswith("The tab only reads")
        assert headers["x-content-type-options"] == "nosniff" and headers["content-type"].startswith("text/plain")


_UPWARDS = [
    *("..%2fbackend.py", "..%2f..%2f..%2fetc%2fpasswd", "%2e%2e/backend.py", "%2e%2e%2fbackend.py", "..%5cbackend.py"),
    *(
        "%2fetc%2fpasswd",
        "....//backend.py",
        "index.js%00.css",
        "index.js/..%2f..%2fbackend.py",
        "%252e%252e%252fbackend.py",
    ),
    *("index.html", "", ".", "nowhere.js", "INDEX.JS%20", "index.js%0d%0aX-Evil:1", "..;/backend.py"),
]


@pytest.mark.parametrize("name", _UPWARDS)
def test_no_path_leads_out_of_the_static_files(fetch: Any, name: str) -> None:
    status, headers, words = fetch(f"{ROUTE}static/{name}")
    assert status == 404 and "x-evil" not in headers
    assert "root:" not in words and "import" not in words


@pytest.mark.parametrize(
    ("route", "query"),
    [
        ("index", {"run": "../outside"}),
        ("index", {"run": f"{GOOD}/../{GOOD}"}),
        ("index", {"run": "%2e%2e%2foutside"}),
        ("index", {"run": "/etc"}),
        ("index", {"run": f"{GOOD}\0"}),
        ("evaluation", {"step": "../../x"}),
        ("evaluation", {"step": "8/../../../index.jsonl"}),
        ("evaluation", {"step": "%38"}),
        ("map", {"name": "../../index"}),
        ("map", {"name": "r2g/by_layer/../../../../etc/passwd"}),
        ("map", {"name": MARKUP}),
        ("rows", {"name": "by_layer/../../x"}),
        ("picture", {"which": "../../../etc/passwd"}),
        ("picture", {"which": MARKUP}),
        ("picture", {"pair": "__proto__"}),
        ("regions", {"pair": "../../etc"}),
        ("regions", {"run": "../outside"}),
    ],
)
def test_no_parameter_leads_out_of_a_run(fetch: Any, route: str, query: dict[str, str]) -> None:
    status, headers, words = fetch(url_of(route, **query))
    assert status in (400, 404) and headers["content-type"] == "text/plain; charset=utf-8"
    assert headers["x-content-type-options"] == "nosniff" and "root:" not in words and len(words.splitlines()) == 1


def test_answers_opened_as_pages_run_nothing(browser: Any, address: str) -> None:
    page = browser.new_page()
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    svg, html = "pictures: SVG", "pictures: HTML after a signature"
    planted_in = {"run": PLANTED, "step": 8}
    for url in (
        *(url_of("picture", run=run, which=which) for run in (svg, html, GOOD) for which in ("generated", "target")),
        *(url_of("index", run=PLANTED), url_of("runs"), url_of("evaluation", **planted_in)),
        *(url_of("index", run=MARKUP + "?"), url_of("map", name=MARKUP), url_of("information", **planted_in)),
    ):
        page.goto(f"{address}{url}")
        kind = page.evaluate("document.contentType")
        assert kind in ("text/plain", "application/json", "image/png"), url
        assert page.evaluate(
            "[window.hacked ?? null, document.querySelectorAll('svg, script, img[src=x]').length]"
        ) == [None, 0]
        assert page.evaluate("window.origin") == "null", "sandboxed: it may read nothing of TensorBoard's"
    assert dialogs == []
    page.close()


def test_a_name_made_to_point_here_is_refused(browser: Any, address: str) -> None:
    """DNS rebinding: a page from elsewhere whose name now resolves to this machine."""
    elsewhere = f"http://evil.test:{urlsplit(address).port}"
    flags = [*FLAGS, "--host-resolver-rules=MAP evil.test 127.0.0.1"]
    other = browser.browser_type.launch(executable_path=chromium_path(), args=flags)
    try:
        page = other.new_page(bypass_csp=True)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{elsewhere}/data/plugin_entry.html?name=i2am_debug")
        page.get_by_text("I2AM_ALLOW_HOSTS").wait_for()  # the page itself comes, and says what to do
        assert page.evaluate(_ASK, [f"{elsewhere}{url_of('static/index.js')}", {}])[0] == 200
        for route in ROUTES.keys() - {"static/index.js"}:
            status, headers, words = page.evaluate(_ASK, [f"{elsewhere}{url_of(route)}", {}])
            assert status == 403 and "I2AM_ALLOW_HOSTS" in words and "access-control-allow-origin" not in headers
            # Asked under the right name, but by a page from elsewhere: the browser keeps the answer from it.
            assert page.evaluate(_ASK, [f"{address}{url_of(route)}", {}])[0] == 0
        shown = """(src) => new Promise((resolve) => {
          const image = new Image();
          image.onload = () => resolve(`${image.width} pixels`);
          image.onerror = () => resolve('nothing');
          image.src = src;
        })"""
        assert page.evaluate(shown, f"{elsewhere}{url_of('picture')}") == "nothing"
        assert page.evaluate(shown, f"{address}{url_of('picture')}") == "nothing"
    finally:
        other.close()

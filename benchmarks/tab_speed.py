"""How fast the tab is in a real browser: `python -m benchmarks.tab_speed`, about three minutes; needs Chromium.

On a run of 1000 evaluations of 16 pairs, the newest 40 with rows of 32x32 by 32x32 tokens: from the address to the pictures,
hovering until the next frame, stepping, and how much TensorBoard's own process grows while 500 evaluations are opened.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from i2am_debug.callbacks.trackers import marker
from PIL import Image

from i2am_debug.figures.record import Evaluation
from i2am_debug.pairs.pair import ValidationPair
from i2am_debug.store.run_store import RunStore

from .browser import chromium, open_tab, tensorboard

PAIRS, SIDE = 16, 32
LAYERS, HEADS = 16, 8
WITH_ROWS = 40

_HOVER = """async () => {
  const canvas = document.querySelector('.views canvas'), box = canvas.getBoundingClientRect(), times = [];
  for (let i = 0; i < 200; i++) {
    const where = {clientX: box.left + box.width * ((i * 37 % 97) / 97), clientY: box.top + box.height * ((i * 53 % 89) / 89)};
    await new Promise((resolve) => requestAnimationFrame(resolve));
    const begin = performance.now();
    for (const type of ['pointermove', 'mousemove']) {
      const Event = type === 'pointermove' ? PointerEvent : MouseEvent;
      canvas.dispatchEvent(new Event(type, {...where, bubbles: true, pointerId: 1, isPrimary: true}));
    }
    const handled = performance.now() - begin;
    await new Promise((resolve) => requestAnimationFrame(resolve));
    times.push([handled, performance.now() - begin]);
  }
  return times;
}"""


def write_run(folder: Path, evaluations: int) -> None:
    """The run, with the event file by which TensorBoard knows it."""
    from torch.utils.tensorboard import SummaryWriter

    rng = np.random.default_rng(0)
    layers = [f"down_blocks.{i}.attn2" for i in range(LAYERS)]
    tags = ["imacs_g", "imacs_r", "imacs_r_hole", "attention_information", "reference_gap", "loss"]
    tags += [
        f"layer/{layer}/{what}" for layer in layers for what in ("imacs_r", "imacs_r_hole", "attention_information")
    ]
    one_map = rng.random((SIDE, SIDE), dtype=np.float32)
    one_map /= one_map.sum()
    rows = rng.integers(0, 255, (SIDE * SIDE, SIDE * SIDE), dtype=np.uint8)
    scale = np.full(SIDE * SIDE, 0.01, dtype=np.float32)
    names = tuple(f"pair_{i:02d}" for i in range(PAIRS))
    picture = Image.fromarray(rng.integers(0, 255, (256, 256, 3), dtype=np.uint8))
    store = RunStore(folder)
    for number in range(evaluations):
        figures = {tag: tuple(rng.normal(0.3, 0.02, PAIRS).tolist()) for tag in tags}
        evaluation = Evaluation(
            global_step=100 * number,
            pairs=names,
            figures=figures,
            errors={},
            layers=tuple(layers),
            copying_layer=layers[3],
            reference_lines={"imacs_g": {"constant": 0.0, "random": -0.8, "blob": 0.1, "perfect": 0.9}},
            fingerprint={"pairs": list(names)},
        )
        arrays = {f"{i}/{name}/unified": one_map for i in range(PAIRS) for name in ("r2g", "g2r")}
        arrays.update({f"{i}/information": np.full((LAYERS, HEADS), 0.5, dtype=np.float32) for i in range(PAIRS)})
        grids: dict[str, Any] = {}
        if number >= evaluations - WITH_ROWS:
            arrays.update({f"{i}/rows/unified": rows for i in range(PAIRS)})
            arrays.update({f"{i}/rows/unified/scale": scale for i in range(PAIRS)})
            grids = {str(i): {"unified": [[SIDE, SIDE], [SIDE, SIDE]]} for i in range(PAIRS)}
        store.write(evaluation, arrays, grids)
    store.write_pairs(evaluation, [ValidationPair(name=n, reference=picture, target=picture) for n in names])
    writer = SummaryWriter(str(folder))
    writer._get_file_writer().add_summary(marker(), 0)
    writer.close()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tab_speed", description=__doc__.splitlines()[0])
    parser.add_argument("--evaluations", type=int, default=1000)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as logdir:
        write_run(Path(logdir) / "long", args.evaluations)
        with tensorboard("--logdir", logdir) as (address, server), chromium() as browser:
            measure(browser, address, server.pid, args.evaluations)
    return 0


def measure(browser: Any, address: str, process: int, evaluations: int) -> None:
    newest = 100 * (evaluations - 1)
    is_open = f"document.documentElement.dataset.ready === 'long {newest}'"
    opened = []
    for number in range(6):
        page = browser.new_page(viewport={"width": 1440, "height": 1100})
        if number == 0:  # TensorBoard loads its runs, and warms up
            open_tab(page, address)
        else:
            started = time.monotonic()
            page.goto(f"{address}/data/plugin_entry.html?name=i2am_debug")
            page.wait_for_function(is_open, timeout=60_000)
            opened.append(time.monotonic() - started)
        if number < 5:
            page.close()
    print(
        f"open {evaluations} evaluations of {PAIRS} pairs: median {statistics.median(opened):.2f} s, worst {max(opened):.2f} s"
    )

    page.evaluate(_HOVER)
    handled, painted = zip(*page.evaluate(_HOVER), strict=True)
    for what, times in (("hover, handler", handled), ("hover, until the next frame", painted)):
        ranked = sorted(times)
        print(f"{what}: median {statistics.median(ranked):.1f} ms, p95 {ranked[189]:.1f} ms, worst {ranked[-1]:.1f} ms")

    stepped = []
    for step in range(newest - 100, newest - 3100, -100):
        started = time.monotonic()
        page.keyboard.press(",")
        page.wait_for_function(f"document.documentElement.dataset.ready === 'long {step}'", polling="raf")
        stepped.append(1000 * (time.monotonic() - started))
        time.sleep(0.4)
    ranked = sorted(stepped)
    print(f"step: median {statistics.median(ranked):.0f} ms, p95 {ranked[28]:.0f} ms, worst {ranked[-1]:.0f} ms")

    before = _resident(process)
    for count in range(500):
        query = f"run=long&step={100 * (count * 2 % evaluations)}"
        for route in (f"evaluation?{query}", f"map?{query}&pair=3&name=r2g/unified"):
            page.request.get(f"{address}/data/plugin/i2am_debug/{route}")
        if count == 99:
            warm = _resident(process)
    print(
        f"TensorBoard's process: {before:.0f} MiB, {warm:.0f} after 100 evaluations, {_resident(process):.0f} after 500"
    )


def _resident(process: int) -> float:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    sys.exit(main())

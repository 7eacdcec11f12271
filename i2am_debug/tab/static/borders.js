// The border of a region: traced once from its pixels, drawn at any size. Knows no state.

const [LINE, RIM] = ['#fff', '#101216']; // white inside dark is seen on any picture
const SMALL = 240; // pixels of the page; on narrower pictures the line is thinner

// {runs, height, width} of a region of `height` × `width` pixels; `isInside(pixel)` by its number, row by row. `runs` holds
// the border's straight parts, [x, y, x, y] after [x, y, x, y], each from left to right or from top to bottom.
export function traced(height, width, isInside) {
  const at = (y, x) => y >= 0 && y < height && x >= 0 && x < width && isInside(y * width + x);
  const runs = [];
  for (let y = 0; y <= height; y++) {
    addRuns(width, (x) => at(y - 1, x) !== at(y, x), (from, to) => runs.push(from, y, to, y));
  }
  for (let x = 0; x <= width; x++) {
    addRuns(height, (y) => at(y, x - 1) !== at(y, x), (from, to) => runs.push(x, from, x, to));
  }
  return {runs: Uint16Array.from(runs), height, width};
}

function addRuns(length, isBorder, add) {
  let from = -1;
  for (let i = 0; i <= length; i++) {
    if (i < length && isBorder(i)) from = from < 0 ? i : from;
    else if (from >= 0) {
      add(from, i);
      from = -1;
    }
  }
}

// Borders over a picture that lies at `place`, [left, top, width, height] in whole pixels; `ratio`: pixels of the canvas for one
// of the page. Filled rectangles on whole pixels stay crisp where a stroke would be smoothed.
export function drawBorders(context, borders, place, ratio) {
  const isSmall = place[2] / ratio < SMALL;
  const line = Math.max(1, Math.round((isSmall ? 1 : 1.5) * ratio));
  const rim = Math.max(1, Math.round((isSmall ? 0.5 : 0.75) * ratio));
  const thickness = line + 2 * rim;
  for (const [colour, inset] of [[RIM, 0], [LINE, rim]]) {
    context.fillStyle = colour;
    for (const border of borders) drawRuns(context, border, place, thickness, inset);
  }
}

// `inset`: how much of the thickness is left free on either side.
function drawRuns(context, {runs, height, width}, [left, top, w, h], thickness, inset) {
  const before = Math.floor(thickness / 2);
  // At the picture's edges it moves inside, where half of it would be cut off.
  const onPicture = (share, length) => Math.max(0, Math.min(length - thickness, Math.round(share * length) - before));
  const [x, y] = [(value) => left + onPicture(value / width, w), (value) => top + onPicture(value / height, h)];
  for (let i = 0; i < runs.length; i += 4) {
    const [x0, y0, x1, y1] = [x(runs[i]), y(runs[i + 1]), x(runs[i + 2]), y(runs[i + 3])];
    context.fillRect(x0 + inset, y0 + inset, x1 - x0 + thickness - 2 * inset, y1 - y0 + thickness - 2 * inset);
  }
}

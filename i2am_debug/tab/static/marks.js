// Where a map says that something is: the box around its heaviest part and its maximum, as i2am_debug/figures/boxes.py and
// `pointing` have them. Knows no state.

import {extent} from './extent.js';

const SHARE = 0.65; // of the tokens lie below what a part is made of

// {box: [top, left, bottom, right] in shares of height and width, at: [row, column] of the maximum, grid}; null of a map that is
// nowhere heaviest.
export function marksOf({values, grid}) {
  const [height, width] = grid;
  const order = Float64Array.from(values).sort();
  const [least, most] = [order[0], order[order.length - 1]];
  if (height === 1 || width === 1 || !(most - least > 1e-6 * most)) return null;
  const position = SHARE * (order.length - 1);
  const [before, after] = [order[Math.floor(position)], order[Math.ceil(position)]];
  const level = before + (after - before) * (position % 1);
  const part = heaviest(values, width, level);
  if (!part.length) return null;
  const box = [1, 1, 0, 0];
  for (const token of part) {
    const [row, column] = [Math.floor(token / width), token % width];
    box[0] = Math.min(box[0], row / height);
    box[1] = Math.min(box[1], column / width);
    box[2] = Math.max(box[2], (row + 1) / height);
    box[3] = Math.max(box[3], (column + 1) / width);
  }
  const top = values.indexOf(extent(values).top);
  return {box, at: [Math.floor(top / width), top % width], grid};
}

// The tokens of the part with most mass; tokens that share an edge are of one part.
function heaviest(values, width, level) {
  const [seen, best] = [new Set(), {part: [], mass: -1}];
  values.forEach((value, token) => {
    if (!(value > level) || seen.has(token)) return;
    const part = [token];
    seen.add(token);
    for (const one of part) {
      const [left, right] = [one % width ? one - 1 : -1, (one + 1) % width ? one + 1 : -1];
      for (const near of [left, right, one - width, one + width]) {
        if (!(values[near] > level) || seen.has(near)) continue;
        seen.add(near);
        part.push(near);
      }
    }
    const mass = part.reduce((sum, one) => sum + values[one], 0);
    if (mass >= best.mass) Object.assign(best, {part, mass});
  });
  return best.part;
}

// How they lie to a region, in words.
export function comparedWords({box, at, grid}, region) {
  const share = (one) => Math.max(0, one[2] - one[0]) * Math.max(0, one[3] - one[1]);
  const own = boxOf(region.border);
  const shared = share([...[0, 1].map((i) => Math.max(box[i], own[i])), ...[2, 3].map((i) => Math.min(box[i], own[i]))]);
  const hits = covered(region, at, grid) >= 0.5;
  return `box IoU ${(shared / (share(box) + share(own) - shared)).toFixed(2)}, maximum ${hits ? 'hits' : 'misses'}`;
}

// Of its border's straight parts, [x, y, x, y] after [x, y, x, y].
function boxOf({runs, height, width}) {
  const box = [1, 1, 0, 0];
  for (let i = 0; i < runs.length; i += 4) {
    box[0] = Math.min(box[0], runs[i + 1] / height);
    box[1] = Math.min(box[1], runs[i] / width);
    box[2] = Math.max(box[2], runs[i + 3] / height);
    box[3] = Math.max(box[3], runs[i + 2] / width);
  }
  return box;
}

// Share of a token's pixels that lie inside.
function covered({border: {height, width}, isInside}, [row, column], [rows, columns]) {
  const range = (i, length, count) => [Math.floor((i * length) / count), Math.ceil(((i + 1) * length) / count)];
  const [[y0, y1], [x0, x1]] = [range(row, height, rows), range(column, width, columns)];
  let inside = 0;
  for (let y = y0; y < y1; y++) for (let x = x0; x < x1; x++) inside += isInside(y * width + x);
  return inside / ((y1 - y0) * (x1 - x0));
}

// Dashed blue, which no map's colours have, with a dark rim; `ratio`: pixels of the canvas for one of the page.
export function drawMarks(context, {box, at, grid}, [left, top, width, height], ratio) {
  const [y0, x0, y1, x1] = box.map((share, i) => (i % 2 ? left + share * width : top + share * height));
  const [y, x] = [top + ((at[0] + 0.5) / grid[0]) * height, left + ((at[1] + 0.5) / grid[1]) * width];
  const inset = 2 * ratio; // at the picture's edges half of the line would be cut off
  for (const [colour, thick] of [['#0a2230', 4], ['#46d6ff', 2]]) {
    context.strokeStyle = colour;
    context.lineWidth = thick * ratio;
    context.setLineDash([7 * ratio, 5 * ratio]);
    context.strokeRect(x0 + inset, y0 + inset, x1 - x0 - 2 * inset, y1 - y0 - 2 * inset);
    context.setLineDash([]);
    context.beginPath();
    context.arc(x, y, 6 * ratio, 0, 2 * Math.PI);
    context.stroke();
  }
}

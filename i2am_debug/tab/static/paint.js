// A picture with a map over it, on a canvas. Knows no state; values come in, pixels go out.

import {drawBorders} from './borders.js';
import {colours} from './colour.js';
import {drawMarks} from './marks.js';

const MOST_PIXELS = 2048;
const BARS_FROM = 0.62; // of the height, where tokens without a grid are drawn as bars

const identities = new WeakMap();
let known = 0;

function identity(one) {
  if (!identities.has(one)) identities.set(one, known++);
  return identities.get(one);
}

// What is kept between paints of one canvas.
export function surface(canvas) {
  const [base, small, lines] = [0, 1, 2].map(() => document.createElement('canvas'));
  return {canvas, context: canvas.getContext('2d'), base, basis: '', small, pixels: null, lines, linesBasis: ''};
}

// Tokens without a grid come as one row.
export const isBars = (grid) => grid[0] === 1 && grid[1] > 1;

// Width over height of a panel. A picture of one row of pixels would have none, and one of one column no end.
export const aspectOf = (bitmap) => (bitmap ? Math.max(1 / 8, Math.min(8, bitmap.width / bitmap.height)) : 1);

// Gives the canvas as many pixels as it has on the screen; true if that changed.
export function fit(own) {
  const ratio = window.devicePixelRatio || 1;
  const box = own.canvas.getBoundingClientRect(); // clientWidth has no fractions
  const width = Math.min(MOST_PIXELS, Math.round(box.width * ratio));
  const height = Math.round((width * box.height) / Math.max(1, box.width));
  if (!width || (own.canvas.width === width && own.canvas.height === height)) return false;
  own.canvas.width = width;
  own.canvas.height = height;
  return true;
}

// `heat` {values, grid} or null; `top` the value that gets the last colour; `low` the value that gets the first one;
// `borders` of regions of the picture; `marks` of the map; `chosen` tokens with an outline on `chosenGrid`; `pointer` one more, dashed.
export function paint(own, {bitmap, heat, top, low = 0, colourMap, strength, even, borders = [], marks, chosen, chosenGrid, pointer, pointerGrid}) {
  const bars = heat && isBars(heat.grid);
  const place = placeOf(own.canvas, bitmap, bars);
  drawBase(own, bitmap, place, heat && !bars ? 0.55 * Math.min(1, strength / 65) : 0);
  if (heat && bars) drawBars(own, heat, top, low, colourMap);
  else if (heat) drawGrid(own, heat, top, low, colourMap, strength, even);
  drawLines(own, borders, place);
  if (marks) drawMarks(own.context, marks, place, Math.max(1, own.canvas.width / Math.max(1, own.canvas.clientWidth)));
  if (chosen?.length) outline(own, chosen, chosenGrid, false);
  if (pointer !== null && pointer !== undefined) outline(own, [pointer], pointerGrid, true);
}

// Where the picture lies, [left, top, width, height] in pixels: all over, or as it is above bars.
function placeOf({width, height}, bitmap, bars) {
  if (!bars || !bitmap) return [0, 0, width, bars ? Math.round(BARS_FROM * height) : height];
  const share = Math.min(width / bitmap.width, (BARS_FROM * height) / bitmap.height);
  const [w, h] = [Math.round(bitmap.width * share), Math.round(bitmap.height * share)];
  return [Math.floor((width - w) / 2), 0, w, h];
}

// `fade`: how far the picture loses its own colours, so that those of the map can be told.
function drawBase(own, bitmap, place, fade) {
  const {canvas, context, base} = own;
  const basis = `${canvas.width} ${canvas.height} ${place} ${fade} ${bitmap ? identity(bitmap) : ''}`;
  if (own.basis !== basis) {
    base.width = canvas.width;
    base.height = canvas.height;
    const to = base.getContext('2d');
    to.fillStyle = '#6f7378';
    to.fillRect(0, 0, base.width, base.height);
    if (bitmap) {
      to.imageSmoothingEnabled = bitmap.width > 64;
      to.imageSmoothingQuality = 'high';
      to.drawImage(bitmap, ...place);
      to.globalCompositeOperation = 'saturation';
      to.fillStyle = `rgb(128 128 128 / ${fade})`;
      to.fillRect(0, 0, base.width, base.height);
      to.globalCompositeOperation = 'source-over';
    }
    own.basis = basis;
  }
  context.globalAlpha = 1;
  context.drawImage(base, 0, 0);
}

function drawGrid(own, {values, grid}, top, low, colourMap, strength, even) {
  const {context, canvas, small} = own;
  const [height, width] = grid;
  if (small.width !== width || small.height !== height || !own.pixels) {
    small.width = width;
    small.height = height;
    own.pixels = small.getContext('2d').createImageData(width, height);
  }
  const table = colours(colourMap);
  const {data} = own.pixels;
  const most = 255 * (strength / 100);
  for (let i = 0; i < values.length; i++) {
    const share = Math.max(0, Math.min(1, (values[i] - low) / (top - low || 1)));
    const at = 3 * Math.round(255 * share);
    data[4 * i] = table[at];
    data[4 * i + 1] = table[at + 1];
    data[4 * i + 2] = table[at + 2];
    // Where little is drawn the picture stays visible.
    data[4 * i + 3] = most * (even ? 1 : 0.35 + 0.65 * share);
  }
  small.getContext('2d').putImageData(own.pixels, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
}

function drawBars(own, {values, grid}, top, low, colourMap) {
  const {context, canvas} = own;
  const from = 0.66 * canvas.height;
  const room = canvas.height - from;
  const step = canvas.width / grid[1];
  const table = colours(colourMap);
  context.fillStyle = '#17191c';
  context.fillRect(0, BARS_FROM * canvas.height, canvas.width, canvas.height);
  for (let i = 0; i < grid[1]; i++) {
    const share = Math.max(0, Math.min(1, (values[i] - low) / (top - low || 1)));
    const at = 3 * Math.round(255 * (0.25 + 0.75 * share));
    context.fillStyle = `rgb(${table[at]}, ${table[at + 1]}, ${table[at + 2]})`;
    const gap = step > 4 ? 1 : 0;
    context.fillRect(i * step + gap, canvas.height - room * share - 1, Math.max(1, step - 2 * gap), room * share + 1);
  }
}

// Drawn once, and then laid over the picture at every move of the pointer.
function drawLines(own, borders, place) {
  if (!borders.length) return;
  const {canvas, context, lines} = own;
  const basis = `${canvas.width} ${canvas.height} ${place} ${borders.map(identity)}`;
  if (own.linesBasis !== basis) {
    lines.width = canvas.width;
    lines.height = canvas.height;
    const ratio = canvas.width / Math.max(1, canvas.clientWidth);
    drawBorders(lines.getContext('2d'), borders, place, ratio);
    own.linesBasis = basis;
  }
  context.drawImage(lines, 0, 0);
}

// White inside black is seen on any picture.
function outline(own, tokens, grid, dashed) {
  const {context, canvas} = own;
  const [height, width] = grid;
  const [sx, sy] = [canvas.width / width, canvas.height / height];
  const inside = new Set(tokens);
  const ratio = Math.max(1, canvas.width / Math.max(1, canvas.clientWidth));
  context.beginPath();
  for (const token of inside) {
    const [x, y] = [token % width, Math.floor(token / width)];
    const edge = (x0, y0, x1, y1) => {
      context.moveTo(x0 * sx, y0 * sy);
      context.lineTo(x1 * sx, y1 * sy);
    };
    if (y === 0 || !inside.has(token - width)) edge(x, y, x + 1, y);
    if (y === height - 1 || !inside.has(token + width)) edge(x, y + 1, x + 1, y + 1);
    if (x === 0 || !inside.has(token - 1)) edge(x, y, x, y + 1);
    if (x === width - 1 || !inside.has(token + 1)) edge(x + 1, y, x + 1, y + 1);
  }
  const thin = Math.min(sx, sy) / ratio < 14 ? 0.6 : 1; // small patches are not to vanish under their outline
  context.lineCap = 'square';
  context.lineWidth = 5 * thin * ratio;
  context.strokeStyle = '#000';
  context.stroke();
  context.setLineDash(dashed ? [4 * ratio, 6 * ratio] : []);
  context.lineWidth = 2.5 * thin * ratio;
  context.strokeStyle = '#fff';
  context.stroke();
  context.setLineDash([]);
}

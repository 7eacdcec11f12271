// Sets of patches: how they are written into a link, moved, and carried over to another grid.

const MOST_TOKENS = 64 * 64; // a link may hold anything

// {side, grid: [h, w], tokens: [sorted indices]} ↔ "generated:16x16:3,17-20"
export function writePins(pins) {
  if (!pins || !pins.tokens.length) return '';
  const ranges = [];
  for (const token of pins.tokens) {
    const last = ranges[ranges.length - 1];
    if (last && last[1] === token - 1) last[1] = token;
    else ranges.push([token, token]);
  }
  const words = ranges.map(([from, to]) => (from === to ? `${from}` : `${from}-${to}`));
  return `${pins.side}:${pins.grid[0]}x${pins.grid[1]}:${words.join(',')}`;
}

export function readPins(text) {
  const match = /^(generated|reference):(\d{1,3})x(\d{1,4}):([\d,-]{1,4000})$/.exec(text);
  if (!match) return null;
  const grid = [Number(match[2]), Number(match[3])];
  if (grid[0] * grid[1] > MOST_TOKENS) return null;
  const tokens = new Set();
  for (const range of match[4].split(',')) {
    const [from, to = from] = range.split('-').map(Number);
    for (let token = from; token <= to && token < grid[0] * grid[1]; token++) tokens.add(token);
  }
  return tokens.size ? sorted({side: match[1], grid, tokens}) : null;
}

const sorted = ({side, grid, tokens}) => ({side, grid, tokens: [...tokens].sort((a, b) => a - b)});

// With one token more, or less if it was in already.
export function toggled(pins, side, grid, token) {
  const tokens = new Set(pins && pins.side === side ? onGrid(pins, grid).tokens : []);
  if (!tokens.delete(token)) tokens.add(token);
  return tokens.size ? sorted({side, grid, tokens}) : null;
}

export function rectangle(side, grid, one, other) {
  const [y0, y1] = [Math.floor(one / grid[1]), Math.floor(other / grid[1])].sort((a, b) => a - b);
  const [x0, x1] = [one % grid[1], other % grid[1]].sort((a, b) => a - b);
  const tokens = [];
  for (let y = y0; y <= y1; y++) for (let x = x0; x <= x1; x++) tokens.push(y * grid[1] + x);
  return {side, grid, tokens};
}

// The same places on a grid of another size.
export function onGrid(pins, grid) {
  if (pins.grid[0] === grid[0] && pins.grid[1] === grid[1]) return pins;
  const tokens = new Set();
  for (const token of pins.tokens) {
    const y = (Math.floor(token / pins.grid[1]) + 0.5) / pins.grid[0];
    const x = ((token % pins.grid[1]) + 0.5) / pins.grid[1];
    tokens.add(Math.floor(y * grid[0]) * grid[1] + Math.floor(x * grid[1]));
  }
  return sorted({side: pins.side, grid, tokens});
}

export function moved(token, grid, dx, dy) {
  const x = Math.max(0, Math.min(grid[1] - 1, (token % grid[1]) + dx));
  const y = Math.max(0, Math.min(grid[0] - 1, Math.floor(token / grid[1]) + dy));
  return y * grid[1] + x;
}

// Mean over rows: what these generated tokens draw from each reference token.
export function meanRow(rows, tokens) {
  const width = rows.reference[0] * rows.reference[1];
  const found = new Float32Array(width);
  let counted = 0;
  for (const token of tokens) {
    const scale = rows.scale[token] / 255;
    if (!Number.isFinite(scale)) continue; // nothing was looked at there
    counted++;
    const start = token * width;
    for (let i = 0; i < width; i++) found[i] += rows.weights[start + i] * scale;
  }
  for (let i = 0; i < width; i++) found[i] /= counted || NaN;
  return {values: found, grid: rows.reference};
}

// Sum over columns: what each generated token draws from these reference tokens together.
export function columnSum(rows, tokens) {
  const width = rows.reference[0] * rows.reference[1];
  const height = rows.generated[0] * rows.generated[1];
  const found = new Float32Array(height);
  for (let q = 0; q < height; q++) {
    let sum = 0;
    for (const token of tokens) sum += rows.weights[q * width + token];
    found[q] = (sum / 255) * rows.scale[q];
  }
  return {values: found, grid: rows.generated};
}

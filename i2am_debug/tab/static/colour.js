// Colour tables from a few anchors each. All but grey rise evenly in lightness, for readers who tell colours apart less well.

const ANCHORS = {
  cividis: ['#00204c', '#213d6b', '#555b6c', '#7b7a77', '#a59c74', '#d3c064', '#ffe945'],
  inferno: ['#000004', '#2d0b59', '#721a6e', '#b73557', '#ed6925', '#fbb61a', '#fcffa4'],
  viridis: ['#440154', '#443983', '#31688e', '#21918c', '#35b779', '#90d743', '#fde725'],
  grey: ['#101010', '#f4f4f4'],
};
const DIFFERENCE = ['#0b4f8a', '#4d94c8', '#a9cde4', '#f4f3f0', '#f0be8f', '#d97e36', '#8c4304'];

export const COLOUR_MAPS = Object.keys(ANCHORS);

const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

function table(anchors) {
  const found = new Uint8Array(256 * 3);
  const points = anchors.map(channels);
  for (let i = 0; i < 256; i++) {
    const place = (i / 255) * (points.length - 1);
    const before = Math.min(points.length - 2, Math.floor(place));
    for (let c = 0; c < 3; c++) {
      found[3 * i + c] = Math.round(points[before][c] + (place - before) * (points[before + 1][c] - points[before][c]));
    }
  }
  return found;
}

const tables = new Map();

// 256 colours as red, green, blue bytes; an unknown name is cividis.
export function colours(name) {
  const known = name === 'difference' || Object.hasOwn(ANCHORS, name) ? name : 'cividis';
  if (!tables.has(known)) tables.set(known, table(known === 'difference' ? DIFFERENCE : ANCHORS[known]));
  return tables.get(known);
}

export function css(name, share) {
  const at = 3 * Math.round(255 * Math.max(0, Math.min(1, share)));
  const found = colours(name);
  return `rgb(${found[at]}, ${found[at + 1]}, ${found[at + 2]})`;
}

// Black or white, whichever can be read on it.
export function inkOn(name, share) {
  const at = 3 * Math.round(255 * Math.max(0, Math.min(1, share)));
  const linear = [0, 1, 2].map((c) => {
    const v = colours(name)[at + c] / 255;
    return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 ? '#000' : '#fff';
}

export function gradient(name) {
  const stops = Array.from({length: 9}, (_, i) => css(name, i / 8));
  return `linear-gradient(to right, ${stops.join(', ')})`;
}

// Runs in the timeline; each readable on light and on dark, and told apart without red against green.
export const RUN_COLOURS = {
  light: ['#0060a8', '#b34700', '#00735c', '#a03a7c', '#6b5a00', '#51448f'],
  dark: ['#6fb7f0', '#f5a05a', '#4fd0ae', '#e79ac8', '#e3cf5a', '#b3a7ee'],
};

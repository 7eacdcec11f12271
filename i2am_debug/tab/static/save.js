// The pictures as they are on the screen, with their headings and scales, as a PNG file.

import {css} from './colour.js';

const [GAP, HEAD, SIDE, CAPTION, LEGEND, LINE] = [16, 58, 640, 34, 34, 24];

// `rows` of {canvas, title, what, scale, bar, outlined}: a row stands below the one before; scale and bar are null without a map,
// `outlined` is empty where nothing is.
export function savePictures(rows, heading, fileName) {
  const heightOf = ({canvas}) => (SIDE * canvas.height) / Math.max(1, canvas.width);
  const below = (row) => LEGEND + (row.some(({outlined}) => outlined) ? LINE : 0);
  const heights = rows.map((row) => CAPTION + Math.max(...row.map(heightOf)) + below(row));
  const sheet = document.createElement('canvas');
  sheet.width = GAP + Math.max(...rows.map((row) => row.length)) * (SIDE + GAP);
  sheet.height = HEAD + heights.reduce((sum, height) => sum + height, 0) + GAP;
  const to = sheet.getContext('2d');
  to.fillStyle = '#ffffff';
  to.fillRect(0, 0, sheet.width, sheet.height);
  write(to, heading, GAP, 34, sheet.width - 2 * GAP, '600 18px');
  let top = HEAD;
  rows.forEach((row, at) => {
    row.forEach((part, column) => drawPart(to, part, GAP + column * (SIDE + GAP), top, heightOf(part)));
    top += heights[at];
  });
  sheet.toBlob((blob) => {
    const link = document.createElement('a');
    link.href = URL.createObjectURL(blob);
    const safe = fileName.replace(/\.png$/, '').replace(/[^\p{L}\p{N}_.-]+/gu, '_');
    link.download = `${safe.slice(0, 120)}.png`; // a file system takes 255 bytes
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }, 'image/png');
}

function drawPart(to, {canvas, title, what, scale, bar, outlined}, left, top, height) {
  write(to, what ? `${title}: ${what}` : title, left, top + 16, SIDE, '15px');
  to.imageSmoothingEnabled = canvas.width > SIDE;
  to.drawImage(canvas, left, top + CAPTION, SIDE, height);
  const below = top + CAPTION + height;
  if (outlined) write(to, outlined, left, below + (scale ? LINE : 0) + 18, SIDE, '14px');
  if (!scale) return;
  for (let i = 0; i < SIDE / 2; i++) {
    to.fillStyle = css(bar, i / (SIDE / 2));
    to.fillRect(left + i, below + 9, 1, 12);
  }
  write(to, scale, left + SIDE / 2 + 10, below + 20, SIDE / 2 - 10, '14px');
}

function write(to, words, left, baseline, room, font) {
  to.fillStyle = '#1f2328';
  to.font = `${font} system-ui, sans-serif`;
  to.fillText(words, left, baseline, room);
}

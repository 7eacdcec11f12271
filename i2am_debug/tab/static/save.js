// The pictures as they are on the screen, side by side with their headings, as a PNG file.

const [GAP, HEAD, SIDE] = [16, 58, 640];

export function savePictures(parts, heading, fileName) {
  const heights = parts.map(({canvas}) => (SIDE * canvas.height) / Math.max(1, canvas.width));
  const sheet = document.createElement('canvas');
  sheet.width = GAP + parts.length * (SIDE + GAP);
  sheet.height = HEAD + 34 + Math.max(...heights) + GAP;
  const to = sheet.getContext('2d');
  to.fillStyle = '#ffffff';
  to.fillRect(0, 0, sheet.width, sheet.height);
  to.fillStyle = '#1f2328';
  to.font = '600 18px system-ui, sans-serif';
  to.fillText(heading, GAP, 34, sheet.width - 2 * GAP);
  parts.forEach(({canvas, title, what}, at) => {
    const left = GAP + at * (SIDE + GAP);
    to.font = '15px system-ui, sans-serif';
    to.fillText(what ? `${title}: ${what}` : title, left, HEAD + 16, SIDE);
    to.imageSmoothingEnabled = canvas.width > SIDE;
    to.drawImage(canvas, left, HEAD + 34, SIDE, heights[at]);
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

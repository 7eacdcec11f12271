// Making elements. Text only ever becomes a text node.

const SVG = 'http://www.w3.org/2000/svg';

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);

export const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

let labelled = 0;

// A control under its label; the two are tied by an id.
export function field(text, control) {
  control.id = control.id || `i2am-field-${labelled++}`;
  return el('div', {class: 'field'}, el('label', {for: control.id}, text), control);
}

// Replaces a select's options only if they changed, so that an open list is not closed by a reload.
export function setOptions(select, options, chosen) {
  const wanted = JSON.stringify(options);
  if (select.dataset.options !== wanted) {
    select.replaceChildren(...options.map(([value, text]) => el('option', {value}, text)));
    select.dataset.options = wanted;
  }
  select.value = chosen ?? '';
}

// Gives a parent these children, and leaves the focus where it was: taking a focused node out loses it.
export function arrange(parent, children) {
  if (parent.childNodes.length === children.length && children.every((child, i) => parent.childNodes[i] === child)) return;
  const focused = parent.contains(document.activeElement) ? document.activeElement : null;
  parent.replaceChildren(...children);
  if (focused?.isConnected) focused.focus({preventScroll: true});
}

// A picture that may not be there yet: its place stays empty, and `retry` asks for it again.
export function mayBeMissing(image) {
  image.addEventListener('error', () => image.classList.add('missing'));
  image.addEventListener('load', () => image.classList.remove('missing'));
}

export function retry(parent) {
  for (const image of parent.querySelectorAll('img.missing')) image.src = image.src;
}

// A value under a name that a file chose: "constructor" is not to find what every object inherits.
export const own = (values, name) => (values && Object.hasOwn(values, name) ? values[name] : undefined);

// Numbers for people: three significant digits, small ones without an exponent as long as that can be read.
export function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return '–';
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toString();
  if (size !== 0 && size < 1e-4) return value.toExponential(1).replace('-', '−');
  const digits = size === 0 ? 3 : Math.max(0, Math.min(6, 2 - Math.floor(Math.log10(size))));
  return value.toFixed(Math.min(digits, size >= 0.1 ? 3 : 6)).replace('-', '−');
}

export function percent(value) {
  const hundredfold = value * 100;
  return `${hundredfold >= 10 ? hundredfold.toFixed(0) : hundredfold >= 1 ? hundredfold.toFixed(1) : hundredfold.toFixed(2)} %`;
}

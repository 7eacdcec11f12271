// What the person chose: one object, kept in the URL's hash so that a link reproduces the view.

import {encoded} from './api.js';
import {COLOUR_MAPS} from './colour.js';
import {parentWindow} from './host.js';

// In TensorBoard's own hash a plugin's values stand under this prefix, beside the name of the open tab.
const PREFIX = 'p.i2am_debug.';

const DEFAULTS = {
  run: '',
  overlay: [], // other runs in the timeline
  step: null, // null follows the newest evaluation
  pair: 0,
  reference: 0, // of models that take several
  figure: '', // empty: the first that has values
  layerScore: '', // of single layers; empty: the most telling
  level: 'unified', // copying, time, layer, head, cell
  time: 0,
  layer: '',
  head: 0,
  direction: 'both', // r2g, g2r
  r2g: 'r2g', // r2g_centred, r2g_object_mass
  g2r: 'g2r', // g2r_region
  colours: 'cividis',
  strength: 65,
  marks: false, // around the heaviest part of a map
  outlines: true, // of the hole, the object and what an edit changes
  pins: '', // see patches.js
  sort: 'fall',
  lines: false, // make room for reference lines that are far away
  compare: false,
  otherRun: '', // empty: the same run
  otherStep: null, // null: the baseline
};

const CHOICES = {
  level: ['unified', 'copying', 'time', 'layer', 'head', 'cell'],
  direction: ['both', 'r2g', 'g2r'],
  r2g: ['r2g', 'r2g_centred', 'r2g_object_mass'],
  g2r: ['g2r', 'g2r_region'],
  colours: COLOUR_MAPS,
  sort: ['fall', 'value', 'order'],
};

export const state = {...DEFAULTS};

const listeners = [];
let shownStep = null;

// Tells the address which evaluation is shown while the newest one is followed: another person may open it later.
export function showing(step) {
  shownStep = step;
  writeHash();
}

// `heard(keys)` is called after every change with the names that changed.
export const onChange = (heard) => listeners.push(heard);

export function change(patch) {
  const keys = Object.keys(patch).filter((key) => JSON.stringify(state[key]) !== JSON.stringify(patch[key]));
  if (!keys.length) return;
  for (const key of keys) state[key] = patch[key];
  writeHash();
  for (const heard of listeners) heard(new Set(keys));
}

export function readHash() {
  const found = {...DEFAULTS};
  for (const part of hashWindow().location.hash.slice(1).split('&')) {
    const [name, value] = part.split('=');
    const key = decode(name).slice(PREFIX.length);
    if (value === undefined || !decode(name).startsWith(PREFIX) || !Object.hasOwn(DEFAULTS, key)) continue;
    found[key] = parsed(decode(value), DEFAULTS[key], key);
  }
  return found;
}

// Somebody went back, or pasted another link over this one.
export function onHash(changed) {
  hashWindow().addEventListener('hashchange', changed);
}

function writeHash() {
  const target = hashWindow();
  const others = target.location.hash.slice(1).split('&').filter((part) => part && !decode(part).startsWith(PREFIX));
  const values = {...state, step: state.step ?? shownStep};
  const ours = Object.keys(DEFAULTS)
    .filter((key) => JSON.stringify(values[key]) !== JSON.stringify(DEFAULTS[key]))
    .map((key) => `${PREFIX}${key}=${encoded(written(values[key]))}`);
  const url = new URL(target.location.href);
  url.hash = [...others, ...ours].join('&');
  target.history.replaceState(target.history.state, '', url);
}

const hashWindow = () => (parentWindow()?.document.querySelector('tb-webapp') ? parentWindow() : window);

const written = (value) => (typeof value === 'object' || typeof value === 'boolean' ? JSON.stringify(value) : String(value));

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return '';
  }
}

// Of the default's own kind, or the default: a hash may come from anywhere.
function parsed(text, fallback, key) {
  if (Array.isArray(fallback)) {
    try {
      const list = JSON.parse(text);
      return Array.isArray(list) ? list.filter((item) => typeof item === 'string') : fallback;
    } catch {
      return fallback;
    }
  }
  if (typeof fallback === 'boolean') return text === String(!fallback) ? !fallback : fallback;
  if (key in CHOICES) return CHOICES[key].includes(text) ? text : fallback;
  if (typeof fallback === 'string') return text;
  const value = /^\d{1,15}$/.test(text) ? Number(text) : fallback;
  return key === 'strength' ? Math.min(100, value) : value;
}

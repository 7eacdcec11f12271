// Which stored map and which rows belong to what was chosen, and in which words.

import {own} from './dom.js';

export const LEVELS = [
  ['unified', 'All together'],
  ['copying', 'Copying layer'],
  ['time', 'Time group'],
  ['layer', 'Layer'],
  ['head', 'Head'],
  ['cell', 'One head of a layer'],
];
export const R2G_VARIANTS = [
  ['r2g', 'As it is'],
  ['r2g_centred', 'Centred'],
  ['r2g_object_mass', 'Weight on the object'],
];

// A pair without a region has the whole only.
export function g2rVariants(state, evaluation) {
  const region = evaluation.regions[pairOf(state, evaluation)];
  const [whole, named] = [['g2r', 'All of the picture'], ['g2r_region', capital(region)]];
  if (named[1] !== whole[1]) return [whole, named];
  return state.g2r === 'g2r' ? [whole] : [whole, ['g2r_region', 'Its region: it has none']];
}

// The chosen pair, or the last one where there are fewer.
export const pairOf = (state, evaluation) => Math.max(0, Math.min(state.pair, evaluation.pairs.length - 1));

// The chosen reference, if this pair has it.
export function referenceOf(state, evaluation) {
  return evaluation.references[pairOf(state, evaluation)].includes(state.reference) ? state.reference : 0;
}

// What stands before the names of its maps and figures.
export const prefixOf = (reference) => (reference ? `reference_${reference}/` : '');

// What its picture goes by.
export const referenceName = (reference) => (reference ? `reference_${reference}` : 'reference');

// The layers that read the chosen reference.
export function layersOf(state, evaluation) {
  return evaluation.reference_layers[referenceOf(state, evaluation)] ?? evaluation.layers;
}

// The layer that a level shows; null where it shows none.
export function layerOf(state, evaluation) {
  if (state.level === 'copying') return evaluation.copying_layer;
  if (state.level !== 'layer' && state.level !== 'cell') return null;
  const layers = layersOf(state, evaluation);
  return layers.includes(state.layer) ? state.layer : layers[0];
}

// The heads of a layer that were looked at, in the order of their maps.
export function headsOf(evaluation, layer) {
  return own(evaluation.looked_at, layer) ?? Array.from({length: evaluation.heads}, (_, head) => head);
}

// {name, index} of the map on one side; name is null with a reason.
export function mapName(state, evaluation, side) {
  const direction = side === 'generated' ? 'r2g' : 'g2r';
  const prefix = prefixOf(referenceOf(state, evaluation));
  if (state.level === 'unified') return {name: `${prefix}${state[direction]}/unified`};
  const stem = prefix + direction;
  if (state.level === 'time') return {name: `${stem}/by_time`, index: within(state.time, evaluation.times)};
  if (state.level === 'head') return {name: `${stem}/by_head`, index: within(state.head, evaluation.heads)};
  const layer = layerOf(state, evaluation);
  if (!layer) return {name: null, reason: NO_COPYING_LAYER};
  if (state.level !== 'cell') return {name: `${stem}/by_layer/${layer}`};
  const index = headsOf(evaluation, layer).indexOf(state.head);
  if (index < 0) return {name: null, reason: `This layer has no head ${state.head}, or it was not looked at.`};
  return {name: `${stem}/by_layer_head/${layer}`, index};
}

export function rowsName(state, evaluation) {
  const prefix = prefixOf(referenceOf(state, evaluation));
  if (state.level === 'unified') return {name: `${prefix}unified`};
  if (state.level === 'time') return {name: `${prefix}by_time`, index: within(state.time, evaluation.times)};
  if (state.level === 'head') return {name: `${prefix}by_head`, index: within(state.head, evaluation.heads)};
  if (state.level === 'cell') return {name: null, reason: NO_ROWS_OF_CELLS};
  const layer = layerOf(state, evaluation);
  if (!layer) return {name: null, reason: NO_COPYING_LAYER};
  const finest = `${prefix}copying_layer`;
  const hasFinest = layer === evaluation.copying_layer && isStored(evaluation, pairOf(state, evaluation), storedRows(finest));
  return {name: hasFinest ? finest : `${prefix}by_layer/${layer}`};
}

// How rows are called among an evaluation's maps.
export const storedRows = (name) => name.replace(/^(reference_\d+\/)?/, '$1rows/');

const NO_COPYING_LAYER = 'This evaluation names no copying layer.';
const NO_ROWS_OF_CELLS =
  'What each patch draws on is kept for each layer and for each head, not for one head of one layer: its maps are shown.';

export const within = (value, count) => Math.max(0, Math.min(value, count - 1));

export const isStored = (evaluation, pair, name) => (evaluation.maps[pair] ?? []).includes(name);

// Why a map or rows are not there, in a sentence.
export function whyMissing(evaluation, name) {
  const known = evaluation.undefined ?? {};
  const [, prefix, stem] = /^(reference_\d+\/)?([^/]*)/.exec(name);
  // "g2r_region" is missing for the same reason as "g2r", and so are the rows.
  for (const key of [stem, stem.split('_')[0], ...(stem === 'rows' ? ['g2r'] : [])]) {
    const reason = known[(prefix ?? '') + key];
    if (typeof reason === 'string') return sentence(reason);
  }
  if (stem === 'rows') return 'What each patch draws on is not kept for this pair.';
  if (name.includes('/by_layer_head/')) return 'The maps of single heads are not kept: there was no room for them.';
  if (stem === 'g2r_region' || stem === 'r2g_object_mass') return 'This pair has no mask that it could be computed from.';
  return 'This map was not recorded for this pair.';
}

const sentence = (reason) => {
  const begun = capital(reason);
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
};

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

// What the level shows, for headings.
export function levelWords(state, evaluation) {
  const layer = layerOf(state, evaluation);
  if (state.level === 'time') return `time group ${within(state.time, evaluation.times)} of ${evaluation.times}`;
  if (state.level === 'head') return `head ${within(state.head, evaluation.heads)}, all layers`;
  if (state.level === 'cell') return `head ${state.head} of ${layer}`;
  if (layer) return state.level === 'copying' ? `copying layer ${layer}` : layer;
  return 'all layers, heads and times';
}

// Layer names without what all of them share at the end.
export function shortLayer(layer, layers) {
  const parts = layers.map((name) => name.split('.'));
  const isShared = (part) => parts.every((names) => names.includes(part));
  const kept = layer.split('.').filter((part) => layers.length < 2 || /^\d+$/.test(part) || !isShared(part));
  return kept.join('.').replaceAll('_blocks', '').replaceAll('_block', '');
}

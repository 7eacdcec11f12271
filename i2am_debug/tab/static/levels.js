// Which stored map and which rows belong to what was chosen, and in which words.

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
export const G2R_VARIANTS = [
  ['g2r', 'All of the picture'],
  ['g2r_region', 'The hole'],
];

// The chosen reference, if this pair has it.
export function referenceOf(state, evaluation, pair) {
  return (evaluation.references?.[pair] ?? []).includes(state.reference) ? state.reference : 0;
}

// What stands before the names of its maps and figures.
export const prefixOf = (reference) => (reference ? `reference_${reference}/` : '');

// What its picture goes by.
export const referenceName = (reference) => (reference ? `reference_${reference}` : 'reference');

// The layer that a level shows; null where it shows none.
export function layerOf(state, evaluation) {
  if (state.level === 'copying') return evaluation.copying_layer;
  if (state.level !== 'layer' && state.level !== 'cell') return null;
  return evaluation.layers.includes(state.layer) ? state.layer : evaluation.layers[0];
}

// The heads of a layer that were looked at, in the order of their maps.
export function headsOf(evaluation, layer) {
  return evaluation.looked_at?.[layer] ?? Array.from({length: evaluation.heads}, (_, head) => head);
}

// {name, index} of the map on one side; name is null with a reason.
export function mapName(state, evaluation, side, pair) {
  const direction = side === 'generated' ? 'r2g' : 'g2r';
  const prefix = prefixOf(referenceOf(state, evaluation, pair));
  if (state.level === 'unified') return {name: `${prefix}${state[direction]}/unified`};
  const own = prefix + direction;
  const layer = layerOf(state, evaluation);
  if (state.level === 'time') return {name: `${own}/by_time`, index: within(state.time, evaluation.times)};
  if (state.level === 'head') return {name: `${own}/by_head`, index: within(state.head, evaluation.heads)};
  if (!layer) return {name: null, reason: NO_COPYING_LAYER};
  if (state.level !== 'cell') return {name: `${own}/by_layer/${layer}`};
  const index = headsOf(evaluation, layer).indexOf(state.head);
  if (index < 0) return {name: null, reason: `Head ${state.head} of this layer was not looked at.`};
  return {name: `${own}/by_layer_head/${layer}`, index};
}

export function rowsName(state, evaluation, pair) {
  const prefix = prefixOf(referenceOf(state, evaluation, pair));
  if (state.level === 'unified') return {name: `${prefix}unified`};
  if (state.level === 'time') return {name: `${prefix}by_time`, index: within(state.time, evaluation.times)};
  if (state.level === 'head') return {name: `${prefix}by_head`, index: within(state.head, evaluation.heads)};
  if (state.level === 'cell') return {name: null, reason: NO_ROWS_OF_CELLS};
  const layer = layerOf(state, evaluation);
  if (!layer) return {name: null, reason: NO_COPYING_LAYER};
  return {name: `${prefix}${layer === evaluation.copying_layer ? 'copying_layer' : `by_layer/${layer}`}`};
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
  if (stem === 'rows') {
    return 'What each patch draws on is no longer kept for this evaluation: only the newest ones and the baseline keep it.';
  }
  if (stem === 'g2r_region' || stem === 'r2g_object_mass') return 'This pair has no mask that it could be computed from.';
  return 'This map was not recorded for this pair.';
}

const sentence = (reason) => {
  const capital = reason.charAt(0).toUpperCase() + reason.slice(1);
  return /[.!?]$/.test(capital) ? capital : `${capital}.`;
};

// What the level shows, for headings and file names.
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

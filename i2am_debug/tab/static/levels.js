// Which stored map and which rows belong to what was chosen, and in which words.

export const LEVELS = [
  ['unified', 'All together'],
  ['copying', 'Copying layer'],
  ['time', 'Time group'],
  ['layer', 'Layer'],
  ['head', 'Head'],
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

// The layer that a level shows; null where it shows none.
export function layerOf(state, evaluation) {
  if (state.level === 'copying') return evaluation.copying_layer;
  return state.level === 'layer' ? (evaluation.layers.includes(state.layer) ? state.layer : evaluation.layers[0]) : null;
}

// {name, index} of the map on one side; name is null with a reason.
export function mapName(state, evaluation, side) {
  const direction = side === 'generated' ? 'r2g' : 'g2r';
  if (state.level === 'unified') return {name: `${state[direction]}/unified`};
  const layer = layerOf(state, evaluation);
  if (state.level === 'time') return {name: `${direction}/by_time`, index: within(state.time, evaluation.times)};
  if (state.level === 'head') return {name: `${direction}/by_head`, index: within(state.head, evaluation.heads)};
  return layer ? {name: `${direction}/by_layer/${layer}`} : {name: null, reason: 'This evaluation names no copying layer.'};
}

export function rowsName(state, evaluation) {
  if (state.level === 'unified') return {name: 'unified'};
  if (state.level === 'time') return {name: 'by_time', index: within(state.time, evaluation.times)};
  if (state.level === 'head') return {name: 'by_head', index: within(state.head, evaluation.heads)};
  const layer = layerOf(state, evaluation);
  if (!layer) return {name: null, reason: 'This evaluation names no copying layer.'};
  return {name: layer === evaluation.copying_layer ? 'copying_layer' : `by_layer/${layer}`};
}

const within = (value, count) => Math.max(0, Math.min(value, count - 1));

export const isStored = (evaluation, pair, name) => (evaluation.maps[pair] ?? []).includes(name);

// Why a map or rows are not there, in a sentence.
export function whyMissing(evaluation, pair, name) {
  const known = evaluation.undefined ?? {};
  const own = typeof known[pair] === 'object' && known[pair] ? known[pair] : {};
  const stem = name.split('/')[0];
  for (const key of [name, stem, stem.split('_')[0]]) {
    for (const place of [own, known]) if (typeof place[key] === 'string') return sentence(place[key]);
  }
  const undefinedG2R = typeof own.g2r === 'string' ? own.g2r : known.g2r;
  if (stem === 'rows' && typeof undefinedG2R === 'string') return sentence(undefinedG2R);
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
  if (layer) return state.level === 'copying' ? `copying layer ${layer}` : layer;
  return 'all layers, heads and times';
}

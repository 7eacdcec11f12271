// All that the two pictures of one pair at one evaluation need, loaded together.

import {fetchEvaluation, fetchMap, fetchPicture, fetchRows} from './api.js';
import {isStored, mapName, referenceName, referenceOf, rowsName, storedRows, whyMissing} from './levels.js';

// {run, step, evaluation, pair, referenceNumber, generated, reference, rows, rowsReason}; a side is {bitmap, note, which,
// heat, reason}, with a note or a reason instead of what is not there.
export async function loadScene(state, run, step) {
  const evaluation = await fetchEvaluation(run, step);
  const pair = pairOf(state, evaluation);
  const query = {run, step, pair};
  const referenceNumber = referenceOf(state, evaluation, pair);
  // Only some pairs keep what the model made; the target stands in for it, and the heading says so.
  const made = evaluation.generated.includes(pair) ? 'generated' : 'target';
  const [generated, reference, own] = await Promise.all([
    loadSide(state, evaluation, query, 'generated', made),
    loadSide(state, evaluation, query, 'reference', referenceName(referenceNumber)),
    loadRows(state, evaluation, query),
  ]);
  return {run, step, evaluation, pair, referenceNumber, generated, reference, ...own};
}

// The chosen pair, or the last one where there are fewer.
export const pairOf = (state, evaluation) => Math.max(0, Math.min(state.pair, evaluation.pairs.length - 1));

async function loadSide(state, evaluation, query, side, which) {
  const [picture, map] = await Promise.all([loadPicture(query, which), loadMap(state, evaluation, query, side)]);
  return {which, ...picture, ...map};
}

// With a note on why there is none: the map can be shown all the same.
async function loadPicture(query, which) {
  try {
    return {bitmap: await fetchPicture({...query, which}), note: ''};
  } catch (problem) {
    if (!(problem.status >= 400 && problem.status < 500)) throw problem; // TensorBoard is gone, or it failed
    return {bitmap: null, note: problem.status === 404 ? 'picture not kept' : problem.message};
  }
}

async function loadMap(state, evaluation, query, side) {
  const {name, index, reason} = mapName(state, evaluation, side, query.pair);
  if (!name) return {heat: null, reason};
  if (!isStored(evaluation, query.pair, name)) return {heat: null, reason: whyMissing(evaluation, name)};
  try {
    const heat = await fetchMap({...query, name, index});
    return heat.values.every(Number.isFinite) ? {heat} : {heat: null, reason: 'This map has no values: nothing was looked at.'};
  } catch (problem) {
    return {heat: null, reason: problem.message};
  }
}

async function loadRows(state, evaluation, query) {
  const {name, index, reason} = rowsName(state, evaluation, query.pair);
  if (!name) return {rows: null, rowsReason: reason};
  if (!isStored(evaluation, query.pair, storedRows(name))) {
    return {rows: null, rowsReason: whyMissing(evaluation, storedRows(name))};
  }
  try {
    return {rows: await fetchRows({...query, name, index}), rowsReason: null};
  } catch (problem) {
    return {rows: null, rowsReason: problem.message};
  }
}

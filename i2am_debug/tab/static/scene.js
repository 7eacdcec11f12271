// All that the two pictures of one pair at one evaluation need, loaded together.

import {fetchEvaluation, fetchMap, fetchPicture, fetchRegions, fetchRows} from './api.js';
import {isStored, levelWords, mapName, pairOf, referenceName, referenceOf, rowsName, storedRows, whyMissing} from './levels.js';

// {run, step, evaluation, pair, referenceNumber, direction, level, generated, reference, rows, rowsReason, regionsProblem}; a side is
// {bitmap, note, which, heat, reason, regions}, with a note or a reason instead of what is not there.
export async function loadScene(state, run, step) {
  const evaluation = await fetchEvaluation(run, step);
  const pair = pairOf(state, evaluation);
  const query = {run, step, pair};
  const referenceNumber = referenceOf(state, evaluation);
  // Only some pairs keep what the model made; the target stands in for it, and the heading says so.
  const made = evaluation.generated.includes(pair) ? 'generated' : 'target';
  const [generated, reference, own, {regions, regionsProblem}] = await Promise.all([
    loadSide(state, evaluation, query, 'generated', made),
    loadSide(state, evaluation, query, 'reference', referenceName(referenceNumber)),
    loadRows(state, evaluation, query),
    loadRegions(query),
  ]);
  generated.regions = regions.filter(({of}) => of.includes('generated'));
  // They are of the pair's own reference; further ones have none.
  reference.regions = referenceNumber === 0 ? regions.filter(({of}) => of.includes('reference')) : [];
  // Not to be asked of the state again: it may be ahead of what is shown.
  const {direction} = state;
  const level = levelWords(state, evaluation);
  return {run, step, evaluation, pair, referenceNumber, direction, level, generated, reference, ...own, regionsProblem};
}

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

// With why there are none, though not for a pair that has none.
async function loadRegions(query) {
  try {
    return {regions: await fetchRegions(query), regionsProblem: ''};
  } catch (problem) {
    if (!(problem.status >= 400 && problem.status < 500)) throw problem;
    return {regions: [], regionsProblem: `No outlines: ${problem.message}`};
  }
}

async function loadMap(state, evaluation, query, side) {
  const {name, index, reason} = mapName(state, evaluation, side);
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
  const {name, index, reason} = rowsName(state, evaluation);
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

// All that the two pictures of one pair at one evaluation need, loaded together.

import {fetchEvaluation, fetchMap, fetchPicture, fetchRows} from './api.js';
import {isStored, mapName, rowsName, whyMissing} from './levels.js';

// {evaluation, pair, generated, reference, rows, rowsReason}; a side is {bitmap, which, heat, reason}, with a reason instead
// of what is not there.
export async function loadScene(state, run, step) {
  const evaluation = await fetchEvaluation(run, step);
  const pair = Math.max(0, Math.min(state.pair, evaluation.pairs.length - 1));
  const query = {run, step, pair};
  const [generated, reference, own] = await Promise.all([
    loadSide(state, evaluation, query, 'generated'),
    loadSide(state, evaluation, query, 'reference'),
    loadRows(state, evaluation, query),
  ]);
  return {run, step, evaluation, pair, generated, reference, ...own};
}

async function loadSide(state, evaluation, query, side) {
  const [picture, map] = await Promise.all([loadPicture(query, side), loadMap(state, evaluation, query, side)]);
  return {...picture, ...map};
}

async function loadPicture(query, side) {
  // Only some pairs keep what the model made; the target stands in for it, and the heading says so.
  for (const which of side === 'generated' ? ['generated', 'target'] : ['reference']) {
    try {
      return {which, bitmap: await fetchPicture({...query, which})};
    } catch (problem) {
      if (problem.status !== 404) throw problem;
    }
  }
  return {which: side, bitmap: null};
}

async function loadMap(state, evaluation, query, side) {
  const {name, index, reason} = mapName(state, evaluation, side);
  if (!name) return {heat: null, reason};
  if (!isStored(evaluation, query.pair, name)) return {heat: null, reason: whyMissing(evaluation, query.pair, name)};
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
  if (!isStored(evaluation, query.pair, `rows/${name}`)) {
    return {rows: null, rowsReason: whyMissing(evaluation, query.pair, `rows/${name}`)};
  }
  try {
    return {rows: await fetchRows({...query, name, index}), rowsReason: null};
  } catch (problem) {
    return {rows: null, rowsReason: problem.message};
  }
}

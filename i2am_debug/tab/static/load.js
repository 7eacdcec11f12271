// All that the state asks for, loaded together; every part of the page is then given its share.

import {fetchEvaluation, fetchIndex, fetchInformation} from './api.js';
import {own} from './dom.js';
import {declare, isOfLayer, kindOf, layerKinds, mostTelling} from './figures.js';
import {referenceOf} from './levels.js';
import {emptyMessage, problemMessage, unreadableMessage, waitingMessage} from './messages.js';
import {loadScene} from './scene.js';

// What the backend says no to is not there; that it does not answer may pass.
const refused = (problem) => {
  if (!problem.status) throw problem;
  return {refusal: problem.message};
};

// {message} where there is nothing to show, with {index, step} where one can go on to another evaluation; else
// {index, step, scene, figure, kind, layers, bits, before, overlaid, second, notes}; `notes` say what was not to be had.
export async function loadView(state, listing, wantsLayers) {
  const run = listing.runs.find(({name}) => name === state.run);
  const empty = emptyMessage(listing) ?? (run?.problem ? problemMessage(run.name, run.problem) : null);
  if (empty) return {message: empty};
  if (run && !run.evaluations) return {message: waitingMessage(run.name)}; // it may not even have an index yet
  const index = await fetchIndex(state.run).catch(refused);
  if (index.refusal) return {message: problemMessage(state.run, index.refusal)};
  if (!index.steps.length) return {message: waitingMessage(state.run)};
  const step = index.steps.includes(state.step) ? state.step : index.steps[index.steps.length - 1];
  const unreadable = ({refusal}) => ({message: unreadableMessage(`${state.run}, step ${step}`, refusal), index, step});
  const evaluation = await fetchEvaluation(state.run, step).catch(refused);
  if (evaluation.refusal) return unreadable(evaluation);
  const reference = referenceOf(state, evaluation);
  const figure = figureOf(state, index);
  declare(index, evaluation);
  const kind = isOfLayer(figure) ? kindOf(figure) : layerScoreOf(state, index);
  const [scene, bits, before, overlaid, layers] = await Promise.all([
    loadScene(state, state.run, step).catch(refused),
    fetchInformation(state.run, step, reference).catch(() => null),
    loadBefore(state, index, reference),
    loadOverlaid(state, listing, isOfLayer(figure) ? kind : null),
    isOfLayer(figure) || wantsLayers ? fetchIndex(state.run, kind) : null,
  ]);
  if (scene.refusal) return unreadable(scene);
  const second = state.compare ? await loadSecond(state, listing, scene, index) : {runs: []};
  const notes = [];
  if (state.step !== null && state.step !== step) notes.push(`${state.run} has no step ${state.step}; this is its newest, step ${step}.`);
  if (state.pair !== scene.pair) notes.push(`There is no pair ${state.pair}; this is ${scene.pair}, the last one.`);
  return {index, step, scene, figure, kind, layers, bits, before, overlaid, second, notes};
}

// So that stepping to them waits for nothing.
export function loadNeighbours(state, {index, step, scene}) {
  const at = index.steps.indexOf(step);
  for (const near of [index.steps[at + 1], index.steps[at - 1]]) {
    if (near === undefined) continue;
    loadScene(state, state.run, near).catch(() => {});
    fetchInformation(state.run, near, scene.referenceNumber).catch(() => {});
  }
}

// The chosen score, if the run has it; else that of the newest alert, else the most telling one: of those that have values, since
// not every run has masks, or a loss.
function figureOf(state, index) {
  if (isOfLayer(state.figure) || Object.hasOwn(index.figures, state.figure)) return state.figure;
  const hasValues = (tag) => own(index.figures, tag)?.mean.some(Number.isFinite);
  const tags = Object.keys(index.figures);
  return [...alerted(index), ...mostTelling(index), ...tags].find(hasValues) ?? tags[0] ?? '';
}

// What the newest alert is of, the most severe first.
function alerted(index) {
  const order = ['critical', 'warning', 'info'];
  const findings = index.alerts.at(-1)?.findings ?? [];
  return findings.toSorted((a, b) => order.indexOf(a.severity) - order.indexOf(b.severity)).map(({figure}) => figure);
}

// The chosen score of single layers, if there is such a one; else the most telling.
function layerScoreOf(state, index) {
  const kinds = layerKinds().map(([tag]) => tag);
  const wanted = [state.layerScore, ...mostTelling(index).map(kindOf), ...kinds];
  return wanted.find((kind) => kinds.includes(kind)) ?? state.layerScore;
}

// What was lost is told against the baseline, or against the first evaluation where the baseline came from a file.
async function loadBefore(state, index, reference) {
  const isBaseline = index.steps.includes(index.baseline_step);
  const step = isBaseline ? index.baseline_step : index.steps[0];
  const [evaluation, bits] = await Promise.all([
    fetchEvaluation(state.run, step).catch(() => null),
    fetchInformation(state.run, step, reference).catch(() => null),
  ]);
  return {evaluation, bits, words: `${isBaseline ? 'the baseline' : 'the first evaluation'}, step ${step}`};
}

async function loadOverlaid(state, listing, kind) {
  const readable = new Set(listing.runs.filter((run) => !run.problem).map((run) => run.name));
  const names = [...new Set(state.overlay)].filter((name) => name !== state.run && readable.has(name));
  const read = async (name) => ({
    name,
    index: await fetchIndex(name),
    layers: kind === null ? null : await fetchIndex(name, kind),
  });
  const found = await Promise.all(names.map((name) => read(name).catch(() => null)));
  return found.filter((one) => one?.index.steps.length);
}

// The same pair in another evaluation, of this run or of another one.
async function loadSecond(state, listing, scene, index) {
  const runs = listing.runs.filter((one) => !one.problem).map((one) => one.name);
  const name = runs.includes(state.otherRun) ? state.otherRun : state.run;
  const none = (problem) => ({scene: null, index: null, runs, problem});
  if (!listing.runs.find((one) => one.name === name)?.evaluations) return none(`${name} has no evaluations yet.`);
  try {
    const theirs = await fetchIndex(name);
    // Another run at the same step, this run at its baseline.
    const isSame = name !== state.run && theirs.steps.includes(scene.step);
    const first = isSame ? scene.step : theirs.baseline_step ?? theirs.steps[0];
    const step = theirs.steps.includes(state.otherStep) ? state.otherStep : first;
    const evaluation = await fetchEvaluation(name, step);
    const shown = scene.evaluation.pairs[scene.pair].name;
    const pair = evaluation.pairs.findIndex((one) => one.name === shown);
    if (pair < 0) return none(`Step ${step} of ${name} has no pair ${shown}.`);
    const comparable = theirs.comparable[theirs.steps.indexOf(step)] === index.comparable[index.steps.indexOf(scene.step)];
    const second = await loadScene({...state, pair, reference: scene.referenceNumber}, name, step);
    if (second.referenceNumber !== scene.referenceNumber) {
      return none(`${shown} has no reference ${scene.referenceNumber} in step ${step} of ${name}.`);
    }
    const unknown = state.otherStep !== null && state.otherStep !== step;
    const problem = unknown ? `${name} has no step ${state.otherStep}; this is step ${step}.` : null;
    return {scene: second, index: theirs, first, isSame, runs, comparable, problem};
  } catch (problem) {
    return none(problem.message);
  }
}

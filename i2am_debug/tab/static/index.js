// The tab: puts its parts on the page, and loads what the state asks for.

import {fetchEvaluation, fetchIndex, fetchInformation, fetchRuns, forget} from './api.js';
import {makeCompare} from './compare.js';
import {makeSidePanel, makeTopBar} from './controls.js';
import {el} from './dom.js';
import {followTheme, onReload} from './host.js';
import {makeMatrix} from './matrix.js';
import {referenceOf} from './levels.js';
import {emptyMessage, problemMessage, waitingMessage} from './messages.js';
import {makePairs} from './pairs.js';
import {makeReferences} from './references.js';
import {savePictures} from './save.js';
import {loadScene, pairOf} from './scene.js';
import {change, onChange, onHash, readHash, state} from './state.js';
import {makeTimeline} from './timeline.js';
import {makeViews} from './views.js';

const ONLY_REDRAWN = ['strength', 'pins'];
const QUIET_MILLISECONDS = 120; // before the neighbours are loaded ahead

// What the backend says no to is not there; that it does not answer may pass.
const refused = (problem) => {
  if (!problem.status) throw problem;
  return {refusal: problem.message};
};

export async function render() {
  Object.assign(state, readHash());
  const style = el('link', {rel: 'stylesheet', href: new URL('./style.css', import.meta.url).href});
  const styled = new Promise((resolve) => ['load', 'error'].forEach((event) => style.addEventListener(event, resolve)));
  document.head.append(style);
  document.documentElement.lang = 'en';
  document.title = 'I2AM';
  await styled;

  let listing = {logdir: 'local', runs: []};
  let layers = null; // {run, index}: the scores of single layers, once asked for
  let turn = 0;
  let ahead = 0;
  const compare = makeCompare();
  const references = makeReferences();
  const views = makeViews((shown) => compare.draw(shown), references.element);
  const top = makeTopBar(save);
  const side = makeSidePanel();
  const pairs = makePairs();
  const matrix = makeMatrix();
  const timeline = makeTimeline(() => refresh());
  const trouble = el('p', {class: 'trouble', role: 'alert', hidden: true});
  const place = el('div', {class: 'place'});
  const main = el('div', {class: 'main'}, views.element, compare.element, timeline.element);
  const right = el('aside', {class: 'right', 'aria-label': 'Settings'}, side.element, matrix.element);
  const columns = el('main', {class: 'columns'}, pairs.element, main, right);
  document.body.replaceChildren(el('h1', {class: 'unseen'}, 'I2AM'), top.element, trouble, place, columns);
  let scene = null;
  let missed = null; // the chosen score, while a run is shown that lacks it

  async function readRuns() {
    listing = await fetchRuns();
    const known = listing.runs.map((run) => run.name);
    const readable = listing.runs.find((run) => !run.problem && run.evaluations) ?? listing.runs[0];
    if (!known.includes(state.run) && readable) change({run: readable.name});
  }

  async function readLayers() {
    if (layers?.run !== state.run) layers = {run: state.run, index: await fetchIndex(state.run, 'layer/')};
  }

  // Loads what the state asks for and shows it; an older call that is overtaken shows nothing any more.
  async function refresh() {
    const own = ++turn;
    clearTimeout(ahead); // its steps may be those of another run
    try {
      await show(() => own === turn);
      if (own === turn) trouble.hidden = true;
    } catch (problem) {
      if (own !== turn) return;
      trouble.textContent = problem.message;
      trouble.hidden = false;
    }
  }

  async function show(isCurrent) {
    const run = listing.runs.find(({name}) => name === state.run);
    const empty = emptyMessage(listing) ?? (run?.problem ? problemMessage(run.name, run.problem) : null);
    if (empty) return instead(empty);
    if (run && !run.evaluations) return instead(waitingMessage(run.name)); // it may not even have an index yet
    const index = await fetchIndex(state.run).catch(refused);
    if (index.refusal) return isCurrent() ? instead(problemMessage(state.run, index.refusal)) : null;
    if (state.figure.startsWith('layer/') || timeline.showsLayers()) await readLayers();
    if (!isCurrent()) return null;
    if (!index.steps.length) return instead(waitingMessage(state.run));
    const step = index.steps.includes(state.step) ? state.step : index.steps[index.steps.length - 1];
    // With a baseline from a file, or one whose file is gone, what was lost is told against the first evaluation.
    const isBaselineHere = index.steps.includes(index.baseline_step);
    const before = isBaselineHere ? index.baseline_step : index.steps[0];
    const unreadable = ({refusal}) => isCurrent() && instead(problemMessage(`${state.run}, step ${step}`, refusal), index, step);
    const now = await fetchEvaluation(state.run, step).catch(refused);
    if (now.refusal) return unreadable(now);
    const reference = referenceOf(state, now, pairOf(state, now));
    const [loaded, bits, overlaid, baseline] = await Promise.all([
      loadScene(state, state.run, step).catch(refused),
      fetchInformation(state.run, step, reference).catch(() => null),
      readOverlay(),
      fetchEvaluation(state.run, before).catch(() => null),
    ]);
    if (loaded.refusal) return unreadable(loaded);
    const second = state.compare ? await readOther(loaded, index, step) : {runs: []};
    if (!isCurrent()) return null;
    scene = loaded;
    instead(null);
    const {evaluation} = scene;
    if (missed && Object.hasOwn(index.figures, missed)) [state.figure, missed] = [missed, null];
    const isKnown = Object.hasOwn(index.figures, state.figure) || state.figure.startsWith('layer/');
    if (!isKnown) {
      missed = missed ?? state.figure;
      state.figure = Object.keys(index.figures)[0] ?? state.figure;
    }
    const ownLayers = layers?.run === state.run ? layers.index : null;
    top.load(listing.runs, index, step);
    side.load(evaluation, [...Object.keys(index.figures), ...Object.keys(ownLayers?.figures ?? {})]);
    compare.load(second);
    views.load(scene);
    references.load(scene);
    const words = isBaselineHere ? `the baseline, step ${before}` : `the first evaluation, step ${before}`;
    pairs.load(state.run, evaluation, baseline, words);
    matrix.element.hidden = !bits;
    if (bits) matrix.load(bits, evaluation, scene.referenceNumber);
    timeline.load({
      names: listing.runs.filter((one) => !one.problem).map((one) => one.name),
      runs: [{name: state.run, index, layers: ownLayers}, ...overlaid],
      step,
      lines: evaluation.reference_lines ?? {},
      layers: ownLayers,
      alertsProblem: index.alerts_problem,
    });
    document.documentElement.dataset.ready = `${state.run} ${step}`;
    ahead = setTimeout(() => loadNeighbours(index, step), QUIET_MILLISECONDS);
    return null;
  }

  // So that stepping to them waits for nothing.
  function loadNeighbours(index, step) {
    const at = index.steps.indexOf(step);
    for (const near of [index.steps[at + 1], index.steps[at - 1]]) {
      if (near === undefined) continue;
      loadScene(state, state.run, near).catch(() => {});
      fetchInformation(state.run, near, scene.referenceNumber).catch(() => {});
    }
  }

  async function readOverlay() {
    const readable = new Set(listing.runs.filter((run) => !run.problem).map((run) => run.name));
    const names = state.overlay.filter((name) => name !== state.run && readable.has(name));
    const needsLayers = state.figure.startsWith('layer/');
    const read = async (name) => ({
      name,
      index: await fetchIndex(name),
      layers: needsLayers ? await fetchIndex(name, 'layer/') : null,
    });
    const found = await Promise.all(names.map((name) => read(name).catch(() => null)));
    return found.filter((one) => one?.index.steps.length);
  }

  async function readOther(loaded, index, step) {
    const runs = listing.runs.filter((one) => !one.problem).map((one) => one.name);
    const name = runs.includes(state.otherRun) ? state.otherRun : state.run;
    if (!listing.runs.find((one) => one.name === name)?.evaluations) {
      return {scene: null, index: null, runs, problem: `${name} has no evaluations yet.`};
    }
    try {
      const own = await fetchIndex(name);
      const otherStep = own.steps.includes(state.otherStep) ? state.otherStep : own.baseline_step ?? own.steps[0];
      const evaluation = await fetchEvaluation(name, otherStep);
      const shown = loaded.evaluation.pairs[loaded.pair].name;
      const pair = evaluation.pairs.findIndex((one) => one.name === shown);
      if (pair < 0) throw new Error(`Step ${otherStep} of ${name} has no pair ${shown}.`);
      const second = await loadScene({...state, pair}, name, otherStep);
      const comparable = own.comparable[own.steps.indexOf(otherStep)] === index.comparable[index.steps.indexOf(step)];
      return {scene: second, index: own, runs, comparable};
    } catch (problem) {
      return {scene: null, index: null, runs, problem: problem.message};
    }
  }

  // The pictures of something else are not to stand under its name. With an index, one can go to another evaluation.
  function instead(message, index = null, step = null) {
    place.replaceChildren(...(message ? [message] : []));
    columns.hidden = Boolean(message);
    if (message) {
      scene = null;
      top.load(listing.runs, index, step);
      top.element.hidden = !listing.runs.length;
      document.documentElement.dataset.ready = 'message';
    } else top.element.hidden = false;
    return null;
  }

  function save() {
    if (!scene) return;
    const {name} = scene.evaluation.pairs[scene.pair];
    const file = `i2am_${state.run}_step_${scene.step}_${name}.png`;
    savePictures(views.canvases(), `${state.run}, step ${scene.step}, ${name}`, file);
  }

  onChange((keys) => {
    if (keys.has('figure')) missed = null;
    if ([...keys].every((key) => ONLY_REDRAWN.includes(key))) views.draw();
    else refresh();
  });
  onHash(() => {
    const found = readHash();
    if (!listing.runs.some((run) => run.name === found.run)) found.run = state.run;
    change(found);
  });
  document.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === ',' || event.key === '.') return top.by(event.key === ',' ? -1 : 1);
    if (!scene) return;
    const takesArrows = event.target.closest?.('input, select, summary, table');
    if (event.key !== 'Escape' && takesArrows) return undefined;
    if (views.key(event) && event.key !== 'Escape') event.preventDefault();
    return undefined;
  });
  onReload(async () => {
    forget();
    layers = null;
    await readRuns().catch(() => {});
    await refresh();
  });
  followTheme(timeline.redraw);
  try {
    await readRuns();
  } catch (problem) {
    trouble.textContent = problem.message;
    trouble.hidden = false;
    return;
  }
  await refresh();
}

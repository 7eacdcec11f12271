// The tab: puts its parts on the page, and gives each its share of what the state asks for.

import {fetchRuns, forget} from './api.js';
import {makeCompare} from './compare.js';
import {makeSidePanel, makeTopBar} from './controls.js';
import {el} from './dom.js';
import {followTheme, onReload} from './host.js';
import {loadNeighbours, loadView} from './load.js';
import {makeMatrix} from './matrix.js';
import {makePairs} from './pairs.js';
import {makeReferences} from './references.js';
import {savePictures} from './save.js';
import {change, onChange, onHash, readHash, showing, state} from './state.js';
import {makeTimeline} from './timeline.js';
import {makeViews} from './views.js';

const ONLY_REDRAWN = ['strength', 'pins', 'outlines', 'marks'];
const QUIET_MILLISECONDS = 120; // before the neighbours are loaded ahead

export async function render() {
  Object.assign(state, readHash());
  await loadStyle();
  let listing = null; // until TensorBoard has answered
  let view = null; // what is shown, or null where a message stands instead
  let turn = 0;
  let asked = 0;
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
  const place = el('div');
  const main = el('div', {class: 'main'}, views.element, compare.element, timeline.element);
  const right = el('aside', {class: 'right', 'aria-label': 'Settings'}, side.element, matrix.element);
  const columns = el('main', {class: 'columns'}, pairs.element, main, right);
  document.body.replaceChildren(el('h1', {class: 'unseen'}, 'I2AM'), top.element, trouble, place, columns);

  async function readRuns() {
    const own = ++asked;
    const found = await fetchRuns();
    if (own !== asked) return ''; // a later one is on its way
    listing = found;
    return knownRun();
  }

  // For a run that is not there one with an alert stands in, else the first; returns a sentence if it was asked for.
  function knownRun() {
    const wanted = state.run;
    if (listing.runs.some((run) => run.name === wanted) || !listing.runs.length) return '';
    const readables = listing.runs.filter((run) => !run.problem && run.evaluations);
    const readable = readables.find((run) => run.alert) ?? readables[0] ?? listing.runs[0];
    change({run: readable.name});
    return wanted ? `There is no run ${wanted.slice(0, 300)} (any more); this is ${readable.name}.` : '';
  }

  // Loads what the state asks for and shows it; an older call that is overtaken shows nothing any more.
  async function refresh(sentence = '') {
    const own = ++turn;
    clearTimeout(ahead); // its steps may be those of another run
    try {
      const loaded = await loadView(state, listing, timeline.showsLayers());
      if (own !== turn) return;
      if (loaded.message) showMessage(loaded);
      else show(loaded);
      tell([sentence, ...(loaded.notes ?? [])].filter(Boolean).join(' '));
    } catch (problem) {
      if (own !== turn) return;
      top.stop();
      tell(problem.message);
    }
  }

  function tell(sentence) {
    trouble.textContent = sentence;
    trouble.hidden = !sentence;
  }

  // The pictures of something else are not to stand under its name.
  function showMessage({message, index = null, step = null}) {
    view = null;
    place.replaceChildren(message);
    columns.hidden = true;
    top.element.hidden = !listing.runs.length;
    top.load(listing.runs, index, step, false);
    document.documentElement.dataset.ready = 'message';
  }

  function show(loaded) {
    view = loaded;
    place.replaceChildren();
    columns.hidden = top.element.hidden = false;
    const {index, step, scene, figure, layers} = view;
    const {evaluation} = scene;
    top.load(listing.runs, index, step, true);
    side.load(evaluation, [...Object.keys(index.figures), ...Object.keys(layers?.figures ?? {})], figure);
    compare.load(view.second);
    views.load(scene);
    references.load(scene);
    pairs.load(state.run, evaluation, figure, view.before);
    matrix.element.hidden = !view.bits;
    if (view.bits) matrix.load(view.bits, view.before.bits, evaluation, scene.referenceNumber);
    timeline.load({
      names: listing.runs.filter((one) => !one.problem).map((one) => one.name),
      runs: [{name: state.run, index, layers}, ...view.overlaid],
      step,
      figure,
      kind: view.kind,
      lines: evaluation.reference_lines ?? {},
      layerNames: evaluation.layers,
      pairs: evaluation.pairs.map(({name}) => name),
      alertsProblem: index.alerts_problem,
    });
    if (state.step === index.steps[index.steps.length - 1]) state.step = null; // and the next one is followed
    showing(step);
    document.documentElement.dataset.ready = `${state.run} ${step}`;
    ahead = setTimeout(() => loadNeighbours(state, loaded), QUIET_MILLISECONDS);
  }

  function save() {
    if (!view) return;
    const {run, evaluation, pair, step} = view.scene;
    const {name} = evaluation.pairs[pair];
    const sheets = [views.canvases(), ...(state.compare && view.second.scene ? [compare.canvases()] : [])];
    savePictures(sheets, `${run}, step ${step}, ${name}`, `i2am_${run}_step_${step}_${name}.png`);
  }

  onChange((keys) => {
    if (view && [...keys].every((key) => ONLY_REDRAWN.includes(key))) {
      side.redraw();
      views.draw();
    } else if (listing) refresh();
    else reload();
  });
  onHash(() => {
    Object.assign(state, readHash());
    if (listing) refresh(knownRun());
  });
  document.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === ',' || event.key === '.') top.by(event.key === ',' ? -1 : 1);
    if (!view) return;
    const takesArrows = event.target.closest?.('input, select, summary, table');
    if (event.key !== 'Escape' && takesArrows) return;
    if (views.key(event) && event.key !== 'Escape') event.preventDefault();
  });
  const reload = async () => {
    try {
      const sentence = await readRuns();
      if (listing) await refresh(sentence);
    } catch (problem) {
      tell(problem.message);
    }
  };
  onReload(() => {
    forget();
    for (const part of [pairs, references]) part.retry(); // pictures may be there that were not yet
    reload();
  });
  followTheme(timeline.redraw);
  await reload();
}

async function loadStyle() {
  const style = el('link', {rel: 'stylesheet', href: new URL('./style.css', import.meta.url).href});
  const styled = new Promise((resolve) => ['load', 'error'].forEach((event) => style.addEventListener(event, resolve)));
  document.head.append(style);
  document.documentElement.lang = 'en';
  document.title = 'I2AM';
  await styled;
}

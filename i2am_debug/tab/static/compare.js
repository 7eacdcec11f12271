// A second evaluation of the same pair, of this run or another one: its map, the difference, and how far apart they are.

import {gradient} from './colour.js';
import {el, field, number, setOptions} from './dom.js';
import {extent} from './extent.js';
import {aspectOf, fit, isBars, paint, surface} from './paint.js';
import {bordersOf, outlinedWords} from './regions.js';
import {change, state} from './state.js';
import {heatOf} from './views.js';

export function makeCompare() {
  let other = null;
  let last = null;
  let outlined = []; // of each view, in words
  const run = el('select', {onchange: () => change({otherRun: run.value, otherStep: null})});
  const step = el('select', {onchange: () => change({otherStep: step.value === '' ? null : Number(step.value)})});
  const distance = el('p', {class: 'distance', role: 'status'});
  const notice = el('p', {class: 'hint warning', hidden: true});
  const note = el('p', {class: 'note'});
  const views = [view('First'), view('Second'), view('Difference')];
  const panels = el('div', {class: 'panels three'}, ...views.map((one) => one.element));
  const element = el(
    'section',
    {class: 'compare', 'aria-label': 'Comparison', hidden: true},
    el('div', {class: 'section-head'}, el('h2', {}, 'Compare with'), field('Run', run), field('Evaluation', step), distance),
    notice,
    panels,
    note,
  );
  new ResizeObserver(resize).observe(element);
  window.addEventListener('resize', resize); // another zoom or screen, the same size

  // `loaded`: {scene, index, runs, comparable}; scene and index may be null where there is a `problem`.
  function load(loaded) {
    element.hidden = !state.compare;
    other = loaded.scene;
    for (const one of views) one.element.style.setProperty('--aspect', aspectOf(other?.reference.bitmap));
    const others = loaded.runs.filter((name) => name !== state.run).map((name) => [name, name]);
    const isOther = others.some(([name]) => name === state.otherRun);
    setOptions(run, [['', 'this run'], ...others], isOther ? state.otherRun : '');
    const steps = loaded.index?.steps ?? [];
    const what = loaded.isSame ? 'same step' : loaded.first === loaded.index?.baseline_step ? 'baseline' : 'first';
    const first = `${what} (${loaded.first})`;
    const known = steps.map((one) => [String(one), `step ${one}`]);
    const options = steps.length ? [['', first], ...known] : [];
    setOptions(step, options, steps.includes(state.otherStep) ? String(state.otherStep) : '');
    const unlike = 'These evaluations were made with other pairs or settings: a difference need not come from the weights.';
    notice.textContent = [loaded.problem, other && !loaded.comparable ? unlike : null].filter(Boolean).join(' ');
    notice.hidden = !notice.textContent;
    panels.hidden = note.hidden = !other;
    if (!other) distance.textContent = 'JS distance undefined';
    resize();
  }

  function resize() {
    for (const one of views) fit(one.surface);
    draw(last);
  }

  function draw(shown) {
    last = shown;
    if (element.hidden || !shown || !other) return;
    const {scene, selection} = shown;
    const side = sideOf(scene, selection);
    const [mine, theirs] = [heatOf(scene, side, selection), heatOf(other, side, selection)];
    const both = mine.heat && theirs.heat;
    const isAlike = both && String(mine.heat.grid) === String(theirs.heat.grid);
    const top = Math.max(mine.heat ? extent(mine.heat.values).top : 0, theirs.heat ? extent(theirs.heat.values).top : 0);
    const heading = (from) => `${from.run}, step ${from.step}`;
    show(views[0], heading(scene), scene[side], mine, {top, colourMap: state.colours});
    show(views[1], heading(other), other[side], theirs, {top, colourMap: state.colours});
    const difference = isAlike ? subtract(mine.heat, theirs.heat) : null;
    const most = difference ? extent(difference.values.map(Math.abs)).top : 0;
    const reason = isAlike ? 'They do not differ.' : both ? 'The maps have grids of different sizes.' : 'One of the maps is undefined.';
    const how = {top: most, low: -most, colourMap: 'difference', even: true};
    show(views[2], 'First minus second', scene[side], {heat: most > 0 ? difference : null, reason}, how);
    outlined = [scene, other, scene].map((one) => outlinedWords(one[side]));
    note.textContent = [...new Set(outlined)].join(' ').trim();
    const apart = isAlike ? number(jsDistance(mine.heat.values, theirs.heat.values)) : null;
    distance.textContent = apart ? `JS distance ${apart} (0 alike, 1 apart)` : 'JS distance undefined';
  }

  function show(panel, heading, shownSide, {heat, words, reason}, how) {
    panel.title.textContent = heading;
    panel.what.textContent = words ?? '';
    panel.reason.textContent = reason ?? '';
    panel.reason.hidden = Boolean(heat) || !reason;
    panel.canvas.setAttribute('aria-label', `${heading}: ${words ?? 'difference of the maps'}`);
    // A difference of bars would need a middle line; it is drawn as a strip of colours.
    const grid = heat && how.low < 0 && isBars(heat.grid) ? {values: heat.values, grid: heat.grid.slice().reverse()} : heat;
    const {bitmap} = shownSide;
    paint(panel.surface, {bitmap, heat: grid, strength: state.strength, borders: bordersOf(shownSide), ...how});
    panel.legend.hidden = !heat;
    panel.bar.style.background = gradient(how.colourMap);
    panel.least.textContent = how.low ? number(how.low) : '0';
    panel.most.textContent = number(how.top);
  }

  const canvases = () =>
    views.map(({canvas, title, what, legend}, i) => ({
      canvas,
      title: title.textContent,
      what: what.textContent,
      scale: legend.hidden ? null : [...legend.querySelectorAll('span')].map((part) => part.textContent).filter(Boolean).join(' … '),
      bar: legend.hidden ? null : panelColours(canvas === views[2].canvas),
      outlined: outlined[i],
    }));
  return {element, load, draw, canvases};
}

const panelColours = (isDifference) => (isDifference ? 'difference' : state.colours);

// Where the compared map lies: across from what is selected, else where the chosen direction draws.
function sideOf(scene, selection) {
  if (selection) return selection.side === 'generated' ? 'reference' : 'generated';
  return scene.direction === 'r2g' ? 'generated' : 'reference';
}

// Of maps of the same size, each with sum 1.
function subtract(one, other) {
  const [a, b] = [extent(one.values).sum || 1, extent(other.values).sum || 1];
  return {grid: one.grid, values: one.values.map((value, i) => value / a - other.values[i] / b)};
}

// Square root of the Jensen–Shannon divergence, base 2, as in distances.py.
function jsDistance(one, other) {
  const [a, b] = [extent(one).sum, extent(other).sum];
  if (!(a > 0 && b > 0)) return NaN;
  const term = (p) => (p > 0 ? -p * Math.log2(p) : 0);
  let divergence = 0;
  for (let i = 0; i < one.length; i++) {
    const [p, q] = [one[i] / a, other[i] / b];
    divergence += term((p + q) / 2) - (term(p) + term(q)) / 2;
  }
  return Math.sqrt(Math.max(0, divergence));
}

function view(name) {
  const canvas = el('canvas', {class: 'picture', role: 'img', 'aria-label': name});
  const [title, what, reason] = [el('h3', {}), el('p', {class: 'what'}), el('p', {class: 'reason', hidden: true})];
  const [least, bar, most] = [el('span', {}), el('span', {class: 'bar'}), el('span', {})];
  const legend = el('p', {class: 'legend'}, least, bar, most);
  const caption = el('figcaption', {}, title, what);
  const element = el('figure', {class: 'panel'}, caption, el('div', {class: 'frame'}, canvas, reason), legend);
  return {element, canvas, surface: surface(canvas), title, what, reason, least, bar, most, legend};
}

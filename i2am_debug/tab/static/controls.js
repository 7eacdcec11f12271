// What can be chosen: above the pictures which run and evaluation, beside them which map and how it is drawn.

import {COLOUR_MAPS} from './colour.js';
import {el, field, setOptions} from './dom.js';
import {titleOf} from './figures.js';
import {g2rVariants, headsOf, LEVELS, layerOf, layersOf, R2G_VARIANTS, within} from './levels.js';
import {readPins} from './patches.js';
import {change, state} from './state.js';

const PLAY_MILLISECONDS = 600;
const DIRECTIONS = [
  ['both', 'Both'],
  ['r2g', 'R2G, on the generated picture'],
  ['g2r', 'G2R, on the reference'],
];

// `save()` saves the pictures.
export function makeTopBar(save) {
  let steps = [];
  let playing = false;
  let timer = 0;
  const run = el('select', {class: 'run', onchange: () => choose(run.value)});
  const slider = el('input', {type: 'range', min: 0, step: 1, oninput: () => goTo(Number(slider.value))});
  const words = el('output', {class: 'step-words'});
  const back = button('‹', 'Evaluation before (,)', () => by(-1));
  const on = button('›', 'Next evaluation (.)', () => by(1));
  const play = button('▶', 'Play the evaluations', () => (playing ? stop() : start()));
  const compare = el('button', {type: 'button', onclick: () => change({compare: !state.compare})}, 'Compare');
  const keep = el('button', {type: 'button', onclick: save}, 'Save PNG');
  const stepField = field('Evaluation', slider);
  stepField.classList.add('wide');
  stepField.append(words);
  const element = el(
    'header',
    {class: 'top'},
    field('Run', run),
    el('div', {class: 'buttons'}, back, play, on),
    stepField,
    el('div', {class: 'buttons'}, compare, keep),
  );

  const choose = (name) => change({run: name, overlay: state.overlay.filter((one) => one !== name)});
  // Where a run lacks the chosen step, its newest evaluation is shown.
  const position = () => (steps.includes(state.step) ? steps.indexOf(state.step) : steps.length - 1);
  // The last one stays "the newest", so that new evaluations are followed.
  const goTo = (at) => change({step: at === steps.length - 1 ? null : steps[at]});

  function by(move) {
    if (steps.length) goTo(Math.max(0, Math.min(steps.length - 1, position() + move)));
  }

  function start() {
    if (steps.length < 2) return;
    playing = true;
    face();
    if (position() === steps.length - 1) goTo(0);
    else next();
  }

  // The time counts from when an evaluation is shown, however long that took.
  function next() {
    clearTimeout(timer);
    if (position() === steps.length - 1) stop();
    else timer = setTimeout(() => by(1), PLAY_MILLISECONDS);
  }

  function stop() {
    clearTimeout(timer);
    playing = false;
    face();
  }

  function face() {
    play.textContent = playing ? '❙❙' : '▶';
    play.setAttribute('aria-label', playing ? 'Stop playing' : 'Play the evaluations');
  }

  // `isShown`: whether there are pictures to compare and to save.
  function load(runs, index, step, isShown) {
    setOptions(run, runs.map((one) => [one.name, one.name + remark(one)]), state.run);
    steps = index?.steps ?? [];
    const at = Math.max(0, steps.indexOf(step));
    slider.max = Math.max(0, steps.length - 1);
    slider.value = at;
    slider.disabled = steps.length < 2;
    const text = steps.length ? `step ${step}, ${at + 1} of ${steps.length}` : '';
    words.textContent = text;
    slider.setAttribute('aria-valuetext', text);
    back.disabled = at === 0;
    on.disabled = play.disabled = steps.length < 2;
    on.disabled = on.disabled || at === steps.length - 1;
    compare.setAttribute('aria-pressed', state.compare);
    compare.disabled = keep.disabled = !isShown;
    if (playing && steps.length) next();
    else if (playing) stop();
  }

  return {element, load, by, stop};
}

const remark = ({problem, alert}) => (problem ? ' (cannot be read)' : alert ? ` ⚠ ${alert.severity}, step ${alert.step}` : '');

export function makeSidePanel() {
  const figure = picker('figure');
  const level = picker('level');
  const time = picker('time', Number);
  const layer = picker('layer');
  const head = picker('head', Number);
  const direction = picker('direction');
  const r2g = picker('r2g');
  const g2r = picker('g2r');
  const colours = picker('colours');
  const strength = el('input', {type: 'range', min: 0, max: 100, oninput: () => change({strength: Number(strength.value)})});
  const fields = {
    time: field('Time group', time),
    layer: field('Layer', layer),
    head: field('Head', head),
    r2g: field('R2G variant', r2g),
    g2r: field('G2R of', g2r),
  };
  const element = el(
    'section',
    {class: 'side-panel', 'aria-label': 'What is shown'},
    el('h2', {}, 'Shown'),
    field('Level', level),
    fields.time,
    fields.layer,
    fields.head,
    field('Direction', direction),
    fields.r2g,
    fields.g2r,
    field('Score', figure),
    field('Colours', colours),
    field('Overlay', strength),
  );

  // `shown` is the figure of the timeline.
  function load(evaluation, figures, shown) {
    setOptions(figure, [...new Set([shown, ...figures])].map((tag) => [tag, titleOf(tag)]), shown);
    setOptions(level, LEVELS, state.level);
    setOptions(time, numbered(evaluation.times, (i) => `${i}${i === 0 ? ', noisiest' : ''}`), String(within(state.time, evaluation.times)));
    const layers = layersOf(state, evaluation).map((name) => [name, name]);
    setOptions(layer, layers, layerOf({...state, level: 'layer'}, evaluation));
    const heads = state.level === 'cell' ? headsOf(evaluation, layerOf(state, evaluation)) : null;
    const shownHead = heads ? state.head : within(state.head, evaluation.heads);
    const headOptions = heads ? heads.map((one) => [String(one), String(one)]) : numbered(evaluation.heads, String);
    if (heads && !heads.includes(state.head)) headOptions.push([String(state.head), `${state.head}, not looked at`]);
    setOptions(head, headOptions, String(shownHead));
    setOptions(direction, DIRECTIONS, state.direction);
    setOptions(r2g, R2G_VARIANTS, state.r2g);
    setOptions(g2r, g2rVariants(state, evaluation), state.g2r);
    setOptions(colours, COLOUR_MAPS.map((name) => [name, name]), state.colours);
    redraw();
    for (const name of ['time', 'layer', 'head']) {
      fields[name].hidden = state.level !== name && !(state.level === 'cell' && name !== 'time');
    }
    fields.r2g.hidden = state.level !== 'unified' || state.direction === 'g2r';
    fields.g2r.hidden = state.level !== 'unified' || state.direction === 'r2g';
  }

  function redraw() {
    strength.value = state.strength;
    strength.setAttribute('aria-valuetext', `${state.strength} %`);
    // What is pinned on one picture decides what the other one shows.
    const pinned = readPins(state.pins)?.side;
    for (const [select, side] of [[r2g, 'reference'], [g2r, 'generated']]) {
      select.disabled = pinned === side;
      select.title = select.disabled ? 'A patch is pinned, and decides what is shown. Escape clears it.' : '';
    }
  }

  return {element, load, redraw};
}

const numbered = (count, words) => Array.from({length: count}, (_, i) => [String(i), words(i)]);

function picker(key, read = (value) => value) {
  return el('select', {onchange: (event) => change({[key]: read(event.target.value)})});
}

function button(face, label, pressed) {
  return el('button', {type: 'button', class: 'icon', 'aria-label': label, title: label, onclick: pressed}, face);
}

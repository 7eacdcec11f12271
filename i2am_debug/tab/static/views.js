// The two pictures: what lights up where, under the pointer, under the keys, and as pinned.

import {gradient} from './colour.js';
import {el, number, percent} from './dom.js';
import {extent} from './extent.js';
import {comparedWords, marksOf} from './marks.js';
import {aspectOf, fit, isBars, paint, surface} from './paint.js';
import {columnSum, meanRow, moved, onGrid, readPins, rectangle, toggled, writePins} from './patches.js';
import {ANYWHERE, bordersOf, makeRegions, outlinedWords, soughtOn} from './regions.js';
import {change, state} from './state.js';

const SIDES = ['generated', 'reference'];
const DRAG_PIXELS = 6;
const KEYS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};

// `shown({scene, selection})` is called after each paint, for what stands beside; `below` stands under the reference.
export function makeViews(shown, below) {
  let scene = null;
  let pointer = null; // {side, x, y} as shares of the picture
  let drag = null; // {side, from, to, moved, at}; from and to are places
  const reading = el('p', {class: 'reading', role: 'status'});
  const hint = el('p', {class: 'hint'});
  const panels = {generated: makePanel('generated'), reference: makePanel('reference')};
  const regions = makeRegions();
  const element = el(
    'section',
    {class: 'views', 'aria-label': 'Pictures'},
    el('div', {class: 'panels'}, panels.generated.element, panels.reference.element),
    regions.element,
    reading,
    hint,
  );
  panels.reference.element.append(below);
  for (const side of SIDES) attend(side);
  // Sizes are measured here only: asking for them at every move would make the browser lay the page out anew.
  new ResizeObserver(resize).observe(element);
  window.addEventListener('resize', resize); // another zoom or screen, the same size

  function attend(side) {
    const {canvas} = panels[side];
    canvas.addEventListener('pointermove', (event) => {
      pointer = placeOf(side, event);
      if (drag) {
        const far = Math.hypot(event.clientX - drag.at[0], event.clientY - drag.at[1]) > DRAG_PIXELS;
        drag.moved = drag.moved || far;
        drag.to = pointer;
      }
      draw();
    });
    canvas.addEventListener('pointerleave', () => {
      if (!drag) pointer = null;
      draw();
    });
    canvas.addEventListener('pointerdown', (event) => {
      if (event.button !== 0 || !scene) return;
      pointer = placeOf(side, event);
      drag = {side, from: pointer, to: pointer, moved: false, at: [event.clientX, event.clientY]};
      // A finger goes on scrolling the page; a tap pins.
      if (event.pointerType !== 'touch') canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener('pointerup', (event) => {
      if (!drag) return;
      const done = drag;
      drag = null;
      if (!scene) return;
      if (done.moved) pin(dragged(done));
      else press(side, tokenAt(side, done.to), event.shiftKey);
    });
    canvas.addEventListener('pointercancel', () => {
      drag = null;
      draw();
    });
    canvas.addEventListener('focus', () => {
      if (!pointer && canvas.matches(':focus-visible')) pointer = {side, x: 0.5, y: 0.5};
      draw();
    });
    canvas.addEventListener('blur', () => {
      pointer = null;
      draw();
    });
    canvas.addEventListener('keydown', (event) => {
      if (event.key !== 'Enter' && event.key !== ' ') return;
      event.preventDefault();
      if (scene && pointer) press(side, tokenAt(side, pointer), event.shiftKey);
    });
  }

  function press(side, token, adds) {
    const pins = readPins(state.pins);
    const only = pins && pins.side === side && onGrid(pins, gridOf(side)).tokens;
    if (adds) pin(toggled(pins, side, gridOf(side), token));
    else pin(only && only.length === 1 && only[0] === token ? null : {side, grid: gridOf(side), tokens: [token]});
  }

  function pin(pins) {
    change({pins: writePins(pins)});
    draw();
  }

  function placeOf(side, event) {
    const box = panels[side].canvas.getBoundingClientRect();
    const share = (value) => Math.max(0, Math.min(0.9999, value));
    return {side, x: share((event.clientX - box.left) / box.width), y: share((event.clientY - box.top) / box.height)};
  }

  // The grid that patches are chosen on: the rows' own, else that of the map.
  const gridOf = (side) => scene.rows?.[side] ?? scene[side].heat?.grid ?? [1, 1];
  const on = (grid, {x, y}) => Math.floor(y * grid[0]) * grid[1] + Math.floor(x * grid[1]);
  const tokenAt = (side, place) => on(gridOf(side), place);

  // On the grid of now: the scene may have changed since the drag began.
  const dragged = ({side, from, to}) => rectangle(side, gridOf(side), tokenAt(side, from), tokenAt(side, to));

  // What lights up the other picture: a region being drawn, else what is pinned, else the patch under the pointer.
  function selection() {
    if (drag?.moved) return dragged(drag);
    const pins = readPins(state.pins);
    if (pins) return onGrid(pins, gridOf(pins.side));
    if (!pointer) return null;
    return {side: pointer.side, grid: gridOf(pointer.side), tokens: [tokenAt(pointer.side, pointer)]};
  }

  function resize() {
    for (const side of SIDES) fit(panels[side].surface);
    draw();
  }

  function draw() {
    if (!scene) return;
    const chosen = selection();
    for (const side of SIDES) drawSide(side, chosen);
    regions.redraw();
    read(chosen);
    shown({scene, selection: chosen});
  }

  function drawSide(side, chosen) {
    const panel = panels[side];
    const found = heatOf(scene, side, chosen);
    panel.heat = found.heat;
    const sought = state.marks && found.heat ? soughtOn(scene, side) : null;
    const marks = sought && marksOf(found.heat);
    const {top, sum} = found.heat ? extent(found.heat.values) : {top: 0, sum: 0};
    Object.assign(panel, {top, sum});
    paint(panel.surface, {
      bitmap: scene[side].bitmap,
      heat: found.heat,
      top,
      colourMap: state.colours,
      strength: state.strength,
      borders: bordersOf(scene[side]),
      marks,
      chosen: chosen?.side === side ? chosen.tokens : null,
      chosenGrid: chosen?.grid,
      // With something pinned the pointer only reads.
      pointer: state.pins && pointer?.side === side && found.heat ? on(found.heat.grid, pointer) : null,
      pointerGrid: found.heat?.grid,
    });
    panel.what.textContent = panel.what.title = found.words;
    panel.reason.textContent = found.reason ?? '';
    panel.reason.hidden = !found.reason;
    panel.legend.hidden = !found.heat;
    panel.marked.textContent = marks && sought !== ANYWHERE ? comparedWords(marks, sought) : '';
    if (found.heat) {
      const times = sum > 0 ? (top * found.heat.values.length) / sum : 0;
      panel.most.textContent = number(top);
      panel.times.textContent = `${times.toFixed(1)} × even`;
    }
  }

  function read(chosen) {
    const side = pointer?.side;
    const heat = side && panels[side].heat;
    if (!pointer) reading.textContent = chosen ? `${placeWords(chosen)} pinned. Escape clears.` : '';
    else if (!heat) reading.textContent = placeWords({side, grid: gridOf(side), tokens: [tokenAt(side, pointer)]});
    else {
      const token = on(heat.grid, pointer);
      const value = heat.values[token];
      const share = panels[side].sum > 0 ? `, ${percent(value / panels[side].sum)} of the map` : '';
      reading.textContent = `${placeWords({side, grid: heat.grid, tokens: [token]})}: ${number(value)}${share}`;
    }
  }

  function load(loaded) {
    scene = loaded;
    const {evaluation} = scene;
    for (const side of SIDES) {
      const {bitmap, which, note} = scene[side];
      const panel = panels[side];
      const isStandIn = which === 'target';
      panel.title.textContent = side === 'generated' ? (isStandIn ? 'Target' : 'Generated') : referenceWords(scene);
      const made = which === 'generated' ? evaluation.made[scene.pair] : ''; // of a picture that is no finished sample
      panel.note.textContent =
        isStandIn && bitmap ? 'no generated picture is kept for this pair (pictures= of I2AMCallback)' : note || made;
      panel.element.style.setProperty('--aspect', aspectOf(bitmap));
      panel.bar.style.background = gradient(state.colours);
      panel.canvas.setAttribute(
        'aria-label',
        `${panel.title.textContent} picture of ${evaluation.pairs[scene.pair].name}. Arrow keys move the patch, Enter pins it.`,
      );
    }
    regions.load(scene);
    const usable = Boolean(scene.rows);
    hint.textContent = usable
      ? 'Hover a patch. Click pins, Shift-click adds, drag takes a region, Escape clears. Keys: arrows, comma, full stop.'
      : scene.rowsReason ?? '';
    hint.classList.toggle('warning', !usable);
    resize();
  }

  // True if the key was ours.
  function key(event) {
    if (!scene) return false;
    if (event.key === 'Escape') {
      pointer = null;
      drag = null;
      change({pins: ''});
      draw();
      return true;
    }
    const by = KEYS[event.key];
    if (!by) return false;
    const focused = SIDES.find((side) => panels[side].canvas === document.activeElement);
    const pins = readPins(state.pins);
    const side = focused ?? pins?.side ?? pointer?.side ?? 'generated';
    const grid = gridOf(side);
    const own = pins && pins.side === side && onGrid(pins, grid).tokens;
    const before = own?.length === 1 ? own[0] : pointer?.side === side ? on(grid, pointer) : on(grid, {x: 0.5, y: 0.5});
    const token = moved(before, grid, ...by);
    pointer = {side, x: ((token % grid[1]) + 0.5) / grid[1], y: (Math.floor(token / grid[1]) + 0.5) / grid[0]};
    if (own?.length === 1) change({pins: writePins({side, grid, tokens: [token]})});
    draw();
    return true;
  }

  const canvases = () =>
    SIDES.map((side) => {
      const {canvas, title, note, what, most, times, marked, legend} = panels[side];
      return {
        canvas,
        title: [title.textContent, note.textContent].filter(Boolean).join(', '),
        what: what.textContent,
        scale: legend.hidden ? null : [`0 … ${most.textContent}`, times.textContent, marked.textContent].filter(Boolean).join(', '),
        bar: legend.hidden ? null : state.colours,
        outlined: outlinedWords(scene[side]),
      };
    });
  return {element, load, draw, key, canvases};
}

// The map that one side shows, and in which words: the stored one, or what a selection on the other side lights up.
export function heatOf(scene, side, chosen) {
  if (chosen && chosen.side !== side && scene.rows) {
    const tokens = onGrid(chosen, scene.rows[chosen.side]);
    const heat = side === 'reference' ? meanRow(scene.rows, tokens.tokens) : columnSum(scene.rows, tokens.tokens);
    const [place, verb] = [placeWords(tokens, true), tokens.tokens.length > 1 ? 'draw' : 'draws'];
    const words = side === 'reference' ? `What ${place} ${verb} on` : `What draws on ${place}`;
    if (heat.values.every(Number.isFinite)) return {heat, words};
    return {heat: null, words, reason: 'Undefined. Nothing was looked at here.'};
  }
  const isR2G = side === 'generated';
  const words = `${isR2G ? 'R2G, where the reference goes' : 'G2R, what is drawn on'}; ${scene.level}`;
  const asked = scene.direction === 'both' || scene.direction === (isR2G ? 'r2g' : 'g2r');
  if (!asked) return {heat: null, words: ''};
  return {heat: scene[side].heat, words, reason: scene[side].heat ? null : `Undefined. ${scene[side].reason}`};
}

function placeWords({side, grid, tokens}, short = false) {
  const whose = side === 'generated' ? 'Generated' : 'Reference';
  if (tokens.length > 1) return short ? `${tokens.length} patches` : `${whose}, ${tokens.length} patches`;
  const place = `row ${Math.floor(tokens[0] / grid[1])}, column ${tokens[0] % grid[1]}`; // from 0, as maps.specific takes them
  if (isBars(grid)) return `${short ? '' : `${whose} `}token ${tokens[0]} of ${grid[1]}`;
  return short ? `the patch in ${place}` : `${whose} patch ${place} of ${grid[0]} × ${grid[1]} (token ${tokens[0]})`;
}

function referenceWords({evaluation, pair, referenceNumber}) {
  return evaluation.references[pair].length > 1 ? `Reference ${referenceNumber}` : 'Reference';
}

function makePanel(side) {
  const canvas = el('canvas', {class: 'picture', tabindex: 0, role: 'application', 'aria-label': side});
  const title = el('h2', {});
  const [note, what] = [el('span', {class: 'note'}), el('p', {class: 'what'})];
  const reason = el('p', {class: 'reason', hidden: true});
  const [bar, most] = [el('span', {class: 'bar'}), el('span', {})];
  const times = el('span', {class: 'times', title: 'The largest value over that of a map that is the same everywhere'});
  const marked = el('span', {class: 'marked'});
  const legend = el('p', {class: 'legend'}, el('span', {}, '0'), bar, most, times, marked);
  const element = el(
    'figure',
    {class: 'panel'},
    el('figcaption', {}, el('div', {class: 'panel-title'}, title, note), what),
    el('div', {class: 'frame'}, canvas, reason),
    legend,
  );
  return {element, canvas, surface: surface(canvas), title, note, what, reason, bar, most, times, marked, legend};
}

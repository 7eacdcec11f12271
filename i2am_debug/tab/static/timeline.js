// Every score over training: one large chart, and a small one for each score to choose from.

import {RUN_COLOURS} from './colour.js';
import {arrange, el, field, number, own, setOptions, svg} from './dom.js';
import {hintOf, isOfLayer, isProbe, kindOf, layerKinds, layerNameOf, linesOf as linesBeside, titleOf} from './figures.js';
import {shortLayer} from './levels.js';
import {change, state} from './state.js';

const HEIGHT = 240;
const ROOM = {left: 50, right: 18, top: 14, bottom: 30};
const SIGNS = {critical: '!!', warning: '!', info: 'i'}; // of alerts; a colour alone is not seen by all

// `opened()` is called when the scores of single layers are to be seen.
export function makeTimeline(opened) {
  let data = null; // {names, runs: [{name, index, layers}], step, figure, kind, lines, layerNames, pairs, alertsProblem}
  const title = el('h2', {});
  const tagName = el('code', {class: 'tag'});
  const fitLines = el('input', {type: 'checkbox', onchange: () => change({lines: fitLines.checked})});
  const chart = svg('svg', {class: 'chart', role: 'img', height: HEIGHT});
  const marks = el('div', {class: 'marks'});
  const bubble = el('div', {class: 'bubble', id: 'i2am-alert', role: 'tooltip', hidden: true});
  const missing = el('p', {class: 'undefined', hidden: true});
  const plot = el('div', {class: 'plot'}, chart, missing, marks, bubble);
  const key = el('div', {class: 'key', role: 'group', 'aria-label': 'Runs in the timeline'});
  const now = el('div', {class: 'alert-now', hidden: true});
  const small = el('div', {class: 'small-charts'});
  const layers = el('div', {class: 'small-charts'});
  const kind = el('select', {onchange: () => chooseKind(kind.value)});
  const kindField = field('Score of each layer', kind);
  const more = el('details', {class: 'by-layer'}, el('summary', {}, 'Scores of single layers'), kindField, layers);
  const probes = el('div', {class: 'small-charts'});
  const tried = el('details', {class: 'probes'}, el('summary', {}, 'Probes: losses with something of a pair wrong'), probes);
  more.addEventListener('toggle', () => more.open && !data?.runs[0].layers && opened());
  const lines = el('label', {class: 'check'}, fitLines, 'Fit reference lines');
  const head = el('div', {class: 'section-head'}, title, tagName, lines);
  const element = el('section', {class: 'timeline', 'aria-label': 'Timeline'}, head, key, plot, now, small, tried, more);
  chart.addEventListener('click', (event) => {
    if (!data) return;
    const at = event.clientX - chart.getBoundingClientRect().left;
    const {steps} = data.runs[0].index;
    const step = nearest(steps, at, scaleX());
    change({step: step === steps[steps.length - 1] ? null : step}); // null: the newest, also after the next one
  });
  new ResizeObserver(() => draw()).observe(plot);
  document.addEventListener('keydown', (event) => event.key === 'Escape' && hideAlert());

  // Where the names of reference lines begin, or would.
  const right = () => Math.max(240, plot.clientWidth) - (linesOf().length ? namesRoom() : ROOM.right);
  const namesRoom = () => parseFloat(getComputedStyle(plot).getPropertyValue('--line-names')); // depends on the font
  const linesOf = () =>
    Object.entries(own(data.lines, data.figure) ?? own(data.lines, linesBeside(data.figure)) ?? {})
      .filter(([, value]) => Number.isFinite(value));
  const keys = new Map(); // run → its entry in the key
  const marksOf = new Map(); // run and step → mark of its alert
  const drawnOf = new WeakMap(); // small chart → what it was drawn from
  const colourOf = (run) => colourAt(data.names.indexOf(run.name));

  function scaleX() {
    const steps = data.runs.flatMap(({index}) => [index.steps[0], index.steps[index.steps.length - 1]]);
    const [from, to] = [Math.min(...steps), Math.max(...steps)];
    const room = right() - ROOM.left;
    return {from, to, at: (step) => ROOM.left + (to > from ? (step - from) / (to - from) : 0.5) * room};
  }

  function load(loaded) {
    data = loaded;
    drawKey();
    draw();
    const entries = Object.entries(data.runs[0].index.figures);
    drawSmall(small, Object.fromEntries(entries.filter(([tag]) => !isProbe(tag))));
    drawSmall(probes, Object.fromEntries(entries.filter(([tag]) => isProbe(tag))));
    tried.hidden = !probes.children.length;
    tried.open = tried.open || isProbe(data.figure);
    more.open = more.open || isOfLayer(data.figure);
    setOptions(kind, layerKinds(), data.kind);
    drawSmall(layers, data.runs[0].layers?.figures ?? {});
  }

  function chooseKind(layerScore) {
    const figure = isOfLayer(data.figure) ? data.figure.slice(0, -kindOf(data.figure).length) + layerScore : state.figure;
    change({layerScore, figure});
  }

  function drawKey() {
    const shown = new Set(data.runs.map((run) => run.name));
    for (const name of data.names) {
      const entry = keys.get(name) ?? makeKey(name);
      entry.box.checked = shown.has(name);
      entry.box.disabled = name === state.run;
      entry.swatch.style.background = shown.has(name) ? colourOf({name}) : '';
    }
    arrange(key, data.names.map((name) => keys.get(name).label));
  }

  function makeKey(name) {
    const box = el('input', {type: 'checkbox'});
    const swatch = el('span', {class: 'swatch'});
    const others = () => state.overlay.filter((other) => other !== name);
    box.addEventListener('change', () => change({overlay: box.checked ? [...others(), name] : others()}));
    const entry = {box, swatch, label: el('label', {class: 'check'}, box, swatch, name)};
    keys.set(name, entry);
    return entry;
  }

  function draw() {
    if (!data || !plot.clientWidth) return;
    const main = data.runs[0];
    const figureOf = (run) => own(run.index.figures, data.figure) ?? own(run.layers?.figures, data.figure);
    const reference = linesOf();
    title.textContent = titleOf(data.figure);
    title.title = hintOf(data.figure);
    tagName.textContent = data.figure;
    lines.hidden = !reference.length;
    fitLines.checked = state.lines;
    const values = data.runs.flatMap((run) => spread(figureOf(run))).concat(state.lines ? reference.map(([, v]) => v) : []);
    const x = scaleX();
    const parts = [];
    showNow(main);
    arrange(marks, data.runs.flatMap((run) => marked(run).map((alert) => alertMark(run, alert, x))));
    missing.hidden = values.length > 0;
    if (!values.length) {
      const reason = Object.values(figureOf(main)?.undefined ?? {})[0] ?? 'it was not recorded';
      missing.textContent = `Undefined: ${reason}`;
      chart.replaceChildren();
      chart.setAttribute('aria-label', `${titleOf(data.figure)} is undefined: ${reason}`);
      return;
    }
    const y = scaleY(values);
    parts.push(...axes(x, y, right()));
    parts.push(...referenceLines(reference, x, y));
    for (const run of data.runs.toReversed()) parts.push(...curve(run, figureOf(run), x, y, colourOf(run)));
    parts.push(...guides(main, x));
    parts.push(...currentPoint(main, figureOf(main), x, y));
    chart.replaceChildren(...parts);
    const {steps} = main.index;
    const words = summary(figureOf(main), steps);
    chart.setAttribute('aria-label', `${titleOf(data.figure)} over ${steps.length} evaluations of ${main.name}, ${words}`);
  }

  function referenceLines(reference, x, y) {
    const taken = [];
    const free = (at) => {
      const [top, bottom] = [ROOM.top + 6, HEIGHT - ROOM.bottom - 2];
      const wanted = Math.max(top, Math.min(bottom, at));
      const isFree = (place) => place >= top && place <= bottom && !taken.some((other) => Math.abs(other - place) < 14);
      // The nearest free place; where there is none left, the names lie over each other.
      const near = Array.from({length: HEIGHT}, (_, i) => wanted + (i % 2 ? 1 : -1) * Math.ceil(i / 2));
      const place = near.find(isFree) ?? wanted;
      taken.push(place);
      return place;
    };
    return reference
      .sort((a, b) => b[1] - a[1])
      .flatMap(([name, value]) => {
        const isAbove = value > y.high;
        const isFar = isAbove || value < y.low;
        const label = `${name.length > 14 ? `${name.slice(0, 13)}…` : name} ${number(value)}${isFar ? (isAbove ? ' ↑' : ' ↓') : ''}`;
        const text = svg('text', {class: 'line-name', x: right() + 6, y: free(y.at(value)) + 4}, label);
        if (isFar) return [text];
        const ends = {x1: ROOM.left, x2: right(), y1: y.at(value), y2: y.at(value)};
        return [svg('line', {class: 'reference-line', ...ends}), text];
      });
  }

  function guides(main, x) {
    const line = (step, name) =>
      svg('line', {class: name, x1: x.at(step), x2: x.at(step), y1: ROOM.top, y2: HEIGHT - ROOM.bottom});
    const {baseline_step: baseline} = main.index;
    const found = [line(data.step, 'now')];
    if (baseline !== null) {
      const isRight = x.at(baseline) > right() / 2;
      const place = {x: x.at(baseline) + (isRight ? -5 : 5), y: ROOM.top + 10, 'text-anchor': isRight ? 'end' : 'start'};
      found.unshift(line(baseline, 'baseline'), svg('text', {...place}, 'baseline'));
    }
    return found;
  }

  function currentPoint(main, figure, x, y) {
    const at = main.index.steps.indexOf(data.step);
    const value = figure?.mean[at];
    if (value === null || value === undefined) return [];
    return [svg('circle', {class: 'current', cx: x.at(data.step), cy: y.at(value), r: 6, stroke: colourOf(main)})];
  }

  // A mark of a step that the run does not have would stand outside of the chart.
  const marked = (run) => run.index.alerts.filter((alert) => run.index.steps.includes(alert.global_step));

  function alertMark(run, alert, x) {
    const name = `${run.name} ${alert.global_step}`;
    const mark = marksOf.get(name) ?? makeMark(run.name, alert.global_step);
    marksOf.set(name, mark);
    mark.alertText = `${run.name}\n${alert.text.split('\n')[0]}`; // the rest stands below the chart
    mark.style.left = `${x.at(alert.global_step)}px`;
    mark.style.color = colourOf(run);
    mark.dataset.severity = alert.severity;
    mark.firstChild.textContent = SIGNS[alert.severity] ?? '!';
    mark.setAttribute('aria-label', `Alert at step ${alert.global_step} of ${run.name}, ${alert.severity}`);
    return mark;
  }

  function makeMark(run, step) {
    const mark = el('button', {class: 'mark', type: 'button'}, el('span', {}));
    mark.setAttribute('aria-describedby', bubble.id);
    for (const event of ['mouseenter', 'focus']) mark.addEventListener(event, () => showAlert(mark));
    for (const event of ['mouseleave', 'blur']) mark.addEventListener(event, hideAlert);
    mark.addEventListener('click', () => change({run, step}));
    return mark;
  }

  function showAlert(mark) {
    bubble.textContent = mark.alertText;
    bubble.hidden = false;
    const left = Math.max(0, Math.min(plot.clientWidth - bubble.offsetWidth, mark.offsetLeft - bubble.offsetWidth / 2));
    bubble.style.left = `${left}px`;
  }

  function hideAlert() {
    bubble.hidden = true;
  }

  // The newest alert up to this evaluation, with all its words.
  function showNow(main) {
    const alert = main.index.alerts.findLast((one) => one.global_step <= data.step);
    now.hidden = !alert && !data.alertsProblem;
    const key = JSON.stringify([main.name, alert?.global_step, data.step, alert?.text, data.alertsProblem]);
    if (now.dataset.key === key) return; // what is open stays open
    now.dataset.key = key;
    now.dataset.severity = alert?.severity ?? '';
    if (!alert) return now.replaceChildren(data.alertsProblem ?? '');
    const [headline, ...rest] = alert.text.split('\n');
    const isNow = alert.global_step === data.step;
    const go = el('button', {type: 'button', onclick: () => change({step: alert.global_step})}, `Go to step ${alert.global_step}`);
    const figures = [...new Set(alert.findings.map(({figure}) => figure))].filter((tag) => own(main.index.figures, tag));
    const choose = figures.map((tag) => el('button', {type: 'button', onclick: () => change({figure: tag}), title: hintOf(tag)}, titleOf(tag)));
    const blamed = data.pairs.map((name, pair) => [name, pair]).filter(([name]) => Object.hasOwn(alert.panels, name));
    choose.push(...blamed.map(([name, pair]) => el('button', {type: 'button', onclick: () => change({pair})}, name)));
    const more = [el('p', {class: 'alert-text'}, rest.join('\n').trim()), el('p', {class: 'alert-buttons'}, ...choose)];
    const words = el('details', {open: isNow}, el('summary', {}, headline), ...more);
    now.replaceChildren(words, ...(isNow ? [] : [go]));
  }

  function drawSmall(into, figures) {
    const tags = Object.keys(figures);
    const known = new Map([...into.children].map((child) => [child.dataset.tag, child]));
    arrange(into, tags.map((tag) => smallChart(tag, known.get(tag))));
  }

  function smallChart(tag, before) {
    const made = () => el('button', {type: 'button', class: 'small', 'data-tag': tag, onclick: () => change({figure: tag})});
    const button = before ?? made();
    button.setAttribute('aria-pressed', tag === data.figure);
    const main = data.runs[0];
    const figures = data.runs.map((run) => own(run.index.figures, tag) ?? own(run.layers?.figures, tag));
    const value = figures[0]?.mean[main.index.steps.indexOf(data.step)];
    const text = Number.isFinite(value) ? number(value) : 'undefined';
    const reason = Object.values(figures[0]?.undefined ?? {})[0];
    button.title = reason && !Number.isFinite(value) ? `${hintOf(tag)}, undefined: ${reason}` : hintOf(tag);
    // Only the value changes from one evaluation to the next.
    const theme = document.documentElement.dataset.theme;
    const drawn = drawnOf.get(button);
    const isSame = drawn?.theme === theme && drawn.figures.length === figures.length;
    if (isSame && figures.every((figure, i) => figure === drawn.figures[i])) {
      button.lastChild.textContent = text;
      return button;
    }
    drawnOf.set(button, {theme, figures});
    const values = figures.flatMap((figure) => (figure?.mean ?? []).filter(Number.isFinite));
    const picture = svg('svg', {viewBox: '0 0 120 32', preserveAspectRatio: 'none', 'aria-hidden': 'true'});
    if (values.length) {
      const [low, high] = bounds(values);
      const x = scaleX();
      const place = (step) => 2 + ((x.at(step) - ROOM.left) / (right() - ROOM.left)) * 116;
      const height = (value) => 29 - (high > low ? (value - low) / (high - low) : 0.5) * 26;
      figures.forEach((figure, at) => {
        if (!figure) return;
        const points = data.runs[at].index.steps
          .map((step, i) => [step, figure.mean[i]])
          .filter(([, value]) => Number.isFinite(value))
          .map(([step, value]) => `${place(step).toFixed(1)},${height(value).toFixed(1)}`);
        picture.append(svg('polyline', {points: points.join(' '), stroke: colourOf(data.runs[at])}));
      });
    }
    button.replaceChildren(el('span', {class: 'small-name'}, nameOf(tag)), picture, el('span', {class: 'small-value'}, text));
    return button;
  }

  // That of a layer is short: all of them are of the same kind.
  function nameOf(tag) {
    return isOfLayer(tag) ? shortLayer(layerNameOf(tag), data.layerNames) : titleOf(tag);
  }

  const redraw = () => data && load(data);
  return {element, load, redraw, showsLayers: () => more.open};
}

const colourAt = (place) => {
  const found = RUN_COLOURS[document.documentElement.dataset.theme] ?? RUN_COLOURS.light;
  return found[Math.max(0, place) % found.length];
};

const spread = (figure) => (figure ? [...figure.mean, ...figure.low, ...figure.high].filter(Number.isFinite) : []);

function nearest(steps, at, x) {
  return steps.reduce((best, step) => (Math.abs(x.at(step) - at) < Math.abs(x.at(best) - at) ? step : best), steps[0]);
}

function summary(figure, steps) {
  const at = figure.mean.map((value, i) => [value, i]).filter(([value]) => Number.isFinite(value));
  if (!at.length) return 'undefined throughout';
  const [first, last] = [at[0], at[at.length - 1]];
  return `from ${number(first[0])} at step ${steps[first[1]]} to ${number(last[0])} at step ${steps[last[1]]}`;
}

// Not Math.min(...values): there may be more of them than arguments are allowed.
function bounds(values) {
  let [low, high] = [values[0], values[0]];
  for (const value of values) [low, high] = [Math.min(low, value), Math.max(high, value)];
  return [low, high];
}

function scaleY(values) {
  let [low, high] = bounds(values);
  const margin = (high - low || Math.abs(high) || 1) * 0.08;
  low -= margin;
  high += margin;
  const room = HEIGHT - ROOM.top - ROOM.bottom;
  return {low, high, at: (value) => HEIGHT - ROOM.bottom - ((value - low) / (high - low)) * room};
}

// Round numbers between two bounds.
function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
  const found = [];
  const first = Math.ceil(low / step);
  // Counted from 0: beyond 2^53 adding 1 changes nothing, and the loop would not end.
  for (let i = 0; i <= 4 * count && (first + i) * step <= high + 1e-9 * step; i++) found.push((first + i) * step);
  return found;
}

function axes(x, y, right) {
  const across = ticks(x.from, x.to, Math.max(3, Math.min(10, right / 90))).filter(Number.isInteger);
  const digits = Math.min(6, Math.max(0, 1 - Math.floor(Math.log10(y.high - y.low))));
  const text = (place, words) => svg('text', {...place}, words);
  return [
    ...ticks(y.low, y.high, 4).flatMap((value) => [
      svg('line', {class: 'grid', x1: ROOM.left, x2: right, y1: y.at(value), y2: y.at(value)}),
      text({x: ROOM.left - 8, y: y.at(value) + 4, 'text-anchor': 'end'}, value.toFixed(digits).replace('-', '−')),
    ]),
    ...across.map((step) => text({x: x.at(step), y: HEIGHT - ROOM.bottom + 18, 'text-anchor': 'middle'}, String(step))),
  ];
}

function curve(run, figure, x, y, colour) {
  if (!figure) return [];
  const {steps} = run.index;
  const known = steps.map((step, i) => ({step, i})).filter(({i}) => Number.isFinite(figure.mean[i]));
  const banded = known.filter(({i}) => Number.isFinite(figure.low[i]) && Number.isFinite(figure.high[i]));
  const point = (step, value) => `${x.at(step).toFixed(1)},${y.at(value).toFixed(1)}`;
  const edge = [
    ...banded.map(({step, i}) => point(step, figure.high[i])),
    ...banded.reverse().map(({step, i}) => point(step, figure.low[i])),
  ];
  const middle = known.map(({step, i}) => point(step, figure.mean[i])).join(' ');
  const found = [
    svg('polygon', {class: 'band', points: edge.join(' '), fill: colour}),
    svg('polyline', {class: 'mean', points: middle, stroke: colour}),
  ];
  if (known.length > 120) return found;
  const dots = known.map(({step, i}) => {
    const band = `[${number(figure.low[i])}, ${number(figure.high[i])}]`;
    const part = figure.sampling?.[i] ? ` ± ${number(figure.sampling[i])} of heads and noise times not looked at` : '';
    const text = `${run.name}, step ${step}: ${number(figure.mean[i])} ${band}${part}`;
    const place = {cx: x.at(step), cy: y.at(figure.mean[i]), r: 3.5};
    return svg('circle', {class: 'dot', ...place, fill: colour}, svg('title', {}, text));
  });
  return [...found, ...dots];
}

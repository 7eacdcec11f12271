// The validation pairs with their pictures, those that lost most since the baseline first.

import {pictureAddress} from './api.js';
import {arrange, el, mayBeMissing, number, own, retry, setOptions} from './dom.js';
import {hintOf, isWorseHigher, titleOf} from './figures.js';
import {pairOf} from './levels.js';
import {change, state} from './state.js';

const SORTS = [
  ['fall', 'Lost most first'],
  ['value', 'Worst first'],
  ['order', 'As given'],
];

export function makePairs() {
  const list = el('ul', {class: 'pair-list'});
  const sort = el('select', {'aria-label': 'Order of the pairs', onchange: () => change({sort: sort.value})});
  const note = el('p', {class: 'note'});
  const head = el('div', {class: 'section-head'}, el('h2', {}, 'Pairs'), sort);
  const element = el('section', {class: 'pairs', 'aria-label': 'Pairs'}, head, note, list);
  const items = new Map(); // run and number → button, so that pictures are not loaded anew

  // `before`: {evaluation, words} of what to compare with; the evaluation may be null.
  function load(run, evaluation, tag, before) {
    const baseline = before.evaluation;
    setOptions(sort, SORTS, state.sort);
    const storedIn = (one) => tag.replace(/^copying_layer\//, `layer/${one?.copying_layer}/`);
    const bad = isWorseHigher(tag) ? -1 : 1;
    const rows = evaluation.pairs.map(({name, figures}, index) => {
      const earlier = own(baseline?.pairs.find((pair) => pair.name === name)?.figures, storedIn(baseline));
      const value = own(figures, storedIn(evaluation));
      const lost = Number.isFinite(value) && Number.isFinite(earlier) ? bad * (earlier - value) : null;
      return {index, name, value, change: lost === null ? null : value - earlier, lost};
    });
    const last = (value) => (Number.isFinite(value) ? value : -Infinity);
    if (state.sort === 'fall') rows.sort((a, b) => last(b.lost) - last(a.lost));
    if (state.sort === 'value') {
      const badness = (row) => last(Number.isFinite(row.value) ? -bad * row.value : NaN);
      rows.sort((a, b) => badness(b) - badness(a));
    }
    const reason = rows.map(({value}) => value?.undefined).find(Boolean);
    note.title = hintOf(tag);
    const title = titleOf(tag);
    if (rows.some((row) => row.lost !== null)) note.textContent = `${title}, and its change since ${before.words}`;
    else if (rows.some((row) => Number.isFinite(row.value))) note.textContent = `${title}, not known at ${before.words}`;
    else note.textContent = reason ? `${title} is undefined: ${reason}` : `${title} is not known pair by pair`;
    arrange(list, rows.map((row) => item(run, evaluation, row)));
  }

  function item(run, evaluation, row) {
    const key = JSON.stringify([run, row.index, row.name]);
    const known = items.get(key) ?? makeItem(run, evaluation.step, row, key);
    const isChosen = row.index === pairOf(state, evaluation);
    known.button.setAttribute('aria-pressed', isChosen);
    known.value.textContent = Number.isFinite(row.value) ? number(row.value) : row.value?.undefined ? 'undefined' : '';
    known.value.title = row.value?.undefined ?? '';
    const sign = row.change > 0 ? '+' : '';
    known.change.textContent = row.change === null ? '' : `${sign}${row.change.toFixed(3).replace('-', '−')}`;
    known.change.classList.toggle('worse', row.lost > 0);
    return known.li;
  }

  function makeItem(run, step, row, key) {
    const picture = (which) => {
      const src = pictureAddress({run, step, pair: row.index, which});
      const image = el('img', {alt: '', loading: 'lazy', width: 44, height: 44, src});
      mayBeMissing(image);
      return image;
    };
    const [value, moved] = [el('span', {class: 'pair-value'}), el('span', {class: 'pair-change'})];
    const name = el('span', {class: 'pair-name', title: row.name}, row.name);
    const words = el('span', {class: 'pair-words'}, name, el('span', {}, value, ' ', moved));
    const button = el('button', {type: 'button', class: 'pair', onclick: () => change({pair: row.index})});
    button.append(picture('target'), picture('reference'), words);
    const made = {li: el('li', {}, button), button, value, change: moved};
    items.set(key, made);
    return made;
  }

  return {element, load, retry: () => retry(element)};
}

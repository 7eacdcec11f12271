// Which of a pair's references is shown, where a model takes several.

import {pictureAddress} from './api.js';
import {arrange, el, mayBeMissing, own, retry} from './dom.js';
import {measured, measuresOfReferences} from './figures.js';
import {prefixOf, referenceName} from './levels.js';
import {change} from './state.js';

export function makeReferences() {
  const element = el('div', {class: 'references', role: 'group', 'aria-label': 'References', hidden: true});
  const items = new Map(); // run, pair and number → button, so that pictures are not loaded anew at every evaluation

  function load({run, step, evaluation, pair, referenceNumber}) {
    const numbers = evaluation.references[pair];
    element.hidden = numbers.length < 2;
    if (element.hidden) return;
    const {name, figures} = evaluation.pairs[pair];
    const buttons = numbers.map((reference) => {
      const src = pictureAddress({run, step, pair, which: referenceName(reference)});
      const known = item(JSON.stringify([run, pair, name, reference]), src, reference);
      known.button.setAttribute('aria-pressed', reference === referenceNumber);
      known.measure.textContent = measureOf(figures, reference);
      return known.button;
    });
    arrange(element, buttons);
  }

  function item(key, src, reference) {
    const known = items.get(key);
    if (known) return known;
    const image = el('img', {alt: '', width: 32, height: 32, src});
    mayBeMissing(image);
    const measure = el('span', {class: 'note'});
    const words = el('span', {class: 'reference-words'}, `Reference ${reference}`, measure);
    const choose = () => change({reference});
    const button = el('button', {type: 'button', class: 'reference-choice', onclick: choose}, image, words);
    const made = {button, measure};
    items.set(key, made);
    return made;
  }

  return {element, load, retry: () => retry(element)};
}

function measureOf(figures, reference) {
  for (const tag of measuresOfReferences()) {
    const value = own(figures, prefixOf(reference) + tag);
    if (Number.isFinite(value)) return measured(tag, value);
  }
  return '';
}

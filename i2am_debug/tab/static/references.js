// Which of a pair's references is shown, where a model takes several.

import {pictureAddress} from './api.js';
import {arrange, el, number} from './dom.js';
import {prefixOf, referenceName} from './levels.js';
import {change} from './state.js';

// What says how much a reference is used, with its words; the first that has a value.
const MEASURES = [
  ['reference_mass', (value) => `${(100 * value).toFixed(1)} % of the attention`],
  ['branch_share', (value) => `${(100 * value).toFixed(1)} % of the branches`],
  ['attention_information', (value) => `${number(value)} bits`],
];

export function makeReferences() {
  const element = el('div', {class: 'references', role: 'group', 'aria-label': 'References', hidden: true});
  const items = new Map(); // address of the picture → button, so that pictures are not loaded anew

  function load({run, step, evaluation, pair, referenceNumber}) {
    const numbers = evaluation.references[pair];
    element.hidden = numbers.length < 2;
    if (element.hidden) return;
    const buttons = numbers.map((reference) => {
      const own = item(pictureAddress({run, step, pair, which: referenceName(reference)}), reference);
      own.button.setAttribute('aria-pressed', reference === referenceNumber);
      own.measure.textContent = measureOf(evaluation.pairs[pair].figures, reference);
      return own.button;
    });
    arrange(element, buttons);
  }

  function item(src, reference) {
    const known = items.get(src);
    if (known) return known;
    const image = el('img', {alt: '', width: 32, height: 32, src});
    image.addEventListener('error', () => image.classList.add('missing'), {once: true});
    const measure = el('span', {class: 'note'});
    const words = el('span', {class: 'reference-words'}, `Reference ${reference}`, measure);
    const choose = () => change({reference});
    const button = el('button', {type: 'button', class: 'reference-choice', onclick: choose}, image, words);
    const made = {button, measure};
    items.set(src, made);
    return made;
  }

  return {element, load, forget: () => items.clear()};
}

function measureOf(figures, reference) {
  for (const [tag, words] of MEASURES) {
    const value = figures[prefixOf(reference) + tag];
    if (Number.isFinite(value)) return words(value);
  }
  return '';
}

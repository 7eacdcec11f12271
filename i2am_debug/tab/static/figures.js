// What is known of a figure, as the run itself says it; the tab knows no figure by name.

import {number, own} from './dom.js';

const LAYER = 'layer/';
const COPYING_LAYER = 'copying_layer/';
const PROBE = 'probe/';
const REFERENCE = /^reference_([1-9]\d{0,2})\//;

let declared = {}; // tag → title, meaning, unit, worse, …; of the run that is shown
let region = ''; // what its figures look at, where that is no hole

export const declare = (index, evaluation) => {
  declared = index.declared ?? {};
  region = evaluation.region ?? '';
};

// Of any reference or layer.
function declarationOf(tag) {
  const plain = tag.replace(REFERENCE, '');
  const known = own(declared, plain);
  if (known || !(plain.startsWith(LAYER) || plain.startsWith(COPYING_LAYER))) return known;
  return own(declared, plain.slice(plain.lastIndexOf('/') + 1));
}

// Scores of single layers are called "layer/<name>/<kind>".
export const isOfLayer = (tag) => tag.startsWith(LAYER);
export const kindOf = (tag) => tag.slice(tag.lastIndexOf('/') + 1);
export const layerNameOf = (tag) => tag.slice(LAYER.length, -kindOf(tag).length - 1);

// Losses with something of a pair wrong: there only now and then, and many.
export const isProbe = (tag) => tag.startsWith(PROBE);

// Titles are declared for a hole.
const asCalled = (title) => (region ? title.replaceAll('of the hole', () => `of ${region}`) : title);

// What a person calls it.
export function titleOf(tag) {
  const title = asCalled(declarationOf(tag)?.title ?? tag);
  const reference = tag.match(REFERENCE);
  const where = isOfLayer(tag) ? ` in ${layerNameOf(tag)}` : '';
  return `${reference ? `Reference ${reference[1]}: ` : ''}${title}${where}`;
}

// What it means, and what rules and TensorBoard call it.
export function hintOf(tag) {
  const known = declarationOf(tag);
  return known?.meaning ? `${known.meaning} (${tag})` : tag;
}

// A value with its unit; a share as a percentage.
export function measured(tag, value) {
  const unit = declarationOf(tag)?.unit ?? '';
  if (unit.startsWith('share of ')) return `${(100 * value).toFixed(1)} % ${unit.slice('share '.length)}`;
  return `${number(value)} ${unit}`.trim();
}

export const isWorseHigher = (tag) => declarationOf(tag)?.worse === 'up';

// The figure whose reference lines stand beside this one.
export const linesOf = (tag) => declarationOf(tag)?.lines_of ?? tag;

// What there is of single layers: [tag, title].
export const layerKinds = () =>
  Object.values(declared)
    .filter((figure) => figure.of_layer)
    .map(({tag, title}) => [tag, asCalled(title)]);

// Where there is room for one figure, the first of these that has a value is shown.
export const mostTelling = (index) =>
  Object.values(index.declared ?? {})
    .filter((figure) => figure.prominence > 0)
    .sort((a, b) => b.prominence - a.prominence)
    .map(({tag}) => tag);

// The same for how much one of several references is used: its share of the whole, else what is most telling of it.
export function measuresOfReferences() {
  const rank = ({unit, prominence}) => (unit.startsWith('share of ') ? Infinity : prominence);
  return Object.values(declared)
    .filter((figure) => figure.of_further_references && rank(figure) > 0)
    .sort((a, b) => (rank(b) === rank(a) ? 0 : rank(b) - rank(a)))
    .map(({tag}) => tag);
}

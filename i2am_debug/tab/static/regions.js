// What is outlined on the pictures: in words, and whether it is shown.

import {el} from './dom.js';
import {change, state} from './state.js';

const MARKS =
  'A dashed box around the heaviest connected part of each map above its 65th percentile, and a ring at its maximum; with how they lie ' +
  'to the object or the hole';
const PLACES = {generated: 'on the generated picture', reference: 'on the reference'};

// Where a region comes from, as `kept_origin` of a pair says it.
const DERIVED = /^derived: (Otsu|fixed), (.+)$/;
const RULES = {Otsu: "Otsu's method", fixed: 'a fixed threshold'};

// `place`: where it is outlined, or nothing.
function inWords({name, origin}, place = '') {
  const known = [name, place].filter(Boolean).join(' ');
  const [, rule, threshold] = DERIVED.exec(origin) ?? [];
  if (rule) return `${known}, derived by ${RULES[rule]} (kept: ${threshold})`;
  return origin === 'file' ? `${known}, from a file` : origin && origin !== 'given' ? `${known} (${origin})` : known;
}

// What a map's heaviest part and maximum are to lie on: the object on the reference, the hole on the generated picture. On the
// reference they are shown where only the hole is known, too; of an edit there is nothing that a box could be around.
export const soughtOn = ({generated, reference}, side) => {
  const found = (side === 'generated' ? generated : reference).regions.find(({sought}) => sought);
  return found ?? (generated.regions.some(({sought}) => sought) ? ANYWHERE : null);
};
export const ANYWHERE = {};

// The borders that a side is drawn with.
export const bordersOf = (side) => (state.outlines ? side.regions.map(({border}) => border) : []);

// What is outlined on one side, for what stands alone; nothing where nothing is.
export const outlinedWords = (side) =>
  state.outlines && side.regions.length ? `Outlined: ${side.regions.map((region) => inWords(region)).join('; ')}` : '';

export function makeRegions() {
  const box = el('input', {type: 'checkbox', onchange: () => change({outlines: box.checked})});
  const swatch = el('span', {class: 'outline-swatch', 'aria-hidden': 'true'});
  const toggle = el('label', {class: 'check'}, box, swatch, 'Outlines');
  const words = el('span', {class: 'note'});
  const marks = el('input', {type: 'checkbox', onchange: () => change({marks: marks.checked})});
  const dashed = el('span', {class: 'marks-swatch', 'aria-hidden': 'true'});
  const marksToggle = el('label', {class: 'check', title: MARKS}, marks, dashed, 'Heaviest part');
  const element = el('div', {class: 'outlined', hidden: true}, toggle, words, marksToggle);

  function load({generated, reference, regionsProblem}) {
    const all = [...new Set([...generated.regions, ...reference.regions])];
    const on = (region) => {
      const sides = Object.entries({generated, reference}).filter(([, side]) => side.regions.includes(region));
      return sides.length > 1 ? 'on both' : PLACES[sides[0][0]];
    };
    toggle.hidden = !all.length;
    marksToggle.hidden = !all.some(({sought}) => sought);
    const hasPicture = generated.bitmap || reference.bitmap;
    element.hidden = !all.length && !(regionsProblem && hasPicture);
    words.textContent = regionsProblem || all.map((region) => inWords(region, on(region))).join('; ');
    redraw();
  }

  function redraw() {
    box.checked = state.outlines;
    marks.checked = state.marks;
  }

  return {element, load, redraw};
}

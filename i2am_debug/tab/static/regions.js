// What is outlined on the pictures: in words, and whether it is shown.

import {el} from './dom.js';
import {change, state} from './state.js';

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
  const element = el('div', {class: 'outlined', hidden: true}, toggle, words);

  function load({generated, reference, regionsProblem}) {
    const all = [...new Set([...generated.regions, ...reference.regions])];
    const on = (region) => {
      const sides = Object.entries({generated, reference}).filter(([, side]) => side.regions.includes(region));
      return sides.length > 1 ? 'on both' : PLACES[sides[0][0]];
    };
    toggle.hidden = !all.length;
    const hasPicture = generated.bitmap || reference.bitmap;
    element.hidden = !all.length && !(regionsProblem && hasPicture);
    words.textContent = regionsProblem || all.map((region) => inWords(region, on(region))).join('; ');
    redraw();
  }

  function redraw() {
    box.checked = state.outlines;
  }

  return {element, load, redraw};
}

// Attention information of each layer and head, mean over pairs; a click shows the map of that layer or head.

import {css, inkOn} from './colour.js';
import {el} from './dom.js';
import {layerOf, shortLayer, within} from './levels.js';
import {change, state} from './state.js';

const KEYS = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]};

export function makeMatrix() {
  let cells = []; // rows of buttons, the first row and column are headers
  let focus = [1, 0];
  const table = el('table', {class: 'matrix'});
  const scroll = el('div', {class: 'scroll'}, table);
  const note = el('p', {class: 'note'});
  const title = 'Attention information';
  const element = el('section', {class: 'information', 'aria-label': title}, el('h2', {}, title), note, scroll);
  table.addEventListener('keydown', (event) => {
    const by = KEYS[event.key];
    if (!by) return;
    event.preventDefault();
    event.stopPropagation();
    const row = Math.max(0, Math.min(cells.length - 1, focus[0] + by[0]));
    let column = Math.max(0, Math.min(cells[row].length - 1, focus[1] + by[1]));
    if (!cells[row][column]) column = row === 0 ? 1 : focus[1];
    if (cells[row][column]) moveFocus(row, column, true);
  });

  // A click too moves the one that the Tab key reaches.
  table.addEventListener('focusin', ({target}) => {
    const row = cells.findIndex((buttons) => buttons.includes(target));
    if (row >= 0) moveFocus(row, cells[row].indexOf(target), false);
  });

  function moveFocus(row, column, now) {
    cells[focus[0]]?.[focus[1]]?.setAttribute('tabindex', -1);
    focus = [row, column];
    cells[row][column].setAttribute('tabindex', 0);
    if (now) cells[row][column].focus({preventScroll: now === 'in place'});
  }

  // `before`: the same of the baseline, or null.
  function load({layers, heads, bits}, before, evaluation, referenceNumber) {
    const hadFocus = table.contains(document.activeElement);
    const known = bits.flat().filter(Number.isFinite);
    // Scaled as at the baseline, or what has been lost would not be seen.
    const earlier = (before?.bits ?? []).flat().filter(Number.isFinite);
    const top = Math.max(...known, ...earlier, 1e-9);
    const how = "A layer's name, a head's number or a value shows its map. ● copying layer.";
    const isOneOfSeveral = Object.values(evaluation.references).some((numbers) => numbers.length > 1);
    const whose = isOneOfSeveral ? ` of reference ${referenceNumber}` : '';
    const most = known.length ? `colours up to ${top.toFixed(2)}, the most here or at the baseline` : 'undefined throughout';
    note.textContent = `Bits${whose}, mean over pairs, ${most}. ${how}`;
    const heading = (_, head) => pick(String(head), `Head ${head}`, {level: 'head', head});
    const headRow = [null, ...Array.from({length: heads}, heading)];
    cells = [
      headRow,
      ...layers.map((layer, row) => {
        const name = pick(shortLayer(layer, layers), `Layer ${layer}`, {level: 'layer', layer});
        name.title = layer + (layer === evaluation.copying_layer ? ', the copying layer' : '');
        if (layer === evaluation.copying_layer) name.append(el('span', {class: 'copying'}, ' ●'));
        return [name, ...bits[row].map((value, head) => cell(value, top, layer, head))];
      }),
    ];
    const tableRow = ([name, ...values]) =>
      el('tr', {}, el('th', {scope: 'row'}, name), ...values.map((value) => el('td', {}, value)));
    const columns = headRow.slice(1).map((button) => el('th', {scope: 'col'}, button));
    table.replaceChildren(
      el('thead', {}, el('tr', {}, el('td', {class: 'corner'}, 'head'), ...columns)),
      el('tbody', {}, ...cells.slice(1).map(tableRow)),
    );
    mark(layers, evaluation);
    if (!cells[focus[0]]?.[focus[1]]) focus = [1, 0];
    if (cells[focus[0]]?.[focus[1]]) moveFocus(focus[0], focus[1], hadFocus && 'in place');
  }

  function mark(layers, evaluation) {
    const layer = layerOf(state, evaluation);
    cells.forEach((row, y) =>
      row.forEach((button, x) => {
        if (!button) return;
        const isLayer = layer === layers[y - 1];
        const isHead = x - 1 === (state.level === 'head' ? within(state.head, evaluation.heads) : state.head);
        const isChosen = {cell: y > 0 && x > 0 && isLayer && isHead, head: y === 0 && isHead}[state.level] ?? (x === 0 && isLayer);
        button.setAttribute('aria-pressed', Boolean(isChosen));
      }),
    );
  }

  function cell(value, top, layer, head) {
    if (!Number.isFinite(value)) {
      return el('button', {type: 'button', class: 'cell none', tabindex: -1, disabled: true, 'aria-label': `${layer}, head ${head}: none, or not looked at`}, '');
    }
    const share = Math.max(0, value) / top;
    const button = pick(value.toFixed(2), `${layer}, head ${head}: ${value.toFixed(3)} bits`, null);
    button.classList.add('cell');
    button.addEventListener('click', () => {
      const isChosen = state.level === 'cell' && state.layer === layer && state.head === head;
      change(isChosen ? {level: 'unified'} : {level: 'cell', layer, head});
    });
    button.title = `${layer}, head ${head}: click for its map, again for all together`;
    button.style.background = css(state.colours, share);
    button.style.color = inkOn(state.colours, share);
    return button;
  }

  function pick(text, label, patch) {
    const button = el('button', {type: 'button', tabindex: -1, 'aria-label': label}, text);
    if (patch) button.addEventListener('click', () => change(patch));
    return button;
  }

  return {element, load};
}

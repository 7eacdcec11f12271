// What stands where there is nothing to show yet, with what to do about it.

import {el} from './dom.js';

const HOW = 'from i2am_debug.callbacks import I2AMCallback';

export function emptyMessage({logdir, runs}) {
  if (logdir === 'remote') {
    return message(
      'This TensorBoard reads a remote log folder',
      'The tab reads its files from a folder on the machine that TensorBoard runs on. Copy the runs there, ' +
        'or start TensorBoard where they are, with --logdir.',
    );
  }
  if (!runs.length) {
    return message(
      'No evaluations yet',
      'A run appears here after its first evaluation, when TensorBoard reloads its data (↻ at the top). Its --logdir must be the ' +
        'folder that holds the runs, or a run. Give the training loop the callback below, or let i2am-debug demo write a run ' +
        'to try the tab with.',
      HOW,
    );
  }
  return null;
}

export const problemMessage = (run, sentence) => message(`${run} cannot be shown`, sentence);

export const unreadableMessage = (evaluation, sentence) =>
  message(
    `${evaluation} cannot be shown`,
    `${sentence} The buttons ‹ and › go to other evaluations; if this one is still being written, reload.`,
  );

export const waitingMessage = (run) =>
  message(`${run} has no evaluations yet`, 'The first one appears here by itself when TensorBoard reloads its data.');

function message(heading, text, code) {
  return el('div', {class: 'message'}, el('h2', {}, heading), el('p', {}, text), code ? el('pre', {}, code) : null);
}

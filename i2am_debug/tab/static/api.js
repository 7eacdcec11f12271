// What the backend serves. Answers are kept in a cache of bounded size, and errors are sentences.

import {traced} from './borders.js';

// Relative to this file, so that TensorBoard's --path_prefix needs no care.
const ROOT = new URL('../', import.meta.url);
const CACHE_BYTES = 48 * 2 ** 20;

class Problem extends Error {
  constructor(sentence, status) {
    super(sentence);
    this.status = status;
  }
}

// A lone half of a surrogate pair has no place in an address: encodeURIComponent would throw.
export const encoded = (value) => encodeURIComponent(String(value).replace(/\p{Surrogate}/gu, '\ufffd'));

function address(route, query = {}) {
  const asked = Object.entries(query).filter(([, value]) => value !== null && value !== undefined);
  const words = asked.map(([name, value]) => `${encoded(name)}=${encoded(value)}`).join('&');
  return new URL(words ? `${route}?${words}` : route, ROOT).href;
}

async function ask(url) {
  let response;
  try {
    response = await fetch(url, {cache: 'no-cache'});
  } catch {
    throw new Problem('TensorBoard does not answer. Is it still running?', 0);
  }
  if (response.ok) return response;
  const isText = (response.headers.get('Content-Type') ?? '').startsWith('text/plain');
  const sentence = isText ? (await response.text()).trim().slice(0, 500) : '';
  throw new Problem(sentence || `TensorBoard answered with an error (${response.status}).`, response.status);
}

const cache = new Map(); // url → {answer, bytes}, the longest unused first
let held = 0;

function remembered(url, read) {
  const known = cache.get(url);
  if (known) {
    cache.delete(url);
    cache.set(url, known);
    return known.answer;
  }
  const entry = {bytes: 1024};
  held += entry.bytes;
  entry.answer = ask(url)
    .then(read)
    .then(({value, bytes}) => {
      if (cache.get(url) === entry) {
        held += bytes;
        entry.bytes += bytes;
        shrink();
      }
      return value;
    });
  entry.answer.catch((problem) => {
    // That something is not there stays true until the next reload; any other failure may pass.
    if (problem.status !== 404 && cache.get(url) === entry) drop(url);
  });
  cache.set(url, entry);
  shrink();
  return entry.answer;
}

function drop(url) {
  held -= cache.get(url).bytes;
  cache.delete(url);
}

function shrink() {
  while (held > CACHE_BYTES && cache.size > 1) drop(cache.keys().next().value);
}

// After a reload of TensorBoard's data: an evaluation may have been written again.
export function forget() {
  cache.clear();
  held = 0;
}

const shapeOf = (response) => response.headers.get('X-I2AM-Shape').split(',').map(Number);

async function readJson(response) {
  const text = await response.text();
  return {value: JSON.parse(text), bytes: 4 * text.length};
}

async function readMap(response) {
  const [height, width] = shapeOf(response);
  const values = new Float32Array(await response.arrayBuffer());
  return {value: {values, grid: [height, width]}, bytes: values.byteLength};
}

async function readRows(response) {
  const [gh, gw, rh, rw] = shapeOf(response);
  const buffer = await response.arrayBuffer();
  const scale = new Float32Array(buffer, 0, gh * gw);
  const weights = new Uint8Array(buffer, 4 * gh * gw);
  return {value: {scale, weights, generated: [gh, gw], reference: [rh, rw]}, bytes: buffer.byteLength};
}

async function readPicture(response) {
  const blob = await response.blob();
  const bitmap = await createImageBitmap(blob).catch(() => {
    throw new Problem('This picture cannot be decoded.', 422);
  });
  return {value: bitmap, bytes: 4 * bitmap.width * bitmap.height};
}

// [{name, origin, of: sides, sought, border, isInside}] of the regions that a pair has; `isInside(pixel)` by its number, row by row.
async function readRegions(response) {
  const {regions} = await response.json();
  const value = regions.map(({name, origin, of, sought, height, width, bits}) => {
    const bytes = Uint8Array.from(atob(bits), (one) => one.charCodeAt(0));
    const isInside = (pixel) => ((bytes[pixel >> 3] >> (7 - (pixel & 7))) & 1) === 1;
    return {name, origin, of, sought, border: traced(height, width, isInside), isInside};
  });
  return {value, bytes: value.reduce((sum, {border: {runs, height, width}}) => sum + runs.byteLength + (height * width) / 8, 0)};
}

export const fetchRuns = async () => (await readJson(await ask(address('runs')))).value;
// Without a kind the figures of no single layer; with one, such as "imacs_r", that of every layer.
export const fetchIndex = (run, kind) => remembered(address('index', {run, layers: kind}), readJson);
export const fetchEvaluation = (run, step) => remembered(address('evaluation', {run, step}), readJson);
export const fetchInformation = (run, step, reference) =>
  remembered(address('information', {run, step, reference: reference || null}), readJson);
export const fetchMap = (query) => remembered(address('map', query), readMap);
export const fetchRows = (query) => remembered(address('rows', query), readRows);
export const fetchPicture = (query) => remembered(address('picture', query), readPicture);
export const fetchRegions = (query) => remembered(address('regions', query), readRegions);
export const pictureAddress = (query) => address('picture', query);

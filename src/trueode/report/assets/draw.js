"use strict";
// Elements, numbers as words, and axes. Text reaches the page by textContent and attributes only.

const SVG = "http://www.w3.org/2000/svg";
const still = matchMedia("(prefers-reduced-motion: reduce)");

/** Give an element attributes and children; text becomes text nodes. */
function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

const element = (name, attributes, ...children) =>
  fill(document.createElement(name), attributes, children);

const shape = (name, attributes, ...children) =>
  fill(document.createElementNS(SVG, name), attributes, children);

/** Redraw whenever the width of an element changes. */
function whenResized(node, draw) {
  let width = 0;
  new ResizeObserver(() => {
    const now = Math.floor(node.clientWidth);
    if (now && now !== width) draw((width = now));
  }).observe(node);
}

const known = (value) => value !== null && value !== undefined;
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const between = (a, b, mix) => a + (b - a) * mix;
const plural = (count, one, more) => `${count} ${count === 1 ? one : more}`;

/** A number in about four digits. */
function number(value) {
  if (!known(value)) return "–";
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return String(value);
  const size = Math.abs(value);
  if (size && (size < 1e-3 || size >= 1e6)) {
    return value.toExponential(2).replace(/\.?0*e\+?/, "e");
  }
  return String(Number(value.toPrecision(4)));
}

const percent = (value) => (known(value) ? `${(100 * value).toFixed(1)} %` : "–");

/** The smallest and the largest known number; null if there is none. */
function range(values, positive) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (!known(value) || !Number.isFinite(value) || (positive && value <= 0)) continue;
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  return low <= high ? [low, high] : null;
}

/** Round numbers within a range, about `count` of them. */
function ticks([low, high], count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.8);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k += 1) {
    found.push(Number((k * step).toPrecision(12)));
  }
  return found;
}

/** Powers of ten within a range; with their 2- and 5-fold, or evenly, where they are few. */
function logTicks([low, high], count) {
  const first = Math.floor(Math.log10(low));
  const last = Math.ceil(Math.log10(high));
  const every = Math.max(1, Math.ceil((last - first) / count));
  const make = (factors) => {
    const found = [];
    for (let power = first; power <= last; power += every) {
      for (const factor of factors) found.push(factor * 10 ** power);
    }
    return found.filter((value) => value >= low * 0.999 && value <= high * 1.001);
  };
  const plain = make([1]);
  if (plain.length > 2) return plain;
  const finer = make([1, 2, 5]);
  return finer.length > 1 ? finer : ticks([low, high], count);
}

/**
 * A scale from numbers to pixels.
 * @param {?number[]} extent the numbers' range
 * @param {boolean} log whether it is logarithmic
 * @param {number} from pixel of the lower end
 * @param {number} to pixel of the upper end
 * @param {number} count about how many ticks
 */
function scale(extent, log, from, to, count) {
  let [low, high] = extent || [log ? 1 : 0, log ? 10 : 1];
  if (low === high) [low, high] = log ? [low / 2, high * 2] : [low - 0.5, high + 0.5];
  const place = log ? Math.log10 : (value) => value;
  const [start, end] = [place(low), place(high)];
  const at = (value) => from + ((place(value) - start) / (end - start)) * (to - from);
  const show = (value) => known(value) && Number.isFinite(value) && (!log || value > 0);
  return { at, show, ticks: (log ? logTicks : ticks)([low, high], count) };
}

/**
 * A line through points. Where one is missing there is a gap, unless no two neighbours are known,
 * or it is to be `joined`: then it joins what is known. A lone point is a dot.
 */
function trace(x, y, horizontal, vertical, joined) {
  const shown = [...y.keys()].filter((i) => vertical.show(y[i]) && horizontal.show(x[i]));
  const sparse = joined || shown.every((i, k) => k === 0 || i > shown[k - 1] + 1);
  return shown
    .map((i, k) => {
      const place = `${horizontal.at(x[i]).toFixed(1)} ${vertical.at(y[i]).toFixed(1)}`;
      return k && (sparse || i === shown[k - 1] + 1) ? `L${place}` : `M${place}h0`;
    })
    .join("");
}

const tickWords = (value) => number(value).replace("-", "\u2212");

/** Grid lines, numbers and names of a plot's axes, into `layer`. */
function axes(layer, box, horizontal, vertical, names, right) {
  const { left, top, width, height } = box;
  const bottom = top + height;
  const word = (x, y, text, kind, anchor) =>
    shape("text", { x, y, class: kind, "text-anchor": anchor }, text);
  for (const value of horizontal.ticks) {
    const x = horizontal.at(value);
    layer.append(shape("path", { class: "grid", d: `M${x} ${top}V${bottom}` }));
    layer.append(word(x, bottom + 16, tickWords(value), "tick", "middle"));
  }
  for (const value of vertical.ticks) {
    const y = vertical.at(value);
    layer.append(shape("path", { class: "grid", d: `M${left} ${y}H${left + width}` }));
    layer.append(word(left - 7, y + 4, tickWords(value), "tick", "end"));
  }
  for (const value of right ? right.ticks : []) {
    layer.append(word(left + width + 7, right.at(value) + 4, tickWords(value), "tick", "start"));
  }
  layer.append(word(left + width, bottom + 33, names[0], "name", "end"));
  layer.append(word(left - 40, top - 10, names[1], "name", "start"));
  if (right) layer.append(word(left + width + 40, top - 10, names[2], "name", "end"));
}

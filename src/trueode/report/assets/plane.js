"use strict";
// Trajectories in the plane over the regions of the classifier, at and between two solvers.

const DOT = "M3.6 0A3.6 3.6 0 1 1-3.6 0A3.6 3.6 0 1 1 3.6 0Z";
const DIAMOND = "M0-7.5L7.5 0L0 7.5L-7.5 0Z";
const FEW = 17; // points of a path up to which its steps are marked
const EDGE = { left: 44, right: 12, top: 26, bottom: 44 };

const bytes = (code) => Uint8Array.from(atob(code), (letter) => letter.charCodeAt(0));
const tint = (index) => ((index % 10) + 10) % 10;

/** A path `(x, y, x, y, …)` at a fraction of its way, straight between its points. */
function onPath(path, fraction) {
  const last = path.length / 2 - 1;
  const i = Math.min(Math.floor(fraction * last), last - 1);
  const rest = fraction * last - i;
  if (i < 0) return [path[0], path[1]];
  return [0, 1].map((axis) => between(path[2 * i + axis], path[2 * i + 2 + axis], rest));
}

class Plane {
  /**
   * @param {object} slider the solvers and what they do
   * @param {(sample: ?number) => void} onPoint called with the sample under the pointer
   */
  constructor(slider, onPoint) {
    this.slider = slider;
    this.paths = slider.paths.map((code) => new Float32Array(bytes(code).buffer));
    this.state = { low: 0, high: 0, mix: 0, stop: 0, chosen: null };
    this.area = element("div", { class: "area" });
    this.node = element("div", { class: "plane" }, this.area);
    if (slider.plane.note) {
      this.node.append(element("p", { class: "note" }, slider.plane.note));
    }
    this.area.addEventListener("pointermove", (event) => onPoint(this.nearest(event)));
    this.area.addEventListener("pointerleave", () => onPoint(null));
    whenResized(this.area, (width) => this.layOut(width));
  }

  /** The path of a sample under a solver; it ends where it ceases to be finite. */
  path(stop, sample) {
    const points = this.slider.n_points[stop];
    const own = this.paths[stop].subarray(2 * points * sample, 2 * points * (sample + 1));
    const end = own.findIndex((value) => !Number.isFinite(value));
    return end < 0 ? own : own.subarray(0, end - (end % 2));
  }

  /** Draw what does not move, and one group of shapes for each sample. */
  layOut(width) {
    const { bounds, labels, projected } = this.slider.plane;
    const [x0, x1, y0, y1] = bounds;
    const inner = width - EDGE.left - EDGE.right;
    const ratio = projected ? 0.8 : clamp((y1 - y0) / (x1 - x0), 0.6, 1);
    const box = { left: EDGE.left, top: EDGE.top, width: inner, height: Math.round(inner * ratio) };
    // a plane of its own coordinates keeps its angles, a projection need not
    let [sx, sy] = [box.width / (x1 - x0), box.height / (y1 - y0)];
    if (!projected) sx = sy = Math.min(sx, sy);
    const [cx, cy] = [(x0 + x1) / 2, (y0 + y1) / 2];
    const [rx, ry] = [box.width / 2 / sx, box.height / 2 / sy];
    this.x = scale([cx - rx, cx + rx], false, box.left, box.left + box.width, 5);
    this.y = scale([cy - ry, cy + ry], false, box.top + box.height, box.top, 5);
    this.width = width;

    const frame = { x: box.left, y: box.top, width: box.width, height: box.height };
    const grid = shape("g");
    axes(grid, box, this.x, this.y, labels, null);
    this.maps = this.slider.regions ? this.slider.regions.maps.map((code) => this.map(code)) : [];
    this.groups = [];
    this.layer = shape("g");
    for (let sample = 0; sample < this.slider.n_paths; sample += 1) {
      const own = this.slider.classes ? this.slider.classes[sample] || 0 : 0;
      const parts = {
        trail: shape("path", { class: "trail" }),
        steps: shape("path", { class: "step" }),
        begin: shape("circle", { class: "begin", r: 2.6 }),
        end: shape("path", { class: "end", d: DOT }),
      };
      const group = shape("g", { class: `sample own-${tint(own)}` }, ...Object.values(parts));
      this.groups.push({ group, ...parts });
      this.layer.append(group);
    }
    const inside = shape("g", { "clip-path": "url(#plane-clip)" }, ...this.maps, this.layer);
    const clip = shape("clipPath", { id: "plane-clip" }, shape("rect", frame));
    this.picture = shape(
      "svg",
      { width, height: box.top + box.height + EDGE.bottom, role: "img" },
      clip, grid, inside, shape("rect", { ...frame, class: "frame" }),
    );
    this.area.replaceChildren(this.picture);
    this.tell();
    this.draw();
  }

  /** Classes or shades under one solver as a picture, a pixel for each point of the input plane. */
  map(code) {
    const { width, height, bounds, shaded } = this.slider.regions;
    const [x0, x1, y0, y1] = bounds || this.slider.plane.bounds;
    const canvas = element("canvas", { width, height });
    const context = canvas.getContext("2d");
    const picture = context.createImageData(width, height);
    const style = getComputedStyle(document.documentElement);
    const colours = Array.from({ length: 10 }, (_, k) => {
      const pairs = style.getPropertyValue(`--class-${k}`).trim().slice(1).match(/../g);
      return pairs.map((pair) => parseInt(pair, 16));
    });
    bytes(code).forEach((value, i) => {
      const row = height - 1 - Math.floor(i / width); // rows are counted from below
      const colour = shaded ? [...colours[0], value] : [...colours[tint(value)], 255];
      picture.data.set(colour, 4 * (row * width + (i % width)));
    });
    context.putImageData(picture, 0, 0);
    return shape("image", {
      class: shaded ? "region shaded" : "region",
      href: canvas.toDataURL(),
      x: this.x.at(x0),
      y: this.y.at(y1),
      width: this.x.at(x1) - this.x.at(x0),
      height: this.y.at(y0) - this.y.at(y1),
      preserveAspectRatio: "none",
    });
  }

  /** Show a place between two solvers; `stop` is the solver whose predictions are marked. */
  show(state) {
    const before = this.state;
    this.state = { ...before, ...state };
    if (!this.picture) return;
    if (before.stop !== this.state.stop) this.tell();
    this.draw();
  }

  /** The picture in words, and which samples are marked. */
  tell() {
    const { stops, changed, predicted } = this.slider;
    const { stop } = this.state;
    const marked = new Set(changed ? changed[stop] : []);
    this.groups.forEach(({ group, end }, sample) => {
      const is = marked.has(sample);
      group.classList.toggle("changed", is);
      end.setAttribute("d", is ? DIAMOND : DOT);
      const now = is && predicted && predicted[stop] ? predicted[stop][sample] : null;
      if (known(now)) end.setAttribute("data-now", tint(now));
      else end.removeAttribute("data-now");
      if (is) this.layer.append(group); // above the others
    });
    const drawn = [...marked].filter((sample) => sample < this.groups.length).length;
    const text = plural(this.groups.length, "trajectory", "trajectories");
    this.picture.setAttribute(
      "aria-label",
      `${text} under ${stops[stop].label}; ${drawn} marked as predicted otherwise ` +
        "than under the training solver",
    );
  }

  draw() {
    const { low, high, mix, chosen } = this.state;
    const points = this.slider.n_points;
    const fractions = this.fractions(low, high, mix);
    const stepped = (mix < 0.5 ? points[low] : points[high]) <= FEW;
    const shown = stepped ? Math.abs(1 - 2 * mix) : 0;
    this.layer.style.setProperty("--steps", shown);
    this.groups.forEach((parts, sample) => {
      const [from, to] = [this.path(low, sample), this.path(high, sample)];
      parts.group.classList.toggle("chosen", sample === chosen);
      parts.group.style.display = from.length && to.length ? "" : "none";
      if (!from.length || !to.length) return;
      const places = fractions.map((fraction) => {
        const [a, b] = [onPath(from, fraction), onPath(to, fraction)];
        return [this.x.at(between(a[0], b[0], mix)), this.y.at(between(a[1], b[1], mix))];
      });
      const words = places.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`);
      parts.trail.setAttribute("d", `M${words.join("L")}`);
      parts.steps.setAttribute("d", shown ? words.map((word) => `M${word}h0`).join("") : "");
      parts.begin.setAttribute("cx", places[0][0]);
      parts.begin.setAttribute("cy", places[0][1]);
      parts.place = places[places.length - 1];
      parts.end.setAttribute("transform", `translate(${words[words.length - 1]})`);
    });
    this.maps.forEach((map, stop) => {
      const share = stop === low ? 1 - mix : stop === high ? mix : 0;
      map.style.opacity = share && `calc(${share} * var(--region))`;
      map.style.display = share ? "" : "none";
    });
  }

  /** Where paths are drawn: the points of both solvers between them, else those of the one. */
  fractions(low, high, mix) {
    const points = this.slider.n_points;
    const of = (stop) => {
      const last = points[stop] - 1 || 1;
      return Array.from({ length: points[stop] }, (_, i) => i / last);
    };
    if (mix === 0) return of(low);
    if (mix === 1) return of(high);
    return [...new Set([...of(low), ...of(high)])].sort((a, b) => a - b);
  }

  /** The sample whose end is under the pointer. */
  nearest(event) {
    const rectangle = this.area.getBoundingClientRect();
    const [x, y] = [event.clientX - rectangle.left, event.clientY - rectangle.top];
    let found = null;
    let least = 14;
    this.groups.forEach(({ place }, sample) => {
      if (!place) return;
      const gap = Math.hypot(place[0] - x, place[1] - y);
      if (gap < least) [found, least] = [sample, gap];
    });
    return found;
  }
}

"use strict";
// One slider over the solvers, from coarse to fine, moves pictures, numbers and marked samples.

const PAUSE = 1100; // milliseconds at a solver while playing
const GLIDE = 650; // milliseconds from one solver to the next
const THUMB = 22; // pixels
const ROOMY = 600; // pixels of a slider whose stops have their full names

class Steps {
  constructor(place, slider) {
    this.slider = slider;
    this.stops = slider.stops;
    this.last = this.stops.length - 1;
    this.at = 0;
    this.pictures = [];
    if (slider.paths && slider.paths.length) {
      this.pictures.push(new Plane(slider, (sample) => this.choose(sample)));
    }
    if (slider.series) this.pictures.push(new Series(slider));
    this.build(place);
    const trained = this.stops.findIndex((stop) => stop.mark === "training");
    if (still.matches || this.last < 1) this.go(Math.max(0, trained), true);
    else this.play();
  }

  build(place) {
    this.range = element("input", {
      type: "range", id: "solver", min: 0, max: this.last, step: 1, value: 0,
      "aria-label": "Solver, from coarse to fine",
    });
    this.button = element("button", { type: "button", class: "play" }, "Play");
    this.strip = element("div", { class: "strip" });
    this.label = element("p", { class: "solver" });
    this.figures = element("dl", { class: "figures" });
    this.numbers = element("div", { id: "numbers", "aria-live": "polite", "aria-atomic": "true" },
      this.label, this.figures);
    this.readout = element("p", { class: "readout" }, "\u00a0");
    this.summary = element("summary", {});
    this.list = element("ul", { class: "samples" });
    this.details = element("details", { id: "changed" }, this.summary, this.list);
    place.append(
      element("div", { class: "control" },
        this.button, element("div", { class: "track" }, this.strip, this.range)),
      element("div", { class: "steps" },
        element("div", { class: "pictures" }, ...this.pictures.map((picture) => picture.node)),
        element("div", { class: "side" }, this.numbers, this.key(), this.details, this.readout)),
    );
    this.range.addEventListener("input", () => {
      this.pause();
      this.go(Number(this.range.value));
    });
    this.button.addEventListener("click", () => (this.timer ? this.pause() : this.play()));
    whenResized(this.strip, (width) => this.drawStrip(width));
  }

  /** What colours and shapes mean. */
  key() {
    const sign = (kind, d) =>
      shape("svg", { width: 18, height: 18, viewBox: "-9 -9 18 18", "aria-hidden": "true" },
        shape("g", { class: kind }, shape("path", { class: "end", d })));
    const names = this.slider.paths ? this.slider.class_names || [] : [];
    const entries = names.map((name, k) =>
      element("li", {}, sign(`sample own-${tint(k)}`, DOT),
        element("span", { class: "name" }, name)));
    if (this.slider.paths && this.slider.changed) {
      entries.push(element("li", {}, sign("sample changed", DIAMOND),
        "predicted otherwise than under the training solver"));
    }
    return entries.length ? element("ul", { class: "legend key" }, ...entries) : null;
  }

  /** Play from the coarsest solver, or on from the one that is shown, to the finest. */
  play() {
    if (this.at === this.last) this.go(0, true);
    this.numbers.setAttribute("aria-live", "off"); // a reader is not talked over
    this.button.textContent = "Pause";
    this.go(this.at, true);
    this.timer = setInterval(() => {
      this.go(this.at + 1);
      if (this.at === this.last) this.pause();
    }, PAUSE);
  }

  pause() {
    clearInterval(this.timer);
    this.timer = null;
    this.button.textContent = "Play";
    this.numbers.setAttribute("aria-live", "polite");
  }

  /** Show a solver; pictures glide there unless motion is unwelcome. */
  go(stop, atOnce) {
    this.at = stop;
    this.range.value = stop;
    this.range.setAttribute("aria-valuetext", this.words(stop));
    document.getElementById("steps").dataset.stop = stop;
    this.tell();
    const from = known(this.shown) ? this.shown : stop;
    const begin = performance.now();
    cancelAnimationFrame(this.frame);
    if (atOnce || still.matches) {
      this.show(stop);
      return;
    }
    const move = (now) => {
      const part = clamp((now - begin) / GLIDE, 0, 1);
      this.show(between(from, stop, part * part * (3 - 2 * part)));
      if (part < 1) this.frame = requestAnimationFrame(move);
    };
    this.frame = requestAnimationFrame(move);
  }

  /** Draw a place between two solvers. */
  show(place) {
    this.shown = place;
    const low = Math.floor(place);
    const high = Math.min(low + 1, this.last);
    const state = { low, high, mix: place - low, stop: this.at };
    this.pictures.forEach((picture) => picture.show(state));
    if (this.needle) this.needle.setAttribute("transform", `translate(${this.x(place)})`);
  }

  /** The numbers of a solver: names, words, and whether they are its main ones. */
  facts(stop) {
    const own = this.stops[stop];
    const total = this.total();
    const changed = this.slider.changed ? this.slider.changed[stop].length : null;
    const unlike = total ? `${changed} of ${total}` : `${changed}`;
    const found = [
      ["evaluations", known(own.nfe) ? number(own.nfe) : null],
      ["accuracy", known(own.accuracy) ? percent(own.accuracy) : null],
      ["unlike the exact flow", known(own.flips) ? percent(own.flips) : null],
      [this.slider.metric_name || "metric", known(own.metric) ? number(own.metric) : null],
      ["unlike the training solver", changed === null ? null : unlike],
    ];
    return found.filter(([, words]) => words !== null);
  }

  total() {
    return this.slider.n_samples || (this.slider.classes || []).length;
  }

  words(stop) {
    const facts = this.facts(stop).map(([name, words]) => `${name} ${words}`);
    return [this.stops[stop].label + this.remark(stop), ...facts].join(", ");
  }

  remark(stop) {
    const remarks = { training: ", the training solver", exact: ", the reference" };
    return remarks[this.stops[stop].mark] || "";
  }

  /** Write the numbers and the list of changed samples. */
  tell() {
    const { at } = this;
    this.label.replaceChildren(
      element("strong", { class: "name" }, this.stops[at].label),
      element("span", { class: "remark" }, this.remark(at)),
    );
    this.figures.replaceChildren(
      ...this.facts(at).map(([name, words]) =>
        element("div", {}, element("dt", {}, name), element("dd", {}, words))),
    );
    document.querySelectorAll("#stops tbody tr").forEach((row, k) => {
      if (k === at) row.setAttribute("aria-current", "true");
      else row.removeAttribute("aria-current");
    });
    const changed = this.slider.changed ? this.slider.changed[at] : [];
    this.details.hidden = !this.slider.changed;
    this.summary.textContent = plural(changed.length, "changed sample", "changed samples");
    this.list.replaceChildren(...changed.map((sample) => this.entry(sample)));
  }

  entry(sample) {
    if (sample >= (this.slider.n_paths || 0)) return element("li", {}, this.named(sample));
    const button = element("button", { type: "button" }, this.named(sample));
    for (const event of ["focus", "pointerenter", "click"]) {
      button.addEventListener(event, () => this.choose(sample));
    }
    for (const event of ["blur", "pointerleave"]) {
      button.addEventListener(event, () => this.choose(null));
    }
    return element("li", {}, button);
  }

  /** A sample in words: its number, and its class under the training solver and under this one. */
  named(sample) {
    const { predicted, class_names: names } = this.slider;
    const trained = this.stops.findIndex((stop) => stop.mark === "training");
    const name = (stop) => {
      const index = predicted && predicted[stop] ? predicted[stop][sample] : null;
      return known(index) ? (names && names[index]) || `class ${index}` : null;
    };
    const [before, now] = [trained < 0 ? null : name(trained), name(this.at)];
    if (now === null) return `${sample}`;
    return before === null || before === now ? `${sample}: ${now}` : `${sample}: ${before} → ${now}`;
  }

  /** Put one sample in front. */
  choose(sample) {
    this.readout.textContent = sample === null ? "\u00a0" : `sample ${this.named(sample)}`;
    this.pictures.forEach((picture) => picture.show({ chosen: sample }));
  }

  x(place) {
    return THUMB / 2 + (this.last ? place / this.last : 0) * (this.width - THUMB);
  }

  /** Words under the stops: of marked stops and the ends first, then of all others with room. */
  labels(width) {
    const found = this.stops.map((stop, i) => {
      const text = (width < ROOMY && stop.short) || stop.label;
      const half = 3.9 * text.length; // about as wide as it gets
      return { text, half, at: clamp(this.x(i), half, Math.max(half, width - half)) };
    });
    const rank = (i) => (this.stops[i].mark ? 0 : i === 0 || i === this.last ? 1 : 2);
    const order = [...found.keys()].sort((a, b) => rank(a) - rank(b) || a - b);
    const placed = [];
    for (const i of order) {
      const own = found[i];
      const free = (other) => Math.abs(own.at - other.at) > own.half + other.half + 4;
      if (placed.every(free)) placed.push(own);
      else own.text = "";
    }
    return found;
  }

  /** Shares over the solvers, above the slider, whose stops are their axis. */
  drawStrip(width) {
    this.width = width;
    const [top, bottom] = [22, 92];
    const named = (key) => this.stops.map((stop) => stop[key]);
    const metric = this.stops.some((stop) => known(stop.accuracy))
      ? ["accuracy", "accuracy", named("accuracy"), [0, 1]]
      : ["accuracy", this.slider.metric_name || "metric", named("metric"), range(named("metric"))];
    const lines = [metric, ["flips", "unlike the exact flow", named("flips"), [0, 1]]];
    const drawn = lines.filter(([, , values]) => values.some(known));
    const x = { at: (place) => this.x(place), show: () => true };
    const picture = shape("svg", {
      width, height: 138, role: "img",
      "aria-label": `${drawn.map(([, name]) => name).join(" and ")} over the solvers`,
    });
    drawn.forEach(([kind, name, values, extent], k) => {
      const log = extent[0] > 0 && extent[1] > 30 * extent[0];
      const y = scale(extent, log, bottom - 4, top + 4, 2);
      picture.append(
        shape("path", { class: `share ${kind}`, d: trace([...values.keys()], values, x, y) }),
        shape("path", { class: `share ${kind}`, d: `M${k ? width - 20 : 2} 8h18` }),
        shape("text", { class: "name", x: k ? width - 27 : 27, y: 12,
          "text-anchor": k ? "end" : "start" }, name),
      );
      values.forEach((value, i) => {
        if (y.show(value)) {
          picture.append(shape("circle", { class: `dot ${kind}`, cx: x.at(i), cy: y.at(value), r: 2.8 }));
        }
      });
    });
    this.labels(width).forEach(({ text, at }, i) => {
      const { mark } = this.stops[i];
      const kind = mark ? `stop ${mark}` : "stop";
      const d = `M${x.at(i)} ${mark ? top : bottom - 4}V${bottom + 2}`;
      picture.append(
        shape("path", { class: kind, d }),
        shape("text", { class: `tick ${kind}`, x: at, y: bottom + 18, "text-anchor": "middle" },
          text),
      );
      if (mark !== "training") return;
      const left = clamp(x.at(i) - 5, 0, width - 70);
      picture.append(shape("text", { class: "tick training", x: left, y: bottom + 34 }, "▲ training"));
    });
    this.needle = shape("path", { class: "needle", d: `M0 ${top}V138` });
    picture.append(this.needle);
    this.strip.replaceChildren(picture);
    this.show(known(this.shown) ? this.shown : this.at);
  }
}

"use strict";
// Trajectories over time, at and between two solvers, beside the exact flow and what was measured.

class Series {
  constructor(slider) {
    this.slider = slider;
    this.series = slider.series;
    this.state = { low: 0, high: 0, mix: 0, stop: 0, chosen: null };
    this.area = element("div", { class: "area" });
    const exact = this.series.exact ? [["exact", "exact flow"]] : [];
    const kinds = [["own", "this solver"], ...exact];
    if (this.series.measured) kinds.push(["measured", "measured"]);
    const key = kinds.map(([kind, name]) =>
      element(
        "li",
        {},
        shape("svg", { width: 28, height: 10, "aria-hidden": "true" },
          shape("path", { class: kind, d: kind === "measured" ? "M14 5h0" : "M1 5H27" })),
        name,
      ),
    );
    const legend = element("ul", { class: "legend" }, ...key);
    this.node = element("div", { class: "series" }, legend, this.area);
    whenResized(this.area, (width) => this.layOut(width));
  }

  layOut(width) {
    const { t, lines, exact, measured, labels } = this.series;
    const height = Math.round(clamp(width * 0.5, 200, 380));
    const box = { left: 52, top: 26, width: width - 66, height };
    const calm = [exact, measured, lines[this.trained()]].filter(known);
    const [low, high] = range(calm.flat(2)) || [0, 1];
    const room = 0.15 * (high - low || 1); // a coarse solver may leave the window
    const count = clamp(Math.floor(width / 90), 2, 8);
    this.x = scale(range(t), false, box.left, box.left + box.width, count);
    this.y = scale([low - room, high + room], false, box.top + box.height, box.top, 5);
    const frame = { x: box.left, y: box.top, width: box.width, height: box.height };
    const grid = shape("g");
    axes(grid, box, this.x, this.y, labels || ["t", "x"], null);
    const path = (values, kind, k) =>
      shape("path", { class: `${kind} own-${tint(k)}`, d: trace(t, values, this.x, this.y, true) });
    const dots = (values, k) =>
      shape("path", {
        class: `measured own-${tint(k)}`,
        d: values.map((value, i) =>
          known(value) ? `M${this.x.at(t[i]).toFixed(1)} ${this.y.at(value).toFixed(1)}h0` : "",
        ).join(""),
      });
    this.own = lines[0].map((_, k) => shape("path", { class: `own own-${tint(k)}` }));
    this.picture = shape(
      "svg",
      { width, height: box.top + box.height + 40, role: "img" },
      shape("clipPath", { id: "series-clip" }, shape("rect", frame)),
      grid,
      shape("g", { "clip-path": "url(#series-clip)" },
        ...(measured || []).map(dots),
        ...(exact || []).map((values, k) => path(values, "exact", k)),
        ...this.own),
    );
    this.area.replaceChildren(this.picture);
    this.show({});
  }

  trained() {
    return Math.max(0, this.slider.stops.findIndex((stop) => stop.mark === "training"));
  }

  /** Show a place between two solvers. */
  show(state) {
    this.state = { ...this.state, ...state };
    if (!this.picture) return;
    const { low, high, mix, stop } = this.state;
    const { t, lines } = this.series;
    const marked = new Set(this.slider.changed ? this.slider.changed[stop] : []);
    this.own.forEach((path, k) => {
      const values = lines[low][k].map((value, i) => {
        const other = lines[high][k][i];
        return known(value) && known(other) ? between(value, other, mix) : null;
      });
      // the times of other series are missing, and all after a blow-up
      path.setAttribute("d", trace(t, values, this.x, this.y, true));
      path.classList.toggle("changed", marked.has(k));
    });
    const text = plural(this.own.length, "trajectory", "trajectories");
    this.picture.setAttribute(
      "aria-label",
      `${text} over time under ${this.slider.stops[stop].label}` +
        (this.series.exact ? ", beside the exact flow" : ""),
    );
  }
}

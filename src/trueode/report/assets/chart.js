"use strict";
// Charts of lines over a number, read by pointer or keyboard.

/** Draw one chart and redraw it with its width. */
function drawChart(figure, chart) {
  const plot = figure.querySelector(".plot");
  const x = chart.x.values;
  const readout = element("p", { class: "readout" }, "\u00a0");
  const cursor = element("input", {
    type: "range",
    min: 0,
    max: Math.max(0, x.length - 1),
    value: Math.max(0, x.length - 1),
    "aria-label": `${chart.title}: read values by ${chart.x.label}`,
  });
  const area = element("div", { class: "area" });
  plot.append(legend(chart.lines), area, readout);

  const words = (i) =>
    [`${chart.x.label} ${number(x[i])}`]
      .concat(chart.lines.map((line) => `${line.label} ${number(line.values[i])}`))
      .join(" · ");
  let geometry = null;

  /** Move the cursor to the place of the `i`-th value and say the values there. */
  const read = (i, shown) => {
    cursor.value = i;
    cursor.setAttribute("aria-valuetext", words(i));
    readout.textContent = shown ? words(i) : "\u00a0";
    geometry.mark.replaceChildren();
    if (!shown || !geometry.horizontal.show(x[i])) return;
    const at = geometry.horizontal.at(x[i]);
    const { top, height } = geometry.box;
    geometry.mark.append(shape("path", { class: "cursor", d: `M${at} ${top}v${height}` }));
    chart.lines.forEach((line, k) => {
      const vertical = geometry.verticals[line.axis || 0];
      if (!vertical.show(line.values[i])) return;
      const y = vertical.at(line.values[i]);
      geometry.mark.append(shape("circle", { class: `dot line-${k % 10}`, cx: at, cy: y, r: 4 }));
    });
  };

  whenResized(area, (width) => {
    geometry = layOut(chart, width);
    const { svg, box } = geometry;
    area.replaceChildren(svg, cursor);
    cursor.style.left = `${box.left}px`;
    cursor.style.top = `${box.top}px`;
    cursor.style.width = `${box.width}px`;
    cursor.style.height = `${box.height}px`;
    read(Number(cursor.value), false);
  });

  // a range would place its value evenly, a logarithmic axis does not: the pointer reads below
  cursor.addEventListener("mousedown", (event) => {
    event.preventDefault();
    cursor.focus({ focusVisible: false });
  });
  cursor.addEventListener("input", () => read(Number(cursor.value), true));
  cursor.addEventListener("focus", () => read(Number(cursor.value), true));
  cursor.addEventListener("blur", () => read(Number(cursor.value), false));
  cursor.addEventListener("pointerleave", () => read(Number(cursor.value), false));
  cursor.addEventListener("pointermove", (event) => {
    const at = event.offsetX + geometry.box.left;
    let nearest = 0;
    x.forEach((value, i) => {
      const gap = (k) => Math.abs(geometry.horizontal.at(x[k]) - at);
      if (geometry.horizontal.show(value) && gap(i) < gap(nearest)) nearest = i;
    });
    read(nearest, true);
  });
}

/** Names of the lines beside samples of their strokes. */
function legend(lines) {
  const entries = lines.map((line, k) =>
    element(
      "li",
      {},
      shape(
        "svg",
        { width: 28, height: 10, "aria-hidden": "true" },
        shape("path", { class: `line line-${k % 10}`, d: "M1 5H27" }),
      ),
      line.label,
    ),
  );
  return element("ul", { class: "legend" }, ...entries);
}

/** The drawing of a chart at one width, and the scales it was drawn with. */
function layOut(chart, width) {
  const second = chart.lines.some((line) => line.axis === 1);
  const box = { left: 52, top: 26, width: width - 52 - (second ? 52 : 14), height: 190 };
  const extent = (axis, log) => {
    const own = chart.lines.filter((line) => (line.axis || 0) === axis);
    const found = range(own.flatMap((line) => line.values), log);
    if (!found) return found;
    if (log) {
      const room = (found[1] / found[0]) ** 0.04;
      return [found[0] / room, found[1] * room];
    }
    const room = 0.04 * (found[1] - found[0]);
    return [found[0] >= 0 ? Math.max(0, found[0] - room) : found[0] - room, found[1] + room];
  };
  const horizontal = scale(
    range(chart.x.values, chart.x.log), chart.x.log,
    box.left, box.left + box.width, clamp(Math.floor(box.width / 70), 2, 7),
  );
  const upright = (axis, log) =>
    scale(extent(axis, log), log, box.top + box.height, box.top, 4);
  const y2 = chart.y2 || { label: "", log: false };
  const verticals = [upright(0, chart.y.log), second ? upright(1, y2.log) : null];

  const svg = shape("svg", {
    width, height: box.top + box.height + 40, role: "img", "aria-label": chart.alt,
  });
  const grid = shape("g");
  axes(grid, box, horizontal, verticals[0], [chart.x.label, chart.y.label, y2.label], verticals[1]);
  const mark = shape("g");
  svg.append(grid);
  chart.lines.forEach((line, k) => {
    const vertical = verticals[line.axis || 0];
    const d = trace(chart.x.values, line.values, horizontal, vertical);
    svg.append(shape("path", { class: `line line-${k % 10}`, d }));
  });
  svg.append(mark);
  return { svg, mark, box, horizontal, verticals };
}

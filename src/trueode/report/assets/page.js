"use strict";
// What the static page becomes where scripts run.

/** Let a table's headers sort its rows: numbers by size, text by alphabet, nothing last. */
function makeSortable(table) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = element("button", { type: "button" }, ...head.childNodes);
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].sort((a, b) => compare(a.cells[column], b.cells[column], down));
      body.append(...rows);
    });
  });
}

function compare(a, b, down) {
  const [first, second] = [a, b].map((cell) =>
    cell.dataset.value === undefined ? cell.textContent : cell.dataset.value,
  );
  if (first === "" || second === "") return (first === "") - (second === "");
  const numeric = a.dataset.value !== undefined && b.dataset.value !== undefined;
  const order = numeric
    ? Number(first) - Number(second)
    : first.localeCompare(second, undefined, { numeric: true });
  return down ? -order : order;
}

/** Start: drawings take the place of still pictures, numbers fold away. */
function start() {
  const data = JSON.parse(document.getElementById("data").textContent);
  document.documentElement.classList.add("lively");
  document.querySelectorAll("details.numbers").forEach((each) => (each.open = false));
  document.querySelectorAll("table[data-sortable]").forEach(makeSortable);
  document.querySelectorAll("figure.chart").forEach((figure) => {
    drawChart(figure, data.charts[Number(figure.dataset.chart)]);
  });
  const place = document.getElementById("steps");
  if (place) new Steps(place, data.slider);
}

start();

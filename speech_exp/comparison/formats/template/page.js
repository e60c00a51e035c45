"use strict";
// A click on a header sorts a table. Rows ([data-row]: groups, runs and the sections of runs) are filtered by words and by
// the values of the varying keys; the groups that these leave out are faded in the figures. Without this script, the page shows the same content as plain tables.

const form = document.getElementById("filters");
const rows = [...document.querySelectorAll("[data-row]")];

function sortKey(row, column) {
  const cell = row.cells[column];
  const value = cell.dataset.value;
  return value === undefined ? { number: NaN, text: cell.textContent.trim() } : { number: Number(value), text: value };
}

// Numbers come before words; cells without a value come last in either direction.
function compareCells(one, other, sign) {
  const [empty, otherEmpty] = [one.text === "–", other.text === "–"];
  if (empty || otherEmpty) return empty - otherEmpty;
  const [isNumber, otherIsNumber] = [!Number.isNaN(one.number), !Number.isNaN(other.number)];
  if (isNumber && otherIsNumber) return sign * (one.number - other.number);
  if (isNumber !== otherIsNumber) return isNumber ? -1 : 1;
  return sign * one.text.localeCompare(other.text, undefined, { numeric: true });
}

function sortBy(header, column) {
  const sign = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
  const body = header.closest("table").tBodies[0];
  const keyed = [...body.rows].map((row) => [sortKey(row, column), row]);
  keyed.sort(([one], [other]) => compareCells(one, other, sign));
  body.append(...keyed.map(([, row]) => row));
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    button.addEventListener("click", () => sortBy(header, column));
    header.append(button);
  });
}

function filter() {
  const words = document.getElementById("filter-text").value.toLowerCase().split(/\s+/).filter(Boolean);
  const wanted = [...form.querySelectorAll("select")].filter((choice) => choice.value !== "");
  for (const row of rows) {
    const text = row.dataset.words;
    const fits = wanted.every((choice) => row.dataset[choice.name] === choice.value);
    row.hidden = !(fits && words.every((word) => text.includes(word)));
  }
  for (const row of document.querySelectorAll("#groups tbody tr")) {
    const parts = document.querySelectorAll(`svg [data-group="${row.dataset.group}"]`);
    for (const part of parts) part.classList.toggle("filtered", row.hidden);
  }
  const inRuns = [...document.querySelectorAll("#runs tbody tr")];
  const shown = inRuns.filter((row) => !row.hidden).length;
  document.getElementById("shown").textContent = `${shown} of ${inRuns.length} runs`;
}

form.addEventListener("input", filter); // each letter that is typed
form.addEventListener("change", filter); // a choice: not every browser fires an input event for it
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(filter)); // after the fields are empty
form.hidden = false;
filter();

function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target instanceof HTMLDetailsElement) target.open = true;
}

window.addEventListener("hashchange", openTarget);
openTarget();

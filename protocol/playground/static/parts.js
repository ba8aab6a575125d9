// What several views are made of: fields, bars, lists that grow.

/** A control with its label, and a hint below it. */
function field(label, control, hint) {
  control.id ||= newId();
  const hintId = hint && newId();
  if (hint) control.setAttribute("aria-describedby", hintId);
  return element(
    "div",
    { class: "field" },
    element("label", { for: control.id }, label),
    control,
    hint ? element("p", { class: "hint", id: hintId }, hint) : null,
  );
}

function textArea(value, attributes = {}) {
  return element("textarea", { rows: 3, spellcheck: "false", value, ...attributes });
}

function textInput(value, attributes = {}) {
  return element("input", { type: "text", spellcheck: "false", autocomplete: "off", value, ...attributes });
}

function numberInput(value, attributes = {}) {
  return element("input", { type: "number", inputmode: "decimal", value, ...attributes });
}

/** A choice of few: `choices` are pairs of a value and a title. */
function dropDown(choices) {
  return element("select", {}, choices.map(([value, title]) => element("option", { value }, title)));
}

function checkBox(label, checked = false) {
  const box = element("input", { type: "checkbox", checked });
  return { box, element: element("label", { class: "check" }, box, ` ${label}`) };
}

/** Fields that few need, folded away. */
function options(...fields) {
  const grid = element("div", { class: "grid" }, fields);
  return element("details", { class: "options" }, element("summary", {}, "Options"), grid);
}

/** Buttons of which one is pressed: radio buttons, so that arrow keys choose. `choices` are `{id, title}`. */
function segments(legend, choices, chosen, onchoose, attributes = {}) {
  const name = newId();
  return element(
    "fieldset",
    { class: "segments", ...attributes },
    element("legend", { class: "unseen" }, legend),
    choices.map(({ id, title }) =>
      element(
        "label",
        {},
        element("input", { type: "radio", name, value: id, checked: id === chosen, onchange: () => onchoose(id) }),
        element("span", {}, title),
      ),
    ),
  );
}

/** A score as people read it. */
function formatScore(value) {
  if (typeof value !== "number") return "–";
  return value !== 0 && Math.abs(value) < 0.00005 ? value.toExponential(1) : value.toFixed(4);
}

const FIRST_ITEMS = 20;
const ITEMS_A_FRAME = 250;

/**
 * Append `build(item, position)` of the first items to a parent, and return a button for the others, if there are more.
 *
 * The others come in slices, so that the page goes on to react.
 */
function appendMany(parent, items, build, noun) {
  let next = 0;
  const append = (most) => {
    const slice = items.slice(next, next + most);
    parent.append(...slice.map((item, position) => build(item, next + position)));
    next += slice.length;
  };
  append(FIRST_ITEMS);
  if (next >= items.length) return null;
  const more = button(`Show all ${items.length} ${noun}`, () => {
    more.remove();
    const step = () => {
      append(ITEMS_A_FRAME);
      if (next < items.length) requestAnimationFrame(step);
    };
    step();
  });
  return more;
}

/**
 * A table of labels with a bar and a score each, as `[table, button or null]`.
 *
 * Bars are shares of 1 if all scores are, else of the score that is farthest from 0.
 *
 * @param rows `{label, score}`; a label is a text or an element
 */
function bars(rows, caption, noun = "classes") {
  const largest = rows.reduce((most, { score }) => Math.max(most, Math.abs(score)), 0);
  const whole = largest <= 1 && rows.every(({ score }) => score >= 0) ? 1 : largest;
  const body = element("tbody");
  const more = appendMany(
    body,
    rows,
    ({ label, score }) =>
      element(
        "tr",
        {},
        element("th", { scope: "row" }, label === "" ? "(no name)" : label),
        element(
          "td",
          { class: "track", "aria-hidden": "true" },
          element("span", { class: score < 0 ? "bar below" : "bar", css: { "--share": Math.abs(score) / whole || 0 } }),
        ),
        element("td", { class: "score" }, formatScore(score)),
      ),
    noun,
  );
  const head = element(
    "thead",
    { class: "unseen" },
    element("tr", {}, ["Label", "Bar", "Score"].map((name) => element("th", { scope: "col" }, name))),
  );
  const table = element("table", { class: "bars" }, element("caption", { class: "unseen" }, caption), head, body);
  return [table, more];
}

/** `bars` whose labels are buttons, of which one is pressed; `onchoose` gets the row. */
function choosableBars(rows, caption, noun, onchoose) {
  const buttons = rows.map((row, position) =>
    button(row.label, () => {
      buttons.forEach((each, other) => each.setAttribute("aria-pressed", String(other === position)));
      onchoose(row);
    }, { class: "pick", "aria-pressed": String(position === 0) }),
  );
  return bars(rows.map((row, position) => ({ label: buttons[position], score: row.score })), caption, noun);
}

/** A part of a text by the positions of characters, as the server counts them: JavaScript counts UTF-16's units. */
function sliceCharacters(characters, start, end) {
  return characters.slice(start, end).join("");
}

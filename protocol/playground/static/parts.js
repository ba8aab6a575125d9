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

/** Whether a text has characters that can be seen. */
function isSeen(text) {
  return /[^\s\p{Cc}\p{Default_Ignorable_Code_Point}]/u.test(text);
}

/** A text as a label: one that cannot be seen is named by its characters. */
function nameLabel(text) {
  if (text === "") return "(empty)";
  if (isSeen(text)) return text;
  const name = (character) => `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
  return Array.from(text, (each) => (each === " " ? "␣" : name(each))).join(" ");
}

/** The text in a control; halves of characters, which no request can hold, become U+FFFD. */
function readValue(control) {
  return control.value.toWellFormed();
}

/** A choice of few: `choices` are pairs of a value and a title. */
function dropDown(choices) {
  return element("select", {}, choices.map(([value, title]) => element("option", { value }, title)));
}

function checkBox(label) {
  const box = element("input", { type: "checkbox" });
  return { box, element: element("label", { class: "check" }, box, ` ${label}`) };
}

/** Fields that few need, folded away. */
function optionalFields(...fields) {
  const grid = element("div", { class: "grid" }, fields);
  return element("details", { class: "options" }, element("summary", {}, "Options"), grid);
}

/** Buttons of which one is pressed: radio buttons, so that arrow keys choose. `choices` are `{id, title}`. */
function segments(legend, choices, chosen, onchoose) {
  const name = newId();
  return element(
    "fieldset",
    { class: "segments" },
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
 * The others come in slices, so that the page goes on to react; the first of them gets the focus.
 */
function appendMany(parent, items, build, noun) {
  const append = (count) => {
    const next = parent.children.length;
    parent.append(...items.slice(next, next + count).map((item, position) => build(item, next + position)));
  };
  append(FIRST_ITEMS);
  if (items.length <= FIRST_ITEMS) return null;
  const more = button(`Show all ${items.length} ${noun}`, () => {
    const step = () => {
      append(ITEMS_A_FRAME);
      if (parent.children.length < items.length) requestAnimationFrame(step);
    };
    step();
    more.remove();
    focusOn(parent.children[FIRST_ITEMS]);
  });
  return more;
}

/** Give the focus to an element that is no control. */
function focusOn(node) {
  node.tabIndex = -1;
  node.focus();
}

/** A table with a head. `columns` are texts or elements. */
function table(kind, caption, columns, body) {
  return element(
    "table",
    { class: kind },
    element("caption", { class: "unseen" }, caption),
    element("thead", {}, element("tr", {}, columns.map((column) => element("th", { scope: "col" }, column)))),
    body,
  );
}

/** The scores that an empty bar and a whole bar stand for: 0 and 1, or the lowest and the highest score beyond them. */
function scoreRange(scores) {
  return {
    low: scores.reduce((low, score) => Math.min(low, score), 0),
    high: scores.reduce((high, score) => Math.max(high, score), 1),
  };
}

/** The bar of a score, which is longer the higher the score is. */
function bar(score, { low, high }) {
  return element("span", { class: "bar", css: { "--share": (score - low) / (high - low) } });
}

/**
 * A table of labels with a bar and a score each, as `[table, button or null]`; without rows, a sentence that says so.
 *
 * @param rows `{label, score}`; a label is a text or an element
 */
function bars(rows, caption, noun = "classes") {
  if (rows.length === 0) return [element("p", {}, `No ${noun}.`)];
  const range = scoreRange(rows.map(({ score }) => score));
  const body = element("tbody");
  const build = ({ label, score }) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, typeof label === "string" ? nameLabel(label) : label),
      element("td", { class: "track", "aria-hidden": "true" }, bar(score, range)),
      element("td", { class: "score" }, formatScore(score)),
    );
  const more = appendMany(body, rows, build, noun);
  return [table("bars", caption, ["Label", "Bar", "Score"], body), more];
}

/** The first of rows of `{label, score}`, the best, in words. */
function describeBest(rows, noun) {
  return rows.length ? `${nameLabel(rows[0].label)}: ${formatScore(rows[0].score)}` : `No ${noun}.`;
}

/** `bars` whose labels are buttons, of which one is pressed; `onchoose` gets the row. */
function choosableBars(rows, caption, noun, onchoose) {
  const buttons = rows.map((row, position) =>
    button(nameLabel(row.label), () => {
      buttons.forEach((each, other) => each.setAttribute("aria-pressed", String(other === position)));
      onchoose(row);
    }, { class: "pick", "aria-pressed": String(position === 0) }),
  );
  return bars(rows.map((row, position) => ({ label: buttons[position], score: row.score })), caption, noun);
}

/**
 * The nodes of a text in which spans are marked; of spans that overlap, the first is marked.
 *
 * @param spans `{start, end, attributes, label}`, in characters, as the server counts them: JavaScript counts UTF-16's
 *   units. Spans without a position are left out; a label is optional.
 */
function markSpans(text, spans) {
  const characters = Array.from(text);
  const slice = (start, end) => characters.slice(start, end).join("");
  const nodes = [];
  let done = 0;
  const inOrder = spans.filter(({ start, end }) => start !== null && start < end).sort((a, b) => a.start - b.start);
  for (const { start, end, attributes, label } of inOrder) {
    if (start < done) continue;
    const marked = element("mark", attributes, slice(start, end));
    // Screen readers say the comma; nobody sees or copies it.
    if (label) marked.append(element("span", { class: "unseen" }, ", "), element("span", { class: "label" }, label));
    nodes.push(slice(done, start), marked);
    done = end;
  }
  return [...nodes, slice(done)];
}

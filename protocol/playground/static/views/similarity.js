registerView({
  id: "similarity",
  title: "Compare texts",
  tasks: ["text_embedding"],
  capability: "embeddings",

  create(model) {
    const texts = textList("Texts", "text", [
      "Sarah lives in Munich.",
      "Munich is where Sarah has her home.",
      "Bread is made of flour and water.",
      "How do I bake a loaf?",
    ]);
    return {
      fields: [texts.element],
      read() {
        return { path: "v1/embeddings", body: { model: model.id, input: texts.read(), encoding_format: "float" } };
      },
      show(answer, { body }) {
        const vectors = answer.data.map(({ embedding }) => toUnit(embedding));
        const dimensions = answer.data[0].embedding.length;
        const note = `Cosine similarity of vectors of ${dimensions} numbers: 1 means the same direction, \
0 means unrelated.`;
        // Each pair once: the rows of the lower triangle.
        const rows = vectors.map((one, row) => vectors.slice(0, row + 1).map((other) => multiply(one, other)));
        const cosine = (row, column) => rows[Math.max(row, column)][Math.min(row, column)];
        const summary = vectors.length > 1 ? describeClosest(rows) : `A vector of ${dimensions} numbers`;
        return { content: [...heatMap(body.input, cosine), element("p", { class: "hint" }, note)], summary };
      },
    };
  },
});

function multiply(one, other) {
  return one.reduce((sum, value, position) => sum + value * other[position], 0);
}

/** The vector with length 1; of zeros, as it is. */
function toUnit(vector) {
  const length = Math.sqrt(multiply(vector, vector)) || 1;
  return vector.map((value) => value / length);
}

/** The pair of different texts with the largest cosine, in words. */
function describeClosest(rows) {
  const pairs = rows.flatMap((cosines, row) => cosines.slice(0, row).map((score, column) => ({ score, row, column })));
  const { score, row, column } = pairs.reduce((best, pair) => (pair.score > best.score ? pair : best));
  return `The most similar are text ${column + 1} and text ${row + 1}: ${score.toFixed(2)}`;
}

/** The cosine of each pair as a table, and a button for all if there are many; the larger, the darker. */
function heatMap(texts, cosine) {
  const build = (count) => {
    const shown = texts.slice(0, count);
    const columns = shown.map((text, column) => element("span", { title: text }, String(column + 1)));
    const rows = shown.map((text, row) => element("tr", {},
      element("th", { scope: "row", title: text }, element("div", { class: "clamped" },
        element("span", { class: "number" }, String(row + 1)), text)),
      shown.map((_, column) => {
        const value = cosine(row, column);
        return element("td", { css: { "--share": Math.min(Math.max(value, 0), 1) } }, value.toFixed(2));
      })));
    return table("heat", "Similarity of the texts", ["Text", ...columns], element("tbody", {}, rows));
  };
  const attributes = { class: "scroll wide", tabindex: "0", role: "group", "aria-label": "Similarity of the texts" };
  const scrolling = element("div", attributes, build(FIRST_ITEMS));
  if (texts.length <= FIRST_ITEMS) return [scrolling];
  const more = button(`Show all ${texts.length} texts`, () => {
    scrolling.replaceChildren(build(texts.length));
    scrolling.focus();
    more.remove();
  });
  return [scrolling, more];
}

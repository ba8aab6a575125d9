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
        const note = `Cosines of vectors of ${dimensions} numbers: 1 is the same direction, 0 is none in common.`;
        const pairs = vectors.flatMap((one, row) => vectors.slice(row + 1).map((other, next) => ({
          score: multiply(one, other), row, column: row + 1 + next,
        })));
        const best = pairs.sort((one, other) => other.score - one.score)[0];
        const summary = best
          ? `The most similar are text ${best.row + 1} and text ${best.column + 1}: ${best.score.toFixed(2)}`
          : `A vector of ${dimensions} numbers`;
        return { content: [...heatMap(body.input, vectors), element("p", { class: "hint" }, note)], summary };
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

/** The cosine of each pair as a table, and a button for all if there are many; the larger, the darker. */
function heatMap(texts, vectors) {
  const build = (count) => {
    const shown = vectors.slice(0, count);
    const columns = shown.map((_, column) => element("span", { title: texts[column] }, String(column + 1)));
    const rows = shown.map((one, row) => element("tr", {},
      element("th", { scope: "row", title: texts[row] }, element("div", { class: "clamped" },
        element("span", { class: "number" }, String(row + 1)), texts[row])),
      shown.map((other) => {
        const cosine = multiply(one, other);
        return element("td", { css: { "--share": Math.min(Math.max(cosine, 0), 1) } }, cosine.toFixed(2));
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

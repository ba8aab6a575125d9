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
    ], 1);
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
        return { content: [heatMap(body.input, vectors), element("p", { class: "hint" }, note)], summary };
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

/** The cosine of each pair as a table; a cell is the darker the larger its number. */
function heatMap(texts, vectors) {
  const columns = texts.map((text, position) => element("th", { scope: "col", title: text }, String(position + 1)));
  const body = element("tbody");
  const more = appendMany(body, vectors, (one, row) => element("tr", {},
    element("th", { scope: "row" }, element("span", { class: "number" }, String(row + 1)), texts[row]),
    vectors.map((other) => {
      const cosine = multiply(one, other);
      return element("td", { css: { "--share": Math.min(Math.max(cosine, 0), 1) } }, cosine.toFixed(2));
    })), "texts");
  const table = element("table", { class: "heat" },
    element("caption", { class: "unseen" }, "Similarity of the texts"),
    element("thead", {}, element("tr", {}, element("td"), columns)), body);
  const scrolling = { class: "scroll wide", tabindex: "0", role: "group", "aria-label": "Similarity of the texts" };
  return element("div", scrolling, table, more);
}

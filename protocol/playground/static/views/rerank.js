registerView({
  id: "rerank",
  title: "Sort documents",
  tasks: ["text_ranking"],
  alsoTasks: ["text_embedding"],
  capability: "rerank",

  create(model) {
    const query = textInput("Where does Sarah live?");
    const documents = textList("Documents", "document", [
      "Bread is made of flour.",
      "Tom likes to travel to Munich.",
      "Sarah lives in Munich.",
    ], 1);
    const most = numberInput("", { min: 1, step: 1, placeholder: "all" });
    return {
      fields: [field("Query", query), documents.element, options(field("The best so many", most))],
      read() {
        const best = readNumber(most);
        const body = { model: model.id, query: readText(query), documents: documents.read() };
        return { path: "v1/rerank", body: best ? { ...body, top_n: best } : body };
      },
      show({ results }, { body }) {
        const scores = results.map((each) => Math.abs(each.relevance_score));
        const whole = Math.max(1, ...scores);
        const list = element("ol", { class: "ranking wide" });
        const more = appendMany(list, results, ({ index, relevance_score: score }) => element("li", {},
          element("p", {}, body.documents[index]),
          element("div", { class: "rank" },
            element("span", { class: "bar-track", "aria-hidden": "true" },
              element("span", { class: score < 0 ? "bar below" : "bar", css: { "--share": Math.abs(score) / whole } })),
            element("span", { class: "score" }, formatScore(score)),
            element("span", { class: "hint" }, `document ${index + 1}`))), "documents");
        const [first] = results;
        const summary = `First is document ${first.index + 1}: ${formatScore(first.relevance_score)}`;
        return { content: [list, more], summary };
      },
    };
  },
});

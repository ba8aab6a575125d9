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
    ]);
    const topN = numberInput("", { min: 1, step: 1, placeholder: "all" });
    return {
      fields: [field("Query", query), documents.element, optionalFields(field("Number of results", topN))],
      read() {
        const count = readNumber(topN);
        const body = { model: model.id, query: readText(query), documents: documents.read() };
        return { path: "v1/rerank", body: count ? { ...body, top_n: count } : body };
      },
      show({ results }, { body }) {
        const range = scoreRange(results.map((each) => each.relevance_score));
        const list = element("ol", { class: "ranking wide" });
        const build = ({ index, relevance_score: score }) =>
          element("li", {},
            element("p", {}, body.documents[index]),
            element("div", { class: "rank" },
              element("span", { class: "bar-track", "aria-hidden": "true" }, bar(score, range)),
              element("span", { class: "score" }, formatScore(score)),
              element("span", { class: "hint" }, `document ${index + 1}`)));
        const more = appendMany(list, results, build, "documents");
        const rows = results.map((each) => ({ label: `document ${each.index + 1}`, score: each.relevance_score }));
        return { content: [list, more], summary: `First: ${describeBest(rows, "documents")}` };
      },
    };
  },
});

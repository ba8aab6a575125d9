registerView({
  id: "entities",
  title: "Find entities",
  tasks: ["token_classification"],

  create(model) {
    const text = textArea("My name is Sarah and I live in Munich.");
    const strategy = dropDown([
      ["", "the server's own"],
      ["none", "none: tokens"],
      ["simple", "simple: tokens of one label"],
      ["first", "first: words by their first token"],
      ["average", "average: words by the mean"],
      ["max", "max: words by their best token"],
    ]);
    return {
      fields: [field("Text", text), optionalFields(field("Merge tokens into entities", strategy))],
      read() {
        const parameters = strategy.value ? { parameters: { aggregation_strategy: strategy.value } } : {};
        return { path: hubPath(model), body: { inputs: readText(text), ...parameters } };
      },
      listTexts: ({ inputs }) => [inputs],
      show(answer, { body }) {
        const kind = ({ label }) => label.replace(/^[BI]-/, "");
        const entities = answer.map((each) => ({ ...each, label: each.entity_group ?? each.entity }));
        const kinds = [...new Set(entities.map(kind))].sort();
        const hue = (entity) => (kinds.indexOf(kind(entity)) * 360) / kinds.length + 275;
        const spans = entities.map((each) => ({
          ...each, attributes: { class: "entity", css: { "--hue": hue(each) }, title: formatScore(each.score) },
        }));
        const passage = element("p", { class: "passage wide" }, markSpans(body.inputs, spans));
        if (entities.length === 0) return { content: [passage], summary: "No entities." };
        const rows = element("tbody");
        const build = ({ word, label, score }) =>
          element("tr", {},
            element("th", { scope: "row" }, nameLabel(word)),
            element("td", {}, label),
            element("td", { class: "score" }, formatScore(score)));
        const more = appendMany(rows, entities, build, "entities");
        const first = entities.slice(0, 5).map((each) => `${each.word}, ${each.label}`);
        const summary = `${entities.length} entities: ${first.join("; ")}`;
        return { content: [passage, table("plain", "Entities", ["Entity", "Label", "Score"], rows), more], summary };
      },
    };
  },
});

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
      fields: [field("Text", text), options(field("Merge tokens into entities", strategy))],
      read() {
        const parameters = strategy.value ? { parameters: { aggregation_strategy: strategy.value } } : {};
        return { path: hubPath(model), body: { inputs: readText(text), ...parameters } };
      },
      listTexts: ({ inputs }) => [inputs],
      show(answer, { body }) {
        const entities = answer.map((each) => ({ ...each, label: each.entity_group ?? each.entity }));
        if (entities.length === 0) {
          return { content: [element("p", { class: "passage wide" }, body.inputs)], summary: "No entities." };
        }
        const kind = ({ label }) => label.replace(/^[BI]-/, "");
        const kinds = [...new Set(entities.map(kind))].sort();
        const hue = (entity) => (kinds.indexOf(kind(entity)) * 360) / kinds.length + 275;
        const rows = element("tbody");
        const more = appendMany(rows, entities, (each) => element("tr", {},
          element("th", { scope: "row" }, each.word),
          element("td", {}, each.label),
          element("td", { class: "score" }, formatScore(each.score))), "entities");
        const names = ["Entity", "Label", "Score"].map((name) => element("th", { scope: "col" }, name));
        const table = element("table", { class: "plain" }, element("caption", { class: "unseen" }, "Entities"),
          element("thead", {}, element("tr", {}, names)), rows);
        const first = entities.slice(0, 5).map((each) => `${each.word}, ${each.label}`);
        const summary = `${entities.length} entities: ${first.join("; ")}`;
        return { content: [markEntities(body.inputs, entities, hue), table, more], summary };
      },
    };
  },
});

/** The text with its entities marked, each followed by its label. */
function markEntities(text, entities, hue) {
  const characters = Array.from(text);
  const passage = element("p", { class: "passage wide" });
  let end = 0;
  const inOrder = entities.filter((each) => each.start !== null).sort((one, other) => one.start - other.start);
  for (const each of inOrder) {
    // Of entities that overlap the first is marked.
    if (each.start < end) continue;
    passage.append(sliceCharacters(characters, end, each.start));
    passage.append(element("mark", { class: "entity", css: { "--hue": hue(each) }, title: formatScore(each.score) },
      sliceCharacters(characters, each.start, each.end), element("span", { class: "label" }, each.label)));
    end = each.end;
  }
  passage.append(sliceCharacters(characters, end));
  return passage;
}

registerView({
  id: "sparse",
  title: "Token weights",
  tasks: ["sparse_embedding"],

  create(model, lookUp) {
    const text = textArea("The capital of France is Paris.");
    const topN = numberInput("20", { min: 1, step: 1 });
    return {
      fields: [field("Text", text), optionalFields(field("Number of weights", topN, "Empty: all"))],
      read() {
        const count = readNumber(topN);
        const parameters = count ? { parameters: { max_active_dims: count } } : {};
        const path = `v1/models/${encodeName(model.id)}:predict`;
        return { path, body: { instances: [readText(text)], ...parameters } };
      },
      listTexts: ({ instances }) => instances,
      show(answer) {
        const [entries] = answer.predictions;
        const rows = [...entries].sort((one, other) => other.value - one.value)
          .map(({ index, value }) => ({ label: element("span", {}, `token ${index}`), score: value, index }));
        nameTokens(rows.slice(0, MAX_NAMED_TOKENS), model, lookUp);
        const summary = `${rows.length} tokens have a weight.`;
        return { content: bars(rows, "Tokens by weight", "tokens"), summary };
      },
    };
  },
});

const MAX_NAMED_TOKENS = 500;

/** Write the texts of tokens in place of their ids; they stay ids if the server does not tell. */
async function nameTokens(rows, model, lookUp) {
  if (rows.length === 0) return;
  const path = `decode?model=${encodeURIComponent(model.id)}`;
  const texts = await lookUp({ path, body: { ids: rows.map(({ index }) => [index]), skip_special_tokens: false } });
  if (Array.isArray(texts)) texts.forEach((text, position) => (rows[position].label.textContent = nameLabel(text)));
}

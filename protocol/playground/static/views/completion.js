registerView({
  id: "completion",
  title: "Continue a text",
  tasks: ["text_generation"],
  capability: "completions",

  create(model) {
    const prompt = textArea("The three primary colors are");
    const maxTokens = numberInput("64", { min: 1, step: 1 });
    const temperature = numberInput("0", { min: 0, max: 2, step: "any" });
    return {
      fields: [
        field("Text", prompt),
        options(field("Maximum tokens", maxTokens), field("Temperature", temperature, "0: always the likeliest token")),
      ],
      read() {
        const body = { model: model.id, prompt: readText(prompt), ...readGeneration(maxTokens, temperature) };
        return { path: "v1/completions", body };
      },
      start({ body }) {
        const words = element("mark", { class: "added" });
        const note = element("p", { class: "hint" });
        let usage, reason;
        return {
          content: [element("p", { class: "passage wide" }, body.prompt, words), note],
          usage: () => usage,
          onEvent(event) {
            const [choice] = event.choices ?? [];
            words.append(choice?.text ?? "");
            reason = choice?.finish_reason ?? reason;
            usage = event.usage ?? usage;
          },
          finish(outcome) {
            words.normalize();
            note.textContent = describeEnd(words.textContent, outcome, reason);
            return words.textContent;
          },
        };
      },
    };
  },
});
